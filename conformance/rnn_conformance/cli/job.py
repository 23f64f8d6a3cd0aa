"""The main job: roll out real environments, run every law for every backend, and say in one table what held."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rnn_backends import LSTMBackend, names

from ..check import calm, changed, check_backend, fresh_seed, recordings
from ..laws.asked import about, known_backend, select_laws
from ..report.model import Outcome, Results
from ..report.terminal import print_results
from ..rollouts import laws as rollout_laws
from ..rollouts.recorded import Rollout
from ..similar import looks_like
from ..suite.device import absent
from ..suite.verdict import Report
from ..waivers import Waiver, apply
from .progress import RunProgress


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        profile: how much is tried.
        laws: parts of laws' names; none for all.
        devices: where the backends run, one after another.
        seed: of the generated cases; ``None`` for a fresh one.
        shrink: whether to look for smaller failing cases.
        strict: whether a capability that works and is not claimed is a failure.
    """

    profile: str = "quick"
    laws: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    seed: int | None = None
    shrink: bool = True
    strict: bool = False


class MainJob:
    """``rnn-backends check``.

    Args:
        backends: names; none for all that are installed.
        console: where the table goes; progress goes to standard error.
        options: how to run.
        waivers: what may fail.

    Raises:
        UnknownBackendError: a backend that is not installed; the message has the nearest.
        UnknownLawError: a law that is not there; the message has the nearest.
    """

    def __init__(
        self, backends: Sequence[str], console: Console, options: Options, waivers: Sequence[Waiver] = ()
    ) -> None:
        self._console, self._options, self._waivers = console, options, tuple(waivers)
        self._seed = fresh_seed() if options.seed is None else options.seed
        found = dict(known_backend(name) for name in backends or names())
        self._runs = [(name, found[name], device) for device in options.devices for name in found]
        suite, mine = select_laws(options.laws, options.profile)
        self._expected = (*suite, *mine)
        self._outcomes: list[Outcome] = []

    def run(self) -> Results:
        """Run, print, and return what was found."""
        started = time.perf_counter()
        self._console.print("rollouts: " + "; ".join(_describe(r) for r in recordings()), highlight=False)
        self._console.print(f"          {recordings()[0].source}", highlight=False)
        with calm(), RunProgress(len(self._runs), Console(stderr=True)) as progress:
            self._run_all(progress)
        results = self._results(time.perf_counter() - started)
        print_results(results, self._console, _timed_on(recordings()[0]))
        return results

    def _run_all(self, progress: RunProgress) -> None:
        try:
            for name, backend, device in self._runs:
                blank = Outcome(name, device=device)
                progress.backend(blank.label)
                reason = backend if isinstance(backend, str) else absent(device)
                if isinstance(backend, str) or reason:
                    self._outcomes.append(replace(blank, reason=reason))
                else:
                    self._outcomes.append(self._run_one(backend, device, progress))
        except KeyboardInterrupt:
            left = self._runs[len(self._outcomes) :]
            self._outcomes += [Outcome(name, reason="interrupted", device=device) for name, _, device in left]

    def _run_one(self, backend: LSTMBackend, device: str, progress: RunProgress) -> Outcome:
        options = self._options
        report = check_backend(
            backend, profile=options.profile, device=device, laws=self._expected, seed=self._seed,
            on_progress=progress.law, shrink=options.shrink, strict=options.strict,
        )  # fmt: skip
        report = apply(self._waivers, report, backend, lambda law: progress.say(f"waiver of {law}"))
        for result in report.failures:
            progress.say(f"what {result.law} looks like")
            report = changed(report, result.law, looks_like=looks_like(result, device) or "")
        return Outcome(backend.name, report, None, self._time(backend, report, progress), device)

    def _time(self, backend: LSTMBackend, report: Report, progress: RunProgress) -> float | None:
        if self._options.laws or report.failures or report.waived:
            return None  # how fast a wrong answer comes is of no interest
        progress.say("time against torch.nn.LSTM")
        return rollout_laws.time_ratio(backend, recordings()[0], report.header.device)

    def _results(self, seconds: float) -> Results:
        return Results(
            profile=self._options.profile,
            seed=self._seed,
            laws={law: about(law) for law in self._expected},
            expected=self._expected,
            outcomes=tuple(self._outcomes),
            strict=self._options.strict,
            rollouts=tuple(f"{_describe(r)}, {r.source}" for r in recordings()),
            seconds=seconds,
        )


def _describe(rollout: Rollout) -> str:
    rows, steps = rollout.is_init.shape[:2]
    return f"{rollout.name} {rows} x {steps} steps, {rollout.resets} resets"


def _timed_on(rollout: Rollout) -> str:
    return f"{rollout.name}, H = {rollout_laws.TIMED_HIDDEN_SIZE}, one thread"
