"""What a step of the Triton kernels costs on an H100, and why: ``python -m rnn_benchmarks.gpu model``.

A step costs a fixed time (launch order, barriers, the way to L2 and back), a wait if programs share a tile, and the
time of its data and arithmetic. The prices are fitted to the steps that were measured with many cuts of the kernels
(``steps_h100.json``), forward and backward apart; the rates are the card's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from math import ceil
from pathlib import Path

import torch
from rnn_backends.paths import write_whole
from rnn_backends_plugins.triton.plan import CARDS, Plan, batch_of, plan

from ..cases import Shape
from ..page import markdown
from .settings import GPU_SHAPES, name_of

CARD = CARDS["H100"]
CLOCK = 1755.0
"""Cycles a microsecond, under load."""
SHARED = 128.0
"""Bytes a cycle that a multiprocessor reads from its shared memory."""
L2_ONE = 64.0
"""Bytes a cycle between a multiprocessor and L2."""
L2_ALL = 5.5e6
"""Bytes a microsecond between all of them and L2."""
MEMORY = 2.6e6
"""Bytes a microsecond of memory; the data sheet has 3.35e6."""
PRODUCTS = {"TF32": 150e6, "float32": 45e6, "bfloat16": 350e6}
"""Operations a microsecond of the products outside the kernels over time: assumed, at a third of the data sheet's 495
and 989 for kernels of our own, at two thirds of its 67 for cuBLAS in float32. None has been measured."""
LAUNCH = 15.0
"""Microseconds of one operator on the host of that card."""
LAUNCHES_BEFORE = 12
"""Operators of a forward call up to its kernel: what the GPU waits for. The host prepares the rest meanwhile."""
ITEMSIZE = {"TF32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Measured:
    """A kernel that was measured: its shape, its cut, and microseconds over all steps."""

    precision: str
    shape: str
    backward: bool
    units: int
    rows: int
    warps: int
    us: float

    @property
    def cut(self) -> Plan:
        """As a plan; of a few pieces the fastest was kept."""
        H = GPU_SHAPES[self.shape].H
        return Plan(self.units, ceil(H / self.units), self.rows, H, H, self.warps)


MEASURED = tuple(
    Measured(**row) for row in json.loads(Path(__file__).with_name("steps_h100.json").read_text(encoding="utf-8"))
)
"""One H100 80GB HBM3, 2026-11-27, torch 2.11.0+cu130, Triton 3.6.0, 3 % resets; the gates kept, as training needs."""


@dataclass(frozen=True)
class Step:
    """One step of all tiles that run side by side.

    Attributes:
        instructions: matrix instructions of a program.
        shared: bytes that a program reads from shared memory for them.
        l2: bytes between a program and L2: the exchange, and weights that do not stay on the chip.
        all_l2: the same of all programs.
        memory: bytes of all programs from and to memory: gates, h, c, and their gradients.
        waits: for other programs.
        cells: hidden units times rows of a thread.
    """

    instructions: int
    shared: int
    l2: int
    all_l2: int
    memory: int
    waits: int
    cells: float

    def parts(self) -> dict[str, float]:
        """What the fitted prices are multiplied with: 1, waits, and microseconds by the card's rates, but for cells."""
        return {
            "step": 1.0,
            "wait": float(self.waits),
            "shared": self.shared / SHARED / CLOCK,
            "cell": self.cells,
            "moved": max(self.l2 / L2_ONE / CLOCK, self.all_l2 / L2_ALL) + self.memory / MEMORY,
        }


def step_of(B: int, H: int, itemsize: int, cut: Plan, side_by_side: int, backward: bool) -> Step:
    """The step of a tile's programs where ``side_by_side`` tiles run at once."""
    programs = side_by_side * cut.slices
    rows = min(B, side_by_side * cut.rows)
    tiles_of_rows = max(1, cut.rows // 16)  # rows of one matrix instruction
    weights = 4 * cut.units * cut.padded * itemsize
    moved = 0 if cut.resident else weights
    if backward:
        moved += 2 * cut.rows * cut.padded * 4  # its own part to all, and all parts of its units
    else:
        moved += cut.rows * (cut.padded + cut.units) * itemsize
    of_a_cell = 4 + 1 + 1 + 4 if backward else 4 + 4 + 1 + 1
    return Step(
        instructions=tiles_of_rows * (4 * cut.units // 8) * (cut.padded * itemsize // 32),
        shared=weights * tiles_of_rows,
        l2=moved,
        all_l2=moved * programs,
        memory=rows * H * of_a_cell * itemsize,
        waits=int(cut.slices > 1),
        cells=cut.rows * cut.units / (32 * cut.warps),
    )


@dataclass(frozen=True)
class Prices:
    """Microseconds of every step, a wait and a cell; factors on the times of shared memory and of the data moved."""

    step: float
    wait: float
    shared: float
    cell: float
    moved: float

    def parts(self, step: Step) -> dict[str, float]:
        """Microseconds by what takes them."""
        found = {name: getattr(self, name) * value for name, value in step.parts().items()}
        latency = found.pop("step") + found.pop("wait")
        of = {"shared memory": found["shared"], "cells": found["cell"], "L2 and memory": found["moved"]}
        return {"latency": latency, **of}


@lru_cache
def prices(backward: bool) -> Prices:
    """Least squares of the relative errors over the measured steps; a price below zero is left out."""
    rows = [row for row in MEASURED if row.backward == backward]
    passes = [_pass(GPU_SHAPES[row.shape], row.precision, row.cut, backward) for row in rows]
    us = [row.us / of.rounds / GPU_SHAPES[row.shape].T for row, of in zip(rows, passes, strict=True)]
    names = [field.name for field in fields(Prices)]
    found = dict.fromkeys(names, 0.0)
    while True:
        matrix = torch.tensor(
            [[of.step.parts()[name] / took for name in names] for of, took in zip(passes, us, strict=True)],
            dtype=torch.float64,
        )
        solved = torch.linalg.lstsq(matrix, torch.ones(len(rows), 1, dtype=torch.float64)).solution.flatten().tolist()
        if min(solved) >= 0:
            return Prices(**found | dict(zip(names, solved, strict=True)))
        names.pop(solved.index(min(solved)))


def step_us(row: Measured) -> tuple[float, float]:
    """A measured step: its time and the model's, in microseconds."""
    shape = GPU_SHAPES[row.shape]
    of = _pass(shape, row.precision, row.cut, row.backward)
    return row.us / of.rounds / shape.T, sum(prices(row.backward).parts(of.step).values())


@dataclass(frozen=True)
class Pass:
    """One kernel over all steps.

    Attributes:
        cut: the plan.
        side_by_side: tiles that run at once.
        rounds: how many times the tiles side by side fill the GPU.
        step: one step.
    """

    cut: Plan
    side_by_side: int
    rounds: int
    step: Step


@dataclass(frozen=True)
class Prediction:
    """One shape in one precision.

    Attributes:
        forward: of the layer.
        backward: of the layer.
        products: ms outside of the kernels: of the inputs, and of the gradients over all steps.
    """

    shape: Shape
    precision: str
    forward: Pass
    backward: Pass
    products: float

    @property
    def name(self) -> str:
        """Of the shape."""
        return name_of(self.shape)

    def us(self, of: Pass) -> float:
        """Microseconds of a step."""
        return sum(prices(of is self.backward).parts(of.step).values())

    def bound(self, of: Pass) -> str:
        """What takes most of a step."""
        parts = prices(of is self.backward).parts(of.step)
        return max(parts, key=lambda part: parts[part])

    def ms(self) -> float:
        """Forward and backward, from the call to the end."""
        kernels = sum(of.rounds * self.shape.T * self.us(of) for of in (self.forward, self.backward))
        return (LAUNCHES_BEFORE * LAUNCH + kernels) / 1000 + self.products


def predict(shape: Shape, precision: str, cut: Plan | None = None) -> Prediction:
    """What a cut should reach; ``None``: the plan's choice."""
    itemsize = ITEMSIZE[precision]
    batch = batch_of(shape.H, shape.B, itemsize, CARD)
    forward, backward = (
        _pass(shape, precision, cut or plan(shape.H, itemsize, batch, CARD, b), b) for b in (False, True)
    )
    outside = products_ms(shape, itemsize, precision)
    return Prediction(shape, precision, forward, backward, outside)


def _pass(shape: Shape, precision: str, cut: Plan, backward: bool) -> Pass:
    tiles = ceil(shape.B / cut.rows)
    at_once = cut.programs(tiles, CARD) or tiles
    step = step_of(shape.B, shape.H, ITEMSIZE[precision], cut, at_once, backward)
    return Pass(cut, at_once, ceil(tiles / at_once), step)


def cuts(shape: Shape, precision: str) -> Iterator[Plan]:
    """Cuts whose weights stay on the chip, within the measured range: at most 8 cells per thread."""
    H, itemsize = shape.H, ITEMSIZE[precision]
    padded = plan(H, itemsize, "few", CARD).padded
    for units, rows, warps in product((16, 32, 64), (16, 32, 64), (4, 8)):
        fits = (4 * units + rows) * padded * itemsize <= CARD.shared * 7 // 8
        if units <= padded and fits and rows * units <= 8 * 32 * warps and ceil(H / units) <= CARD.sms:
            yield Plan(units, ceil(H / units), rows, padded, padded, warps)


def best(shape: Shape, precision: str) -> Prediction:
    """The fastest of :func:`cuts` by the model; the plan's own choice where there is none."""
    tried = [predict(shape, precision, cut) for cut in cuts(shape, precision)]
    return min([predict(shape, precision), *tried], key=Prediction.ms)


def products_ms(shape: Shape, itemsize: int, precision: str) -> float:
    """Of ``x @ w_ih``, and of the gradients of ``x`` and of all weights, in milliseconds.

    The gradients of ``w_ih``, ``w_hh`` and the bias are one kernel, which also picks the ``h`` that entered each step:
    it reads the gates' gradients once a block of columns, from L2 but for the first.
    """
    rows, gates = shape.T * shape.B, 4 * shape.H
    total = 0.0
    for inner in (shape.I, shape.I, shape.I + shape.H + 1):
        arithmetic = 2.0 * rows * gates * inner / PRODUCTS[precision]
        moved = rows * (gates + inner) * itemsize / MEMORY
        total += max(arithmetic, moved)
    return total / 1000


def predictions() -> Iterator[Prediction]:
    """Every shape in both precisions."""
    for precision in ITEMSIZE:
        for shape in GPU_SHAPES.values():
            yield predict(shape, precision)


def _measured_table() -> str:
    lines = []
    for found in predictions():
        row = [f"{found.name}, {found.precision}"]
        for of in (found.forward, found.backward):
            parts = prices(of is found.backward).parts(of.step)
            took = [
                step_us(one)[0]
                for one in MEASURED
                if (one.shape, one.precision, one.backward) == (found.name, found.precision, of is found.backward)
                and (one.units, one.rows, one.warps) == (of.cut.units, of.cut.rows, of.cut.warps)
            ]
            row += [*(f"{value:.2f}" for value in parts.values()), f"{sum(parts.values()):.1f}"]
            row.append(f"{took[0]:.1f}" if took else "-")
        lines.append(row)
    heads = ["latency", "shared memory", "cells", "L2, memory", "sum", "measured"]
    return markdown("a step, us", [f"{kind}: {head}" for kind in ("forward", "backward") for head in heads], lines)


def _price_text() -> str:
    said = []
    for backward in (False, True):
        p = prices(backward)
        off = [abs(model / took - 1) for took, model in (step_us(row) for row in MEASURED if row.backward == backward)]
        said.append(
            f"{'Backward' if backward else 'Forward'}: a step {p.step:.2f} us, a wait {p.wait:.2f} us more, "
            f"{p.shared:.2f} times the time that shared memory's {SHARED:.0f} bytes a cycle need, {p.cell:.2f} us for "
            f"each unit and row of a thread, {p.moved:.2f} times what L2 and memory need. The sums differ from "
            f"{len(off)} measured steps by {sum(off) / len(off):.0%} on average, by at most {max(off):.0%}."
        )
    return "\n".join(said)


def _step_table(backward: bool) -> str:
    lines = []
    for found in predictions():
        of = found.backward if backward else found.forward
        step, cut = of.step, of.cut
        lines.append([
            f"{found.name}, {found.precision}",
            f"{cut.slices}, {cut.units}, {cut.rows}" + ("" if cut.resident else ", pieces"),
            f"{of.side_by_side} x {of.rounds}",
            str(step.instructions), f"{step.shared / 1024:.0f}", f"{step.l2 / 1024:.0f}",
            f"{step.memory / 1024:.0f}", str(step.waits),
            f"{found.us(of):.1f}", found.bound(of),
        ])  # fmt: skip
    heads = [
        "G, U, BB", "tiles at once x rounds", "matrix instructions", "shared, KiB", "L2, KiB", "memory, KiB", "waits",
        "us", "most of it",
    ]  # fmt: skip
    return markdown("a step of a program", heads, lines)


def _cut_table() -> str:
    lines = []
    for now in predictions():
        other = best(now.shape, now.precision)
        row = [f"{now.name}, {now.precision}"]
        for found in (now, other):
            for of in (found.forward, found.backward):
                row.append(f"{of.cut.slices}, {of.cut.units}, {of.cut.rows}, {of.cut.warps}")
            row.append(f"{found.ms():.2f}")
        lines.append(row)
    heads = ["the plan's, forward", "backward", "ms", "fastest by the model, forward", "backward", "ms"]
    return markdown("shape, precision: G, U, BB, warps", heads, lines)


BETWEEN = re.compile(r"(<!-- model: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, str]:
    """Every text by the name in its marker."""
    return {
        "prices": _price_text(),
        "measured": _measured_table(),
        "forward": _step_table(backward=False),
        "backward": _step_table(backward=True),
        "cuts": _cut_table(),
    }


def fill(docs: Path) -> Path:
    """Fill the model's parts of performance.md."""
    page, made = docs / "performance.md", tables()
    write_whole(page, BETWEEN.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", page.read_text(encoding="utf-8")))
    return page
