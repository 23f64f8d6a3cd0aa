"""Rows to cells and back, as functions with a backward pass that copies, and a fast way to call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends.authoring import only_inlined
from torch import Tensor

from .. import _torch


def eager_or_functional(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """``function.apply``; outside of ``torch.func`` without the 60 us of inspection of that form, and without gradients
    its forward pass alone.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(only_inlined(function.backward))

    def apply(*inputs: Any) -> Tensor:
        if _torch.in_transform():
            output: Tensor = function.apply(*inputs)
        elif torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs):
            output = Eager.apply(*inputs)
        else:
            output = function.forward(*inputs)
        return output

    return apply


class _ScatterRows(torch.autograd.Function):
    """``values [N, F]`` -> ``[cells, width]``: zero in cells without a value, with ``beside [cells, .]`` to their
    right. ``cell [N]`` contains no index twice; ``beside`` is ``None`` if nothing is added.
    """

    @staticmethod
    def forward(values: Tensor, cell: Tensor, cells: int, beside: Tensor | None, width: int) -> Tensor:
        F = values.shape[1]
        out = values.new_zeros(cells, width)
        out.narrow(1, 0, F).index_copy_(0, cell, values)
        if beside is not None:
            out.narrow(1, F, beside.shape[1]).copy_(beside)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, cell, *_ = inputs
        ctx.features = values.shape[1]
        ctx.save_for_backward(cell)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cell,) = ctx.saved_tensors
        return grad.narrow(1, 0, ctx.features).index_select(0, cell), None, None, None, None


class _GatherRows(torch.autograd.Function):
    """``(values [..., F], index [N], *shape)`` -> ``values``' rows at ``index``, ``[*shape, F]``, or ``[N, F]`` without
    a shape; the backward pass copies, where that of ``index_select`` adds.

    The backward passes here call torch's operators alone: for a batch of gradients (``is_grads_batched``, ``jacrev``)
    torch runs them under ``vmap``, for which these functions have no rule.
    """

    @staticmethod
    def forward(values: Tensor, index: Tensor, *shape: int) -> Tensor:
        # an embedding: a view made here could not be edited in place by the caller
        places = index.view(shape) if shape else index
        return torch.nn.functional.embedding(places, values.reshape(-1, values.shape[-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, index, *shape = inputs
        ctx.shape, ctx.nones = values.shape, (None,) * len(shape)
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return put_rows(grad, index, ctx.shape), None, *ctx.nones


def put_rows(rows: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """``rows [..., F]`` at their places in zeros of ``shape``, for backward passes: by torch's operators alone."""
    flat, zeros = rows.reshape(-1, shape[-1]), rows.new_zeros(shape[:-1].numel(), shape[-1])
    if _torch.in_transform():  # torch.func's vmap has a rule for this one
        return zeros.index_put_((index,), flat).view(shape)
    return zeros.index_copy_(0, index, flat).view(shape)


class _PackSteps(torch.autograd.Function):
    """``(values [T, B, F], cell [T * B], cells, width, features)`` -> ``[cells, width]``: the steps in their cells,
    with zeros to their right; other cells have zeros and then their ``features [cells, .]``, or ones without such.
    """

    @staticmethod
    def forward(values: Tensor, cell: Tensor, cells: int, width: int, features: Tensor | None) -> Tensor:
        F = values.shape[2]
        rows = _torch.padded(values.reshape(-1, F), (0, width - F), 0.0)
        if features is None:
            return values.new_ones(cells, width).index_copy_(0, cell, rows)
        out = values.new_zeros(cells, width)
        out.narrow(1, width - features.shape[1], features.shape[1]).copy_(features)
        return out.index_copy_(0, cell, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, cell, *_ = inputs
        ctx.shape = values.shape
        ctx.save_for_backward(cell)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cell,) = ctx.saved_tensors
        rows = grad.narrow(1, 0, ctx.shape[2]).index_select(0, cell)
        return rows.view(ctx.shape), None, None, None, None


scatter_beside, gather_rows, pack_steps = map(eager_or_functional, (_ScatterRows, _GatherRows, _PackSteps))


def scatter_rows(values: Tensor, cell: Tensor, cells: int) -> Tensor:
    """``values [N, F]`` -> ``[cells, F]``, each at its place and zero elsewhere; the inverse of ``gather_rows``."""
    result: Tensor = scatter_beside(values, cell, cells, None, values.shape[1])
    return result
