"""The project's goals for a CPU with two cores, next to the measured figures, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from .cases import DENSE
from .figures import Q_of
from .groups import Figures, Row
from .schedule import ACTING, ENDS, LONG, SIXTEEN, STORED, VARIED, WITH, Q, R, name_of
from .tables import percent

BEST = "cpp"
"""The backend of the goals for R and memory: ``auto`` chooses it on a CPU."""


class Goal(NamedTuple):
    """One line: ``found`` by shape, and whether each has to be at most or at least ``limit``."""

    what: str
    at_most: bool
    limit: float
    found: dict[str, float]

    @property
    def words(self) -> str:
        """``<= 1.15``."""
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Whether a figure meets the limit when rounded to two decimals, as printed."""
        return round(value, 2) <= self.limit if self.at_most else round(value, 2) >= self.limit


def goals(figures: Figures) -> Iterator[Goal]:
    """All goals with measured figures."""
    for resets, limit in (("0", 1.03), ("0.01", 1.15), ("0.03", 1.15), ("0.10", 1.30), ("0.20", 1.30)):
        yield Goal(f"R, {percent(resets)}", True, limit, _over(figures, R, BEST, resets))
    yield Goal("R, 20 %, T = 512", True, 1.0, _over(figures, LONG, BEST, "0.20"))
    yield Goal("R, 3 %, exact ends", True, 1.30, _over(figures, ENDS, BEST, "0.03"))
    yield Goal("R, 3 %, stored states", True, 1.60, _over(figures, STORED, BEST, "0.03"))
    one_layer = _over(figures, R, BEST, "0.03")
    for option in VARIED:
        varied = _over(figures, WITH + option, BEST, "0.03")
        yield Goal(f"R, {option}, over one layer's", True, 1.10, _divided(varied, one_layer))
    at_best = _Q(figures, "0.03")
    yield Goal("Q, 3 %", False, 5.0, at_best)
    if at_best:
        mean = prod(at_best.values()) ** (1 / len(at_best))
        yield Goal("Q, 3 %, geometric mean", False, 10.0, {"all": mean})
    yield Goal("Q, 0 %", False, 1.0, _Q(figures, "0"))
    yield Goal("memory over `nn.LSTM`", True, 1.25, _numbers(figures, f"memory/{BEST}/"))
    acting = _over(figures, ACTING, "auto", None)
    yield Goal("acting, over TorchRL", True, 0.3, acting)
    yield Goal("acting, over `nn.LSTM`", True, 1.0, _divided(acting, _over(figures, ACTING, DENSE, None)))
    first = {key.rsplit(" ", 1)[1]: v for key, v in figures.numbers.items() if key.startswith("compile/first call/")}
    took = {T: v["seconds"] for T, v in first.items() if isinstance(v, dict)}
    yield Goal("`compile`, first call in seconds", True, 15.0, {f"T = {T}": v for T, v in took.items()})
    if {"16", "512"} <= took.keys():
        yield Goal("`compile`, first call, T = 512 over T = 16", True, 1.2, {"all": took["512"] / took["16"]})
    fast, slow = (_over(figures, R, name, "0.03") for name in ("compile", "vmap"))
    yield Goal("`compile`, times as fast as `vmap`", False, 2.0, _divided(slow, fast))
    yield Goal("`torchscript` over `vmap`", True, 1.0, _divided(_over(figures, R, "torchscript", "0.03"), slow))
    yield Goal("ten critics, times as fast", False, 3.0, _numbers(figures, "critics/vmap/"))
    narrow = _over(figures, SIXTEEN, f"cudnn, {SIXTEEN}", None)
    yield Goal("bfloat16, times as fast as float32", False, 1.5, {name: 1 / over for name, over in narrow.items()})


def _over(figures: Figures, title: str, backend: str, resets: str | None) -> dict[str, float]:
    rows = (row for row in figures.of(title) if row.label == backend and resets in (None, row.resets))
    return {_name(row): row.over.median for row in rows if row.over}


def _name(row: Row) -> str:
    known = name_of(row.shape)
    long = {"B64-T512-I64-H256": "S1", "B32-T512-I64-H128": "S2"}
    return long.get(known, known)


def _divided(over: dict[str, float], under: dict[str, float]) -> dict[str, float]:
    return {name: value / under[name] for name, value in over.items() if name in under}


def _Q(figures: Figures, resets: str) -> dict[str, float]:
    """Q by shape."""
    groups: dict[str, list[Row]] = {}
    for row in figures.of(Q):
        if row.resets == resets:
            groups.setdefault(_name(row), []).append(row)
    found = {name: Q_of(rows) for name, rows in groups.items()}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(figures: Figures, begin: str) -> dict[str, float]:
    pairs = ((key.removeprefix(begin), v) for key, v in figures.numbers.items() if key.startswith(begin))
    return {name: value for name, value in pairs if isinstance(value, float)}


def lines(figures: Figures) -> list[list[str]]:
    """Rows of a table: a goal, its limit, and the figures by shape, in bold if they miss the limit."""
    made = []
    for goal in goals(figures):
        cells = [
            (f"{value:.2f}" if goal.holds(value) else f"**{value:.2f}**") + (f" ({name})" if name != "all" else "")
            for name, value in goal.found.items()
        ]
        if cells:
            made.append([goal.what, goal.words, ", ".join(cells)])
    return made
