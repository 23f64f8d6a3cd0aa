"""The main job: roll out real environments, run every law for every backend, and say in one table what held."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from rich.console import Console
from rnn_backends import Backend, names

from . import rollout_laws
from .asked import known_backend, select_laws, sentence
from .inputs import Rollout as Recorded
from .progress import RunProgress
from .rollouts import Rollout, rollouts
from .runner import check_backend
from .table import Outcome, failures_text, outcomes_table
from .verdicts import Header, Report

HELD, FAILED, INCOMPLETE = 0, 1, 3
"""Exit statuses; 2 is bad usage."""


class MainJob:
    """``rnn-backends check``.

    Args:
        backends: names; none for all that are installed.
        console: where the table goes; progress goes to standard error.
        profile: how many generated cases a law.
        laws: parts of laws' names; none for all.
        device: where the backends run.
        seed: of the generated cases; ``None`` for a fresh one.

    Raises:
        click.BadParameter: a backend or a law that is not there; the message has the nearest.
    """

    def __init__(
        self,
        backends: Sequence[str],
        console: Console,
        *,
        profile: str = "quick",
        laws: Sequence[str] = (),
        device: str = "cpu",
        seed: int | None = None,
    ) -> None:
        self._console, self._profile, self._device = console, profile, device
        self._seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self._backends = list(dict(known_backend(name) for name in backends or names()).items())
        self._partial = bool(laws)
        self._suite_laws, self._rollout_laws = select_laws(laws, profile)
        self._rollouts: list[Rollout] = []
        self._outcomes: list[Outcome] = []

    def run(self) -> int:
        """Run, print, and return the exit status."""
        started = time.perf_counter()
        self._rollouts = rollouts()
        self._say("rollouts: " + "; ".join(_describe(rollout) for rollout in self._rollouts))
        self._say(f"          {self._rollouts[0].source}")
        with _one_thread(), RunProgress(len(self._backends), Console(stderr=True)) as progress:
            self._run_all(progress)
        self._print(time.perf_counter() - started)
        return self.status

    def _run_all(self, progress: RunProgress) -> None:
        try:
            for name, backend in self._backends:
                progress.backend(name)
                done = Outcome(name, reason=backend) if isinstance(backend, str) else self._run_one(backend, progress)
                self._outcomes.append(done)
        except KeyboardInterrupt:
            left = self._backends[len(self._outcomes) :]
            self._outcomes += [Outcome(name, reason="interrupted") for name, _ in left]

    def _run_one(self, backend: Backend, progress: RunProgress) -> Outcome:
        mine = self._rollout_laws
        recorded = [Recorded(r.name, r.observation, r.is_init.squeeze(-1)) for r in self._rollouts]
        report = Report(Header(backend.name, self._device, self._profile, self._seed, ()), [])
        if self._suite_laws != ():
            report = check_backend(
                backend,
                profile=self._profile,
                device=self._device,
                laws=self._suite_laws,
                seed=self._seed,
                on_progress=lambda law, done, total: progress.law(law, done, total + len(mine)),
                rollouts=recorded,
            )
        suite = len(report.header.expected)
        checks = rollout_laws.RolloutChecks(backend, self._rollouts, self._profile, self._device, self._seed)
        results = list(report.results)
        for k, law in enumerate(mine):
            progress.law(law, suite + k, suite + len(mine))
            results.append(checks.run(law))
        header = replace(
            report.header,
            expected=(*report.header.expected, *mine),
            rollouts=tuple(f"{r.name} ({r.source})" for r in self._rollouts),
        )
        report = Report(header, results)
        return Outcome(backend.name, report, time_ratio=self._time(backend, report, progress))

    def _time(self, backend: Backend, report: Report, progress: RunProgress) -> float | None:
        if self._partial or not report.ok:
            return None  # how fast a wrong answer comes is of no interest
        total = len(report.header.expected)
        progress.law("time against torch.nn.LSTM", total, total)
        return rollout_laws.time_ratio(backend, self._rollouts[0], self._device)

    @property
    def status(self) -> int:
        """The exit status: a failure outweighs an incomplete run."""
        if any(outcome.failures for outcome in self._outcomes):
            return FAILED
        complete = self._outcomes and all(outcome.complete for outcome in self._outcomes)
        return HELD if complete else INCOMPLETE

    def _print(self, seconds: float) -> None:
        self._console.print(outcomes_table(self._outcomes))
        timed = f"{self._rollouts[0].name}, H = {rollout_laws.TIMED_HIDDEN_SIZE}, one thread"
        self._say("worst error  as a share of its tolerance", style="dim")
        self._say(
            f"time         forward and backward, over torch.nn.LSTM's a trajectory at a time ({timed})", style="dim"
        )
        device = "" if self._device == "cpu" else f" --device {self._device}"
        options = f" --profile {self._profile} --seed {self._seed}{device}"
        for outcome in self._outcomes:
            if outcome.failures:
                self._say("\n" + failures_text(outcome, sentence, options))
            elif not outcome.complete:
                self._say(f"\n? {outcome.name}: {outcome.reason or 'some laws have no result'}")
        self._say("\n" + self._closing(seconds), style="bold")

    def _closing(self, seconds: float) -> str:
        reports = [outcome.report for outcome in self._outcomes if outcome.report]
        results = [result for report in reports for result in report.results]
        laws = len({result.law for result in results})
        ran = (
            f"{laws} law{'s' * (laws != 1)} ran on {len(reports)} of {len(self._outcomes)} backends, "
            f"{sum(r.cases for r in results)} cases, profile {self._profile}, seed {self._seed}, {seconds:.0f} s"
        )
        failed = sum(len(outcome.failures) for outcome in self._outcomes)
        says = {HELD: "✓ every law held", FAILED: f"✗ {failed} failed", INCOMPLETE: "? the run is incomplete"}
        return f"{says[self.status]}: {ran}"

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def to_json(self) -> str:
        """The whole run as JSON: valid by the letter, so an infinite margin is the largest float."""
        data = {
            "status": self.status,
            "profile": self._profile,
            "device": self._device,
            "seed": self._seed,
            "rollouts": [_plain(rollout) for rollout in self._rollouts],
            "backends": [
                {
                    "name": outcome.name,
                    "reason": outcome.reason,
                    "time_ratio": outcome.time_ratio,
                    "report": outcome.report.to_dict() if outcome.report else None,
                }
                for outcome in self._outcomes
            ],
        }
        return json.dumps(_finite(data), indent=1, allow_nan=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Cases are small: on a busy machine threads wait for each other many times longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(rollout: Rollout) -> str:
    rows, steps = rollout.is_init.shape[:2]
    return f"{rollout.name} {rows} x {steps} steps, {rollout.resets} resets"


def _plain(rollout: Rollout) -> dict[str, object]:
    shape = list(rollout.observation.shape)
    return {"name": rollout.name, "shape": shape, "resets": rollout.resets, "source": rollout.source}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) <= sys.float_info.max:
        return sys.float_info.max
    return value
