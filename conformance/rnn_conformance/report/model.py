"""The data of a run: one report per backend and device, the results of the whole run, and its exit status."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from rnn_backends import crossovers

from ..suite.verdict import BAD, NO_DEVICE, VERDICTS, LawResult, Verdict
from . import jsonl, schema
from .jsonl import ReportError

HELD, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
"""Exit statuses of the command."""

MOST_DECLINED = 0.1
"""A report with a larger share of declined laws shows little."""


def versions(names: Iterable[str] = ("rnn-backends", "torch", "tensordict", "torchrl")) -> dict[str, str]:
    """Versions of Python and of these distributions."""
    found = crossovers.versions(tuple(names))
    return {"python": platform.python_version(), **{k: v for k, v in found.items() if v != "not installed"}}


@dataclass(frozen=True)
class LawInfo:
    """A law as a report shows it: its subject, its sentence and the capability it tests."""

    subject: str
    sentence: str
    trait: str | None = None


@dataclass(frozen=True)
class Header:
    """The conditions of one backend's run, and the laws that must have a result.

    Attributes:
        backend, device, profile, seed: as requested.
        expected: the laws that must have a result.
        versions: of Python and the packages involved.
        rollouts: names of the recorded rollouts.
        claimed: the traits the backend claims.
        strict: whether a capability that works and is not claimed is a failure, and a report that shows little
            incomplete.
    """

    backend: str
    device: str
    profile: str
    seed: int
    expected: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=versions)
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
        """Laws with a result that were not expected, or that have a second result."""
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
        """Whether every expected law has a result, the device was present, and, if strict, enough laws ran."""
        return self.has_all and not (self.header.strict and self.shows_little)

    @property
    def has_all(self) -> bool:
        """Whether every expected law has one result and no other law has one, and the device was present."""
        ran = any(result.message != NO_DEVICE for result in self.results)
        return not self.missing and not self.unexpected and ran

    @property
    def shows_little(self) -> str:
        """A sentence if more than a tenth of the laws were declined; else empty."""
        declined, every = self.count("declined"), len(self.results)
        if declined <= MOST_DECLINED * every:
            return ""
        return f"{declined} of {every} laws were declined: this report shows little"

    @property
    def dtypes(self) -> dict[str, int]:
        """How many laws ran in each dtype, most first; a law may run in several."""
        counted = Counter(dtype for result in self.results for dtype in result.dtypes)
        return dict(counted.most_common())

    @property
    def ok(self) -> bool:
        """Whether the run is complete and nothing failed."""
        return self.complete and not self.failures

    @property
    def failures(self) -> list[LawResult]:
        """The bad results, worst first, without the waived ones."""
        bad = [result for result in self.results if not result.ok]
        return sorted(bad, key=lambda r: VERDICTS.index(r.verdict))

    @property
    def waived(self) -> list[LawResult]:
        """The failures that a waiver excuses."""
        return [result for result in self.results if result.waived]

    @property
    def worst_error_ratio(self) -> float | None:
        """The largest error over its tolerance of all laws."""
        return max((r.worst_error_ratio for r in self.results if r.worst_error_ratio is not None), default=None)

    @property
    def seconds(self) -> float:
        """How long the laws took."""
        return sum(result.seconds for result in self.results)

    def count(self, verdict: Verdict) -> int:
        """How many laws have this verdict; a waived failure is counted in :attr:`waived` only."""
        return sum(result.state == verdict for result in self.results)

    def to_json(self) -> str:
        """JSON lines of this run alone, as ``rnn-backends check --json`` writes them."""
        head = self.header
        run = BackendRun(self.backend, self, device=head.device)
        return Results(
            head.profile, head.seed, {}, head.expected, (run,), head.strict, head.rollouts, self.seconds, head.versions
        ).to_json()

    @classmethod
    def from_json(cls, written: str) -> Report:
        """Read :meth:`to_json`, or the first run of a file of ``rnn-backends check --json``.

        Raises:
            ReportError: a ``ValueError``: the text is not a report, or its results do not match its header.
        """
        report = Results.from_json(written).runs[0].report
        assert report is not None, "a run without a report is rejected"
        return report


@dataclass(frozen=True)
class BackendRun:
    """The run of one backend on one device.

    Attributes:
        name: the backend's.
        report: its laws' results, or ``None`` where it could not be run.
        reason: why it could not be run, or not to the end.
        time_ratio: its time on the rollout over torch.nn.LSTM's, one trajectory at a time.
        device: the device of the run.
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
    """A whole run of ``rnn-backends check``.

    Attributes:
        profile, seed, strict: as requested.
        laws: the sentence and subject of each expected law.
        expected: the laws of which every backend must have a result.
        runs: one per backend and device.
        rollouts: the recorded rollouts, in words.
        seconds: how long it took.
        versions: of Python and the packages involved.
        when: the date and time of day, UTC.
    """

    profile: str
    seed: int
    laws: Mapping[str, LawInfo]
    expected: tuple[str, ...]
    runs: tuple[BackendRun, ...]
    strict: bool = False
    rollouts: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=versions)
    when: str = field(default_factory=_now)

    @property
    def complete(self) -> bool:
        """Whether every law has a result for every backend."""
        return bool(self.runs) and all(run.complete for run in self.runs)

    @property
    def waived(self) -> int:
        """How many failures a waiver excuses."""
        return sum(len(run.report.waived) for run in self.runs if run.report)

    @property
    def status(self) -> int:
        """The exit status: a failure outweighs an incomplete run."""
        if any(run.failures for run in self.runs):
            return FAILED
        return HELD if self.complete else INCOMPLETE

    def info(self, law: str) -> LawInfo:
        """A law's subject and sentence; empty for one that was not expected."""
        return self.laws.get(law, LawInfo("", ""))

    def to_json(self) -> str:
        """JSON lines: a header, one line per result, a footer."""
        header = {
            **{name: getattr(self, name) for name in ("when", "profile", "seed", "strict")},
            "versions": dict(self.versions),
            "rollouts": list(self.rollouts),
            "laws": {name: asdict(info) for name, info in self.laws.items()},
            "runs": [self._run_line(run) for run in self.runs],
        }
        rows = [{"device": run.device, **asdict(result)} for run in self.runs for result in run.results]
        state = [result.state for run in self.runs for result in run.results]
        footer = {
            "results": len(rows),
            "verdicts": {word: state.count(word) for word in sorted(set(state))},
            "complete": self.complete,
            "status": self.status,
            "seconds": round(self.seconds, 3),
        }
        return jsonl.text(header, rows, footer)

    def _run_line(self, run: BackendRun) -> dict[str, Any]:
        header = run.report.header if run.report else None
        return {
            "backend": run.name,
            "device": run.device,
            "claimed": list(header.claimed if header else ()),
            "expected": list(header.expected if header else self.expected),
            "reason": run.reason,
            "time_ratio": run.time_ratio,
        }

    @classmethod
    def from_json(cls, written: str) -> Results:
        """Read :meth:`to_json`.

        Raises:
            ReportError: the text is not a report, is truncated, or its results do not match its header and footer.
        """
        header, rows, footer = jsonl.parse(written)
        schema.check(header, rows, footer)
        found = _results(header, rows, footer)
        _reconcile(found, footer)
        return found


def _results(head: dict[str, Any], body: list[dict[str, Any]], foot: dict[str, Any]) -> Results:
    left: dict[tuple[str, str], list[LawResult]] = {(run["backend"], run["device"]): [] for run in head["runs"]}
    known = {entry.name for entry in fields(LawResult)}
    for row in body:
        place = (row["backend"], row["device"])
        if place not in left:
            backend, device = (name if len(name) <= 60 else f"{name[:57]}..." for name in place)
            raise ReportError(f"the header does not expect a result of {backend} on {device}")
        if row["waived"] and row["verdict"] not in BAD:
            raise ReportError(f"{row['law']} is waived, but its verdict is not a failure: {row['verdict']}")
        unknown = set(row) - known - {"kind", "device"}
        if unknown:
            raise ReportError(f"a result of {row['law']} has unknown fields: {', '.join(sorted(unknown))}")
        values = {name: row[name] for name in row.keys() & known}
        left[place].append(LawResult(**values | {"dtypes": tuple(row["dtypes"])}))
    runs = tuple(_run(head, run, left[run["backend"], run["device"]]) for run in head["runs"])
    return Results(
        profile=head["profile"],
        seed=head["seed"],
        laws={name: LawInfo(info["subject"], info["sentence"], info["trait"]) for name, info in head["laws"].items()},
        expected=tuple(head["laws"]),
        runs=runs,
        strict=head["strict"],
        rollouts=tuple(head["rollouts"]),
        seconds=foot["seconds"],
        versions=head["versions"],
        when=head["when"],
    )


def _run(head: dict[str, Any], run: dict[str, Any], results: list[LawResult]) -> BackendRun:
    header = Header(
        run["backend"], run["device"], head["profile"], head["seed"], tuple(run["expected"]), head["versions"],
        tuple(head["rollouts"]), tuple(run["claimed"]), head["strict"],
    )  # fmt: skip
    report = Report(header, results) if run["reason"] is None else None
    return BackendRun(run["backend"], report, run["reason"], run["time_ratio"], run["device"])


def _reconcile(results: Results, foot: dict[str, Any]) -> None:
    """Raise unless header, results and footer agree: a law that did not run must not look like one that passed."""
    wrong = []
    for run in results.runs:
        if run.report is None:
            wrong.append(f"{run.label} was not run: {run.reason}")
            continue
        wrong += [f"{run.label} has no result of {law}" for law in run.report.missing]
        wrong += [f"{run.label} has an unexpected result of {law}" for law in run.report.unexpected]
    state = [result.state for run in results.runs for result in run.results]
    counted = {word: state.count(word) for word in sorted(set(state))}
    if foot["results"] != len(state):
        wrong.append(f"the footer counts {foot['results']} results, there are {len(state)}")
    elif foot["verdicts"] != counted:
        wrong.append(f"the footer counts the verdicts {foot['verdicts']}, there are {counted}")
    elif foot["status"] != results.status:
        wrong.append(f"the footer says exit status {foot['status']}, the results give {results.status}")
    elif foot["complete"] != results.complete:
        wrong.append(f"the footer says complete: {foot['complete']}, the results give {results.complete}")
    if wrong or not all(run.report and run.report.has_all for run in results.runs) or not results.runs:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ReportError("the report is incomplete: " + "; ".join(wrong[:5] or ["it has no results"]) + more)


def replay_line(result: LawResult, device: str = "cpu") -> str | None:
    """The one line that runs the failing case again."""
    if result.token is None:
        return None
    where = "" if device == "cpu" else f" --device {device}"
    token, backend = shlex.quote(result.token), shlex.quote(result.backend)
    return f"rnn-backends replay {token} --law {result.law} --backend {backend}{where}"
