"""A layer's weights for rows with synthetic steps on a GPU: ``w_ih`` has columns for the added features, and all
weights are written into cuDNN's buffer at once (flat.py), in one function with one backward pass.

flush.py describes the synthetic steps. Three things differ here:

- The gates are driven by one number, the same for every gate and, but for extreme weights, for every batch.
- If all synthetic steps are FLUSH, all added columns drive towards it, and every input is one on them.
- A PROBE's pre-activation is added in two parts, the first with few bits. cuDNN multiplies with 10 bits (TF32) or 16
  (its kernel for small H), and a single factor with so few bits would not cancel the biases; of two parts the first is
  exact, and the error of the second is small.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from rnn_backends import LayerWeights
from torch import Tensor

from .. import _torch
from . import target
from .flat import Layout, joined, layout
from .flush import LOGIT
from .functions import eager_or_functional
from .plan import FLUSH, HOLD, PROBE

Kinds = tuple[int, ...]
"""Of the synthetic steps: ``FLUSH``, ``HOLD``, both, or both and ``PROBE``."""

ONLY_FLUSH: Kinds = (FLUSH,)
ONLY_HOLD: Kinds = (HOLD,)

ADDED = 8
FEATURES = {HOLD: (1, *(0,) * 7), FLUSH: (0, 1, *(0,) * 6), PROBE: (0, 0, 1, 0, 0, 0, -1, -1)}
"""Values of the last ``ADDED`` features, by kind of step, if there are several kinds; zero on real steps."""

DRIVES = {HOLD: (-1, 1, 0, -1), FLUSH: (-1, -1, 0, -1), PROBE: (-1, 0, 0, 1)}
"""The direction in which each kind drives the gates i, f, g and o. On a PROBE the pre-activation of f is ``LOGIT``,
and the last two features subtract the biases."""


@cache  # in use by any stream, so never freed
def drives_of(columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[4, 1, columns]``: what the added features drive the gates with; zeros to the left of them."""
    found = np.zeros((4, 1, columns))
    for kind, values in DRIVES.items():
        found[:, 0, columns - ADDED + FEATURES[kind].index(1)] = np.array(values) * reach_of(dtype)
    found[1, 0, columns - ADDED + FEATURES[PROBE].index(1)] = LOGIT
    with _torch.outside_transforms(), torch.inference_mode(False):  # outside of all modes, because it is cached
        return target.constant(torch.from_numpy(found).to(dtype), device)


@lru_cache(maxsize=16)
def reach_of(dtype: torch.dtype) -> float:
    """The pre-activation that closes or opens a gate where all other terms together are at most half of it (inputs.py);
    a sigmoid is exactly 0 or 1 from 104 in float32, from 746 in float64.
    """
    return min(2.0**40, torch.finfo(dtype).max / 4)


def width_of(I: int, kinds: Kinds) -> int:  # noqa: E741
    """The number of features with the added ones: tensor cores need rows of a multiple of 8."""
    added = 1 if len(kinds) == 1 else ADDED
    return I + added + -(I + added) % 8


def widened(weights: LayerWeights, kinds: Kinds, reach: float) -> list[Tensor]:
    """The kernel's parameters in torch's order, biases always included.

    Args:
        weights: of the layer.
        kinds: of the synthetic steps.
        reach: the pre-activation that closes or opens a gate.

    Returns:
        Tensors in one buffer, ``w_ih [4H, I + columns]`` first; gradients go to ``weights``.
    """
    w_ih, w_hr = weights.w_ih, weights.w_hr
    H, P = w_ih.shape[0] // 4, 0 if w_hr is None else w_hr.shape[0]
    width = width_of(w_ih.shape[1], kinds)
    places = layout(width, H, P, 1, False, w_ih.dtype, w_ih.device)
    return list(_widen(places, width, kinds, reach, *weights))


class _Widen(torch.autograd.Function):
    """``(layout, width, kinds, reach, *weights)`` -> the weights, as :func:`widened` returns them."""

    @staticmethod
    def forward(
        layout: Layout | None, width: int, kinds: Kinds, reach: float, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, w_hr = weights
        assert w_ih is not None
        assert w_hh is not None
        H, I = w_ih.shape[0] // 4, w_ih.shape[1]  # noqa: E741
        columns = width - I
        if kinds == ONLY_FLUSH:
            wide = _torch.padded(w_ih, (0, columns), -2 * reach / columns)
        elif kinds == ONLY_HOLD:
            wide = _torch.padded(w_ih, (0, columns), -reach)
            wide[H : 2 * H, -1].fill_(reach)
        else:
            drives = drives_of(columns, w_ih.dtype, w_ih.device)
            if PROBE in kinds and b_ih is not None and b_hh is not None:
                both = b_ih + b_hh
                coarse = both.bfloat16().to(both.dtype)  # 8 bits: exact in every product
                added = [drives.narrow(2, 0, columns - 2), coarse.view(4, H, 1), (both - coarse).view(4, H, 1)]
            else:
                added = [drives]
            added[0] = added[0].expand(-1, H, -1)
            wide = torch.cat([w_ih.view(4, H, I), *added], 2).view(4 * H, width)
        if b_ih is None or b_hh is None:
            b_ih = b_hh = w_ih.new_zeros(4 * H)
        return joined(layout, [wide, w_hh, b_ih, b_hh, *([] if w_hr is None else [w_hr])])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, kinds, _, w_ih, _, bias, _, _ = inputs
        ctx.I, ctx.bias, ctx.cancels = w_ih.shape[1], bias is not None, PROBE in kinds
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        w_ih, w_hh, b_ih, b_hh, *w_hr = grads
        if not ctx.bias:
            b_ih = b_hh = None
        elif ctx.cancels and w_ih is not None:
            share = w_ih.select(1, -1)  # on a PROBE the last feature subtracts both biases
            b_ih, b_hh = (share.clone() if bias is None else bias + share for bias in (b_ih, b_hh))
        if w_ih is not None:
            w_ih = w_ih.narrow(1, 0, ctx.I)
        return None, None, None, None, w_ih, w_hh, b_ih, b_hh, *(w_hr or [None])


_widen = eager_or_functional(_Widen)
