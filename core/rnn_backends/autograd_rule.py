"""The autograd rule of a hand-written layer: the tensors to save for the backward pass, and the gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _torch


def wants_gradient(read: Iterable[Tensor | None]) -> bool:
    """Whether autograd may need a gradient with respect to any of these tensors."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():
        return any(v is not None and v.requires_grad for v in read)
    return _torch.any_requires_grad(*read)


def keep_for_backward(ctx: Any, read: Sequence[Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save the tensors of the backward pass: :class:`~.arguments.Arguments` without the bias, and the results."""
    x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = read
    ctx.set_materialize_grads(False)  # no zeros for the gates
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output)


def backward_arguments(ctx: Any, first: int, grads: Sequence[Tensor | None]) -> tuple[Any, ...] | None:
    """The arguments of ``layer_backward`` for the inputs from ``first`` on; ``None`` if no gradient comes in."""
    if grads[0] is None and grads[1] is None:
        return None
    return (grads[0], grads[1], *ctx.saved_tensors, list(ctx.needs_input_grad[first : first + 7]))


def required(ctx: Any, first: int, found: Sequence[Tensor | None] | None) -> tuple[Tensor | None, ...]:
    """The gradients of :class:`Arguments`, the inputs from ``first`` on: those ``found`` by the backward pass."""
    if found is None:
        return (None,) * 8
    needs = ctx.needs_input_grad[first : first + 7]
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None)


def without_none(read: Sequence[Any], found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The results with a new empty tensor for each ``None``, because an operator returns tensors only."""
    return tuple(read[2].new_empty(0) if v is None else v for v in found)
