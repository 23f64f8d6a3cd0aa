"""Gradients of gradients, which a hand-written backward pass does not have: they are refused, never lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import UnsupportedError
from .plain import OTHERS


def no_double_backward(name: str) -> NoReturn:
    """Refuse to differentiate the backward pass of the backend ``name``."""
    reason = "its backward pass is written by hand and has no gradient of its own"
    raise UnsupportedError(name, "a gradient of a gradient", reason, OTHERS)


def refuse_double_backward(
    backend: str, gradients: Iterable[Tensor | None], read: Iterable[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients that a hand-written ``backward`` returns, so that a gradient of them is refused.

    ``once_differentiable`` does not always refuse: where a loss is linear in the output, gradients taken with
    ``create_graph=True`` come without a graph, and a penalty on them is lost in silence. These depend on all inputs,
    and raise :class:`UnsupportedError` where they are differentiated.

    Args:
        backend: the backend's name, for the error.
        gradients: what ``backward`` computed, ``None`` where there is none.
        read: the tensors that it read: ``ctx.saved_tensors``.
    """
    leaves = [v for v in read if v is not None and (v.is_floating_point() or v.is_complex())]
    return tuple(None if v is None else _RefuseSecond.apply(backend, v, *leaves) for v in gradients)


class _RefuseSecond(torch.autograd.Function):
    """The identity, with a dependence on all inputs of the kernel. In the form that ``torch.func`` accepts."""

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
