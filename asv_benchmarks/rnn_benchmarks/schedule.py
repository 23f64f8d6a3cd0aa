"""Which groups are measured: in a few minutes for a look, and in a quarter of an hour for docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from .cases import DENSE, RESETS, SHAPES, STEPS, Asked, Shape
from .groups import Figures, Group, Row, module_group, run, tensor_group

OURS = ("cpp", "cudnn", "vmap", "compile", "torchscript", "auto")
FAST = ("cpp", "cudnn")
"""Those that are measured in everything."""
THEIRS = ("torchrl-pad", "torchrl-scan")
LENGTHS = (16, 32, 64, 128, 256, 512)
QUICK, FULL = 280.0, 1200.0
"""Seconds for a whole run; what has not begun by then is left out, and said to be."""

R, ENDS, STORED, Q = "R", "R, exact ends", "R, stored states", "Q"
WITH = "R, "
LONG, SIXTEEN = "R, T = 512", "bfloat16"
VARIED = ("2 layers", "3 layers", "2 layers, dropout 0.2", "projection to H / 2")
OVER_RESETS, OVER_TIME, ACTING = "over resets", "over time", "acting"


def name_of(shape: str) -> str:
    """``S1`` and its like for the known shapes."""
    return next((name for name, known in SHAPES.items() if str(known) == shape), shape)


def quick() -> Iterator[Group]:
    """R for every backend at 0 and 3 %, Q at 3 %; the quick shapes first."""
    for name in ("S2", "S5", "S1", "S4", "S3"):
        for resets in ("0", "0.03"):
            yield tensor_group(R, OURS, SHAPES[name], resets, "train", 4.0)
        yield module_group(Q, ("auto", "torchrl-pad"), SHAPES[name], "0.03", "train", 3.0, "auto")


def full() -> Iterator[Group]:
    """Everything on docs/performance.md that is a time."""
    everybody = (DENSE, *OURS, *THEIRS)
    for resets in RESETS:
        yield module_group(OVER_RESETS, everybody, SHAPES["S2"], resets, "train", 7.0, DENSE)
    for T in LENGTHS:
        yield module_group(OVER_TIME, everybody, SHAPES["S2"]._replace(T=T), "0.03", "train", 7.0, DENSE)
    for shape in STEPS.values():
        yield _acting(shape)
    for shape in SHAPES.values():
        for resets in RESETS:
            who = OURS if resets == "0.03" else (*FAST, "auto")
            yield tensor_group(R, who, shape, resets, "train", 7.0)
        for title, reads in ((ENDS, "ends"), (STORED, "stored")):
            yield tensor_group(title, (*FAST, "auto"), shape, "0.03", "train", 7.0, reads)
        for resets in ("0", "0.03"):
            yield module_group(Q, ("auto", *THEIRS), shape, resets, "train", 6.0, "auto")

    for option in VARIED:
        for name in ("S1", "S2", "S4"):
            yield _varied(option, SHAPES[name])
    for name in ("S1", "S2"):
        for resets in ("0.03", "0.20"):
            yield tensor_group(LONG, FAST, SHAPES[name]._replace(T=512), resets, "train", 7.0)
    for name in ("S1", "S3"):
        yield _sixteen(SHAPES[name])


def _varied(option: str, shape: Shape) -> Group:
    asked = {who: Asked(who, shape, "0.03", option=option) for who in (DENSE, *FAST)}
    return Group(WITH + option, asked, DENSE, 6.0)


def _sixteen(shape: Shape) -> Group:
    asked = {who: Asked(who, shape) for who in ("cudnn", DENSE)}
    asked |= {f"{who}, {SIXTEEN}": Asked(who, shape, option=SIXTEEN) for who in ("cudnn", DENSE)}
    return Group(SIXTEEN, asked, "cudnn", 7.0)


def _acting(shape: Shape) -> Group:
    who = ("torchrl-pad", DENSE, *OURS)
    return Group(ACTING, {one: Asked(one, shape, "0", "step", "module") for one in who}, "torchrl-pad", 4.0)


def run_all(
    groups: list[Group],
    figures: Figures,
    seconds: float,
    begin: Callable[[Group], None] = lambda group: None,
    done: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = perf_counter,
    **options: Any,
) -> None:
    """Measure what ``figures`` does not have yet, until the time is up; the rest is noted as not measured."""
    begun, have = clock(), {_key(row) for row in figures.rows if row.note != TIME_UP}
    figures.rows = [row for row in figures.rows if row.note != TIME_UP]
    for group in groups:
        about = next(iter(group.asked.values()))
        if (group.title, str(about.shape), about.resets) in have:
            continue
        if clock() - begun > seconds:
            figures.rows += [_left_out(group, label, asked) for label, asked in group.asked.items()]
            continue
        begin(group)
        figures.rows += run(group, clock=clock, **options)
        done()


TIME_UP = "not measured: the time was up"


def _key(row: Row) -> tuple[str, str, str]:
    return row.title, row.shape, row.resets


def _left_out(group: Group, label: str, asked: Asked) -> Row:
    return Row(group.title, label, str(asked.shape), asked.resets, asked.mode, asked.reads, note=TIME_UP)
