"""The format of a report file: JSON lines with a header, one line per result, and a footer that counts them.

This module knows only the format; :mod:`.model` knows the meaning of the lines and rejects an inconsistent report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

FORMAT = "rnn-conformance 1"

Line = dict[str, Any]


class ReportError(ValueError):
    """The file is not a report, or contradicts itself."""


def text(header: Line, results: Iterable[Line], footer: Line) -> str:
    """The lines. An infinite error ratio becomes the text ``"inf"``: JSON has no such number."""
    lines = [
        {"kind": "header", "format": FORMAT, **header},
        *({"kind": "result", **row, "worst_error_ratio": _finite(row["worst_error_ratio"])} for row in results),
        {"kind": "footer", **footer},
    ]
    return "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines)


def _finite(number: float | None) -> float | str | None:
    return number if number is None or math.isfinite(number) else "inf"


def parse(written: str) -> tuple[Line, list[Line], Line]:
    """Header, results and footer of :func:`text`.

    Raises:
        ReportError: the text is not a report, or is truncated.
    """
    try:
        rows = [_object(line) for line in written.split("\n") if line.strip()]
    except ReportError:
        raise
    except (ValueError, RecursionError) as error:
        raise ReportError(f"not a report: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows) or rows[0].get("format") != FORMAT:
        raise ReportError(f"not a report: the first line is not a header of the format {FORMAT!r}")
    if rows[-1].get("kind") != "footer":
        raise ReportError("the report has no footer: it is truncated")
    header, *results, footer = rows
    for row in results:
        if row.get("kind") != "result" or "worst_error_ratio" not in row:
            raise ReportError("not a report: a line between header and footer is not a result")
        if row["worst_error_ratio"] == "inf":  # JSON has no such number
            row["worst_error_ratio"] = math.inf
    return header, results, footer


def _object(line: str) -> Any:
    """One line in strict JSON: NaN, numbers beyond float64 and duplicate names are errors."""
    return json.loads(line, parse_constant=_reject, parse_float=_float, object_pairs_hook=_unique)


def _reject(word: str) -> Any:
    raise ReportError(f"not a report: {word} is not a number in JSON")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ReportError(f"not a report: the number {digits[:20]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ReportError("not a report: an object has a duplicate name")
    return found
