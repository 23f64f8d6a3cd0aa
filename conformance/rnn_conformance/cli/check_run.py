"""A run of ``rnn-backends check``: every law for every backend, one table of the verdicts, each failure in full."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rnn_backends import BrokenBackendError, LSTMBackend, get_backend, names

from ..check import about, changed, check_backend, fresh_seed, quiet_single_thread, recordings, similar_defect
from ..laws.catalogue import select
from ..report.causes import causes
from ..report.model import BackendRun, Report, Results
from ..report.terminal import IN_FULL, console, plain, print_results
from ..rollouts.timing import HIDDEN_SIZE, time_ratio
from ..suite.device import absent
from ..suite.inputs import Rollout
from ..suite.reach import Reach
from ..waivers import Waiver, apply
from .progress import RunProgress

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        profile: how many cases are tried.
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


class CheckRun:
    """``rnn-backends check``.

    Args:
        backends: names; none for all installed backends.
        console: for the table; progress goes to standard error.
        options: how to run.
        waivers: known failures.

    Raises:
        UnknownBackendError: a backend is not installed; the message suggests the nearest name.
        UnknownNameError: a law does not exist; the message suggests the nearest name.
    """

    def __init__(
        self, backends: Sequence[str], console: Console, options: Options, waivers: Sequence[Waiver] = ()
    ) -> None:
        self._console, self._options, self._waivers = console, options, tuple(waivers)
        self._seed = fresh_seed() if options.seed is None else options.seed
        found = dict(_loaded(name) for name in backends or names())
        planned = [(name, found[name], device) for device in options.devices for name in found]
        reasons = [_why_not(backend, device) for _, backend, device in planned]
        # Without names, the backends that cannot run here are left out.
        self._left_out = [
            f"{name} on {device}: {reason}"
            for (name, backend, device), reason in zip(planned, reasons, strict=True)
            if reason and not backends and isinstance(backend, LSTMBackend)
        ]
        self._planned = [
            (name, reason or backend, device)
            for (name, backend, device), reason in zip(planned, reasons, strict=True)
            if backends or not reason or not isinstance(backend, LSTMBackend)
        ]
        self._expected = tuple(select(options.laws, options.profile))
        self._done: list[BackendRun] = []

    def run(self) -> Results:
        """Run, print and return the results."""
        started = time.perf_counter()
        self._console.print(plain("rollouts: " + "; ".join(_describe(r) for r in recordings())))
        self._console.print(plain(f"          {recordings()[0].source}"))
        for words in self._left_out:
            self._console.print(plain(f"not run   {words}"), soft_wrap=True)
        with quiet_single_thread(), RunProgress(len(self._planned), console(stderr=True)) as progress:
            self._run_all(progress)
        results = self._results(time.perf_counter() - started)
        print_results(results, self._console, _timed_on(recordings()[0]))
        return results

    def _run_all(self, progress: RunProgress) -> None:
        try:
            for name, backend, device in self._planned:
                blank = BackendRun(name, device=device)
                progress.backend(blank.label)
                reason = backend if isinstance(backend, str) else absent(device)
                if isinstance(backend, str) or reason:
                    self._done.append(replace(blank, reason=reason))
                else:
                    self._done.append(self._run_one(backend, device, progress))
                    if self._done[-1].reason == INTERRUPTED:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            left = self._planned[len(self._done) :]
            self._done += [BackendRun(name, reason=INTERRUPTED, device=device) for name, _, device in left]

    def _run_one(self, backend: LSTMBackend, device: str, progress: RunProgress) -> BackendRun:
        options = self._options
        report = check_backend(
            backend, profile=options.profile, device=device, laws=self._expected, seed=self._seed,
            on_progress=progress.law, shrink=options.shrink, strict=options.strict, keep_interrupted=True,
        )  # fmt: skip
        if report.missing:  # nothing else leaves a law out
            return BackendRun(backend.name, report, INTERRUPTED, device=device)
        report = apply(self._waivers, report, backend, lambda law: progress.say(f"waiver of {law}"))
        for result in [cause.first for cause in causes(report.failures, self._expected)[:IN_FULL]]:
            progress.say(f"planted defects like {result.law}")
            report = changed(report, result.law, looks_like=similar_defect(result, device) or "")
        return BackendRun(backend.name, report, None, self._time(backend, report, progress), device)

    def _time(self, backend: LSTMBackend, report: Report, progress: RunProgress) -> float | None:
        if self._options.laws or report.failures or report.waived:
            return None  # the time of a wrong result means nothing
        progress.say("time against torch.nn.LSTM")
        return time_ratio(backend, recordings()[0], report.header.device)

    def _results(self, seconds: float) -> Results:
        return Results(
            profile=self._options.profile,
            seed=self._seed,
            laws={law: about(law) for law in self._expected},
            expected=self._expected,
            runs=tuple(self._done),
            strict=self._options.strict,
            rollouts=tuple(f"{_describe(r)}, {r.source}" for r in recordings()),
            seconds=seconds,
        )


def _loaded(name: str) -> tuple[str, LSTMBackend | str]:
    """A backend's name with its value, or with the reason why it cannot be loaded."""
    try:
        backend = get_backend(name)
    except BrokenBackendError as error:
        return name, str(error)
    return backend.name, backend


def _why_not(backend: LSTMBackend | str, device: str) -> str | None:
    """The backend's own reason for running nothing on a device that is present, or ``None``."""
    if isinstance(backend, str):
        return backend
    return None if absent(device) else Reach(backend, device).nothing()


def _describe(rollout: Rollout) -> str:
    rows, steps = rollout.is_init.shape
    return f"{rollout.name} {rows} x {steps} steps, {rollout.resets} resets"


def _timed_on(rollout: Rollout) -> str:
    return f"{rollout.name}, H = {HIDDEN_SIZE}, one thread"
