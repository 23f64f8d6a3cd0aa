"""Run a law over many cases, keep the failures and shrink them: Hypothesis draws, nothing is stored on disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from .case import LAYOUTS, Case
from .strategies import cases, rich
from .verdict import BAD, VERDICTS, Outcome

SHRINK_SECONDS = 4.0
"""The time limit, in seconds, of a law's search for a smaller failing case."""

FEW = 3
"""Runs of at most this many examples leave the largest rich cases out: smoke, and laws that draw few cases in quick."""


class _Bad(Exception):
    """A case failed."""


@dataclass
class Findings:
    """All outcomes of one law, by case."""

    outcomes: dict[Case, Outcome] = field(default_factory=dict)
    out_of_reach: int = 0
    """How many drawn cases the backend rejects."""

    def worst(self) -> tuple[Case, Outcome] | None:
        """The smallest case of the worst verdict, if any failed."""
        bad = [(case, outcome) for case, outcome in self.outcomes.items() if _is_bad(outcome)]
        return min(bad, key=lambda pair: (VERDICTS.index(pair[1].verdict), *size(pair[0])), default=None)


def size(case: Case) -> tuple[float, ...]:
    """A case's size as a sort key, most significant first."""
    options = case.L + case.bidirectional + (case.P > 0) + (not case.bias) + (case.dropout > 0)
    lays = LAYOUTS.index(case.layout)
    return case.T * case.B, options, case.H, case.I, case.resets.bit_count(), lays, case.seed


def search(
    check: Callable[[Case], Outcome],
    where: Mapping[str, Any],
    examples: int,
    seed: int,
    shrink: bool = True,
    accepts: Callable[[Case], bool] = lambda case: True,
    shrink_seconds: float = SHRINK_SECONDS,
) -> Findings:
    """Check the rich cases, then drawn ones until one fails; then, for some seconds, smaller ones.

    Cases that ``accepts`` rejects are counted and not checked.
    """
    findings = Findings()
    deadline: float | None = None

    def example(case: Case) -> None:
        nonlocal deadline
        late = deadline is not None and time.monotonic() > deadline
        if case not in findings.outcomes:
            if late:
                return  # out of time: run no new case, answer from the known outcomes
            if not accepts(case):
                findings.out_of_reach += 1
                return
            findings.outcomes[case] = check(case)
        if _is_bad(findings.outcomes[case]):
            deadline = deadline or time.monotonic() + shrink_seconds
            raise _Bad

    try:
        for case in rich(where)[: FEW if examples <= FEW else None]:
            example(case)
    except _Bad:
        if not shrink:
            return findings
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        verbosity=hypothesis.Verbosity.quiet,
        print_blob=False,
    )
    with contextlib.suppress(_Bad):
        hypothesis.seed(seed)(settings(hypothesis.given(cases(where))(example)))()
    return findings


def _is_bad(outcome: Outcome) -> bool:
    return outcome.verdict in BAD
