"""All that one run of the command says: what was asked for, one outcome a backend and device, and the exit status."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..suite.verdict import LawResult, Report, versions

HELD, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
"""Exit statuses of the command."""


@dataclass(frozen=True)
class LawInfo:
    """What a reader of a report wants to know of a law: its file, its sentence, the capability it tries."""

    subject: str
    sentence: str
    trait: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run has to say about one backend on one device.

    Attributes:
        name: the backend's.
        report: its laws' results, or ``None`` where it could not be run.
        reason: why it could not be run, or not to the end.
        time_ratio: its time on the rollout over torch.nn.LSTM's, one trajectory at a time.
        device: where it ran.
    """

    name: str
    report: Report | None = None
    reason: str | None = None
    time_ratio: float | None = None
    device: str = "cpu"

    @property
    def complete(self) -> bool:
        """Whether every law was run."""
        return self.report is not None and self.report.complete and self.reason is None

    @property
    def failures(self) -> list[LawResult]:
        """The bad results, worst first."""
        return self.report.failures if self.report else []

    @property
    def results(self) -> list[LawResult]:
        """All results there are."""
        return self.report.results if self.report else []

    @property
    def label(self) -> str:
        """The backend, and the device where it is not the usual one."""
        return self.name if self.device == "cpu" else f"{self.name} on {self.device}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Results:
    """A whole run.

    Attributes:
        profile, seed, strict: as asked for.
        laws: what each expected law says.
        expected: the laws that every backend must have a result of.
        outcomes: one a backend and device.
        rollouts: what was rolled out, in words.
        seconds: how long it took.
        versions: of what took part.
        when: the date and time of day, UTC.
    """

    profile: str
    seed: int
    laws: Mapping[str, LawInfo]
    expected: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    strict: bool = False
    rollouts: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=versions)
    when: str = field(default_factory=_now)

    @property
    def complete(self) -> bool:
        """Whether every law has a result for every backend."""
        return bool(self.outcomes) and all(outcome.complete for outcome in self.outcomes)

    @property
    def waived(self) -> int:
        """How many failures a waiver excuses."""
        return sum(len(outcome.report.waived) for outcome in self.outcomes if outcome.report)

    @property
    def status(self) -> int:
        """The exit status: a failure outweighs an incomplete run."""
        if any(outcome.failures for outcome in self.outcomes):
            return FAILED
        return HELD if self.complete else INCOMPLETE

    def info(self, law: str) -> LawInfo:
        """What a law says; nothing is known of one that was not expected."""
        return self.laws.get(law, LawInfo("", ""))


def replay_line(result: LawResult, device: str = "cpu") -> str | None:
    """The one line that runs the failing case again."""
    if result.token is None:
        return None
    where = "" if device == "cpu" else f" --device {device}"
    token, backend = shlex.quote(result.token), shlex.quote(result.backend)
    return f"rnn-backends replay {token} --law {result.law} --backend {backend}{where}"
