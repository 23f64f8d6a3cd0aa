"""A row of one step with gradients, for clients that call an LSTM one step at a time.

Stable-Baselines3 and CleanRL call ``LSTM.forward`` with ``T = 1``, forward and backward. In a general row most of the
time is spent in Python, more than nn.LSTM takes in total at ``H = 64``. Here plain tensors and weights go to the kernel
with one autograd node, which also resets and copies the state. For all other calls the result is ``None``, and the
general row runs or raises: no error is raised here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _torch
from .arguments import Needs
from .autograd_rule import wants_gradient
from .contract import LayerFunction, LayerWeights, SteppedLayer
from .handwritten import Layer, run_backward
from .plain import have_memory, is_plain, plain_keys
from .weight_cache import WeightInfo

States = tuple[Tensor, Tensor]


class RowRead(NamedTuple):
    """The tensors that the backward pass of a row of one step reads."""

    x: Tensor  # [1, B, I]
    w_ih: Tensor  # [4H, I]
    w_hh: Tensor  # [4H, P]
    w_hr: Tensor | None  # [P, H]
    h_before: Tensor  # [1, B, P]
    c_before: Tensor  # [1, B, H]
    is_init: Tensor | None  # [1, B] bool
    h: Tensor  # [1, B, P]
    c: Tensor  # [1, B, H]
    gates: Tensor  # [1, B, ...], as the layer saves them


RowForward = Callable[[WeightInfo, Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor, Tensor] | None]
"""``forward(info, x [1, B, I], h [1, B, P], c [1, B, H], is_init [1, B] bool or None, keep) -> h, c, gates``, over
memory of sizes that fit; the state counts as zero where ``is_init`` is true. Without ``keep`` the gates may be any
tensor. ``None`` if it does not support these tensors."""
RowBackward = Callable[[RowRead, Tensor | None, Tensor | None, Needs], Sequence[Tensor | None] | None]
"""``backward(read, grad_h, grad_c, needs)``: the gradients in the order of :class:`Needs`; ``None`` likewise."""


class _Row(NamedTuple):
    layer: Layer
    forward: RowForward
    backward: RowBackward
    devices: tuple[str, ...]


class _NotHereError(Exception):
    """The kernel does not support these tensors; raised within an autograd node."""


def with_one_step(
    function: LayerFunction, layer: Layer, forward: RowForward, backward: RowBackward, devices: tuple[str, ...]
) -> SteppedLayer:
    """A layer function with a shorter path for a row of one step.

    Args:
        function: the layer function for all other calls.
        layer: from :func:`~.handwritten.make_layer`; its backward pass runs where ``backward`` cannot, so it must be
            able to read the gates that ``forward`` saves.
        forward: the forward pass.
        backward: the backward pass.
        devices: the device types that both passes read.
    """
    made = _Row(layer, forward, backward, devices)

    def row(
        weights: LayerWeights, info: WeightInfo, x: Tensor, hx: object, is_init: object, batch_first: bool
    ) -> tuple[Tensor, States] | None:
        return _run(made, weights, info, x, hx, is_init, batch_first)

    return SteppedLayer(function, row)


def _run(
    made: _Row, weights: LayerWeights, info: WeightInfo, x: Tensor, hx: Any, is_init: Any, batch_first: bool
) -> tuple[Tensor, States] | None:
    if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2 or hx[0] is None or hx[1] is None):
        return None
    given = (x, is_init) if hx is None else (x, is_init, *hx)
    if not have_memory(given, plain_keys(*made.devices)) or x.ndim != 3:
        return None
    if batch_first:
        x = x.transpose(0, 1)
        is_init = is_init if is_init is None or is_init.ndim < 2 else is_init.transpose(0, 1)
    if x.shape[0] != 1:
        return None
    B, (_, H, P) = x.shape[1], info.sizes
    h, c = (x.new_zeros(1, B, P), x.new_zeros(1, B, H)) if hx is None else hx
    if not _fit(info, x, h, c, is_init):
        return None
    is_init = is_init if is_init is None or is_init.ndim == 2 else is_init.squeeze(2)
    if wants_gradient((x, h, c, *weights)):
        try:
            output, h, c = _OneStep.apply(made, info, is_init, x, h, c, *weights)
        except _NotHereError:
            return None
    else:
        found = made.forward(info, x, h, c, is_init, False)
        if found is None:
            return None
        output, h, c = found[0], found[0].clone(), found[1]
    return output.transpose(0, 1) if batch_first else output, (h, c)


def _fit(info: WeightInfo, x: Tensor, h: Tensor, c: Tensor, is_init: Tensor | None) -> bool:
    """Whether these are a row of one step for these weights."""
    B, (features, H, P), dtype, device = x.shape[1], info.sizes, info.dtype, info.device
    if x.shape != (1, B, features) or h.shape != (1, B, P) or c.shape != (1, B, H):
        return False
    if not x.dtype == h.dtype == c.dtype == dtype or not x.device == h.device == c.device == device:
        return False
    if is_init is None:
        return True
    return is_init.dtype == torch.bool and is_init.device == device and is_init.shape in ((1, B), (1, B, 1))


class _OneStep(torch.autograd.Function):
    """The step over plain tensors. ``torch.func`` does not accept this form; the one it accepts costs 60 us more."""

    @staticmethod
    def forward(
        ctx: Any,
        made: _Row,
        info: WeightInfo,
        is_init: Tensor | None,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        *weights: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = made.forward(info, x, h, c, is_init, True)
        if found is None:
            raise _NotHereError
        output, c_after, gates = found
        ctx.made = made
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weights[0], weights[1], weights[4], h, c, is_init, output, c_after, gates)
        return output, output.clone(), c_after.clone()  # a state may be edited before the backward pass

    @staticmethod
    @_torch.only_inlined
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_h, grad_h_after, grad_c = grads
        if grad_h is None:
            grad_h = grad_h_after
        elif grad_h_after is not None:
            grad_h = grad_h + grad_h_after
        if grad_h is None and grad_c is None:
            return (None,) * 11
        made, read, needed = ctx.made, RowRead(*ctx.saved_tensors), ctx.needs_input_grad
        needs = Needs(needed[3], needed[6], needed[7], needed[8] or needed[9], needed[10], needed[4], needed[5])
        found = None
        if not torch.is_grad_enabled() and _are_as_kept(read, grad_h, grad_c, made.devices):
            found = made.backward(read, grad_h, grad_c, needs)
        if found is None:
            found = _general_backward(made.layer, read, grad_h, grad_c, needs)
        x, w_ih, w_hh, bias, w_hr, h, c = found
        b_hh = bias if needed[9] else None
        if b_hh is not None and needed[8]:
            b_hh = b_hh.clone()  # two results in one memory would be edited twice
        return None, None, None, x, h, c, w_ih, w_hh, bias if needed[8] else None, b_hh, w_hr


def _are_as_kept(read: RowRead, grad_h: Tensor | None, grad_c: Tensor | None, devices: tuple[str, ...]) -> bool:
    """Whether the tensors are still plain and fit together: hooks and ``p.data = ...`` may have changed them."""
    if not is_plain((grad_h, grad_c, *read), devices):
        return False
    x, w_ih, w_hh, w_hr, h, c, is_init, h_after, c_after, gates = read
    (_, B, features), (G, P), H, dtype = x.shape, w_hh.shape, c.shape[-1], x.dtype
    at_p, at_h = (1, B, P), (1, B, H)
    expected = ((h, at_p), (c, at_h), (grad_h, at_p), (grad_c, at_h), (h_after, at_p), (c_after, at_h))
    weights = ((w_ih, (G, features)), (w_hh, (4 * H, P)), (w_hr, (P, H)))
    return (
        all(v is None or (v.shape == shape and v.dtype is dtype) for v, shape in (*expected, *weights))
        and all(v is None or v.is_contiguous() for v in (w_ih, w_hh, w_hr, h_after, c_after, gates))
        and x.stride()[2] == h.stride()[2] == c.stride()[2] == 1
        and gates.dtype is dtype
        and (is_init is None or (is_init.shape == (1, B) and is_init.dtype is torch.bool))
    )


def _general_backward(
    layer: Layer, read: RowRead, grad_h: Tensor | None, grad_c: Tensor | None, needs: Needs
) -> Sequence[Tensor | None]:
    """The layer's own backward pass, which supports ``create_graph=True`` and every kind of tensor."""
    x, w_ih, w_hh, w_hr, h, c, is_init, h_after, c_after, gates = read
    reset = None if is_init is None else is_init.unsqueeze(-1)
    if reset is not None:
        h, c = torch.where(reset, 0, h), torch.where(reset, 0, c)
    starts = x.new_ones(1, x.shape[1], dtype=torch.bool)
    after = (h_after, c_after, gates, list(needs))
    found = run_backward(layer.name, layer.kernel, (grad_h, grad_c, x, w_ih, w_hh, w_hr, h, c, starts, *after))
    grads = [v if need else None for v, need in zip(found, needs, strict=True)]
    if reset is not None:
        grads[5:] = [None if v is None else torch.where(reset, 0, v) for v in grads[5:]]
    return grads
