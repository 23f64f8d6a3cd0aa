"""Verdicts, the outcome of one case and the result over all cases. Imports no other module of the project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["silently_wrong", "failed", "crashed", "under_claimed", "declined", "passed"]
"""Worst first.

``silently_wrong``: a capability that is not claimed gives wrong numbers instead of an error, the worst fault.
``failed``: the law does not hold. ``crashed``: an error where a result was due. ``under_claimed``: a capability
that works and is not claimed, a note. ``declined``: the contract lets a backend reject this, and it gave a reason.
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
"""The glyph of each verdict, worst first, and of a waived failure; always shown with the word."""

NO_DEVICE = "no CUDA device"
"""The message of every law of a run on CUDA on a machine without a GPU."""

PROFILE_NAMES = ("smoke", "quick", "full", "deep")
"""The profiles, by how many cases are tried; defined here so that the command's help needs no torch."""


class LawBroken(AssertionError):
    """A law does not hold.

    Args:
        message: the first place that differs, its actual and expected value, and the error.
        error_ratio: the error over its tolerance, where the law compares numbers.
    """

    def __init__(self, message: str, error_ratio: float | None = None) -> None:
        super().__init__(message)
        self.error_ratio = error_ratio


class Declined(Exception):
    """The backend rejects this case with a reason, as the contract allows."""


@dataclass(frozen=True)
class Outcome:
    """The verdict of one law over one case; ``error_ratio`` is the largest error over its tolerance."""

    verdict: Verdict
    message: str = ""
    error_ratio: float | None = None


@dataclass(frozen=True)
class LawResult:
    """The verdict of one law for one backend, over all of its cases.

    Attributes:
        backend: the backend's name.
        law: the law's name.
        verdict: see :data:`Verdict`.
        cases: how many cases ran, without the declined ones.
        declined: how many cases the backend declined with a reason.
        out_of_reach: how many drawn cases the backend rejects; none of them is in the two counts above.
        dtypes: the dtypes of the cases that ran: ``f64``, ``f32``, ``f16``, ``bf16``.
        worst_error_ratio: the largest error over its tolerance of all comparisons, or ``None`` for a law that compares
            no numbers. Above 1 the law is broken.
        message: why, if it did not pass: the smallest case's failure, or the reason for declining.
        token: replays the smallest failing case.
        seconds: how long it took.
        waived: the reason of the waiver that excuses this failure.
        looks_like: the planted defect that gives the same wrong numbers.
        cause: a plainer law that fails on the same smallest case.
    """

    backend: str
    law: str
    verdict: Verdict
    cases: int = 0
    declined: int = 0
    worst_error_ratio: float | None = None
    message: str = ""
    token: str | None = None
    seconds: float = 0.0
    waived: str = ""
    looks_like: str = ""
    cause: str = ""
    out_of_reach: int = 0
    dtypes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether this is no failure, or a waived one."""
        return self.verdict not in BAD or bool(self.waived)

    @property
    def state(self) -> str:
        """The verdict, or ``"waived"`` for a waived failure."""
        return "waived" if self.waived else self.verdict

    @property
    def label(self) -> str:
        """Glyph and words: ``✗ failed``."""
        return f"{GLYPHS[self.state]} {self.state.replace('_', ' ')}"
