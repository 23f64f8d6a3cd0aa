"""A hand-written layer as torch operators: one node in any graph, with shapes and a gradient that torch knows.

``rnn_backends::<name>_layer`` and ``rnn_backends::<name>_layer_backward``. The gradient of the second is not written:
asking for it raises. ``compile`` and ``cpp`` are made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from rnn_backends import InputError, LayerWeights, State, UnsupportedError
from rnn_backends.unroll import cell
from torch import Tensor
from torch.nn.functional import linear


class Arguments(NamedTuple):
    """What a layer reads: the arguments of :data:`rnn_backends.LayerFunction`, flat, with one summed bias."""

    x: Tensor  # [T, B, I]
    w_ih: Tensor  # [4H, I]
    w_hh: Tensor  # [4H, P]
    bias: Tensor | None  # [4H]
    w_hr: Tensor | None  # [P, H]
    entry_h: Tensor  # [T, B, P]
    entry_c: Tensor  # [T, B, H]
    starts: Tensor  # [T, B] bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, H, P."""
        return self.x.shape[0], self.x.shape[1], self.w_hh.shape[0] // 4, self.w_hh.shape[1]

    def checked(self) -> Arguments:
        """Raise where a shape, dtype or device does not fit: the generated code reads memory without looking."""
        T, B, H, P = self.sizes
        shapes = ((T, B, self.x.shape[2]), (4 * H, self.x.shape[2]), (4 * H, P), (4 * H,), (P, H), (T, B, P), (T, B, H))
        for name, value, shape in zip(self._fields, self, (*shapes, (T, B)), strict=True):
            dtype = torch.bool if name == "starts" else self.x.dtype
            if value is None or (value.shape == shape and value.dtype == dtype and value.device == self.x.device):
                continue
            came = f"{tuple(value.shape)}, {value.dtype}, {value.device}"
            raise InputError(f"{name} must be {shape}, {dtype}, {self.x.device}; got {came}")
        return self


class Run(NamedTuple):
    """What the forward pass left, and the gradients that arrive."""

    h: Tensor  # [T, B, P]
    c: Tensor  # [T, B, H]
    gates: Tensor  # [T, B, ...], activated; the rest as the backend has it
    grad_h: Tensor | None  # [T, B, P]
    grad_c: Tensor | None  # [T, B, H]


class Needs(NamedTuple):
    """Which gradients are asked for, in the order of :class:`Arguments`; the others take no memory."""

    x: bool
    w_ih: bool
    w_hh: bool
    bias: bool
    w_hr: bool
    entry_h: bool
    entry_c: bool


Forward = Callable[[Arguments, bool], tuple[Tensor, Tensor, Tensor]]
"""``forward(arguments, keep) -> h [T, B, P], c [T, B, H], gates``; ``gates`` is ``[0]`` unless ``keep``."""
Backward = Callable[[Arguments, Run, Needs], Sequence[Tensor | None]]
"""``backward(arguments, run, needs)``: the gradients in the order of :class:`Needs`, ``None`` where there is none."""


class Operators(NamedTuple):
    """One backend's layer."""

    layer: Any
    """The operator: what a traced graph gets."""
    function: type[torch.autograd.Function]
    """The same with nothing around it: a call of an operator written in Python costs 50 us, and ``torch.func`` takes no
    operator's gradient but such a function's."""

    def run(self, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run one layer over time: a :data:`rnn_backends.LayerFunction`."""
        w_ih, w_hh, bias, b_hh, w_hr = weights
        if bias is not None and b_hh is not None:
            bias = bias + b_hh  # the operator takes the sum: autograd gives both their gradient
        keep = wants_gradient((x, w_ih, w_hh, bias, w_hr, *entry))
        run = self.layer if torch.compiler.is_compiling() else self.function.apply
        h, c, _ = run(x, w_ih, w_hh, bias, w_hr, entry.h, entry.c, starts, keep)
        return State(h, c)


def torch_step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step by torch's own operators, for a compiler to trace: a :data:`rnn_backends.StepFunction`."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    if w_hr is None:
        return State(*torch.lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh))
    return cell(linear(x, w_ih, b_ih) + linear(state.h, w_hh, b_hh), state.c, w_hr)


def wants_gradient(read: Iterable[Tensor | None]) -> bool:
    """Whether a gradient to any of these may be asked for."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in read)


def inside_functional() -> bool:
    """Within ``torch.func.grad`` and its like, where a tensor may have no memory of its own."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def make_operators(
    name: str, forward: Forward, backward: Backward, gates_of: Callable[[int, torch.dtype], Sequence[int]]
) -> Operators:
    """Register a backend's two operators.

    Args:
        name: the backend's.
        forward, backward: what they do.
        gates_of: the gates' shape behind ``[T, B]``, from ``H`` and the dtype.
    """
    tensors = "Tensor x, Tensor w_ih, Tensor w_hh, "
    entry = "Tensor? w_hr, Tensor entry_h, Tensor entry_c, Tensor starts, "
    layer = torch.library.custom_op(
        f"rnn_backends::{name}_layer",
        lambda *read: forward(Arguments(*read[:8]).checked(), read[8]),
        mutates_args=(),
        schema=f"({tensors}Tensor? bias, {entry}bool keep) -> (Tensor, Tensor, Tensor)",
    )
    layer_backward = torch.library.custom_op(
        f"rnn_backends::{name}_layer_backward",
        lambda *read: _gradients(backward, read),
        mutates_args=(),
        schema=f"(Tensor? grad_h, Tensor? grad_c, {tensors}{entry}Tensor h, Tensor c, Tensor gates, bool[] needs) "
        f"-> ({', '.join(['Tensor'] * 7)})",
    )

    @layer.register_fake
    def _(*read: Any) -> tuple[Tensor, Tensor, Tensor]:
        (x, w_hh), keep = (read[0], read[2]), read[8]
        (T, B, _), H = x.shape, w_hh.shape[0] // 4
        gates = x.new_empty(T, B, *gates_of(H, x.dtype)) if keep else x.new_empty(0)
        return x.new_empty(T, B, w_hh.shape[1]), x.new_empty(T, B, H), gates

    @layer_backward.register_fake
    def _(*read: Any) -> tuple[Tensor, ...]:
        _, _, x, w_ih, w_hh, w_hr, entry_h, entry_c, _, _, _, _, needs = read
        values = (x, w_ih, w_hh, w_hh.new_empty(w_hh.shape[0]), w_hr, entry_h, entry_c)
        shapes = [v.shape if need and v is not None else (0,) for v, need in zip(values, needs, strict=True)]
        return tuple(x.new_empty(shape) for shape in shapes)

    def gradient(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grad_h, grad_c, layer_backward)

    def no_second_gradient(ctx: Any, *grads: Tensor | None) -> NoReturn:
        reason = "its backward pass is written by hand and has no gradient of its own"
        raise UnsupportedError(name, "a gradient of a gradient", reason, ["vmap"])

    layer.register_autograd(gradient, setup_context=_keep)
    layer_backward.register_autograd(no_second_gradient)

    class PlainBackward(torch.autograd.Function):
        @staticmethod
        def forward(*read: Any) -> tuple[Tensor, ...]:
            return _gradients(backward, read)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            pass

        backward = staticmethod(no_second_gradient)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *read: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            return _one_by_one(PlainBackward.apply, info.batch_size, in_dims, read)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(*read: Any) -> tuple[Tensor, Tensor, Tensor]:
            return forward(Arguments(*read[:8]).checked(), read[8])

        setup_context = staticmethod(_keep)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return _gradient(ctx, grads[0], grads[1], PlainBackward.apply)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *read: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            return _one_by_one(Plain.apply, info.batch_size, in_dims, read)

    return Operators(layer, Plain)


def _one_by_one(
    run: Callable[..., tuple[Tensor, ...]], number: int, in_dims: tuple[Any, ...], read: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """What ``torch.vmap`` does with a call: one after the other, since one by itself keeps all cores busy."""
    calls = [
        run(*(v.select(dim, n) if isinstance(dim, int) else v for v, dim in zip(read, in_dims, strict=True)))
        for n in range(number)
    ]
    found = tuple(torch.stack(values) for values in zip(*calls, strict=True))
    return found, (0,) * len(found)


def _gradients(backward: Backward, read: Sequence[Any]) -> tuple[Tensor, ...]:
    """An operator gives tensors: an empty one of its own for each ``None``, the others in the data's dtype."""
    grad_h, grad_c, x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates, needs = read
    given = Arguments(x, w_ih, w_hh, None, w_hr, entry_h, entry_c, starts).checked()
    run = Run(h.contiguous(), c.contiguous(), gates.contiguous(), grad_h, grad_c)
    found = backward(given, run, Needs(*needs))
    return tuple(x.new_empty(0) if v is None else v.to(x.dtype) for v in found)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts, _ = inputs
    ctx.set_materialize_grads(False)  # no zeros for the gates
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output)


def _gradient(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, run: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:7]
    if grad_h is None and grad_c is None:
        return (None,) * 9
    grads = run(grad_h, grad_c, *ctx.saved_tensors, list(needs))
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None)
