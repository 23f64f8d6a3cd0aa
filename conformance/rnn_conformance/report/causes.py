"""Failures grouped by cause: one bug breaks many laws; the plainest of them comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..suite.verdict import LawResult


class Cause(NamedTuple):
    """Failures with one cause: the plainest law, and the other laws that fail on the same case."""

    first: LawResult
    others: tuple[LawResult, ...]


def causes(failures: Sequence[LawResult], order: Sequence[str]) -> list[Cause]:
    """Group failures by :attr:`~.verdict.LawResult.cause`, the plainest first.

    Args:
        failures: of one backend.
        order: all laws, the plainest first.
    """
    place = {law: k for k, law in enumerate(order)}
    ordered = sorted(failures, key=lambda result: place.get(result.law, len(place)))
    first = {result.law: result for result in ordered if result.cause not in {other.law for other in failures}}
    return [
        Cause(result, tuple(other for other in ordered if other is not result and other.cause == law))
        for law, result in first.items()
    ]
