"""Whether the laws that a planted defect names kill it. A crash or a refusal is no kill."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from rnn_backends import LSTMBackend
from rnn_backends.paths import write_whole

from ..check import check_backend
from ..laws.catalogue import LAWS
from ..rollouts.recorded import shipped
from ..suite import search
from ..suite.case import DTYPES, Case
from ..suite.reach import Reach
from ..suite.verdict import LawResult, Verdict
from .planting import Defect
from .variants import RESTRICTED

KILLS: frozenset[Verdict] = frozenset({"failed", "silently_wrong"})


@dataclass(frozen=True)
class Kill:
    """The result of one named law for one defect.

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


def named_kills(defect: Defect, seeds: Iterable[int], profile: str = "quick", under: str | None = None) -> list[Kill]:
    """Run the laws that the defect names, each with every seed.

    Args:
        defect: planted again for each run.
        seeds: of the laws' cases.
        profile: how many cases are tried.
        under: a name of :data:`~.variants.RESTRICTED`: the planted backend takes only such cases.
    """
    seeds, restrict = tuple(seeds), RESTRICTED[under] if under else lambda backend: backend
    kills = []
    for law in defect.killed_by:
        verdicts, messages = [], []
        for seed in seeds:
            with defect.plant() as backend:
                result = _run(restrict(backend), law, seed, profile)
            verdicts.append(result.verdict)
            messages.append(result.message)
        kills.append(Kill(defect.name, law, tuple(verdicts), messages[0] if messages else ""))
    return kills


def _run(backend: LSTMBackend, law: str, seed: int, profile: str) -> LawResult:
    """The law over drawn cases, and over the shipped rollouts where it runs over rollouts only."""
    rollouts = () if LAWS[law].drawn else shipped()
    return check_backend(backend, profile=profile, laws=[law], seed=seed, shrink=False, rollouts=rollouts).results[0]


def kills_of(
    defect: Defect, seeds: Iterable[int], profile: str = "quick", drawn_only: bool = False, under: str | None = None
) -> list[Kill]:
    """:func:`named_kills`; ``drawn_only`` leaves out the fixed rich cases, which run first with any seed."""
    if not drawn_only:
        return named_kills(defect, seeds, profile, under)
    with mock.patch.object(search, "rich", return_value=[]):
        return named_kills(defect, seeds, profile, under)


def matters_under(defect: Defect, variant: str) -> bool:
    """Whether a kernel defect without a written reason is an error in a dtype that a restricted backend accepts."""
    if not defect.in_kernel or defect.why_not:
        return False
    with defect.plant() as backend:
        reach = Reach(RESTRICTED[variant](backend), "cpu")
        return any(reach.accepts(Case(T=1, B=1, I=1, H=16, dtype=name)) for name in defect.dtypes or DTYPES)


def dies_under(kills: Sequence[Kill]) -> bool:
    """Whether a law kills the defect with every seed; laws about cases that a restricted backend declines cannot."""
    return any(kill.killed for kill in kills)


def survives(defect: Defect, kills: list[Kill]) -> bool:
    """Whether a named law failed to kill it and no reason is written down."""
    return not defect.why_not and not (kills and all(kill.killed for kill in kills))


class Log:
    """Results in a file, one line per defect, so that a stopped run can continue.

    Args:
        path: the file; it is made if it does not exist.
        settings: common to all of its results, such as seeds and profile.

    Raises:
        ValueError: the file's results were made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self._path = path
        self.results: dict[str, list[Kill]] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines:
            write_whole(path, json.dumps(settings) + "\n")
        elif json.loads(lines[0]) != settings:
            raise ValueError(f"{path} holds results of another run, {lines[0]}; this one is {json.dumps(settings)}")
        for line in lines[1:]:
            kills = [Kill(**kill | {"verdicts": tuple(kill["verdicts"])}) for kill in json.loads(line)]
            self.results[kills[0].defect] = kills

    def add(self, kills: Sequence[Kill]) -> None:
        """Write the results of one defect at once."""
        self.results[kills[0].defect] = list(kills)
        with self._path.open("a") as file:
            file.write(json.dumps([asdict(kill) for kill in kills]) + "\n")
