"""The types of all fields of a report, checked before any is used; a damaged file is rejected with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..suite.verdict import VERDICTS
from .jsonl import Line, ReportError

LARGEST = 1 << 63


@dataclass(frozen=True)
class Each:
    """A list, or an object with free names, of values of one kind."""

    kind: Any
    named: bool = False


@dataclass(frozen=True)
class Maybe:
    """A value of a kind, or null."""

    kind: Any


NUMBER, COUNT, INTEGER = "a finite number", "a count", "an integer"
RATIO = 'a number not below 0, or "inf"'

HEADER = {
    "when": str,
    "profile": str,
    "seed": INTEGER,
    "strict": bool,
    "versions": Each(str, named=True),
    "rollouts": Each(str),
    "laws": Each({"subject": str, "sentence": str, "trait": Maybe(str)}, named=True),
    "runs": Each(
        {
            "backend": str,
            "device": str,
            "claimed": Each(str),
            "expected": Each(str),
            "reason": Maybe(str),
            "time_ratio": Maybe(NUMBER),
        }
    ),
}
RESULT = {
    "device": str,
    "backend": str,
    "law": str,
    "verdict": str,
    "cases": COUNT,
    "declined": COUNT,
    "worst_error_ratio": Maybe(RATIO),
    "message": str,
    "token": Maybe(str),
    "seconds": NUMBER,
    "waived": str,
    "looks_like": str,
    "out_of_reach": COUNT,
    "dtypes": Each(str),
    "cause": str,
}
FOOTER = {
    "results": COUNT,
    "verdicts": Each(COUNT, named=True),
    "complete": bool,
    "status": COUNT,
    "seconds": NUMBER,
}


def check(header: Line, results: list[Line], footer: Line) -> None:
    """Raise :class:`ReportError` unless every field is there and of its kind."""
    _check(header, HEADER, "the header")
    for number, row in enumerate(results, 1):
        _check(row, RESULT, f"result {number}")
        if row["verdict"] not in VERDICTS:
            raise ReportError(f"{row['law']} has the unknown verdict {row['verdict']!r}")
    _check(footer, FOOTER, "the footer")
    places = [(run["backend"], run["device"]) for run in header["runs"]]
    if len(set(places)) != len(places):
        raise ReportError("the header names a backend twice on one device")


def _check(value: Any, kind: Any, where: str) -> None:
    if isinstance(kind, Maybe):
        if value is not None:
            _check(value, kind.kind, where)
    elif isinstance(kind, Mapping):
        _check_object(value, kind, where)
    elif isinstance(kind, Each):
        _check_each(value, kind, where)
    elif not _is(value, kind):
        expected = kind if isinstance(kind, str) else {str: "a text", bool: "true or false"}[kind]
        raise ReportError(f"not a report: {where} is {_shown(value)}, not {expected}")
    elif isinstance(value, str):
        _check_text(value, where)


def _check_object(value: Any, kinds: Mapping[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise ReportError(f"not a report: {where} is {_shown(value)}, not an object")
    for name, kind in kinds.items():
        if name not in value:
            raise ReportError(f"not a report: {where} has no {name}")
        _check(value[name], kind, f"{name} of {where}")


def _check_each(value: Any, kind: Each, where: str) -> None:
    if not isinstance(value, dict if kind.named else list):
        raise ReportError(f"not a report: {where} is {_shown(value)}, not {'an object' if kind.named else 'a list'}")
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for place, one in entries:
        if isinstance(place, str):
            _check_text(place, f"a name in {where}")
        _check(one, kind.kind, f"{_shown(place)} of {where}")


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ReportError(f"not a report: {where} has half of a character: {value!r}") from None


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, type):
        return type(value) is kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind in (COUNT, INTEGER) and not isinstance(value, int)):
        return False
    if isinstance(value, int) and abs(value) >= LARGEST:
        return False
    if kind == RATIO:
        return bool(value >= 0)  # not NaN; "inf" is infinity by now
    return math.isfinite(value) and (kind != COUNT or value >= 0)


def _shown(value: Any) -> str:
    words = ascii(value) if not isinstance(value, int) or abs(value) < LARGEST else "a very large number"
    return words if len(words) <= 60 else f"{words[:57]}..."
