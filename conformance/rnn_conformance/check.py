"""``check_backend(name) -> Report``: every law over one backend, those over recorded rollouts included."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from rnn_backends import LSTMBackend, get_backend

from .laws.asked import select_laws
from .rollouts import laws as rollout_laws
from .rollouts.recorded import Rollout, rollouts
from .suite import runner
from .suite.inputs import Rollout as Recorded
from .suite.runner import Progress
from .suite.verdict import Header, Report, Verdict


@cache
def recordings() -> tuple[Rollout, ...]:
    """The rollouts, recorded once a process."""
    return tuple(rollouts())


def fresh_seed() -> int:
    """A seed that nobody has chosen."""
    return random.SystemRandom().randrange(2**31)


def as_inputs(rollout: Rollout) -> Recorded:
    """A rollout as the suite's laws take it."""
    return Recorded(rollout.name, rollout.observation, rollout.is_init.squeeze(-1))


def check_backend(
    backend: str | LSTMBackend,
    *,
    profile: str = "quick",
    device: str = "cpu",
    laws: Sequence[str] = (),
    seed: int | None = None,
    on_progress: Progress | None = None,
    shrink: bool = True,
    strict: bool = False,
) -> Report:
    """Run the laws over one backend.

    Args:
        backend: an installed backend's name, or a value.
        profile: ``"smoke"``, ``"quick"``, ``"full"`` or ``"deep"``: how much is tried.
        device: where to run.
        laws: names or parts of names; none for all of the profile.
        seed: of the generated cases; ``None`` for a fresh one, which the header names.
        on_progress: ``on_progress(law, done, total)``, called before each law and once at the end.
        shrink: whether to look for a smaller failing case.
        strict: whether a capability that works and is not claimed is a failure.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: an unknown profile, or a part of a name that fits no law.
    """
    if profile not in runner.PROFILES:
        raise ValueError(f"unknown profile {profile!r}: there are {', '.join(runner.PROFILES)}")
    value = get_backend(backend) if isinstance(backend, str) else backend
    suite, mine = select_laws(laws, profile)
    seed = fresh_seed() if seed is None else seed
    told = on_progress or (lambda law, done, total: None)
    header = Header(
        value.name, device, profile, seed, (*suite, *mine), claimed=claims(value), strict=strict,
        rollouts=tuple(f"{r.name} ({r.source})" for r in recordings()),
    )  # fmt: skip
    results = []
    if suite:
        options = {"profile": profile, "device": device, "laws": suite, "seed": seed, "shrink": shrink}
        ran = runner.check_backend(
            value,
            rollouts=[as_inputs(rollout) for rollout in recordings() if profile != "smoke"],
            on_progress=lambda law, done, total: told(law, done, total + len(mine)) if law else None,
            **options,  # type: ignore[arg-type]
        )
        results += ran.results
    checks = rollout_laws.RolloutChecks(value, recordings(), profile, device, seed)
    for k, law in enumerate(mine):
        told(law, len(suite) + k, len(header.expected))
        results.append(checks.run(law))
    told("", len(header.expected), len(header.expected))
    return Report(header, results)


def claims(backend: LSTMBackend) -> tuple[str, ...]:
    """The traits that a backend claims, by name."""
    return tuple(sorted(trait.value for trait in backend.traits))


def changed(report: Report, law: str, verdict: Verdict | None = None, **fields: str | None) -> Report:
    """The report with one law's result changed."""
    more = fields if verdict is None else {**fields, "verdict": verdict}
    return replace(report, results=[replace(r, **more) if r.law == law else r for r in report.results])  # type: ignore[arg-type]


@contextmanager
def calm() -> Iterator[None]:
    """One thread and no warnings.

    Cases are small: on a busy machine threads wait for each other many times longer than they work. And a warning that
    somebody's settings make an error would look like a backend that crashes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
