"""Run one law over all of its cases: drawn ones and recorded rollouts."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rnn_backends import LSTMBackend

from .case import DTYPES, Case
from .device import absent
from .inputs import Rollout
from .isolation import outcome_of_drawn
from .judge import outcome_of
from .law import Law
from .reach import Allowed, Reach
from .search import SHRINK_SECONDS, Findings, search
from .strategies import rich
from .verdict import BAD, LawResult, Outcome

PROFILES = {"smoke": 2, "quick": 12, "full": 200, "deep": 2000}
"""Drawn cases of a wide law, by profile; the others draw a quarter. Each also runs over a few fixed rich cases."""

COSTLY_CASES = {"smoke": 1, "quick": 2, "full": 4, "deep": 4}
"""Cases of a costly law, which runs over a few fixed ones."""

ISOLATED_CASES = {"smoke": 1, "quick": 2, "full": 2, "deep": 4}
"""Cases of a law with a process of its own: it compiles for half a minute, and its cases differ little."""

ROLLOUT_HIDDEN_SIZES = {"smoke": (8,), "quick": (8, 32), "full": (1, 8, 32, 64), "deep": (1, 8, 32, 64, 128)}
"""``H`` of laws that run over rollouts only; other laws run over each rollout once, with ``H = 4``."""

Progress = Callable[[str, int, int], None]
"""``on_progress(law, done, total)``: called before each law with ``done`` laws finished, and once at the end."""


@dataclass(frozen=True)
class RunOptions:
    """The options of one run, the same for all laws.

    Attributes:
        backend: under test.
        profile: a key of :data:`PROFILES`.
        device: where to run.
        seed: of the drawn cases.
        shrink: whether to search for a smaller failing case.
        rollouts: recorded rollouts.
    """

    backend: LSTMBackend
    profile: str
    device: str
    seed: int
    shrink: bool = True
    rollouts: tuple[Rollout, ...] = ()


@dataclass
class _Cases:
    """The outcomes of one law: of drawn cases, and of recorded ones by token."""

    drawn: Findings = field(default_factory=Findings)
    recorded: dict[str, Outcome] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)


def run_law(law: Law, run: RunOptions) -> LawResult:
    """The law's verdict over all of its cases."""
    begin = time.perf_counter()
    reason = absent(run.device) or law.not_yet(run.backend)
    if reason:
        return LawResult(run.backend.name, law.name, "declined", message=reason)
    if law.trait and law.trait not in run.backend.traits and not law.tries_unclaimed:
        message = f"{law.trait.value} is not claimed"
        return LawResult(run.backend.name, law.name, "declined", message=message)
    reach = Reach(run.backend, run.device)
    allowed = reach.within(law.where)
    found = _Cases(_drawn(law, run, allowed, reach) if law.drawn else Findings())
    for rollout, case in _recorded(law, run, allowed.where, reach):
        outcome = outcome_of(law, run.backend, case, run.device, rollout)
        found.recorded[f"{rollout.name}:{case.options_token}"] = outcome
        found.dtypes |= {case.dtype} if outcome.verdict != "declined" else set()
        if outcome.verdict in BAD:
            break
    return _result(law, run.backend.name, found, time.perf_counter() - begin)


def run_case(law: Law, backend: LSTMBackend, case: Case, device: str, token: str, rollout: Rollout | None) -> LawResult:
    """The law's verdict over one case; ``token`` names it in the result."""
    reason = law.not_yet(backend)
    if reason:
        return LawResult(backend.name, law.name, "declined", message=reason, token=token)
    found = _Cases()
    if rollout is None:
        found.drawn.outcomes[case] = outcome_of_drawn(law, backend, case, device)
    else:
        found.recorded[token] = outcome_of(law, backend, case, device, rollout)
        found.dtypes.add(case.dtype)
    return _result(law, backend.name, found, 0.0)


def recorded_case(rollout: Rollout, where: Mapping[str, Any], H: int, seed: int) -> Case:
    """The case of a law over a rollout: its sizes and resets, and one layer of ``H`` units."""
    allowed = {name: where[name][0] for name in ("dtype", "stored") if name in where}
    return replace(Case(H=H, seed=seed % 1000, **rollout.sizes_and_resets), **allowed)


def _recorded(law: Law, run: RunOptions, where: Mapping[str, Any], reach: Reach) -> Iterator[tuple[Rollout, Case]]:
    """The recorded cases, with those of the profile's hidden sizes that the backend accepts, or else one that it
    accepts."""
    if not law.rollouts or (law.drawn and run.profile == "smoke"):
        return
    sizes = (4,) if law.drawn else ROLLOUT_HIDDEN_SIZES[run.profile]
    for rollout in run.rollouts:
        cases = [recorded_case(rollout, where, H, run.seed) for H in (*sizes, *where.get("H", ()))]
        usual, others = cases[: len(sizes)], cases[len(sizes) :]
        taken = [case for case in usual if reach.accepts(case)] or [case for case in others if reach.accepts(case)][:1]
        yield from ((rollout, case) for case in taken or usual)


def _drawn(law: Law, run: RunOptions, allowed: Allowed, reach: Reach) -> Findings:
    check = partial(outcome_of_drawn, law, run.backend, device=run.device)
    if law.costly:
        return Findings({case: check(case) for case in _few(law, run, allowed.where)})
    # each law draws its own cases, independent of the other laws in the run
    seed = run.seed ^ zlib.crc32(law.name.encode())
    accepts = reach.accepts if allowed.narrowed else lambda case: True
    examples = max(PROFILES["smoke"], PROFILES[run.profile] // (1 if law.wide else 4))
    seconds = SHRINK_SECONDS * (0.1 if run.profile == "smoke" else 1.0)
    return search(check, allowed.where, examples, seed, run.shrink, accepts, seconds)


def _few(law: Law, run: RunOptions, where: Mapping[str, Any]) -> list[Case]:
    """The cases of a costly law: the first is the same in every run, the others have fresh numbers."""
    number = 1 if law.once else (COSTLY_CASES if law.time_limit is None else ISOLATED_CASES)[run.profile]
    first, *others = rich(where)[:number]
    return [first, *(replace(case, seed=run.seed % 2**20 + k) for k, case in enumerate(others))]


def _result(law: Law, backend: str, found: _Cases, seconds: float) -> LawResult:
    """One verdict from all cases: the worst, or declined where every case was declined."""
    every = [*found.drawn.outcomes.values(), *found.recorded.values()]
    drawn = {case.dtype for case, outcome in found.drawn.outcomes.items() if outcome.verdict != "declined"}
    dtypes = tuple(name for name in DTYPES if name in drawn | found.dtypes)
    answered = [outcome for outcome in every if outcome.verdict != "declined"]
    ratios = [outcome.error_ratio for outcome in answered if outcome.error_ratio is not None]
    result = LawResult(
        backend, law.name, "passed", len(answered), len(every) - len(answered), max(ratios, default=None),
        seconds=seconds, out_of_reach=found.drawn.out_of_reach, dtypes=dtypes,
    )  # fmt: skip
    worst = found.drawn.worst()
    if worst is not None:
        case, outcome = worst
        return replace(result, verdict=outcome.verdict, message=outcome.message, token=case.token)
    for token, outcome in found.recorded.items():
        if outcome.verdict in BAD:
            return replace(result, verdict=outcome.verdict, message=outcome.message, token=token)
    if not answered:
        reasons = dict.fromkeys(outcome.message for outcome in every)
        return replace(result, verdict="declined", message=next(iter(reasons), "no case was tried"))
    if law.trait and any(outcome.verdict == "under_claimed" for outcome in answered):
        return replace(result, verdict="under_claimed", message=f"{law.trait.value} works and is not claimed")
    return result
