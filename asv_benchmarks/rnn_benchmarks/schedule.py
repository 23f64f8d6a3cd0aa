"""The groups that ``make bench`` measures in under five minutes, and ``make figures`` in a quarter of an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from time import perf_counter
from typing import Any

from .cases import DENSE, RESETS, SHAPES, STEPS, Contestant, Shape
from .figures import KINDS, Q_group, R_group
from .groups import Figures, Group, Row, run

OURS = ("cpp", "cudnn", "vmap", "compile", "torchscript", "auto")
FAST = ("cpp", "cudnn")
"""The backends in every group of the tensor interface."""
THEIRS = ("torchrl-pad", "torchrl-scan")
LENGTHS = (16, 32, 64, 128, 256, 512)
QUICK, FULL = 280.0, 1200.0
"""The time limit of a whole run, in seconds. Groups that have not begun by then are noted as not measured."""

R, ENDS, STORED, Q = "R", "R, exact ends", "R, stored states", "Q"
WITH = "R, "
LONG, SIXTEEN = "R, T = 512", "bfloat16"
VARIED = ("2 layers", "3 layers", "2 layers, dropout 0.2", "projection to H / 2")
OVER_RESETS, OVER_TIME, ACTING = "over resets", "over time", "acting"


def name_of(shape: str) -> str:
    """The name of a known shape, such as ``S1``."""
    return next((name for name, known in SHAPES.items() if str(known) == shape), shape)


def quick() -> Iterator[Group]:
    """R for every backend at 0 and 3 %, Q at 3 %; the quick shapes first."""
    for name in ("S2", "S5", "S1", "S4", "S3"):
        for resets in ("0", "0.03"):
            yield R_group(R, OURS, SHAPES[name], resets, seconds=4.0)
        yield Q_group(Q, "auto", ("torchrl-pad",), SHAPES[name], "0.03", 3.0)


def full() -> Iterator[Group]:
    """All times on docs/performance.md."""
    for resets in RESETS:
        yield _modules(OVER_RESETS, SHAPES["S2"], resets)
    for T in LENGTHS:
        yield _modules(OVER_TIME, SHAPES["S2"]._replace(T=T), "0.03")
    for shape in STEPS.values():
        yield _acting(shape)
    for shape in SHAPES.values():
        for resets in RESETS:
            backends = OURS if resets == "0.03" else (*FAST, "auto")
            yield R_group(R, backends, shape, resets, seconds=7.0)
        for title, kind in ((ENDS, "exact ends"), (STORED, "stored states")):
            yield R_group(title, (*FAST, "auto"), shape, "0.03", KINDS[kind], 7.0)
        for resets in ("0", "0.03"):
            yield Q_group(Q, "auto", THEIRS, shape, resets, 6.0)

    for option in VARIED:
        for name in ("S1", "S2", "S4"):
            yield R_group(WITH + option, FAST, SHAPES[name], "0.03", seconds=6.0, option=option)
    for name in ("S1", "S2"):
        for resets in ("0.03", "0.20"):
            yield R_group(LONG, FAST, SHAPES[name]._replace(T=512), resets, seconds=7.0)
    for name in ("S1", "S3"):
        yield _sixteen(SHAPES[name])


def _modules(title: str, shape: Shape, resets: str) -> Group:
    """All LSTMModules over one TensorDict, against dense ``nn.LSTM``."""
    names = (DENSE, *OURS, *THEIRS)
    return Group(title, {name: Contestant(name, shape, resets, "train", "module") for name in names}, DENSE, 7.0)


def _sixteen(shape: Shape) -> Group:
    contestants = {name: Contestant(name, shape) for name in ("cudnn", DENSE)}
    contestants |= {f"{name}, {SIXTEEN}": Contestant(name, shape, option=SIXTEEN) for name in ("cudnn", DENSE)}
    return Group(SIXTEEN, contestants, "cudnn", 7.0)


def _acting(shape: Shape) -> Group:
    names = ("torchrl-pad", DENSE, *OURS)
    return Group(ACTING, {name: Contestant(name, shape, "0", "step", "module") for name in names}, "torchrl-pad", 4.0)


def run_all(
    groups: list[Group],
    figures: Figures,
    seconds: float = inf,
    begin: Callable[[Group], None] = lambda group: None,
    done: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = perf_counter,
    **options: Any,
) -> None:
    """Measure the groups that ``figures`` lacks until the time limit; note the others as not measured."""
    begun, have = clock(), {_key(row) for row in figures.rows if row.note != TIME_UP}
    figures.rows = [row for row in figures.rows if row.note != TIME_UP]
    for group in groups:
        if (group.title, str(group.first.shape), group.first.resets) in have:
            continue
        if clock() - begun > seconds:
            figures.rows += [_left_out(group, label, one) for label, one in group.contestants.items()]
            continue
        begin(group)
        figures.rows += run(group, clock=clock, **options)
        done()


TIME_UP = "not measured: the time was up"


def _key(row: Row) -> tuple[str, str, str]:
    return row.title, row.shape, row.resets


def _left_out(group: Group, label: str, one: Contestant) -> Row:
    return Row(group.title, label, str(one.shape), one.resets, one.mode, one.reads, note=TIME_UP)
