"""The name of the planted defect that gives the same wrong numbers, for a reader who wonders where to look."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .suite.verdict import BAD, LawResult

HOME = f"{__package__}.defects"
"""A package with ``looks_like(result: LawResult, device: str) -> str | None``."""


def looks_like(result: LawResult, device: str = "cpu") -> str | None:
    """The defect that this failure looks like, ``None`` if there is none or nobody can tell."""
    if result.verdict not in BAD or result.token is None or find_spec(HOME) is None:
        return None
    find = getattr(import_module(HOME), "looks_like", None)
    return find(result, device) if find is not None else None
