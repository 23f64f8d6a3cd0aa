"""What the commands print, as rich renderables. Nothing is said by colour alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rnn_backends import Listing, Verdict

    from .verdicts import LawResult, Report

PIPED_WIDTH = 160
IN_FULL = 4


@dataclass(frozen=True)
class Outcome:
    """What the main job has to say about one backend.

    Attributes:
        name: the backend's.
        report: its laws' results, or ``None`` where it could not be run.
        reason: why it could not be run, or not to the end.
        time_ratio: its time on the rollout over torch.nn.LSTM's, one trajectory at a time.
    """

    name: str
    report: Report | None = None
    reason: str | None = None
    time_ratio: float | None = None

    @property
    def complete(self) -> bool:
        """Whether every law was run."""
        return self.report is not None and self.report.complete and self.reason is None

    @property
    def failures(self) -> list[LawResult]:
        """The bad results, worst first."""
        return self.report.failures if self.report else []


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
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
        table.add_row(row.name, row.distribution, f"[{style}]{state}[/]", escape(row.reason or ""))
    return table


def verdicts_table(verdicts: Iterable[Verdict], asked: str) -> Table:
    """``rnn-backends explain``."""
    table = _table("backend", "accepted", "auto", "reason", title=escape(asked))
    for v in verdicts:
        accepted = "[green]yes[/]" if v.accepted else "[red]no[/]"
        table.add_row(v.name, accepted, "takes it" if v.chosen else "", escape(v.reason or ""))
    return table


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """``rnn-backends check``: one row a backend."""
    table = _table("backend", ">passed", ">declined", ">failed", ">of", ">worst error", ">time", "verdict")
    table.columns[0].no_wrap = True
    for outcome in outcomes:
        table.add_row(*_row(outcome))
    return table


def _row(outcome: Outcome) -> tuple[str, ...]:
    report, name = outcome.report, escape(outcome.name)
    if report is None:
        return name, "-", "-", "-", "-", "-", "-", "[yellow]? not run[/]"
    failed, declined = len(report.failures), report.count("declined")
    passed = len(report.results) - failed - declined
    numbers = [str(n) for n in (passed, declined, failed, len(report.header.expected))]
    return (name, *numbers, margin(report.worst_margin), _times(outcome.time_ratio), _verdict(outcome))


def _verdict(outcome: Outcome) -> str:
    if outcome.failures:
        return f"[bold red]✗ {outcome.failures[0].verdict.replace('_', ' ')}[/]"
    if not outcome.complete:
        return "[yellow]? incomplete[/]"
    return "[green]✓ held[/]"


def margin(value: float | None) -> str:
    """An error over its tolerance, as a share of it."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.1%}" if value < 10 else f"{value:.2g} x"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def console(stderr: bool = False) -> Console:
    """Where to print; into a pipe or a file wide enough for every table, as nobody knows who reads it how."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PIPED_WIDTH)


def failures_text(outcome: Outcome, sentence: Callable[[str], str], options: str = "") -> str:
    """What failed for one backend: the worst in full, the others by name.

    Args:
        outcome: of one backend.
        sentence: gives a law's sentence for its name.
        options: of the command, for the line that runs a law again.
    """
    failures = outcome.failures
    blocks = [failure_text(result, sentence(result.law), options) for result in failures[:IN_FULL]]
    rest = [f"✗ {r.backend}: {r.law} ({r.verdict.replace('_', ' ')})" for r in failures[IN_FULL:]]
    if rest:
        blocks.append("\n".join(rest) + f"\n  {len(rest)} more in short; --json FILE has all of them in full")
    return "\n\n".join(blocks)


def failure_text(result: LawResult, sentence: str = "", options: str = "") -> str:
    """What failed, where, and what to do: plain text, a few lines."""
    lines = [f"✗ {result.backend}: {result.law} ({result.verdict.replace('_', ' ')})"]
    if sentence:
        lines.append(f"  law     {sentence}")
    lines += [f"  {'found  ' if not k else '       '} {line}" for k, line in enumerate(result.message.splitlines())]
    if result.token:
        lines.append(f"  case    {result.token}")
    lines.append(f"  again   rnn-backends check {result.backend} -k {result.law}{options}")
    return "\n".join(lines)
