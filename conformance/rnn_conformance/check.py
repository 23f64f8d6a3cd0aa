"""The suite's interface: run all laws on a backend, run one law on one case, find the defect similar to a failure."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from rnn_backends import LSTMBackend, get_backend

from .laws.catalogue import LAWS, select
from .report.model import Header, LawInfo, Report
from .rollouts.recorded import ENVIRONMENTS, rollouts
from .suite.case import Case
from .suite.inputs import Rollout
from .suite.isolation import prepare
from .suite.judge import outcome_of
from .suite.law import Law
from .suite.names import exact
from .suite.runner import PROFILES, Progress, RunOptions, run_case, run_law
from .suite.verdict import BAD, LawResult

DEFECTS = f"{__package__}.defects"
"""A package with ``similar_defect(result: LawResult, device: str) -> str | None``."""


CAUSES = 8
"""The maximum number of laws to try as the cause of the failures after them."""


@cache
def recordings() -> tuple[Rollout, ...]:
    """The rollouts, recorded once per process."""
    return tuple(rollouts())


def fresh_seed() -> int:
    """A random seed."""
    return random.SystemRandom().randrange(2**31)


def about(law: str) -> LawInfo:
    """A law's subject, its sentence (code in single backticks), and the capability it tests."""
    found = LAWS[law]
    return LawInfo(found.subject, found.sentence.replace("``", "`"), found.trait.value if found.trait else None)


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
    rollouts: Sequence[Rollout] | None = None,
    keep_interrupted: bool = False,
) -> Report:
    """Run the laws over one backend.

    Args:
        backend: an installed backend's name, or a value.
        profile: ``"smoke"``, ``"quick"``, ``"full"`` or ``"deep"``: how many cases are tried.
        device: where to run.
        laws: names or parts of names; none for all of the profile.
        seed: of the generated cases; ``None`` for a fresh one, which the header shows.
        on_progress: ``on_progress(law, done, total)``, called before each law and once at the end.
        shrink: whether to search for a smaller failing case.
        strict: whether a capability that works and is not claimed is a failure.
        rollouts: recorded rollouts; ``None`` for those of ``recordings()``.
        keep_interrupted: whether a ``KeyboardInterrupt`` ends the run with the results so far, in a report that is
            incomplete.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: an unknown profile, or a part of a name that fits no law.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: there are {', '.join(PROFILES)}")
    value = get_backend(backend) if isinstance(backend, str) else backend
    chosen = select(laws, profile)
    recorded = recordings() if rollouts is None else tuple(rollouts)
    seed = fresh_seed() if seed is None else seed
    tell = on_progress or (lambda law, done, total: None)
    header = Header(
        value.name, device, profile, seed, tuple(chosen), claimed=claims(value), strict=strict,
        rollouts=tuple(f"{r.name} ({r.source})" if r.source else r.name for r in recorded),
    )  # fmt: skip
    options = RunOptions(value, profile, device, seed, shrink, recorded)
    prepare(chosen.values(), value, device)
    results = []
    try:
        for done, (name, law) in enumerate(chosen.items()):
            tell(name, done, len(chosen))
            result = run_law(law, options)
            results.append(_strictly(result) if strict else result)
        results = with_causes(results, options)
        tell("", len(chosen), len(chosen))
    except KeyboardInterrupt:
        if not keep_interrupted:
            raise
    return Report(header, results)


def with_causes(results: Sequence[LawResult], run: RunOptions) -> list[LawResult]:
    """The results; each failure names the plainest law that fails on its smallest case too, if there is one.

    The laws come in the order of the catalogue, the plainest first; one that compiles is no cause of another.
    """
    plain: list[Law] = []
    found = []
    for result in results:
        if result.verdict in BAD and result.token is not None:
            case, rollout = case_of(result.law, result.token, run.rollouts)
            for law in plain:
                if not (law.drawn if rollout is None else law.rollouts):
                    continue  # the law has no such cases
                if outcome_of(law, run.backend, case, run.device, rollout).verdict in BAD:
                    result = replace(result, cause=law.name)
                    break
            else:
                if not LAWS[result.law].costly and len(plain) < CAUSES:
                    plain.append(LAWS[result.law])
        found.append(result)
    return found


def replay(backend: str | LSTMBackend, law: str, token: str, device: str = "cpu") -> LawResult:
    """Run one law over one case again.

    Args:
        backend: an installed backend's name, or a value.
        law: its exact name.
        token: of a result. ``T2.B1.I1.H1.f64.s0`` is a drawn case; ``CartPole-v1:H8.f32.s5`` is a recorded rollout,
            which gives ``T``, ``B``, ``I`` and the resets.
        device: where to run.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: the law is unknown, or the token is not understood.
    """
    value = get_backend(backend) if isinstance(backend, str) else backend
    case, rollout = case_of(law, token)
    return run_case(LAWS[law], value, case, device, token, rollout)


def case_of(law: str, token: str, rollouts: Sequence[Rollout] | None = None) -> tuple[Case, Rollout | None]:
    """The case of a token, and the recorded rollout that it names, if it does.

    Args:
        law: its exact name.
        token: of a result.
        rollouts: the known rollouts; ``None`` for those of :func:`recordings`.

    Raises:
        ValueError: the law is unknown, or the token is not understood, impossible or not one of this law's.
    """
    exact(law, LAWS, "law")
    name, recorded, rest = token.partition(":")
    if not recorded:
        return _drawn_case(law, token), None
    rollout = _rollout(name, recordings() if rollouts is None else rollouts)
    return _recorded_case(law, rest, **rollout.sizes_and_resets), rollout


def _rollout(name: str, among: Sequence[Rollout]) -> Rollout:
    for rollout in among:
        if rollout.name == name:
            return rollout
    raise ValueError(f"there is no rollout {name!r}; there are {', '.join(rollout.name for rollout in among)}")


def _drawn_case(law: str, token: str) -> Case:
    if not LAWS[law].drawn:
        raise ValueError(f"the token {token!r} names no rollout; a token of {law} looks like CartPole-v1:H8.f32.s5")
    return Case.parse(token)


def _recorded_case(law: str, token: str, **known: Any) -> Case:
    if not LAWS[law].rollouts:
        raise ValueError(f"{law} does not run over recorded rollouts; its tokens look like T2.B1.I1.H1.f64.s0")
    return Case.parse(token, **known)


def check_token(law: str, token: str) -> None:
    """Raise ValueError unless the token is one of the law's."""
    name, recorded, rest = token.partition(":")
    if recorded:
        if name not in ENVIRONMENTS:
            raise ValueError(f"there is no rollout {name!r}; there are {', '.join(ENVIRONMENTS)}")
        _recorded_case(law, rest, T=1, B=1, I=1, resets=0)
    else:
        _drawn_case(law, token)


def similar_defect(result: LawResult, device: str = "cpu") -> str | None:
    """The planted defect with the same first wrong number as this failure; ``None`` if there is none."""
    if result.verdict not in BAD or result.token is None or find_spec(DEFECTS) is None:
        return None
    found: str | None = import_module(DEFECTS).similar_defect(result, device)
    return found


def _strictly(result: LawResult) -> LawResult:
    """With ``--strict`` a capability that works and is not claimed is a failure."""
    return replace(result, verdict="failed") if result.verdict == "under_claimed" else result


def claims(backend: LSTMBackend) -> tuple[str, ...]:
    """The traits that a backend claims, by name."""
    return tuple(sorted(trait.value for trait in backend.traits))


def changed(report: Report, law: str, **fields: Any) -> Report:
    """The report with these fields of one law's result changed."""
    return replace(report, results=[replace(r, **fields) if r.law == law else r for r in report.results])


@contextmanager
def quiet_single_thread() -> Iterator[None]:
    """One thread and no warnings.

    Cases are small, so on a busy machine threads would mostly wait for each other. A warning that a user's settings
    turn into an error would look like a crash of the backend.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
