"""A run as JSON lines: a header that says which laws must come, one line a result, and a footer that counts them.

A report whose results do not reconcile with its header, or that has no footer, is refused: a check that did not run
must not look like one that passed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..suite.verdict import Header, LawResult, Report
from .model import LawInfo, Outcome, Results

FORMAT = "rnn-conformance 1"


class ReportError(ValueError):
    """A file that is no report, or one that must not be trusted."""


def text(results: Results) -> str:
    """A run, one JSON object a line."""
    return "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines(results))


def lines(results: Results) -> Iterator[dict[str, Any]]:
    """Header, results, footer, as plain data. An infinite margin is the text ``"inf"``: JSON has no such number."""
    yield {
        "kind": "header",
        "format": FORMAT,
        **{name: getattr(results, name) for name in ("when", "profile", "seed", "strict")},
        "versions": dict(results.versions),
        "rollouts": list(results.rollouts),
        "laws": {name: asdict(info) for name, info in results.laws.items()},
        "runs": [_run(outcome, results) for outcome in results.outcomes],
    }
    count = 0
    for outcome in results.outcomes:
        for result in outcome.results:
            count += 1
            row = asdict(result) | {"worst_margin": _finite(result.worst_margin)}
            yield {"kind": "result", "device": outcome.device, **row}
    verdicts = Counter(result.says for outcome in results.outcomes for result in outcome.results)
    yield {
        "kind": "footer",
        "results": count,
        "verdicts": dict(sorted(verdicts.items())),
        "complete": results.complete,
        "status": results.status,
        "seconds": round(results.seconds, 3),
    }


def _run(outcome: Outcome, results: Results) -> dict[str, Any]:
    header = outcome.report.header if outcome.report else None
    return {
        "backend": outcome.name,
        "device": outcome.device,
        "claimed": list(header.claimed if header else ()),
        "expected": list(header.expected if header else results.expected),
        "reason": outcome.reason,
        "time_ratio": outcome.time_ratio,
    }


def _finite(number: float | None) -> float | str | None:
    return number if number is None or math.isfinite(number) else "inf"


def read(written: str) -> Results:
    """Read what :func:`text` wrote.

    Raises:
        ReportError: it is no report, it was cut off, or its results are not those that its header and footer say.
    """
    try:
        rows = [json.loads(line) for line in written.split("\n") if line.strip()]
        if not rows or not isinstance(rows[0], dict) or rows[0].get("format") != FORMAT:
            raise ReportError(f"not a report: the first line is no header of the format {FORMAT!r}")
        if rows[-1].get("kind") != "footer":
            raise ReportError("the report has no footer: it was cut off")
        found = _results(rows[0], rows[1:-1], rows[-1])
    except json.JSONDecodeError as error:
        raise ReportError(f"not a report: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"not a report: {error!r}") from error
    _reconcile(found, rows[-1])
    return found


def _results(head: dict[str, Any], body: list[dict[str, Any]], foot: dict[str, Any]) -> Results:
    left: dict[tuple[str, str], list[LawResult]] = {(run["backend"], run["device"]): [] for run in head["runs"]}
    for row in body:
        place = (row["backend"], row["device"])
        if row.pop("kind") != "result" or place not in left:
            raise ReportError(f"the header does not expect a result of {place[0]} on {place[1]}")
        margin = None if row["worst_margin"] is None else float(row["worst_margin"])
        del row["device"]
        left[place].append(LawResult(**row | {"worst_margin": margin}))
    outcomes = tuple(_outcome(head, run, left[run["backend"], run["device"]]) for run in head["runs"])
    return Results(
        profile=head["profile"],
        seed=head["seed"],
        laws={name: LawInfo(**info) for name, info in head["laws"].items()},
        expected=tuple(head["laws"]),
        outcomes=outcomes,
        strict=head["strict"],
        rollouts=tuple(head["rollouts"]),
        seconds=foot["seconds"],
        versions=head["versions"],
        when=head["when"],
    )


def _outcome(head: dict[str, Any], run: dict[str, Any], results: list[LawResult]) -> Outcome:
    header = Header(
        run["backend"], run["device"], head["profile"], head["seed"], tuple(run["expected"]), head["versions"],
        tuple(head["rollouts"]), tuple(run["claimed"]), head["strict"],
    )  # fmt: skip
    report = Report(header, results) if run["reason"] is None else None
    return Outcome(run["backend"], report, run["reason"], run["time_ratio"], run["device"])


def _reconcile(results: Results, foot: dict[str, Any]) -> None:
    wrong = []
    for outcome in results.outcomes:
        if outcome.report is None:
            wrong.append(f"{outcome.label} was not run: {outcome.reason}")
            continue
        wrong += [f"{outcome.label} has no result of {law}" for law in outcome.report.missing]
        wrong += [f"{outcome.label} has an unexpected result of {law}" for law in outcome.report.unexpected]
    count = sum(len(outcome.results) for outcome in results.outcomes)
    if foot["results"] != count:
        wrong.append(f"the footer counts {foot['results']} results, there are {count}")
    if wrong or not results.complete:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ReportError("the report is incomplete: " + "; ".join(wrong[:5] or ["it has no results"]) + more)
