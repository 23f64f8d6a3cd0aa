"""The measurements of ``rnn-backends tune``, and the accuracy of ``auto`` on cases that it was not tuned on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rnn_backends import LSTMSpec
from rnn_backends.choose import AUTO_ORDER
from rnn_backends.crossovers import Cell, Table
from rnn_backends.ranking import Ranking

from .cases import Call, Contestant, Shape, build
from .figures import first_call
from .groups import where
from .timing import Spread, interleaved

NEAR = 0.05
"""``auto`` is right if its backend takes at most this share longer than the best."""
ROUNDS, SLOW = (4, 31), 5.0
BUSY = 0.25
"""A time is noisy if its quartiles differ by more than this share of the median: other programs were running."""


@dataclass(frozen=True)
class Grid:
    """Shapes by hidden size, and shares of resets; measured in training, forward, and one step for acting.

    ``rows`` and ``wide_rows`` are pairs (B, T), the latter for hidden sizes of 384 and more, whose steps take long.
    """

    hidden: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    wide_rows: tuple[tuple[int, int], ...]
    resets: tuple[str, ...]
    features: int
    seconds: float

    def cases(self) -> list[tuple[Shape, str, str]]:
        """``(shape, mode, resets)``: train at all rows and shares, forward at the last row, steps without resets."""
        found = []
        for H in self.hidden:
            rows = self.rows if H < 384 else self.wide_rows
            shapes = [Shape(B, T, self.features, H) for B, T in rows]
            found += [(shape, "train", rate) for shape in shapes for rate in self.resets]
            found += [(shapes[-1], "forward", rate) for rate in self.resets]
            found += [(shape._replace(T=1), "step", "0") for shape in shapes]
        return found


TUNED = Grid((32, 128, 512), ((4, 64), (64, 32)), ((4, 32), (32, 16)), ("0", "0.03", "0.30"), 32, 100.0)
QUICK = Grid((32, 256), ((8, 32),), ((8, 32),), ("0", "0.03"), 32, 15.0)
HELD_OUT = Grid(
    (48, 96, 192, 384),
    ((2, 100), (16, 48), (128, 20)),
    ((2, 40), (12, 24), (48, 12)),
    ("0.01", "0.10", "once"),
    20,
    150.0,
)
"""Shares no hidden size, batch, number of steps, number of features or share of resets with the grids above."""

Tick = Callable[[str], None]
Measure = Callable[[Contestant], Call]


def contestants(grid: Grid, backends: Iterable[str], device: str) -> list[list[Contestant]]:
    """The grid's cases, each with the backends to measure in turn."""
    names = list(backends)
    return [[Contestant(n, shape, rate, mode, "module", device) for n in names] for shape, mode, rate in grid.cases()]


@dataclass(frozen=True)
class Timed:
    """Measured cells, and the share of their times that are noisy by ``BUSY``."""

    cells: list[Cell]
    noisy: float


def measure(
    cases: list[list[Contestant]],
    seconds: float,
    tick: Tick = lambda text: None,
    done: Callable[[], None] = lambda: None,
    make: Measure = build,
    **options: Any,
) -> Timed:
    """Measure the cases one after another, in ``seconds`` in total; the options are those of :func:`interleaved`.

    A time is the minimum over the rounds: other programs make a call longer, never shorter.
    """
    cells, spreads = [], []
    options = {"rounds": ROUNDS, "slow": SLOW, **options}
    for case in cases:
        shape, mode, rate = case[0].shape, case[0].mode, case[0].resets
        text = f"{shape}, {mode}, resets {rate}: "
        calls = {}
        for one in case:
            tick(f"{text}{one.backend} (set-up)")
            with suppress(NotImplementedError):  # it does not support this size and has no time in this cell
                calls[one.backend] = make(one)
        found = interleaved(calls, seconds / len(cases), tick=partial(_tell, tick, text), **options)
        spreads += [Spread.of(times) for times in found.values()]
        times = {who: float(f"{min(times):.4g}") for who, times in found.items()}
        cells.append(Cell(shape.H, mode, rate, shape.B, shape.T, shape.I, times))
        done()
    return Timed(cells, sum(spread.noise > BUSY for spread in spreads) / max(1, len(spreads)))


def _tell(tick: Tick, text: str, who: str) -> None:
    tick(text + who)


def first_calls(
    backends: Iterable[str],
    tick: Tick = lambda text: None,
    done: Callable[[], None] = lambda: None,
    first: Callable[..., dict[str, Any]] = first_call,
) -> dict[str, float]:
    """Seconds of the first forward and backward pass in a new process, on the CPU, for each backend that runs there."""
    found: dict[str, float] = {}
    for name in backends:
        tick(f"first call in a fresh process: {name}")
        with suppress(NotImplementedError):  # a new process does not have this backend; its cells tell whether it runs
            found[name] = float(f"{first(name, 16)['seconds']:.3g}")
        done()
    return found


def table_of(cells: list[Cell], first: dict[str, float], device: str, allow_compile: bool = False) -> Table:
    """The table in the form that core reads."""
    here = {name: value for name, value in where(device).items() if name in KEPT}
    return Table(torch.device(device).type, here, tuple(cells), first, allow_compile)


KEPT = ("date", "processor", "cores", "threads", "torch", "rnn-backends")


@dataclass(frozen=True)
class Judged:
    """One cell: the choice of ``auto``, the fastest backend that it may choose, and the ratio of their times."""

    cell: Cell
    auto: str
    best: str
    times: float


def judge(cells: Iterable[Cell], table: Table | None, may: Callable[[str], bool]) -> list[Judged]:
    """The choice of ``auto`` in each cell, compared with the fastest backend that it ``may`` choose."""
    found = []
    for cell in cells:
        ranking = Ranking(sorted(cell.seconds), AUTO_ORDER, table, LSTMSpec(cell.features, cell.hidden))
        auto = ranking.first()
        able = {name: t for name, t in cell.seconds.items() if may(name) or name == auto}
        if auto is not None:
            best = min(able, key=able.__getitem__)
            found.append(Judged(cell, auto, best, able[auto] / able[best]))
    return found


def share(judged: list[Judged]) -> float:
    """The share of cells in which ``auto`` is within ``NEAR`` of the best."""
    return sum(one.times <= 1 + NEAR for one in judged) / len(judged) if judged else 0.0
