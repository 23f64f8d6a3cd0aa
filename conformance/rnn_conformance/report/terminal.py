"""The output of the commands, as rich renderables. Nothing is shown by colour alone.

Names, reasons and messages come from plugins and report files. So nothing here is markup: the console takes text as it
is, our own styles are :class:`rich.text.Text`, and control characters are shown as escapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..suite.verdict import GLYPHS, LawResult
from .causes import causes
from .model import FAILED, HELD, INCOMPLETE, BackendRun, LawInfo, Results, replay_line

if TYPE_CHECKING:
    from rnn_backends import Listing, Verdict

PIPED_WIDTH = 160
IN_FULL = 4
"""The number of causes that are shown in full; the others take one line each."""
NAMED = 4
"""The number of laws per cause that are listed by name."""


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str, line: bool = False) -> str:
    """The text with its control characters shown as escapes; with ``line``, line breaks and tabs too."""
    shown = text.translate(_ESCAPES)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if line else shown


def plain(text: str, style: str = "") -> Text:
    """Text without markup: markup in it is shown literally."""
    return Text(printable(text), style)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=plain(title) if title else None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.strip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def state_of(row: Listing) -> str:
    """One word for a listing: ``ready``, ``disabled`` or ``broken``."""
    if row.reason is None:
        return "ready"
    return "disabled" if row.reason.startswith("disabled") else "broken"


def listings_table(rows: Iterable[Listing]) -> Table:
    """``rnn-backends list``."""
    table = _table("backend", "distribution", "state", "reason")
    for row in rows:
        state = state_of(row)
        style = {"ready": "green", "disabled": "dim", "broken": "red"}[state]
        table.add_row(plain(row.name), plain(row.distribution), Text(state, style), plain(row.reason or ""))
    return table


def verdicts_table(verdicts: Iterable[Verdict], call: str) -> Table:
    """``rnn-backends explain``."""
    table = _table("backend", "accepted", "auto", "reason", title=call)
    for v in verdicts:
        accepted = Text("yes", "green") if v.accepted else Text("no", "red")
        first_use = "" if v.prepared else v.preparation or "its first use prepares it, which may take seconds"
        said = "; ".join(filter(None, (v.reason, first_use)))
        table.add_row(plain(v.name), accepted, "takes it" if v.chosen else "", plain(said))
    return table


def runs_table(runs: Sequence[BackendRun]) -> Table:
    """``rnn-backends check``: one row per backend."""
    waived = [">waived"] * any(run.report and run.report.waived for run in runs)
    table = _table("backend", "verdict", ">passed", ">declined", *waived, ">failed", ">error", ">time")
    table.padding = (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True  # in eighty columns a heading must not break within a word
    for run in runs:
        table.add_row(*_row(run, bool(waived)))
    return table


def _row(run: BackendRun, with_waived: bool) -> tuple[str | Text, ...]:
    report, name = run.report, plain(run.label)
    if report is None:
        return name, Text("? not run", "yellow"), *"-" * (5 + with_waived)
    failed, declined, waived = len(report.failures), report.count("declined"), len(report.waived)
    passed = len(report.results) - failed - declined - waived
    numbers = [str(n) for n in (passed, declined, *[waived] * with_waived, failed)]
    return (name, _verdict(run), *numbers, percent(report.worst_error_ratio), _times(run.time_ratio))


def worst_errors(runs: Sequence[BackendRun]) -> list[str]:
    """One line per backend: its worst error and the law of that error."""
    lines = []
    for run in runs:
        compared = [r for r in run.results if r.worst_error_ratio is not None]
        if compared:
            worst = max(compared, key=lambda result: result.worst_error_ratio or 0.0)
            lines.append(f"{run.label}: {percent(worst.worst_error_ratio)} in {worst.law}")
    return lines


def _verdict(run: BackendRun) -> Text:
    if run.failures:
        return Text(run.failures[0].label, "bold red")
    if not run.complete:
        return Text("? incomplete", "yellow")
    held = Text("✓ held", "green")
    if run.report and run.report.waived:
        held.append(f" {GLYPHS['waived']} some waived", "yellow")
    return held


def percent(value: float | None) -> str:
    """An error over its tolerance, as a share of it."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "inf"
    if 0 < value < 0.0005:
        return "< 0.1%"
    return f"{value:.1%}" if value < 10 else f"{value:.2g} x"


def error(value: float) -> str:
    """An error ratio in words."""
    if not math.isfinite(value):
        return "not finite"
    return f"{percent(value)} of its tolerance" if value < 10 else f"{value:.2g} times its tolerance"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def console(stderr: bool = False) -> Console:
    """A console on stdout; for a pipe or a file wide enough for every table, as the reader's width is unknown."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=PIPED_WIDTH)
    return made


def print_results(results: Results, to: Console, timed_on: str) -> None:
    """The complete output of ``rnn-backends check``; the last line is its summary."""

    def say(text: str, style: str = "") -> None:
        to.print(plain(text), style=style, soft_wrap=True)

    to.print(runs_table(results.runs))
    errors = worst_errors(results.runs)
    if errors:  # the table's columns are explained where they have numbers
        say("error  the worst, as a share of its tolerance", style="dim")
        for line in errors:
            say(f"       {line}", style="dim")
    if any(run.time_ratio is not None for run in results.runs):
        say("time   forward and backward, over torch.nn.LSTM's, one trajectory at a time", style="dim")
        say(f"       ({timed_on})", style="dim")
    if any(run.time_ratio is not None and not run.device.startswith("cpu") for run in results.runs):
        say("       (on a GPU both are mostly kernel launches for very few rows, so the ratio says", "dim")
        say("       little about speed; measure that with rnn-backends bench NAME --device cuda)", "dim")
    for line in dtype_lines(results.runs):
        say(line, "dim")
    for run in results.runs:
        if run.failures:
            say("\n" + failures_text(run, results))
        elif not run.complete:
            little = run.report.shows_little if run.report and run.report.has_all else ""
            say(f"\n? {run.label}: {run.reason or little or 'some laws have no result'}")
        for waived in run.report.waived if run.report else ():
            say(f"\n{waived.label.replace('waived', run.label)}: {waived.law} is waived: {waived.waived}")
    say("\n" + closing(results), style="bold")


def dtype_lines(runs: Sequence[BackendRun]) -> list[str]:
    """One line per backend: how many laws ran in which dtype, how many cases it rejects; equal lines are merged."""
    said: dict[str, list[str]] = {}
    for run in runs:
        if run.report and run.report.dtypes:
            counts = list(run.report.dtypes.items())
            first = f"{counts[0][0]} in {counts[0][1]} law{'s' * (counts[0][1] != 1)}"
            words = ", ".join([first, *(f"{dtype} in {count}" for dtype, count in counts[1:])])
            beyond = sum(result.out_of_reach for result in run.results)
            words += f"; {beyond} drawn cases out of the backend's reach" if beyond else ""
            said.setdefault(words, []).append(run.label)
    who = len(runs) > 1
    return [f"dtypes {words}" + (f" ({', '.join(names)})" if who else "") for words, names in said.items()]


def closing(results: Results) -> str:
    """The summary in one line: whether all laws held, how many ran and how many are waived."""
    ran = [run for run in results.runs if run.report]
    found = [result for run in ran for result in run.results]
    laws = len({result.law for result in found})
    failed = sum(len(run.failures) for run in results.runs)
    headline = {HELD: "✓ every law held", FAILED: f"✗ {failed} failed", INCOMPLETE: "? the run is incomplete"}
    if results.status == HELD and results.waived:
        headline[HELD] = "✓ every law held apart from waived failures"
    return (
        f"{headline[results.status]}: {laws} law{'s' * (laws != 1)} ran on {len(ran)} of {len(results.runs)} backends, "
        f"{sum(r.cases for r in found)} cases, profile {results.profile}, seed {results.seed}, "
        f"{results.seconds:.0f} s; {results.waived} waived{_little(ran)}"
    )


def _little(ran: Sequence[BackendRun]) -> str:
    """The runs with many declined laws; with names if there are several runs."""
    said = [(run.label, run.report.shows_little) for run in ran if run.report]
    return "".join(f"; {f'{label}: ' if len(ran) > 1 else ''}{words}" for label, words in said if words)


def failures_text(run: BackendRun, results: Results) -> str:
    """The failures of one backend by cause: the plainest law of each in full, the number of the others."""
    options = f" --profile {results.profile} --seed {results.seed}"
    found = causes(run.failures, results.expected)
    blocks = []
    for cause in found[:IN_FULL]:
        block = failure_text(cause.first, results.info(cause.first.law), run.device, options)
        blocks.append(block + _also(cause.others))
    rest = [f"{c.first.label}  {run.label}: {c.first.law}" for c in found[IN_FULL:]]
    if rest:
        blocks.append("\n".join(rest) + f"\n  {len(rest)} more causes in short; --html FILE has all of them in full")
    return "\n\n".join(blocks)


def _also(others: Sequence[LawResult]) -> str:
    """The other laws with the same cause, a few of them by name."""
    if not others:
        return ""
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    names = ", ".join(result.law for result in others[:NAMED])
    laws = "1 law fails" if len(others) == 1 else f"{len(others)} laws fail"
    return f"\n  also    {laws} where this one fails too: {names}{more}"


def failure_text(result: LawResult, info: LawInfo | None = None, device: str = "cpu", options: str = "") -> str:
    """What failed, where, and what to do: plain text, a few lines."""
    where = "" if device == "cpu" else f" on {device}"
    lines = [f"{GLYPHS[result.state]} {result.backend}{where}: {result.law} ({result.state.replace('_', ' ')})"]
    if info:
        lines.append(f"  law     {info.sentence}")
    lines += [f"  {'found  ' if not k else '       '} {line}" for k, line in enumerate(result.message.splitlines())]
    if result.worst_error_ratio is not None and result.worst_error_ratio > 1:
        among = f", the worst of {result.cases} cases" if result.cases > 1 else ""
        lines.append(f"  error   {error(result.worst_error_ratio)}{among}")
    if result.looks_like:
        lines.append(f"  looks like: {result.looks_like}")
    again = f"rnn-backends check {result.backend} -k {result.law}{options}"
    if device != "cpu":
        again += f" --device {device}"
    lines.append(f"  again   {replay_line(result, device) or again}")
    return "\n".join(lines)
