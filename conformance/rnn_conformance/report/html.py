"""A run as one self-contained page: a column per backend, a row per law, failing laws first.

Every table is plain HTML, so the page can be read, searched and printed without JavaScript, which adds a filter and
opens details. No verdict is shown by colour alone: glyph and word are always present.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ..suite.verdict import GLYPHS, LawResult
from .html_details import articles, breakable, details, run_facts, traits_table, with_code
from .model import FAILED, HELD, INCOMPLETE, BackendRun, Results
from .terminal import percent

SEVERITY = tuple(GLYPHS)
"""The states of a cell, worst first; ``missing``: there is no result."""
BAD_ROW = ("silently_wrong", "failed", "crashed")
HEADINGS = {
    HELD: "✓ Every law held",
    FAILED: "✗ {failed} failed",
    INCOMPLETE: "? The run is incomplete",
}


def page(results: Results) -> str:
    """The whole document."""
    assets = files(__package__).joinpath("assets")
    failed = sum(len(run.failures) for run in results.runs)
    heading = HEADINGS[results.status].format(failed=failed)
    heading += f", {results.waived} waived" if results.waived else ""
    found = Template(assets.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        css=assets.joinpath("report.css").read_text(encoding="utf-8"),
        js=assets.joinpath("report.js").read_text(encoding="utf-8"),
        title=escape(f"{heading}: {', '.join(run.label for run in results.runs)}"),
        heading=escape(heading),
        suite=escape(f"laws of rnn-backends {results.versions.get('rnn-backends', '?')}, {results.when[:10]}"),
        summary=_summary(results),
        toggles=_toggles(results),
        columns="".join(f'<th scope="col">{escape(run.label)}</th>' for run in results.runs),
        groups=_groups(results),
        failures=articles(results),
        traits=traits_table(results),
        run=run_facts(results),
        details=_json(details(results)),
    )
    return found


def _json(data: Any) -> str:
    """JSON inside of a script element: no ``</script>`` and no ``<!--`` may occur in it."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def state_of_cell(run: BackendRun, law: str) -> tuple[str, LawResult | None]:
    """The state of one backend's cell for a law."""
    result = next((r for r in run.results if r.law == law), None)
    if result is None:
        return "missing", None
    return result.state, result


def _summary(results: Results) -> str:
    columns = ("backend", "verdict", "passed", "declined", "waived", "failed", "laws", "worst error", "time")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    rows = "".join(_summary_row(run) for run in results.runs)
    return f'<table class="summary"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _summary_row(run: BackendRun) -> str:
    report, name = run.report, f'<th scope="row"><b>{escape(run.label)}</b></th>'
    if report is None:
        reason = escape(run.reason or "")
        return f'<tr>{name}<td colspan="8"><span class="v missing">? not run</span> {reason}</td></tr>'
    failed, declined, waived = len(report.failures), report.count("declined"), len(report.waived)
    passed = len(report.results) - failed - declined - waived
    verdict = _badge("passed", "held") if run.complete else _badge("missing", "incomplete")
    if failed:
        verdict = _badge("failed", "failed")
    time = f"{run.time_ratio:.2f} x torch" if run.time_ratio is not None else "-"
    numbers = [passed, declined, waived, failed, len(report.header.expected), percent(report.worst_error_ratio), time]
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    return f"<tr>{name}<td>{verdict}</td>{cells}</tr>"


def _badge(state: str, word: str) -> str:
    return f'<span class="v {state}">{GLYPHS[state]} {word}</span>'


def _toggles(results: Results) -> str:
    """A button for each verdict that occurs, with the number of its cells."""
    cells = [state_of_cell(run, law)[0] for run in results.runs for law in results.expected]
    return "".join(
        f'<button class="{state}" data-state="{state}" aria-pressed="true">'
        f"{GLYPHS[state]} {state.replace('_', ' ')} <small>{cells.count(state)}</small></button>"
        for state in SEVERITY
        if state in cells
    )


def _groups(results: Results) -> str:
    """The failing laws, then all others by subject."""
    worst = {law: min(SEVERITY.index(state_of_cell(o, law)[0]) for o in results.runs) for law in results.expected}
    failing = [law for law in results.expected if SEVERITY[worst[law]] in BAD_ROW]
    groups = {"failing": sorted(failing, key=lambda law: worst[law])} if failing else {}
    for law in results.expected:
        if law not in failing:
            groups.setdefault(results.info(law).subject, []).append(law)
    span = len(results.runs) + 1
    return "\n".join(
        f'<tbody><tr class="subject"><th scope="colgroup" colspan="{span}"><b>{escape(subject)}</b> '
        f'<span class="soft">{len(laws)}</span></th></tr>' + "".join(_row(results, law) for law in laws) + "</tbody>"
        for subject, laws in groups.items()
    )


def _row(results: Results, law: str) -> str:
    info = results.info(law)
    found = [(k, *state_of_cell(run, law)) for k, run in enumerate(results.runs)]
    cells = "".join(f"<td>{_cell(k, law, state, result)}</td>" for k, state, result in found)
    about = " ".join((law, law.replace("_", " "), info.subject, info.trait or "", info.sentence)).lower()
    trait = f" [{escape(info.trait)}]" if info.trait else ""
    return (
        f'<tr class="row" data-state="{" ".join(dict.fromkeys(state for _, state, _ in found))}" '
        f'data-text="{escape(about)}"><th scope="row"><span class="law">{breakable(law)}</span>{trait}'
        f"<small>{with_code(info.sentence)}</small></th>{cells}</tr>"
    )


def _cell(k: int, law: str, state: str, result: LawResult | None) -> str:
    worst = result.worst_error_ratio if result else None
    telling = worst is not None and (worst > 1 or state not in BAD_ROW)  # a failure may have no error ratio
    number = f" <small>{percent(worst)}</small>" if telling else ""
    label = f"{GLYPHS[state]} {state.replace('_', ' ')}"
    return f'<button class="v {state}" data-key="{k}:{escape(law)}">{label}{number}</button>'
