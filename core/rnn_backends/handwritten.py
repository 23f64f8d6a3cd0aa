"""A hand-written layer as a layer function of the contract, with the shortest correct path to its kernel.

A call takes one of three paths. Plain tensors (``plain.py``) go straight to the kernel, with one autograd node if there
are gradients. Under ``torch.func`` a call is an ``autograd.Function`` with a rule for ``vmap``, because ``torch.func``
does not differentiate an operator; below the transforms the call chooses its path again. Everything else goes through
the dispatcher. ``compile``, ``cpp`` and ``triton`` use these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import _torch, operators
from .autograd_rule import backward_arguments, keep_for_backward, required, wants_gradient, without_none
from .contract import LayerWeights, State
from .double_backward import no_double_backward
from .errors import UnsupportedError
from .kernels import KERNELS, Backward, Forward, Kernel
from .plain import OTHERS, check_kinds, is_plain
from .unroll import sum_of_biases, unroll
from .vmap_rule import one_by_one


def make_layer(
    name: str,
    forward: Forward,
    backward: Backward,
    gates_of: Callable[[int, torch.dtype], Sequence[int]],
    devices: tuple[str, ...],
    checks_memory: bool = False,
) -> Layer:
    """Register a backend's kernel and return its layer. ``name`` is the backend's; :class:`Kernel` has the others."""
    KERNELS[name] = Kernel(forward, backward, gates_of, devices, checks_memory)
    return Layer(name, KERNELS[name])


class Layer:
    """One backend's layer over time: a :data:`rnn_backends.LayerFunction`.

    Args:
        name: the backend's name.
        kernel: its forward and backward pass.
    """

    def __init__(self, name: str, kernel: Kernel) -> None:
        self.name, self.kernel = name, kernel

    def __call__(self, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run over ``x [T, B, I]`` from ``entry State([T, B, P], [T, B, H])`` where ``starts [T, B]``."""
        if torch.onnx.is_in_onnx_export():  # an ONNX graph can hold torch's own operators only
            return unroll(weights, x, entry, starts)
        w_ih, w_hh, bias, b_hh, w_hr = weights
        if bias is not None and b_hh is not None:
            if not torch.compiler.is_compiling():
                check_kinds(self.name, (bias, b_hh))
            bias = sum_of_biases(bias, b_hh)  # the operator takes the sum; autograd passes the gradient to both
        read = (x, w_ih, w_hh, bias, w_hr, entry.h, entry.c, starts)
        if torch.compiler.is_compiling():
            h, c, _ = operators.layer(self.name, *operators.recorded(read), wants_gradient(read))
            return State(h, c)
        h, c, _ = _call(self.name, self.kernel, read, keep=False)
        return State(h, c)


def _call(name: str, kernel: Kernel, read: Sequence[Any], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer by the shortest correct path for these tensors.

    Args:
        name: the backend's name.
        kernel: its kernel.
        read: the fields of :class:`Arguments`.
        keep: return the gates even if none of these tensors requires a gradient, because an outer transform needs one.
    """
    if is_plain(read, kernel.devices):
        if wants_gradient(read):
            return _Plain.apply(kernel, name, *read)  # type: ignore[no-any-return]
        return kernel.run(read, keep)
    check_kinds(name, read)
    if _torch.is_jit_traced():  # torch.jit.trace checks its graph against one recorded without gradients
        keep = keep or _torch.any_requires_grad(*read)
    if _torch.in_transform():
        levels = _torch.transform_levels()
        keep = keep or levels is None or not levels.isdisjoint({"Grad", "Jvp"})
        if levels is not None and "Functionalize" in levels:  # functionalize has no rule for an autograd.Function
            _check_functionalized(name, levels, read)
        else:
            return _Transformed.apply(name, keep, *read)  # type: ignore[no-any-return]
    return _dispatched(name, operators.layer, (*read, keep or wants_gradient(read)))  # type: ignore[no-any-return]


def run_backward(name: str, kernel: Kernel, read: Sequence[Any], last: bool = False) -> Sequence[Tensor | None]:
    """Run a layer's backward pass by the shortest correct path.

    Args:
        name: the backend's name.
        kernel: its kernel.
        read: the arguments of ``layer_backward``.
        last: as in :class:`~.arguments.Run`, for plain tensors; the operator changes none of its arguments.

    Returns:
        A gradient for each input of the layer, ``None`` or an empty tensor for an absent one.
    """
    if is_plain(read[:12], kernel.devices):
        if wants_gradient(read[:12]):
            return _PlainBackward.apply(kernel, name, *read)  # type: ignore[no-any-return]
        return kernel.run_backward(name, read, last)
    check_kinds(name, read[:12])
    if _torch.in_transform() and "Functionalize" not in (_torch.transform_levels() or ()):
        return _TransformedBackward.apply(name, *read)  # type: ignore[no-any-return]
    return _dispatched(name, operators.layer_backward, read)  # type: ignore[no-any-return]


def _check_functionalized(name: str, levels: set[str], read: Sequence[Any]) -> None:
    """Reject a derivative by ``torch.func`` within or around ``functionalize``, which leaves only the operator."""
    if not levels.isdisjoint({"Grad", "Jvp"}) and wants_gradient(read):
        reason = "torch.func does not differentiate an operator that is written in Python"
        raise UnsupportedError(name, "functionalize together with a gradient of torch.func", reason, OTHERS)


def _dispatched(name: str, operator: Any, read: Sequence[Any]) -> Any:
    """Call an operator through torch's dispatcher; raise an error with a reason if it has no rule for the tensors."""
    try:
        return operator(name, *read)
    except UnsupportedError:
        raise
    except NotImplementedError as error:
        reason = f"torch has no rule for its operator there ({str(error).splitlines()[0]})"
        raise UnsupportedError(name, "tensors of this kind", reason, OTHERS) from error


class _Plain(torch.autograd.Function):
    """The layer over plain tensors. ``torch.func`` does not accept this form; the one it accepts costs 60 us more."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, name: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
        ctx.kernel, ctx.backend = kernel, name
        output = kernel.run(read, keep=True)
        ctx.alone = not _torch.hooks_see_saved_tensors()
        keep_for_backward(ctx, read, output)
        return output

    @staticmethod
    @_torch.only_inlined
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        read = backward_arguments(ctx, 2, grads)
        last = ctx.alone and not _torch.graph_is_kept()  # nobody else has the gates, and the pass never runs again
        found = None if read is None else run_backward(ctx.backend, ctx.kernel, read, last)
        return (None, None, *required(ctx, 2, found))


class _PlainBackward(torch.autograd.Function):
    """The backward pass with ``create_graph=True``."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, name: str, *read: Any) -> tuple[Tensor, ...]:
        ctx.backend = name
        return without_none(read, kernel.run_backward(name, read))

    @staticmethod
    @_torch.only_inlined
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        no_double_backward(ctx.backend)


class _Below(torch.autograd.Function):
    """The form that ``torch.func`` accepts. Below the last transform ``apply`` chooses between the other paths."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        return super().apply(*args) if _torch.in_transform() else cls.below(*args)

    @classmethod
    def below(cls, *args: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(cls.apply, info.batch_size, in_dims, args)


class _Transformed(_Below):
    @staticmethod
    def forward(name: str, keep: bool, *read: Any) -> Any:
        return _Transformed.below(name, keep, *read)

    @classmethod
    def below(cls, name: str, keep: bool, *read: Any) -> Any:
        return _call(name, KERNELS[name], read, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.backend = inputs[0]
        keep_for_backward(ctx, inputs[2:], output)

    @staticmethod
    @_torch.only_inlined
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        read = backward_arguments(ctx, 2, grads)
        found = None if read is None else run_backward(ctx.backend, KERNELS[ctx.backend], read)
        return (None, None, *required(ctx, 2, found))


class _TransformedBackward(_Below):
    @staticmethod
    def forward(name: str, *read: Any) -> Any:
        return _TransformedBackward.below(name, *read)

    @classmethod
    def below(cls, name: str, *read: Any) -> Any:
        return without_none(read, run_backward(name, KERNELS[name], read))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    @_torch.only_inlined
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        no_double_backward(ctx.backend)
