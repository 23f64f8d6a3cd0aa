"""Run laws over a backend: ``check_backend(name) -> Report``."""

from __future__ import annotations

import random
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from rnn_backends import LSTMBackend, UnsupportedError, get_backend

from ..laws.catalogue import LAWS, select
from .case import Case
from .device import absent, exact_float32
from .inputs import Rollout
from .isolation import in_a_process
from .law import Declined, Law, LawBroken
from .search import Findings, Outcome, explore
from .strategies import rich
from .trial import Trial
from .verdict import BAD, Header, LawResult, Report

__all__ = ["PROFILES", "Progress", "Rollout", "check_backend", "replay"]

PROFILES = {"smoke": 2, "quick": 12, "full": 200, "deep": 2000}
"""Examples a law, by profile; each law also runs over a few fixed rich cases."""

COSTLY_CASES = {"smoke": 1, "quick": 2, "full": 4, "deep": 4}
"""Cases of a law that runs on few fixed ones."""

LANE_CASES = {"smoke": 1, "quick": 2, "full": 2, "deep": 4}
"""Cases of a law with a process of its own: it compiles for half a minute, and one case is much like the next."""

Progress = Callable[[str, int, int], None]
"""``on_progress(law, done, total)``: called before each law with ``done`` laws finished, and once at the end."""


@dataclass(frozen=True)
class _Run:
    """What all laws of one run have in common."""

    backend: LSTMBackend
    profile: str
    device: str
    seed: int
    shrink: bool
    rollouts: tuple[Rollout, ...]


def check_backend(
    backend: str | LSTMBackend,
    *,
    profile: str = "quick",
    device: str = "cpu",
    laws: Sequence[str] | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
    rollouts: Sequence[Rollout] | None = None,
    shrink: bool = True,
) -> Report:
    """Run the laws over one backend.

    Args:
        backend: an installed backend's name, or a value.
        profile: ``"smoke"``, ``"quick"``, ``"full"`` or ``"deep"``: how many examples a law.
        device: where to run.
        laws: names or parts of names; ``None`` for all of the profile.
        seed: of the generated cases; ``None`` for a fresh one, which the header names.
        on_progress: see :data:`Progress`.
        rollouts: recorded observations that many of the laws run over too.
        shrink: whether to look for a smaller failing case.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: an unknown profile, or a part of a name that fits no law.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: there are {', '.join(PROFILES)}")
    value = get_backend(backend) if isinstance(backend, str) else backend
    chosen = select(laws, profile)
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    run = _Run(value, profile, device, seed, shrink, tuple(rollouts or ()))
    header = Header(value.name, device, profile, seed, tuple(chosen), rollouts=tuple(r.name for r in run.rollouts))
    results = []
    for done, (name, law) in enumerate(chosen.items()):
        if on_progress:
            on_progress(name, done, len(chosen))
        results.append(_judge(law, run))
    if on_progress:
        on_progress("", len(chosen), len(chosen))
    return Report(header, results)


def replay(backend: str | LSTMBackend, law: str, token: str, device: str = "cpu") -> LawResult:
    """One law over the one case of a token, of a result's ``token``.

    Raises:
        ValueError: the token or the law is unknown.
    """
    value = get_backend(backend) if isinstance(backend, str) else backend
    if law not in LAWS:
        select([law], "full")
    findings = Findings()
    case = Case.parse(token)
    findings.outcomes[case] = _answer(LAWS[law], value, case, device)
    return _result(LAWS[law], value.name, findings, {}, 0.0)


def _judge(law: Law, run: _Run) -> LawResult:
    """All cases of one law."""
    begin = time.perf_counter()
    reason = absent(run.device)
    if reason:
        return LawResult(run.backend.name, law.name, "declined", message=reason)
    if law.trait and law.trait not in run.backend.traits and not law.tries_unclaimed:
        message = f"{law.trait.value} is not claimed"
        return LawResult(run.backend.name, law.name, "declined", message=message)

    def check(case: Case) -> Outcome:
        return _answer(law, run.backend, case, run.device)

    if law.costly:
        findings = Findings({case: check(case) for case in _few(law, run)})
    else:
        # every law draws cases of its own, whichever other laws run
        seed = run.seed ^ zlib.crc32(law.name.encode())
        findings = explore(check, law.where, PROFILES[run.profile], seed, run.shrink)
    recorded = {}
    for rollout in run.rollouts if law.rollouts else ():
        case = _rollout_case(rollout, law, run.seed)
        recorded[f"{rollout.name}:{case.token}"] = outcome_of(law, run.backend, case, run.device, rollout)
    return _result(law, run.backend.name, findings, recorded, time.perf_counter() - begin)


def _answer(law: Law, backend: LSTMBackend, case: Case, device: str) -> Outcome:
    if law.lane is not None:
        return in_a_process(law.name, backend, case.token, device, law.lane)
    return outcome_of(law, backend, case, device)


def _few(law: Law, run: _Run) -> list[Case]:
    """The cases of a costly law: the first is the same in every run, the others' numbers are fresh."""
    number = (COSTLY_CASES if law.lane is None else LANE_CASES)[run.profile]
    first, *others = rich(law.where)[:number]
    return [first, *(replace(case, seed=run.seed % 2**20 + k) for k, case in enumerate(others))]


def _rollout_case(rollout: Rollout, law: Law, seed: int) -> Case:
    B, T, I = rollout.observation.shape  # noqa: E741
    bits = sum(1 << (b * T + t) for b, t in torch.nonzero(rollout.is_init.reshape(B, T)).tolist())
    allowed = {name: law.where[name][0] for name in ("dtype", "stored") if name in law.where}
    return Case(T, B, I, 4, resets=bits, seed=seed % 1000, **allowed)


def outcome_of(law: Law, backend: LSTMBackend, case: Case, device: str, rollout: Rollout | None = None) -> Outcome:
    """One law over one case, here and now, as a verdict."""
    claimed = law.trait is None or law.trait in backend.traits
    trial = Trial(backend, case, device, rollout)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), exact_float32(device):
            law.function(trial)
    except Declined as declined:
        return Outcome("declined", str(declined))
    except LawBroken as broken:  # not any AssertionError: torch and backends raise their own, and that is a crash
        return Outcome("failed" if claimed else "silently_wrong", str(broken), broken.margin or trial.margin)
    except UnsupportedError as error:
        if not claimed:
            return Outcome("declined", error.reason)
        return Outcome("failed", f"accepted at construction and declined when called: {error}")
    except Exception as error:  # whatever a stranger's backend raises is its answer
        first = next(iter(str(error).strip().splitlines()), "")
        message = f"{type(error).__name__}: {first}"
        return Outcome("crashed", message) if claimed else Outcome("declined", f"fails loudly, {message}")
    return Outcome("passed" if claimed else "under_claimed", margin=trial.margin)


def _result(law: Law, backend: str, findings: Findings, recorded: dict[str, Outcome], seconds: float) -> LawResult:
    """One verdict from those of all cases: the worst, or declined where every case was."""
    every = [*findings.outcomes.values(), *recorded.values()]
    answered = [outcome for outcome in every if outcome.verdict != "declined"]
    margins = [outcome.margin for outcome in answered if outcome.margin is not None]
    common = {
        "backend": backend,
        "law": law.name,
        "cases": len(answered),
        "declined": len(every) - len(answered),
        "worst_margin": max(margins, default=None),
        "seconds": seconds,
    }
    worst = findings.worst()
    if worst is not None:
        case, outcome = worst
        return LawResult(**common, verdict=outcome.verdict, message=outcome.message, token=case.token)  # type: ignore[arg-type]
    for token, outcome in recorded.items():
        if outcome.verdict in BAD:
            return LawResult(**common, verdict=outcome.verdict, message=outcome.message, token=token)  # type: ignore[arg-type]
    if not answered:
        reason = every[0].message if every else "there was no case"
        return LawResult(**common, verdict="declined", message=reason)  # type: ignore[arg-type]
    under = any(outcome.verdict == "under_claimed" for outcome in answered)
    note = f"{law.trait.value} works and is not claimed" if under and law.trait else ""
    return LawResult(**common, verdict="under_claimed" if under else "passed", message=note)  # type: ignore[arg-type]
