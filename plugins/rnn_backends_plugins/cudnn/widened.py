"""A layer's weights for rows with synthetic steps on a GPU: ``w_ih`` has columns for the added features, and all
weights are written into cuDNN's buffer at once (flat.py), in one function with one backward pass.

flush.py describes the synthetic steps. Two things differ here. The gates are driven by one number that the host knows;
on a CPU there is one for each row of the weights. And a PROBE's pre-activation is added in two parts, the first with
few bits. cuDNN multiplies with 10 bits (TF32) or 16 (its kernel for small H), and a single factor with so few bits
would not cancel the biases; of two parts the first is exact, and the error of the second is small.
"""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerWeights
from torch import Tensor

from .. import _torch
from .device_plan import FEATURES
from .flat import Layout, cut_buffer, layout, places_of
from .flush import LOGIT
from .functions import eager_or_functional
from .plan import PROBE

ADDED = len(FEATURES[PROBE])
"""Number of added features: close i and o; forget (-1) or keep (+1); probe; and the probe's second part."""


def widened(weights: LayerWeights, reach: float, probing: bool) -> list[Tensor]:
    """The kernel's parameters in torch's order, biases always included.

    Args:
        weights: of the layer.
        reach: the size of the pre-activation that closes or opens a gate: more than all other terms can add.
        probing: whether there are PROBE steps.

    Returns:
        Tensors in one buffer, ``w_ih [4H, I + columns]`` first; gradients go to ``weights``.
    """
    w_ih, w_hr = weights.w_ih, weights.w_hr
    H, I = w_ih.shape[0] // 4, w_ih.shape[1]  # noqa: E741
    P = 0 if w_hr is None else w_hr.shape[0]
    width = I + ADDED + -(I + ADDED) % 8  # tensor cores need rows of a multiple of 8
    places = layout(width, H, P, 1, False, w_ih.dtype, w_ih.device)
    params = [value for value in weights if value is not None]
    return list(_widen(places, H, P, width, reach, probing, weights.b_ih is not None, *params))


class _Widen(torch.autograd.Function):
    """``(layout, H, P, width, reach, probing, bias, *params)`` -> the weights, as :func:`widened` returns them."""

    @staticmethod
    def forward(
        layout: Layout | None, H: int, P: int, width: int, reach: float, probing: bool, bias: bool, *params: Tensor
    ) -> tuple[Tensor, ...]:
        values = [value.detach() for value in params]
        weights = cut_buffer(layout, width, H, P, 1, False, values[0])
        I = values[0].shape[1]  # noqa: E741
        weights[0].narrow(1, 0, I).copy_(values[0])
        _torch.copy_each([weights[place] for place in places_of(len(params), bias, P)[1:]], values[1:])
        i, f, _, o = weights[0].view(4, H, width).narrow(2, I, ADDED).unbind(0)
        i.select(1, 0).fill_(-reach)
        o.select(1, 0).fill_(-reach)
        f.select(1, 1).fill_(reach)
        if probing:
            i.select(1, 2).fill_(-reach)
            o.select(1, 2).fill_(reach)
            if bias:
                wanted = LOGIT - (values[2] + values[3]).narrow(0, H, H)
                coarse = wanted.bfloat16()  # 8 bits: exact in every product
                f.select(1, 2).copy_(coarse)
                f.select(1, 3).copy_(wanted - coarse)
            else:
                f.select(1, 2).fill_(LOGIT)
        return weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, H, P, _, _, probing, bias, *params = inputs
        ctx.places = places_of(len(params), bias, P)
        ctx.H, ctx.I, ctx.cancels = H, params[0].shape[1], probing and bias
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [grads[place] for place in ctx.places]
        w_ih = grads[0]
        if w_ih is not None:
            found[0] = w_ih.narrow(1, 0, ctx.I)
            if ctx.cancels:  # the second part of a PROBE's pre-activation contains both biases of f, subtracted
                share = torch.zeros_like(w_ih.select(1, 0))
                share.narrow(0, ctx.H, ctx.H).copy_(w_ih.select(1, ctx.I + 3).narrow(0, ctx.H, ctx.H))
                for place in (2, 3):
                    bias = found[place]
                    found[place] = -share if bias is None else bias - share
        return None, None, None, None, None, None, None, *found


_widen = eager_or_functional(_Widen)
