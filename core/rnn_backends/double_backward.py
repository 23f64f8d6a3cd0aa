"""Gradients of gradients, which a hand-written backward pass does not have: an error instead of a silent zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import UnsupportedError
from .plain import OTHERS


def no_double_backward(name: str) -> NoReturn:
    """Raise :class:`UnsupportedError`: the backward pass of the backend ``name`` cannot be differentiated."""
    reason = "its backward pass is written by hand and has no gradient of its own"
    raise UnsupportedError(name, "a gradient of a gradient", reason, OTHERS)


def refuse_double_backward(
    backend: str, gradients: Iterable[Tensor | None], read: Iterable[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Wrap the gradients of a hand-written ``backward`` so that their differentiation raises an error.

    ``once_differentiable`` does not always raise one: if a loss is linear in the output, gradients computed with
    ``create_graph=True`` have no graph, and a penalty on them is silently lost. The wrapped gradients depend on all
    inputs, and raise :class:`UnsupportedError` when they are differentiated.

    Args:
        backend: the backend's name, for the error.
        gradients: the gradients that ``backward`` computed, ``None`` for an absent one.
        read: the tensors that it read: ``ctx.saved_tensors``.
    """
    leaves = [v for v in read if v is not None and (v.is_floating_point() or v.is_complex())]
    return tuple(None if v is None else _RefuseSecond.apply(backend, v, *leaves) for v in gradients)


class _RefuseSecond(torch.autograd.Function):
    """The identity, with a dependence on all inputs of the kernel, in the form that ``torch.func`` accepts."""

    @staticmethod
    def forward(backend: str, gradient: Tensor, *read: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int | None]:
        return _RefuseSecond.apply(*args), in_dims[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        no_double_backward(ctx.backend)
