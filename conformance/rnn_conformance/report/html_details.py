"""The parts of the page besides its table of laws: details, failures in full, capabilities, the run."""

from __future__ import annotations

import re
from html import escape

from ..suite.verdict import BAD, GLYPHS, LawResult
from .causes import causes
from .model import BackendRun, Results, replay_line
from .terminal import error


def details(results: Results) -> dict[str, dict[str, object]]:
    """The details of each cell, shown on a click: a title, and rows of name, text and whether it is code."""
    return {f"{k}:{law}": _detail(run, law, results) for k, run in enumerate(results.runs) for law in results.expected}


def _detail(run: BackendRun, law: str, results: Results) -> dict[str, object]:
    result = next((r for r in run.results if r.law == law), None)
    info = results.info(law)
    rows: list[tuple[str, str, bool]] = [("law", info.sentence, False)]
    if info.trait:
        claimed = run.report is not None and info.trait in run.report.header.claimed
        rows.append(("capability", f"{info.trait}, {'claimed' if claimed else 'not claimed'}", False))
    if result is None:
        rows.append(("verdict", f"? no result: {run.reason or 'it is missing'}", False))
    else:
        rows += _rows(result, run.device)
    return {"title": f"{run.label}: {law}", "rows": rows}


def breakable(name: str) -> str:
    """A name as HTML that may break after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def with_code(sentence: str) -> str:
    """A law's sentence as HTML, with the text in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence))


def _rows(result: LawResult, device: str) -> list[tuple[str, str, bool]]:
    cases = f"{result.cases} run, {result.declined} declined"
    cases += f", {result.out_of_reach} out of the backend's reach" if result.out_of_reach else ""
    found: list[tuple[str, str | None, bool]] = [
        ("verdict", result.label, False),
        ("waived", result.waived, False),
        ("found" if not result.ok or result.waived else "reason", result.message, result.verdict in BAD),
        ("plainer law", f"{result.cause} fails on this case too" if result.cause else "", False),
        ("looks like", result.looks_like, False),
        ("worst error", _error(result), False),
        ("cases", cases, False),
        ("dtypes", ", ".join(result.dtypes), False),
        ("smallest case", result.token, True),
        ("run it again", replay_line(result, device), True),
        ("as a program", _script_line(result, device), True),
        ("took", f"{result.seconds:.2f} s", False),
    ]
    return [(name, text, code) for name, text, code in found if text]


def _error(result: LawResult) -> str:
    return "" if result.worst_error_ratio is None else error(result.worst_error_ratio)


def _script_line(result: LawResult, device: str) -> str | None:
    line = replay_line(result, device)
    return f"{line} --script > case.py" if line else None


def articles(results: Results) -> str:
    """Every failure in full, waived ones included: for reading from top to bottom and for printing."""
    failed = [
        (run, r) for run in results.runs for c in causes(run.failures, results.expected) for r in (c.first, *c.others)
    ]
    waived = [(o, r) for o in results.runs if o.report for r in o.report.waived]
    parts = []
    for heading, found in (("Failures", failed), ("Waived", waived)):
        if found:
            inner = "".join(_article(run, result, results) for run, result in found)
            parts.append(f'<section aria-label="{heading.lower()}"><h2>{heading}</h2>{inner}</section>')
    return "\n".join(parts)


def _article(run: BackendRun, result: LawResult, results: Results) -> str:
    rows = [("law", results.info(result.law).sentence, False), *_rows(result, run.device)[1:]]
    listed = "".join(
        f"<dt>{escape(name)}</dt><dd>{f'<pre>{escape(text)}</pre>' if code else _text(name, text)}</dd>"
        for name, text, code in rows
    )
    title = f"{escape(run.label)}: <code>{breakable(result.law)}</code>"
    return f'<article><h3><span class="v {result.state}">{result.label}</span> {title}</h3><dl>{listed}</dl></article>'


def _text(name: str, text: str) -> str:
    return with_code(text) if name == "law" else escape(text)


def traits_table(results: Results) -> str:
    """A table of capabilities: claimed and observed."""
    traits = dict.fromkeys(info.trait for info in results.laws.values() if info.trait)
    if not traits:
        return ""
    head = "".join(f'<th scope="col">{escape(run.label)}</th>' for run in results.runs)
    rows = "".join(
        f'<tr><th scope="row">{escape(trait)}</th>'
        + "".join(f"<td>{_trait(run, trait, results)}</td>" for run in results.runs)
        + "</tr>"
        for trait in traits
    )
    return (
        '<section aria-label="capabilities"><h2>Capabilities: claimed and observed</h2><table id="traits"><thead><tr>'
        f'<th scope="col">capability</th>{head}</tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _trait(run: BackendRun, trait: str, results: Results) -> str:
    if run.report is None:
        return '<span class="v missing">? not run</span>'
    claimed = trait in run.report.header.claimed
    found = [result for result in run.results if results.info(result.law).trait == trait]
    state, observed = _observed(found)
    return f'<span class="v {state}">{GLYPHS[state]} {"claimed" if claimed else "not claimed"}, {observed}</span>'


def _observed(found: list[LawResult]) -> tuple[str, str]:
    """The worst verdict of a capability's laws, and its words."""
    state = {result.state for result in found}
    for verdict, words in (
        ("silently_wrong", "gives wrong numbers"),
        ("failed", "fails"),
        ("crashed", "crashes"),
        ("waived", "fails, waived"),
        ("under_claimed", "works"),
        ("passed", "works"),
    ):
        if verdict in state:
            return verdict, words
    tried = any(result.cases or result.declined for result in found)
    return ("declined", "declines") if tried else ("declined", "not tried")


def run_facts(results: Results) -> str:
    """The run: its profile, seed, rollouts, time and versions."""
    facts = {
        "when": results.when,
        "profile": results.profile + (", strict" if results.strict else ""),
        "seed": str(results.seed),
        "took": f"{results.seconds:.0f} s",
        "rollouts": "; ".join(results.rollouts),
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    return f'<section aria-label="run"><h2>Run</h2><dl>{listed}</dl></section>'
