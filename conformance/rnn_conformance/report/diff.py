"""The differences of two runs: better, worse, new, gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..suite.verdict import GLYPHS, LawResult
from .model import BackendRun, Results

RANKS = ("silently_wrong", "failed", "crashed", "waived", "declined", "under_claimed", "passed")
"""Worst first. Unlike in a report, a capability that works unclaimed is better than one that is declined."""

Kind = Literal["worse", "gone", "new", "better"]
KINDS: tuple[Kind, ...] = ("worse", "gone", "new", "better")


@dataclass(frozen=True)
class Change:
    """A changed verdict of one law of one backend."""

    kind: Kind
    backend: str
    law: str
    old: str | None
    new: str | None
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether the verdict is worse than before, or new and a failure."""
        return self.kind == "worse" or (self.kind == "new" and self.new in RANKS[:3])

    def __str__(self) -> str:
        sides = [f"{GLYPHS[side]} {side.replace('_', ' ')}" for side in (self.old, self.new) if side]
        return f"{self.kind:<6}  {self.backend}: {self.law}  {' -> '.join(sides)}"


def only(results: Results, backend: str) -> Results:
    """The runs of one backend, by its name or its label (``mine on cuda``).

    Raises:
        ValueError: the report has none; the message lists the backends it has.
    """
    runs = tuple(run for run in results.runs if backend in (run.name, run.label))
    if not runs:
        raise ValueError(f"the report has no {backend!r}; it has {', '.join(run.label for run in results.runs)}")
    return replace(results, runs=runs)


def changes(old: Results, new: Results, paired: bool = False) -> list[Change]:
    """All changes, the worse ones first.

    Args:
        old, new: the two runs.
        paired: whether the runs are of two backends, which are then matched by device alone.
    """
    before, after = _by_law(old, paired), _by_law(new, paired)
    found = []
    label = f"{old.runs[0].name} -> {new.runs[0].name}" if paired else ""
    for place in dict.fromkeys((*before, *after)):
        old_result, new_result = before.get(place), after.get(place)
        kind = _kind(old_result, new_result)
        if kind is not None:
            sides = (old_result.state if old_result else None, new_result.state if new_result else None)
            backend = " on ".join(filter(None, (label, place[0]))) if paired else place[0]
            found.append(Change(kind, backend, place[1], *sides, new_result.message if new_result else ""))
    return sorted(found, key=lambda change: KINDS.index(change.kind))


def _by_law(results: Results, paired: bool) -> dict[tuple[str, str], LawResult]:
    def place(run: BackendRun) -> str:
        return run.label if not paired else "" if run.device == "cpu" or len(results.runs) == 1 else run.device

    return {(place(run), result.law): result for run in results.runs for result in run.results}


def _kind(old: LawResult | None, new: LawResult | None) -> Kind | None:
    if old is None:
        return "new"
    if new is None:
        return "gone"
    before, after = RANKS.index(old.state), RANKS.index(new.state)
    if before == after:
        return None
    return "better" if after > before else "worse"
