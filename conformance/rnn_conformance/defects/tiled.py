"""A right layer in the manner of a Triton kernel: tiles of rows and units, chunks of features, masked loads.

Its mutants are mistakes of such kernels that can be tried without a GPU (``tools/mutants_suite.py``).
"""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, LSTMBackend, State
from torch import Tensor

ROWS, UNITS, CHUNK = 16, 16, 16
"""Rows and units of a tile, features of a chunk: the minimum of ``tl.dot``."""


def load(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[rows, columns]`` of a matrix; zero beyond its edges."""
    inside = (rows < value.shape[0]).unsqueeze(1) & (columns < value.shape[1]).unsqueeze(0)
    found = value[rows.clamp(max=value.shape[0] - 1)][:, columns.clamp(max=value.shape[1] - 1)]
    return torch.where(inside, found, 0)


def product(value: Tensor, weight: Tensor, rows: Tensor, outputs: Tensor) -> Tensor:
    """``value[rows] @ weight[outputs].T``, a chunk of features after the other, in at least float32."""
    total = torch.zeros(len(rows), len(outputs), dtype=wide(value.dtype), device=value.device)
    for begin in range(0, value.shape[1], CHUNK):
        features = torch.arange(begin, begin + CHUNK, device=value.device)
        left, right = load(value, rows, features), load(weight, outputs, features)
        total = total + left.to(total.dtype) @ right.to(total.dtype).T
    return total


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def gates_of(w: LayerWeights, x: Tensor, h: Tensor, rows: Tensor, units: Tensor) -> list[Tensor]:
    """The four pre-activations of a tile, ``[ROWS, UNITS]`` each."""
    H = w.w_hh.shape[0] // 4
    found = []
    for gate in range(4):
        outputs = torch.where(units < H, gate * H + units, 4 * H)
        total = product(x, w.w_ih, rows, outputs) + product(h, w.w_hh, rows, outputs)
        for bias in (w.b_ih, w.b_hh):
            if bias is not None:
                total = total + load(bias.unsqueeze(0), torch.zeros_like(rows), outputs)
        found.append(torch.where(units < H, total, 0))  # zero times an infinite input is NaN, and so is its gradient
    return found


def cell_of(w: LayerWeights, x: Tensor, h: Tensor, c: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The next output and cell state of a tile of rows, ``[ROWS, H]``, before the projection."""
    H = c.shape[1]
    hs, cs = [], []
    for begin in range(0, H, UNITS):
        units = torch.arange(begin, begin + UNITS, device=x.device)
        i, f, g, o = gates_of(w, x, h, rows, units)
        state = f.sigmoid() * load(c, rows, units) + i.sigmoid() * g.tanh()
        cs.append(state)
        hs.append(o.sigmoid() * state.tanh())
    return torch.cat(hs, 1)[:, :H], torch.cat(cs, 1)[:, :H]


def step(w: LayerWeights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of all rows, a tile after the other."""
    B = x.shape[0]
    hs, cs = [h.new_zeros(0, h.shape[1])], [c.new_zeros(0, c.shape[1])]
    for begin in range(0, B, ROWS):
        rows = torch.arange(begin, begin + ROWS, device=x.device)
        output, state = cell_of(w, x, h, c, rows)
        if w.w_hr is not None:
            tile = torch.arange(ROWS, device=x.device)
            output = product(output, w.w_hr, tile, torch.arange(w.w_hr.shape[0], device=x.device))
        keep = min(ROWS, B - begin)
        hs.append(output[:keep].to(h.dtype))
        cs.append(state[:keep].to(c.dtype))
    return torch.cat(hs), torch.cat(cs)


def layer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """All steps."""
    h, c, hs, cs = entry.h[0], entry.c[0], [], []
    for t in range(len(x)):
        begins = starts[t].unsqueeze(-1)
        h, c = torch.where(begins, entry.h[t], h), torch.where(begins, entry.c[t], c)
        h, c = step(w, x[t], h, c)
        hs.append(h)
        cs.append(c)
    return State(torch.stack(hs), torch.stack(cs))


def tiled() -> LSTMBackend:
    """The layer as a backend."""
    return LSTMBackend("tiled", layer)
