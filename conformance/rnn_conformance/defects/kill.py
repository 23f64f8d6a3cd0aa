"""Do the laws that were named beforehand kill a planted defect? A crash or a refusal is no kill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest import mock

from ..suite import search
from ..suite.runner import check_backend
from ..suite.verdict import Verdict
from .planting import Defect

KILLS: frozenset[Verdict] = frozenset({"failed", "silently_wrong"})


@dataclass(frozen=True)
class Kill:
    """What one named law said of one defect.

    Attributes:
        defect: its name.
        law: the law's name.
        verdicts: one for each seed.
        message: of the first seed.
    """

    defect: str
    law: str
    verdicts: tuple[str, ...]
    message: str = ""

    @property
    def killed(self) -> bool:
        """Whether the law failed by assertion with every seed."""
        return bool(self.verdicts) and all(verdict in KILLS for verdict in self.verdicts)


def named_kills(defect: Defect, seeds: Iterable[int], profile: str = "quick") -> list[Kill]:
    """Run the laws that the defect names, each with every seed."""
    seeds = tuple(seeds)
    kills = []
    for law in defect.killed_by:
        verdicts, messages = [], []
        for seed in seeds:
            with defect.plant() as backend:
                result = check_backend(backend, profile=profile, laws=[law], seed=seed, shrink=False).results[0]
            verdicts.append(result.verdict)
            messages.append(result.message)
        kills.append(Kill(defect.name, law, tuple(verdicts), messages[0] if messages else ""))
    return kills


def kills_of(defect: Defect, seeds: Iterable[int], profile: str = "quick", drawn_only: bool = False) -> list[Kill]:
    """:func:`named_kills`; ``drawn_only`` leaves the fixed rich cases out, which run first whatever the seed."""
    if not drawn_only:
        return named_kills(defect, seeds, profile)
    with mock.patch.object(search, "rich", return_value=[]):
        return named_kills(defect, seeds, profile)


def survives(defect: Defect, kills: list[Kill]) -> bool:
    """Whether a named law failed to kill it and no reason is written down."""
    return not defect.why_not and not (kills and all(kill.killed for kill in kills))


def first_kill(defect: Defect, laws: Iterable[str], seed: int, profile: str = "quick") -> str | None:
    """The first of many laws that kills the defect, or ``None``: for defects that no law was written against."""
    return next(every_kill(defect, laws, seed, profile), None)


def every_kill(defect: Defect, laws: Iterable[str], seed: int, profile: str = "quick") -> Iterator[str]:
    """Names of the laws that kill the defect, as they are found."""
    for law in laws:
        with defect.plant() as backend:
            result = check_backend(backend, profile=profile, laws=[law], seed=seed, shrink=False).results[0]
        if result.verdict in KILLS:
            yield law
