"""What a run says: one result a law, and a report that knows which laws it should have."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

Verdict = Literal["silently_wrong", "failed", "crashed", "under_claimed", "declined", "passed"]
"""Worst first.

``silently_wrong``: a capability that is not claimed gives wrong numbers instead of an error, the worst there is.
``failed``: the law does not hold. ``crashed``: an error where an answer was due. ``under_claimed``: a capability
that works and is not claimed, a note. ``declined``: the contract allows to decline this and the backend said why.
"""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
BAD: frozenset[Verdict] = frozenset({"silently_wrong", "failed", "crashed"})

GLYPHS = {
    "silently_wrong": "‼",
    "failed": "✗",
    "crashed": "↯",
    "waived": "~",
    "declined": "·",
    "under_claimed": "△",
    "passed": "✓",
    "missing": "?",
}
"""A sign for each verdict, worst first, and for a failure that is waived; the word always stands beside it."""

NO_DEVICE = "no CUDA device"
"""The reason of every law that was to run on one where there is none."""

PROFILE_NAMES = ("smoke", "quick", "full", "deep")
"""How much is tried; known here so that the command's help needs no torch."""


@dataclass(frozen=True)
class LawResult:
    """What one law says about one backend.

    Attributes:
        backend: the backend's name.
        law: the law's name.
        verdict: see :data:`Verdict`.
        cases: how many cases ran, those that were declined not counted.
        declined: how many cases the backend declined with a reason.
        worst_margin: the largest error over tolerance among all comparisons, or ``None`` for a law without numbers.
        message: why, if it did not pass: the smallest case's failure, or the reason for declining.
        token: replays the smallest failing case.
        seconds: how long it took.
        waived: the reason of the waiver that excuses this failure.
        looks_like: the planted defect that gives the same wrong numbers.
    """

    backend: str
    law: str
    verdict: Verdict
    cases: int = 0
    declined: int = 0
    worst_margin: float | None = None
    message: str = ""
    token: str | None = None
    seconds: float = 0.0
    waived: str = ""
    looks_like: str = ""

    @property
    def ok(self) -> bool:
        """Whether this is no failure, or one that is waived."""
        return self.verdict not in BAD or bool(self.waived)

    @property
    def says(self) -> str:
        """The verdict, ``"waived"`` for a failure that is."""
        return "waived" if self.waived else self.verdict

    @property
    def label(self) -> str:
        """Glyph and words: ``✗ failed``."""
        return f"{GLYPHS[self.says]} {self.says.replace('_', ' ')}"


@dataclass(frozen=True)
class Header:
    """What ran, on what, and what had to run.

    Attributes:
        backend, device, profile, seed: as asked for.
        expected: the laws that must have a result.
        versions: of what took part.
        rollouts: names of the recorded rollouts.
        claimed: the traits the backend claims.
        strict: whether a capability that works and is not claimed is a failure.
    """

    backend: str
    device: str
    profile: str
    seed: int
    expected: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=lambda: versions())
    rollouts: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True)
class Report:
    """All results of one backend's run. ``ok`` only if every expected law has exactly one result, none of it bad."""

    header: Header
    results: list[LawResult]

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.header.backend

    @property
    def missing(self) -> tuple[str, ...]:
        """Expected laws without a result."""
        found = {result.law for result in self.results}
        return tuple(name for name in self.header.expected if name not in found)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Results of laws that were not expected, or that came twice."""
        left = list(self.header.expected)
        extra = []
        for result in self.results:
            if result.law in left:
                left.remove(result.law)
            else:
                extra.append(result.law)
        return tuple(extra)

    @property
    def complete(self) -> bool:
        """Whether results and expected laws are the same, and there was a device to run them on."""
        ran = any(result.message != NO_DEVICE for result in self.results)
        return not self.missing and not self.unexpected and ran

    @property
    def ok(self) -> bool:
        """Whether the run is complete and nothing failed."""
        return self.complete and not self.failures

    @property
    def failures(self) -> list[LawResult]:
        """The bad results, worst first; what is waived is not among them."""
        bad = [r for r in self.results if not r.ok or (self.header.strict and r.verdict == "under_claimed")]
        return sorted(bad, key=lambda r: VERDICTS.index(r.verdict))

    @property
    def waived(self) -> list[LawResult]:
        """The failures that a waiver excuses."""
        return [result for result in self.results if result.waived]

    @property
    def worst_margin(self) -> float | None:
        """The largest error over tolerance of all laws."""
        return max((r.worst_margin for r in self.results if r.worst_margin is not None), default=None)

    @property
    def seconds(self) -> float:
        """How long the laws took."""
        return sum(result.seconds for result in self.results)

    def count(self, verdict: Verdict) -> int:
        """How many laws have this verdict; what is waived is counted nowhere but in :attr:`waived`."""
        return sum(result.says == verdict for result in self.results)

    def to_json(self) -> str:
        """JSON lines, as ``rnn-backends check --json`` writes them, of this run alone."""
        from ..report.jsonl import text  # it is made of what is here
        from ..report.model import Outcome, Results

        head = self.header
        run = Outcome(self.backend, self, device=head.device)
        return text(
            Results(
                head.profile,
                head.seed,
                {},
                head.expected,
                (run,),
                head.strict,
                head.rollouts,
                self.seconds,
                head.versions,
            )
        )

    @classmethod
    def from_json(cls, written: str) -> Report:
        """Read :meth:`to_json`, or the first run of a file of ``rnn-backends check --json``.

        Raises:
            ReportError: a ``ValueError``: it is no report, or its results are not those that its header expects.
        """
        from ..report.jsonl import read

        report = read(written).outcomes[0].report
        assert report is not None, "a run without a report is refused"
        return report


def versions(names: Iterable[str] = ("rnn-backends", "torch", "tensordict", "torchrl")) -> dict[str, str]:
    """Versions of Python and of those of these distributions that are installed."""
    from rnn_backends import crossovers

    found = crossovers.versions(tuple(names))
    return {"python": platform.python_version(), **{k: v for k, v in found.items() if v != "not installed"}}
