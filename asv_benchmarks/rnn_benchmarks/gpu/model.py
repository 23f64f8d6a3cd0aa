"""What a step of the Triton kernels should cost on an H100, on paper: ``python -m rnn_benchmarks.gpu model``.

A step takes what every step takes (launch order, barriers, the way to L2 and back), a wait where programs share a tile,
and what is moved and computed. Four of the prices are fitted to a trial kernel's measured steps (:data:`TRIAL`), the
others are the card's. Nothing here was measured with the kernels themselves.
"""

from __future__ import annotations

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
PRODUCTS = {"TF32": 250e6, "float32": 45e6, "bfloat16": 500e6}
"""Operations a microsecond of cuBLAS: assumed at half to three quarters of the data sheet's 495, 67 and 989."""
LAUNCH = 15.0
"""Microseconds of one operator on the host that the trial was measured on."""
LAUNCHES_BEFORE = 12
"""Operators of a forward call up to its kernel: what the GPU waits for. The host prepares the rest meanwhile."""
ITEMSIZE = {"TF32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Trial:
    """A measured step of the trial: its cut, and microseconds."""

    shape: str
    precision: str
    slices: int
    rows: int
    warps: int
    measured: float


TRIAL = (
    Trial("S1", "TF32", 8, 16, 4, 4.9),
    Trial("S2", "TF32", 8, 32, 4, 3.9),
    Trial("S4", "TF32", 2, 16, 4, 8.0),
    Trial("S5", "TF32", 2, 16, 4, 4.3),
    Trial("S1", "bfloat16", 8, 16, 4, 3.9),
    Trial("S2", "bfloat16", 4, 16, 4, 3.2),
    Trial("S4", "bfloat16", 2, 16, 4, 6.6),
    Trial("S3", "bfloat16", 32, 64, 8, 8.2),
    Trial("S5", "bfloat16", 1, 16, 4, 4.4),
)
"""Forward, one H100 80GB HBM3, 2026-11-27, torch 2.11.0+cu130, Triton 3.6.0; G, BB, warps and us a step."""
DENSE = {
    ("S1", "TF32"): 5.13, ("S2", "TF32"): 1.16, ("S3", "TF32"): 6.68, ("S4", "TF32"): 2.20, ("S5", "TF32"): 1.56,
    ("G1", "TF32"): 5.56, ("S1", "bfloat16"): 6.41, ("S4", "bfloat16"): 3.25,
}  # fmt: skip
"""Milliseconds of dense ``nn.LSTM``, forward and backward, on the same card and day."""
R_GOALS = {"S1": 0.6, "S4": 0.6, "G1": 0.6, "S3": 1.0, "S2": 1.3, "S5": 1.3}
R_GOAL_16 = 0.4
STEP_GOALS = ((256, 4.0), (512, 8.0))
"""Up to which H, microseconds of a step forward at B <= 128."""


@dataclass(frozen=True)
class Step:
    """One step of all tiles that run side by side.

    Attributes:
        instructions: matrix instructions of a program.
        shared: bytes that a program reads from shared memory for them.
        l2: bytes between a program and L2: what is exchanged, and weights that do not stay on the chip.
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

    def fitted(self) -> list[float]:
        """What the four fitted prices are multiplied with."""
        return [1.0, float(self.waits), self.shared / SHARED / CLOCK, self.cells]

    def known(self) -> dict[str, float]:
        """Microseconds that the card alone decides."""
        return {"L2": max(self.l2 / L2_ONE / CLOCK, self.all_l2 / L2_ALL), "memory": self.memory / MEMORY}


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
        cells=max(4.0, cut.rows * cut.units / (32 * cut.warps)),  # a warp multiplies at least 16 rows and 8 units
    )


@dataclass(frozen=True)
class Prices:
    """The fitted ones: microseconds of every step and of a wait, a factor on shared memory's time, us of a cell."""

    step: float
    wait: float
    shared: float
    cell: float

    def parts(self, step: Step) -> dict[str, float]:
        """Microseconds by what takes them."""
        base, waits, shared, cells = step.fitted()
        fixed = {"latency": self.step * base + self.wait * waits}
        return fixed | {"shared memory": self.shared * shared, "cells": self.cell * cells} | step.known()


def _of_trial(row: Trial) -> Step:
    shape, itemsize = GPU_SHAPES[row.shape], ITEMSIZE[row.precision]
    cut = Plan(shape.H // row.slices, row.slices, row.rows, shape.H, shape.H, row.warps)
    return step_of(shape.B, shape.H, itemsize, cut, ceil(shape.B / row.rows), backward=False)


@lru_cache
def prices() -> Prices:
    """Least squares over the trial's steps."""
    steps = [_of_trial(row) for row in TRIAL]
    left = [row.measured - sum(step.known().values()) for row, step in zip(TRIAL, steps, strict=True)]
    matrix = torch.tensor([step.fitted() for step in steps], dtype=torch.float64)
    found = torch.linalg.lstsq(matrix, torch.tensor(left, dtype=torch.float64).unsqueeze(1)).solution
    return Prices(*found.flatten().tolist())


@dataclass(frozen=True)
class Pass:
    """One kernel over all steps.

    Attributes:
        cut: the plan.
        side_by_side: tiles that run at once.
        rounds: how often so many do.
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
        slow_products: the same without TF32 in torch's own products, which is torch's default.
    """

    shape: Shape
    precision: str
    forward: Pass
    backward: Pass
    products: float
    slow_products: float

    @property
    def name(self) -> str:
        """Of the shape."""
        return name_of(self.shape)

    def us(self, step: Step) -> float:
        """Microseconds of a step."""
        return sum(prices().parts(step).values())

    def bound(self, step: Step) -> str:
        """What takes most of a step."""
        parts = prices().parts(step)
        return max(parts, key=lambda part: parts[part])

    def ms(self, slow: bool = False) -> float:
        """Forward and backward, from the call to the end."""
        kernels = sum(of.rounds * self.shape.T * self.us(of.step) for of in (self.forward, self.backward))
        outside = self.slow_products if slow else self.products
        return (LAUNCHES_BEFORE * LAUNCH + kernels) / 1000 + outside


def predict(shape: Shape, precision: str, cut: Plan | None = None) -> Prediction:
    """What a cut should reach; ``None``: the plan's choice."""
    itemsize = ITEMSIZE[precision]
    batch = batch_of(shape.H, shape.B, itemsize, CARD)
    forward, backward = (
        _pass(shape, precision, cut or plan(shape.H, itemsize, batch, CARD, b), b) for b in (False, True)
    )
    slow = "float32" if precision == "TF32" else precision
    outside = [products_ms(shape, itemsize, which) for which in (precision, slow)]
    return Prediction(shape, precision, forward, backward, *outside)


def _pass(shape: Shape, precision: str, cut: Plan, backward: bool) -> Pass:
    tiles = ceil(shape.B / cut.rows)
    at_once = cut.programs(tiles, CARD) or tiles
    step = step_of(shape.B, shape.H, ITEMSIZE[precision], cut, at_once, backward)
    return Pass(cut, at_once, ceil(tiles / at_once), step)


def cuts(shape: Shape, precision: str) -> Iterator[Plan]:
    """Cuts whose weights stay on the chip, within what the trial has shown: at most 8 cells of a thread."""
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
    """Of ``x @ w_ih``, and of the gradients of ``x``, ``w_ih``, ``w_hh`` and the bias."""
    rows, gates = shape.T * shape.B, 4 * shape.H
    total = 0.0
    for inner in (shape.I, shape.I, shape.I, shape.H):
        arithmetic = 2.0 * rows * gates * inner / PRODUCTS[precision]
        moved = rows * (gates + inner) * itemsize / MEMORY
        total += max(arithmetic, moved)
    total += rows * (gates + 3 * shape.H) * itemsize / MEMORY  # the bias' sum, and the h that entered each step
    return total / 1000


def predictions() -> Iterator[Prediction]:
    """Every shape in both precisions."""
    for precision in ITEMSIZE:
        for shape in GPU_SHAPES.values():
            yield predict(shape, precision)


def _trial_table() -> str:
    lines = []
    for row in TRIAL:
        parts = prices().parts(_of_trial(row))
        said = sum(parts.values())
        cells = [f"{row.slices}, {row.rows}, {row.warps}", *(f"{value:.2f}" for value in parts.values())]
        lines.append([f"{row.shape}, {row.precision}", *cells, f"{said:.1f}", f"{row.measured:.1f}"])
    heads = ["G, BB, warps", "latency", "shared memory", "cells", "L2", "memory", "sum, us", "measured, us"]
    return markdown("trial, forward", heads, lines)


def _price_text() -> str:
    p = prices()
    off = [abs(sum(p.parts(_of_trial(row)).values()) / row.measured - 1) for row in TRIAL]
    return (
        f"A step {p.step:.2f} us, a wait {p.wait:.2f} us more, {p.shared:.2f} times the time that shared memory's "
        f"{SHARED:.0f} bytes a cycle need, {p.cell:.2f} us for each unit and row of a thread. "
        f"The sums differ from the measured steps by at most {max(off):.0%}, on average {sum(off) / len(off):.0%}: "
        f"{len(TRIAL)} figures, {len(fields(Prices))} fitted prices."
    )


def _step_table(backward: bool) -> str:
    lines = []
    for found in predictions():
        of = found.backward if backward else found.forward
        step, cut = of.step, of.cut
        parts = prices().parts(step)
        lines.append([
            f"{found.name}, {found.precision}",
            f"{cut.slices}, {cut.units}, {cut.rows}" + ("" if cut.resident else ", pieces"),
            f"{of.side_by_side} x {of.rounds}",
            str(step.instructions), f"{step.shared / 1024:.0f}", f"{step.l2 / 1024:.0f}",
            f"{step.memory / 1024:.0f}", str(step.waits),
            f"{sum(parts.values()):.1f}", found.bound(step),
        ])  # fmt: skip
    heads = [
        "G, U, BB", "tiles at once x rounds", "matrix instructions", "shared, KiB", "L2, KiB", "memory, KiB", "waits",
        "us", "most of it",
    ]  # fmt: skip
    return markdown("a step of a program", heads, lines)


def verdict(value: float, goal: float | None) -> str:
    """The goal, and bold where it is missed."""
    if goal is None:
        return "-"
    return f"{goal:g}" if value <= goal else f"**{goal:g}**"


def _cut_table() -> str:
    lines = []
    for now in predictions():
        other = best(now.shape, now.precision)
        row = [f"{now.name}, {now.precision}"]
        for found in (now, other):
            cut, step = found.forward.cut, found.forward.step
            row += [f"{cut.slices}, {cut.rows}, {cut.warps}", f"{found.us(step):.1f}", f"{found.ms(True):.2f}"]
        dense = DENSE.get((now.name, now.precision))
        lines.append([*row, "-" if dense is None else f"{other.ms(True) / dense:.2f}"])
    heads = ["plan: G, BB, warps", "step, us", "ms", "fastest by the model", "step, us", "ms", "R"]
    return markdown("shape, precision", heads, lines)


def _goal_table() -> str:
    lines = []
    for found in predictions():
        shape, step = found.shape, found.us(found.forward.step)
        limit = next((us for most, us in STEP_GOALS if most >= shape.H), None) if shape.B <= 128 else None
        dense = DENSE.get((found.name, found.precision))
        goal = R_GOALS[found.name] if found.precision == "TF32" else R_GOAL_16
        ms, slow = found.ms(), found.ms(slow=True)
        ratios = (
            ["-"] * 3 if dense is None else [f"{ms / dense:.2f}", f"{slow / dense:.2f}", verdict(slow / dense, goal)]
        )
        lines.append([
            f"{found.name}, {found.precision}", f"{step:.1f}", verdict(step, limit), f"{ms:.2f}", f"{slow:.2f}",
            "-" if dense is None else f"{dense:.2f}", *ratios,
        ])  # fmt: skip
    heads = [
        "forward step, us", "goal", "ms, products in TF32", "ms, torch's default", "`nn.LSTM` measured, ms",
        "R in TF32", "R", "goal",
    ]  # fmt: skip
    return markdown("shape, precision", heads, lines)


BETWEEN = re.compile(r"(<!-- model: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, str]:
    """Every text by the name in its marker."""
    return {
        "prices": _price_text(),
        "trial": _trial_table(),
        "forward": _step_table(backward=False),
        "backward": _step_table(backward=True),
        "goals": _goal_table(),
        "cuts": _cut_table(),
    }


def fill(docs: Path) -> Path:
    """Fill the model's parts of performance.md."""
    page, made = docs / "performance.md", tables()
    write_whole(page, BETWEEN.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", page.read_text(encoding="utf-8")))
    return page
