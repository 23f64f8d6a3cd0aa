"""The kernel's costs besides its cells (a cell is one row at one step), for the planner.

A call over ``T`` steps of ``B`` rows takes time like ``T B + step T + call``, in cells. The costs on a CPU were
fitted to forward and backward passes over 4 to 128 rows and 4 to 60 steps, H = 32 to 512, two threads:
docs/performance.md, "What a step costs".
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

SEARCH = (400.0, 0.5)
"""Microseconds of the search for a better plan, within a call: a constant, and for each sequence."""


class Costs(NamedTuple):
    """Costs in cells: of a step besides its rows, of one more call of the kernel, and of a microsecond on the host."""

    step: float
    call: float
    microsecond: float

    def search(self, sequences: int) -> float:
        """The cost of the search for a better plan for this many sequences."""
        return self.microsecond * (SEARCH[0] + SEARCH[1] * sequences)


ELSEWHERE = Costs(8, 128, 0.5)
"""The costs on a device of another type, where nothing was measured."""


@lru_cache(maxsize=64)
def costs_of(H: int, dtype: torch.dtype, device: str, fused: bool, train: bool) -> Costs:
    """The costs of a layer with ``H`` units.

    Args:
        H: hidden size.
        dtype: of the computation.
        device: its type.
        fused: whether oneDNN's kernel runs, or torch's own, with a few operators per step.
        train: whether a backward pass follows; it takes twice as long as the forward pass.
    """
    if device != "cpu":
        return ELSEWHERE
    wide = dtype.itemsize / 4
    if fused:
        cell = wide * (6e-5 * H + 6e-3) * H  # microseconds
        step, call = 4.0 + cell, 250.0 + 110 * cell
    else:
        cell = (2.6 if wide > 1 else 1.0) * (1e-4 * H + 1.5e-2) * H
        step, call = 70.0 + 6 * cell, 600.0
    return Costs(step / cell, call / cell, (1 if train else 3) / cell)


def costs_on_cuda(H: int) -> Costs:
    """The costs of a layer with ``H`` units on a GPU.

    From forward and backward passes of torch.nn.LSTM in float32 on an H100 (2026-11-27, torch 2.11): at H = 128 a step
    took 9 us with 32 rows and 69 with 1024, at H = 256 it took 40 with 64 and 174 with 4096. Two sizes are not enough
    for a model: up to H = 192 torch uses cuDNN's kernel for small H, and each of the two kernels gets the figures of
    its size. Another call costs about 300 us of launches, during which the GPU waits.
    """
    return Costs(120, 5000, 0.0) if H <= 192 else Costs(1150, 9000, 0.0)
