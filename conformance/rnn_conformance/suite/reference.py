"""The expected results: two references that share nothing with the backends, nor with each other.

The first is an LSTM in float64, written one row, one step and one gate at a time. The second is torch.nn.LSTM, run on
one trajectory at a time. Neither imports anything from core: an error in core must not be repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Expected(NamedTuple):
    """The results of a whole LSTM.

    ``output [T, B, D*P]``. Of every layer and direction, at every step: ``h [L*D, T, B, P]`` and
    ``c [L*D, T, B, H]``. Where a sequence ends (zero elsewhere) its final state: ``end_h [L*D, T, B, P]`` and
    ``end_c [L*D, T, B, H]``; the reverse direction's final state is that after the sequence's *first* step.
    """

    output: Tensor
    h: Tensor
    c: Tensor
    end_h: Tensor
    end_c: Tensor


def trajectories(starts: Tensor) -> list[tuple[int, int, int]]:
    """``(b, first step, last step + 1)`` of every sequence in ``starts [T, B]``; a row's first begins at 0."""
    T, B = starts.shape
    found = []
    for b in range(B):
        begins = [t for t in range(T) if t == 0 or bool(starts[t, b])]
        found += [(b, begin, end) for begin, end in zip(begins, [*begins[1:], T], strict=True)]
    return found


def _cell(weights: Mapping[str, Tensor], suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one row: ``x [I]``, ``h [P]``, ``c [H]``; gates lie in the order i, f, g, o."""
    H = c.shape[0]
    w_ih, w_hh = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
    gates = []
    for gate in range(4):
        rows = slice(gate * H, (gate + 1) * H)
        a = torch.mv(w_ih[rows], x) + torch.mv(w_hh[rows], h)
        if f"bias_ih_{suffix}" in weights:
            a = a + weights[f"bias_ih_{suffix}"][rows] + weights[f"bias_hh_{suffix}"][rows]
        gates.append(a)
    keep, add = gates[1].sigmoid(), gates[0].sigmoid()
    c = keep * c + add * gates[2].tanh()
    h = gates[3].sigmoid() * c.tanh()
    if f"weight_hr_{suffix}" in weights:
        h = torch.mv(weights[f"weight_hr_{suffix}"], h)
    return h, c


def reference(
    weights: Mapping[str, Tensor], x: Tensor, h: Tensor, c: Tensor, starts: Tensor, L: int, bidirectional: bool
) -> Expected:
    """Run a whole LSTM in float64, gradients by autograd through the loop.

    Args:
        weights: by torch.nn.LSTM's names.
        x: ``[T, B, I]``.
        h: ``[L*D, T, B, P]``, stored states, read where a sequence starts.
        c: ``[L*D, T, B, H]``.
        starts: ``[T, B]`` bool.
        L: layers.
        bidirectional: whether there is a reverse direction.
    """
    weights = {name: value.double() for name, value in weights.items()}
    T, B = starts.shape
    D = 2 if bidirectional else 1
    rows: list[list[Tensor]] = [[step.double() for step in x[:, b].unbind(0)] for b in range(B)]
    spans = trajectories(starts)
    hs, cs, end_hs, end_cs = [], [], [], []
    for layer in range(L):
        found = []
        for d in range(D):
            k = D * layer + d
            suffix = f"l{layer}_reverse" if d else f"l{layer}"
            steps = _direction(weights, suffix, rows, h[k].double(), c[k].double(), spans, bool(d))
            found.append(steps)
            hs.append(_grid([[s[0] for s in row] for row in steps], T, h[k].shape[-1]))
            cs.append(_grid([[s[1] for s in row] for row in steps], T, c[k].shape[-1]))
            end_hs.append(_ends(hs[-1], spans, bool(d)))
            end_cs.append(_ends(cs[-1], spans, bool(d)))
        rows = [[torch.cat([f[b][t][0] for f in found]) for t in range(T)] for b in range(B)]
    output = _grid(rows, T, D * h.shape[-1])
    return Expected(output, torch.stack(hs), torch.stack(cs), torch.stack(end_hs), torch.stack(end_cs))


def _direction(
    weights: Mapping[str, Tensor],
    suffix: str,
    rows: list[list[Tensor]],
    h: Tensor,
    c: Tensor,
    spans: list[tuple[int, int, int]],
    backwards: bool,
) -> list[list[tuple[Tensor, Tensor]]]:
    """One layer in one direction: ``(h, c)`` by row and step. ``h [T, B, P]``, ``c [T, B, H]`` are the stored ones."""
    found: list[list[tuple[Tensor, Tensor]]] = [[(h[t, b], c[t, b]) for t in range(len(h))] for b in range(len(rows))]
    for b, begin, end in spans:
        state = h[begin, b], c[begin, b]
        for t in reversed(range(begin, end)) if backwards else range(begin, end):
            state = _cell(weights, suffix, rows[b][t], *state)
            found[b][t] = state
    return found


def _grid(rows: list[list[Tensor]], T: int, size: int) -> Tensor:
    if not rows:
        return torch.zeros(T, 0, size, dtype=torch.float64)
    return torch.stack([torch.stack(row) for row in rows], 1)


def _ends(states: Tensor, spans: list[tuple[int, int, int]], backwards: bool) -> Tensor:
    """Zero everywhere but at every sequence's last step, which has the direction's final state."""
    grid = [[torch.zeros_like(states[0, 0]) for _ in range(states.shape[1])] for _ in states] if len(spans) else []
    for b, begin, end in spans:
        grid[end - 1][b] = states[begin if backwards else end - 1, b]
    return torch.stack([torch.stack(step) for step in grid]) if grid else torch.zeros_like(states)


def torch_per_trajectory(
    weights: Mapping[str, Tensor], x: Tensor, h: Tensor, c: Tensor, starts: Tensor, L: int, bidirectional: bool
) -> Expected:
    """The second reference: torch.nn.LSTM in the inputs' dtype, one trajectory after the other.

    Arguments as in :func:`reference`. Of inner steps it gives the output only, so ``h`` and ``c`` are the end states.
    """
    H, P, bias = c.shape[-1], h.shape[-1], "bias_ih_l0" in weights
    proj = P if "weight_hr_l0" in weights else 0
    lstm = nn.LSTM(x.shape[-1], H, L, bias, bidirectional=bidirectional, proj_size=proj, dtype=x.dtype, device=x.device)
    T, B = starts.shape
    D = 2 if bidirectional else 1
    output = [[x.new_zeros(D * P)] * B for _ in range(T)]
    end_h = [[h.new_zeros(h.shape[0], P)] * B for _ in range(T)]
    end_c = [[c.new_zeros(c.shape[0], H)] * B for _ in range(T)]
    for b, begin, end in trajectories(starts):
        hx = (h[:, begin, b : b + 1].contiguous(), c[:, begin, b : b + 1].contiguous())
        piece = x[begin:end, b : b + 1].contiguous()
        y, (h_n, c_n) = torch.func.functional_call(lstm, dict(weights), (piece, hx))
        for t in range(begin, end):
            output[t][b] = y[t - begin, 0]
        end_h[end - 1][b], end_c[end - 1][b] = h_n[:, 0], c_n[:, 0]
    ends = [torch.stack([torch.stack(row, 1) for row in grid], 1) for grid in (end_h, end_c)]
    return Expected(torch.stack([torch.stack(row) for row in output]), *ends, *ends)
