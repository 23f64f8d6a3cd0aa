"""The registered operators of hand-written layers, with their shapes, gradients and batching rules.

``rnn_backends::layer`` and ``rnn_backends::layer_backward`` serve every such backend. Their first argument is its name,
and the first call loads it. The second operator has no gradient: differentiating it raises an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _torch
from .autograd_rule import backward_arguments, keep_for_backward, required, without_none
from .double_backward import no_double_backward
from .kernels import kernel_named
from .vmap_rule import one_by_one

_TENSORS = "Tensor x, Tensor w_ih, Tensor w_hh, "
_ENTRY = "Tensor? w_hr, Tensor entry_h, Tensor entry_c, Tensor starts, "


def _unwrapped(read: Sequence[Any]) -> list[Any]:
    """The dispatcher's arguments, which have memory, with subclasses turned into plain tensors."""
    return [v.as_subclass(Tensor) if isinstance(v, Tensor) and type(v) is not Tensor else v for v in read]


def recorded(read: Sequence[Any]) -> Sequence[Any]:
    """A layer's inputs for a graph; for ``torch.export.draft_export`` with an empty tensor in place of each ``None``.

    It runs the operator and compares the arguments before and after, and takes ``None`` for one that has changed.
    """
    return [read[0].new_empty(0) if v is None else v for v in read] if _torch.is_draft_exported() else read


def _given(optional: Tensor | None) -> Tensor | None:
    """A bias or a projection, ``None`` where it is empty: see :func:`recorded`."""
    return optional if optional is not None and optional.numel() else None


@torch.library.custom_op(
    "rnn_backends::layer",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(str backend, {_TENSORS}Tensor? bias, {_ENTRY}bool keep) -> (Tensor, Tensor, Tensor)",
)
def _layer(backend: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, w_ih, w_hh, bias, w_hr, *others, keep = read
    return kernel_named(backend, x.device).run(_unwrapped((x, w_ih, w_hh, _given(bias), _given(w_hr), *others)), keep)


@torch.library.custom_op(
    "rnn_backends::layer_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(str backend, Tensor? grad_h, Tensor? grad_c, {_TENSORS}{_ENTRY}Tensor h, Tensor c, Tensor gates, "
    f"bool[] needs) -> ({', '.join(['Tensor'] * 7)})",
)
def _layer_backward(backend: str, *read: Any) -> tuple[Tensor, ...]:
    read = tuple(_unwrapped((*read[:5], _given(read[5]), *read[6:])))
    return without_none(read, kernel_named(backend, read[2].device).run_backward(backend, read))


@_layer.register_fake
def _(backend: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
    (x, w_hh), keep = (read[0], read[2]), read[8]
    (T, B, _), H = x.shape, w_hh.shape[0] // 4
    gates_of = kernel_named(backend, x.device).gates_of
    gates = x.new_empty(T, B, *gates_of(H, x.dtype)) if keep else x.new_empty(0)
    return x.new_empty(T, B, w_hh.shape[1]), x.new_empty(T, B, H), gates


@_layer_backward.register_fake
def _(backend: str, *read: Any) -> tuple[Tensor, ...]:
    _, _, x, w_ih, w_hh, w_hr, entry_h, entry_c, _, _, _, _, needs = read
    values = (x, w_ih, w_hh, w_hh.new_empty(w_hh.shape[0]), w_hr, entry_h, entry_c)
    shapes = [v.shape if need and v is not None else (0,) for v, need in zip(values, needs, strict=True)]
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.backend = inputs[0]
    keep_for_backward(ctx, inputs[1:9], output)


def _operator_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    read = backward_arguments(ctx, 1, grads)
    found = None if read is None else layer_backward(ctx.backend, *read)
    return (None, *required(ctx, 1, found), None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.backend = inputs[0]


def _operator_second_gradient(ctx: Any, *grads: Tensor | None) -> NoReturn:
    no_double_backward(ctx.backend)


layer, layer_backward = torch.ops.rnn_backends.layer, torch.ops.rnn_backends.layer_backward
"""The operators in torch's dispatcher."""


_layer.register_autograd(_operator_gradient, setup_context=_setup)
_layer_backward.register_autograd(_operator_second_gradient, setup_context=_setup_backward)


@_layer.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return one_by_one(layer, info.batch_size, in_dims, args)


@_layer_backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return one_by_one(layer_backward, info.batch_size, in_dims, args)


Shape = Sequence[int]


def _products(x: Shape, w_ih: Shape, w_hh: Shape, w_hr: Shape | None) -> int:
    """Floating-point operations in a layer's matrix products: two for each element of a weight, each step and row."""
    weights = w_ih[0] * w_ih[1] + w_hh[0] * w_hh[1] + (prod(w_hr) if w_hr is not None else 0)
    return 2 * x[0] * x[1] * weights


@register_flop_formula(layer)
def _layer_flops(
    backend: str, x: Shape, w_ih: Shape, w_hh: Shape, bias: Shape | None, w_hr: Shape | None, *_: Any, **__: Any
) -> int:
    """For ``torch.utils.flop_counter``, which counts zero for an operator without a formula."""
    return _products(x, w_ih, w_hh, w_hr)


@register_flop_formula(layer_backward)
def _layer_backward_flops(
    backend: str, h: Shape, c: Shape, x: Shape, w_ih: Shape, w_hh: Shape, w_hr: Shape | None, *_: Any, **__: Any
) -> int:
    """Each product has a gradient with respect to either factor."""
    return 2 * _products(x, w_ih, w_hh, w_hr)
