"""Resets on a kernel without resets: synthetic steps between sequences, controlled by a few added input features. On a
synthetic step the input is zero except for the added features, and their columns of ``w_ih`` drive the gates so far
that the sigmoids are exactly 0 or 1:

=======  =====  =====  =====  ==============================================================================
step     i      f      o      effect
=======  =====  =====  =====  ==============================================================================
FLUSH    0      0      0      ``c = 0`` and ``h = 0``: the next step starts from zeros, and no gradient crosses
HOLD     0      1      0      ``c`` stays, ``h = 0``
PROBE    0      s      1      after a HOLD, so with ``h = 0``: ``h = tanh(s c)``, from which ``c = atanh(h) / s``
=======  =====  =====  =====  ==============================================================================

The derivatives of the saturated gates are exactly zero, so a synthetic step adds nothing to any weight's gradient. On a
PROBE the pre-activation of f must be exactly ``L = logit(s)``, so its column cancels the biases, and carries their
gradient. The idea of a step that empties the state is old (Element-Research/rnn ``maskZero``, 2016).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from .. import _torch
from . import kernel
from .functions import gather_rows, scatter_beside
from .plan import FLUSH, HOLD, PROBE, Plan

LOGIT = -10.0
"""``L``: ``s`` is 4.5e-5, so cell states up to 1e4 keep their relative precision in float32."""

SATURATED = 0.9
"""A PROBE's output beyond which ``atanh`` loses precision; the plan is then made again without probes."""

FEATURES = {FLUSH: (1.0, -1.0, 0.0), HOLD: (1.0, 1.0, 0.0), PROBE: (0.0, 0.0, 1.0)}
"""Values of the added features: close i and o; forget (-1) or keep (+1); probe."""


def run_plan(plan: Plan, weights: LayerWeights, x: Tensor, heads: State) -> tuple[Tensor, Tensor, Tensor]:
    """Run a plan on torch's fused kernel.

    Args:
        plan: the places of the sequences, on ``x``'s device.
        weights: of the layer.
        x: ``[T, B, I]``.
        heads: the initial states of the rows, ``State([rows, P], [rows, H])``.

    Returns:
        ``y [cells, P]``, the final cell states ``[rows, H]``, and the probed ones ``[probes, H]``.
    """
    params = _widened(weights, probing=len(plan.probes) > 0)
    I = x.shape[2]  # noqa: E741
    extra = params[0].shape[1] - I
    wide = scatter_beside(x.reshape(-1, I), plan.cell, len(plan.kind), _features(plan, extra, x.dtype), I + extra)
    rows = [block.rows for block in plan.blocks]
    # not slices: each slice's gradient would be padded to all cells, and all of these added
    pieces = wide.split([block.steps * block.rows for block in plan.blocks])
    ys, cs = [], []
    for block, piece, h, c in zip(plan.blocks, pieces, heads.h.split(rows), heads.c.split(rows), strict=True):
        x = piece.view(block.steps, block.rows, -1)
        y, c = fused(params, x, State(h, c), weights.b_ih is not None)
        ys.append(y.reshape(block.steps * block.rows, -1))
        cs.append(c)
    y, c = (ys[0], cs[0]) if len(ys) == 1 else (torch.cat(ys), torch.cat(cs))
    return y, c, _unprobed(y, plan, c)


def fused(params: list[Tensor], x: Tensor, start: State, bias: bool) -> tuple[Tensor, Tensor]:
    """One layer of torch.nn.LSTM's kernel: ``x [T, B, I]`` -> ``y [T, B, P]``, the final ``c [B, H]``."""
    y, end = kernel.run(params, x, State(start.h.unsqueeze(0), start.c.unsqueeze(0)), bias)
    return y, end.c.squeeze(0)


def gather_steps(y: Tensor, plan: Plan) -> Tensor:
    """``y [cells, P]`` -> ``[T * B, P]``: the real steps, in the batch's order."""
    return gather_rows(y, plan.cell)


def is_clean(y: Tensor, plan: Plan) -> bool:
    """Whether no value leaked through a cut: NaN and Inf survive a FLUSH (zero times NaN), which shows here."""
    if len(plan.probes):
        seen = y.detach().index_select(0, plan.probes).abs()
        return bool((seen < SATURATED).all())
    return not bool(y.detach().index_select(0, plan.flushes).any())  # NaN counts as true


def _unprobed(y: Tensor, plan: Plan, like: Tensor) -> Tensor:
    if not len(plan.probes):
        return like[:0]
    return gather_rows(y, plan.probes).atanh() / torch.sigmoid(y.new_full((), LOGIT))


def _widened(w: LayerWeights, probing: bool) -> list[Tensor]:
    """The kernel's parameters, ``w_ih`` with the columns of the added features."""
    biases = [b for b in (w.b_ih, w.b_hh) if b is not None]
    width = 3 if probing else 2
    H = w.w_ih.shape[0] // 4
    columns = (_reach(w, biases).view(4, H, 1) * _signs(width, w.w_ih.dtype, w.w_ih.device)).view(4 * H, width)
    if probing:
        columns[H : 2 * H, 2] = LOGIT - sum(b[H : 2 * H] for b in biases)
    return [torch.cat([w.w_ih, columns], 1), w.w_hh, *biases, *([] if w.w_hr is None else [w.w_hr])]


DRIVES = {0: (-1.0, 0.0, -1.0), 1: (0.0, 1.0, 0.0), 3: (-1.0, 0.0, 1.0)}
"""The direction in which each added feature drives the gates i, f and o; on a PROBE the bias column drives f."""


def _signs(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[4, 1, width]``: ``DRIVES``, gate by gate."""
    return _table(tuple(DRIVES.items()), width, dtype, device).unsqueeze(1)


@lru_cache(maxsize=16)
def _features(plan: Plan, width: int, dtype: torch.dtype) -> Tensor:
    """``[cells, width]``: the added features of each cell; made outside of every mode and transform, because they are
    cached."""
    with _torch.outside_transforms(), torch.inference_mode(False):
        return _table(tuple(FEATURES.items()), width, dtype, plan.kind.device).index_select(0, plan.kind)


@lru_cache(maxsize=64)
def _table(rows: tuple[Any, ...], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[4, width]`` with the given rows, cut or padded with zeros; made outside of every mode and transform, because
    it is cached."""
    found = np.zeros((4, max(3, width)))
    for place, values in rows:
        found[place, :3] = values
    with _torch.outside_transforms(), torch.inference_mode(False):
        return torch.as_tensor(np.ascontiguousarray(found[:, :width]), dtype=dtype, device=device)


def _reach(w: LayerWeights, biases: list[Tensor]) -> Tensor:
    """``[4H]``: far more than the state and the biases can add against a saturated gate."""
    with torch.no_grad():
        reach = w.w_hh.abs().sum(1)
        if w.w_hr is not None:
            reach = reach * w.w_hr.abs().sum(1).max()
        for bias in biases:
            reach = reach + bias.abs()
        return reach + 1e4
