"""What changed between two runs: better, worse, new, gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..suite.verdict import GLYPHS, LawResult
from .model import Results

RANKS = ("silently_wrong", "failed", "crashed", "waived", "declined", "under_claimed", "passed")
"""Worst first. Unlike in a report, a capability that works unclaimed is better than one that is declined."""

Kind = Literal["worse", "gone", "new", "better"]
KINDS: tuple[Kind, ...] = ("worse", "gone", "new", "better")


@dataclass(frozen=True)
class Change:
    """One law of one backend whose verdict is not what it was."""

    kind: Kind
    backend: str
    law: str
    old: str | None
    new: str | None
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether it is worse than it was, or new and a failure."""
        return self.kind == "worse" or (self.kind == "new" and self.new in RANKS[:3])

    def __str__(self) -> str:
        sides = [f"{GLYPHS[side]} {side.replace('_', ' ')}" for side in (self.old, self.new) if side]
        return f"{self.kind:<6}  {self.backend}: {self.law}  {' -> '.join(sides)}"


def changes(old: Results, new: Results) -> list[Change]:
    """All that changed, what is worse first."""
    before, after = _by_law(old), _by_law(new)
    found = []
    for place in dict.fromkeys((*before, *after)):
        was, now = before.get(place), after.get(place)
        kind = _kind(was, now)
        if kind is not None:
            sides = (was.says if was else None, now.says if now else None)
            found.append(Change(kind, *place, *sides, now.message if now else ""))
    return sorted(found, key=lambda change: KINDS.index(change.kind))


def _by_law(results: Results) -> dict[tuple[str, str], LawResult]:
    return {(run.label, result.law): result for run in results.runs for result in run.results}


def _kind(was: LawResult | None, now: LawResult | None) -> Kind | None:
    if was is None:
        return "new"
    if now is None:
        return "gone"
    before, after = RANKS.index(was.says), RANKS.index(now.says)
    if before == after:
        return None
    return "better" if after > before else "worse"
