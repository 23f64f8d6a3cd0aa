"""A hand-written layer as torch operators: one node in any graph, with shapes and a gradient that torch knows.

``rnn_backends::layer`` and ``rnn_backends::layer_backward`` serve every such backend; their first argument is its name,
and it is loaded when the operator first runs. The gradient of the second is not written: asking for it raises.
``compile`` and ``cpp`` are made of these.

A call takes one of three ways. Plain tensors (``plain.py``) go straight to the kernel, with one autograd node if there
are gradients. Under ``torch.func`` a call is an ``autograd.Function`` with a rule for ``vmap``, because ``torch.func``
takes no operator's gradient; below the transforms it comes here again. Everything else goes through the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _torch
from .contract import LayerWeights, State
from .errors import InputError, UnsupportedError
from .plain import OTHERS, check_kinds, check_memory, is_plain
from .registry import get_backend
from .unroll import cell, unroll


class Arguments(NamedTuple):
    """The inputs of a layer: the arguments of :data:`rnn_backends.LayerFunction`, flat, with one summed bias."""

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

    def checked(self, memory: bool = True) -> Arguments:
        """Raise where a shape, dtype, device or storage does not fit: generated code reads memory without looking.

        Args:
            memory: look at the storages too; not where the kernel does.
        """
        if not self._fit():
            self._raise_unless_fit()
        if memory:
            check_memory(zip(self._fields, self, strict=True))
        return self

    def _fit(self) -> bool:
        """What :meth:`_raise_unless_fit` asks, in a quarter of the time."""
        x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = self
        if x.ndim != 3 or w_hh.ndim != 2:
            return False
        (T, B, I), (G, P), like = x.shape, w_hh.shape, (x.dtype, x.device)  # noqa: E741
        H = G // 4
        return (
            4 * H == G
            and (w_ih.shape, w_ih.dtype, w_ih.device) == ((G, I), *like)
            and (w_hh.dtype, w_hh.device) == like
            and (entry_h.shape, entry_h.dtype, entry_h.device) == ((T, B, P), *like)
            and (entry_c.shape, entry_c.dtype, entry_c.device) == ((T, B, H), *like)
            and (starts.shape, starts.dtype, starts.device) == ((T, B), torch.bool, x.device)
            and (bias is None or (bias.shape, bias.dtype, bias.device) == ((G,), *like))
            and (P == H if w_hr is None else (w_hr.shape, w_hr.dtype, w_hr.device) == ((P, H), *like))
        )

    def _raise_unless_fit(self) -> None:
        x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = self
        if x.ndim != 3 or w_hh.ndim != 2:
            raise InputError(f"x must be [T, B, I] and w_hh [4H, P]; got {tuple(x.shape)} and {tuple(w_hh.shape)}")
        T, B, H, P = self.sizes
        I, dtype, device = x.shape[2], x.dtype, x.device  # noqa: E741
        for name, value, shape in (
            ("w_ih", w_ih, (4 * H, I)),
            ("w_hh", w_hh, (4 * H, P)),
            ("bias", bias, (4 * H,)),
            ("w_hr", w_hr, (P, H)),
            ("entry_h", entry_h, (T, B, P)),
            ("entry_c", entry_c, (T, B, H)),
        ):
            if value is not None:
                _check(name, value, shape, dtype, device)
        _check("starts", starts, (T, B), torch.bool, device)
        if w_hr is None and P != H:
            raise InputError(f"without w_hr, w_hh must be [4H, H]; got {tuple(w_hh.shape)}")


def _check(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if value.shape != shape or value.dtype != dtype or value.device != device:
        actual = f"{tuple(value.shape)}, {value.dtype}, {value.device}"
        raise InputError(f"{name} must be {shape}, {dtype}, {device}; got {actual}")


class Run(NamedTuple):
    """The results of the forward pass, and the gradients of its outputs."""

    h: Tensor  # [T, B, P]
    c: Tensor  # [T, B, H]
    gates: Tensor  # [T, B, ...], activated; the rest as the backend has it
    grad_h: Tensor | None  # [T, B, P]
    grad_c: Tensor | None  # [T, B, H]

    def checked(self, given: Arguments, kept: Sequence[int], memory: bool = True) -> Run:
        """Raise where one does not fit the arguments; ``kept``: the gates' shape behind ``[T, B]``."""
        T, B, H, P = given.sizes
        shapes = ((T, B, P), (T, B, H), (T, B, *kept), (T, B, P), (T, B, H))
        for name, value, shape in zip(self._fields, self, shapes, strict=True):
            if value is not None:
                _check(name, value, shape, given.x.dtype, given.x.device)
        if memory:
            check_memory(zip(self._fields, self, strict=True))
        return self


class Needs(NamedTuple):
    """The required gradients, in the order of :class:`Arguments`; the others take no memory."""

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


class Kernel(NamedTuple):
    """A backend's hand-written layer.

    Attributes:
        forward: the forward pass, over tensors with memory, of sizes that fit.
        backward: the backward pass, over the same.
        gates_of: the gates' shape behind ``[T, B]``, from ``H`` and the dtype.
        devices: the types of device that it runs on.
        looks_at_memory: whether it raises by itself where memory that it would read is not there.
    """

    forward: Forward
    backward: Backward
    gates_of: Callable[[int, torch.dtype], Sequence[int]]
    devices: tuple[str, ...]
    looks_at_memory: bool = False

    def run(self, read: Sequence[Any], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The forward pass over memory."""
        return self.forward(Arguments(*read).checked(memory=not self.looks_at_memory), keep)

    def run_backward(self, name: str, read: Sequence[Any]) -> list[Tensor | None]:
        """The backward pass over memory; ``read`` as ``layer_backward`` has it."""
        grad_h, grad_c, x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates, needs = read
        memory = not self.looks_at_memory
        given = Arguments(x, w_ih, w_hh, None, w_hr, entry_h, entry_c, starts).checked(memory)
        if not gates.numel() and x.shape[0] * x.shape[1] and w_hh.shape[0]:
            raise UnsupportedError(
                name,
                "a backward pass here",
                "the forward pass kept nothing for it, because it was traced or exported without gradients: trace it "
                "with gradients enabled and parameters that require them",
                OTHERS,
            )
        run = Run(h.contiguous(), c.contiguous(), gates.contiguous(), grad_h, grad_c)
        kept = self.gates_of(w_hh.shape[0] // 4, x.dtype)
        found = self.backward(given, run.checked(given, kept, memory), Needs(*needs))
        return [None if v is None else v.to(x.dtype) for v in found]


_kernels: dict[str, Kernel] = {}


def _kernel(name: str, device: torch.device) -> Kernel:
    """A backend's kernel; in a process that has not loaded the backend yet (an exported graph), it is loaded here."""
    if name not in _kernels:
        get_backend(name)
    if name not in _kernels:
        raise UnsupportedError(name, "calls of its operator", "it registered no kernel of this name", OTHERS)
    kernel = _kernels[name]
    if device.type not in (*kernel.devices, "meta"):
        reason = f"its kernel is made for {', '.join(kernel.devices)}, not for {device.type}"
        raise UnsupportedError(name, f"tensors on {device.type}", reason, OTHERS)
    return kernel


class Layer:
    """One backend's layer over time: a :data:`rnn_backends.LayerFunction`.

    Args:
        name: the backend's.
        kernel: its forward and backward pass.
    """

    def __init__(self, name: str, kernel: Kernel) -> None:
        self.name, self.kernel = name, kernel

    def __call__(self, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run over ``x [T, B, I]`` from ``entry State([T, B, P], [T, B, H])`` where ``starts [T, B]``."""
        if torch.onnx.is_in_onnx_export():  # a graph of torch's operators alone is what ONNX can hold
            return unroll(weights, x, entry, starts)
        w_ih, w_hh, bias, b_hh, w_hr = weights
        if bias is not None and b_hh is not None:
            if not torch.compiler.is_compiling():
                check_kinds(self.name, (bias, b_hh))
            bias = bias + b_hh  # the operator takes the sum: autograd gives both their gradient
        read = (x, w_ih, w_hh, bias, w_hr, entry.h, entry.c, starts)
        if torch.compiler.is_compiling():
            h, c, _ = torch.ops.rnn_backends.layer(self.name, *read, wants_gradient(read))
            return State(h, c)
        h, c, _ = _call(self.name, self.kernel, read, keep=False)
        return State(h, c)


def _call(name: str, kernel: Kernel, read: Sequence[Any], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer by the shortest way that is right for these tensors.

    Args:
        name: the backend's.
        kernel: its kernel.
        read: as in :class:`Arguments`.
        keep: keep what the gradient needs, even where none of these tensors wants one: a transform further up does.
    """
    if is_plain(read, kernel.devices):
        if wants_gradient(read):
            return _Plain.apply(kernel, name, *read)  # type: ignore[no-any-return]
        return kernel.run(read, keep)
    check_kinds(name, read)
    if _torch.in_transform():
        levels = _torch.transform_levels()
        keep = keep or levels is None or not levels.isdisjoint({"Grad", "Jvp"})
        if levels is None or "Functionalize" not in levels:  # it has no rule for an autograd.Function
            return _Transformed.apply(name, keep, *read)  # type: ignore[no-any-return]
    return _dispatched(name, torch.ops.rnn_backends.layer, (*read, keep or wants_gradient(read)))  # type: ignore[no-any-return]


def _call_backward(name: str, kernel: Kernel, read: Sequence[Any]) -> tuple[Tensor, ...]:
    """The gradients, likewise; ``read`` as ``layer_backward`` has it. Where there is none, an empty tensor."""
    if is_plain(read[:12], kernel.devices):
        if wants_gradient(read[:12]):
            return _PlainBackward.apply(kernel, name, *read)  # type: ignore[no-any-return]
        return _filled(read, kernel.run_backward(name, read))
    check_kinds(name, read[:12])
    if _torch.in_transform() and "Functionalize" not in (_torch.transform_levels() or ()):
        return _TransformedBackward.apply(name, *read)  # type: ignore[no-any-return]
    return _dispatched(name, torch.ops.rnn_backends.layer_backward, read)  # type: ignore[no-any-return]


def _dispatched(name: str, operator: Any, read: Sequence[Any]) -> Any:
    """Call through torch's dispatcher; where it has no rule for these tensors, raise an error with a reason."""
    try:
        return operator(name, *read)
    except UnsupportedError:
        raise
    except NotImplementedError as error:
        reason = f"torch has no rule for its operator there ({str(error).splitlines()[0]})"
        raise UnsupportedError(name, "tensors of this kind", reason, OTHERS) from error


def _filled(read: Sequence[Any], found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """An operator gives tensors: an empty one of its own for each ``None``."""
    return tuple(read[2].new_empty(0) if v is None else v for v in found)


def torch_step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step by torch's own operators, for a compiler to trace: a :data:`rnn_backends.StepFunction`."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    # lstm_cell has no rule for torch.vmap and takes no zero tensors; compiled, both are the same
    if w_hr is None and not torch.compiler.is_compiling() and is_plain((x, *state, *weights), (x.device.type,)):
        return State(*torch.lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh))
    return cell(linear(x, w_ih, b_ih) + linear(state.h, w_hh, b_hh), state.c, w_hr)


def wants_gradient(read: Iterable[Tensor | None]) -> bool:
    """Whether autograd may need a gradient of any of these."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():
        return any(v is not None and v.requires_grad for v in read)
    return _torch.any_requires_grad(*read)


def make_layer(
    name: str,
    forward: Forward,
    backward: Backward,
    gates_of: Callable[[int, torch.dtype], Sequence[int]],
    devices: tuple[str, ...],
    looks_at_memory: bool = False,
) -> Layer:
    """A backend's layer from its kernel: see :class:`Kernel` for the arguments, ``name`` is the backend's."""
    _kernels[name] = Kernel(forward, backward, gates_of, devices, looks_at_memory)
    return Layer(name, _kernels[name])


def _no_second_gradient(name: str) -> NoReturn:
    reason = "its backward pass is written by hand and has no gradient of its own"
    raise UnsupportedError(name, "a gradient of a gradient", reason, OTHERS)


def refuse_second_gradient(
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
        _no_second_gradient(ctx.backend)


def _keep(ctx: Any, read: Sequence[Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = read
    ctx.set_materialize_grads(False)  # no zeros for the gates
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output)


def _gradient(ctx: Any, first: int, grads: Sequence[Tensor | None], run: Any) -> tuple[Tensor | None, ...]:
    """The gradients of :class:`Arguments`, by ``run(read)``; they are the inputs from ``first`` on."""
    needs = ctx.needs_input_grad[first : first + 7]
    if grads[0] is None and grads[1] is None:
        return (None,) * 8
    found = run((grads[0], grads[1], *ctx.saved_tensors, list(needs)))
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None)


class _Plain(torch.autograd.Function):
    """Of plain tensors. Not in the form that ``torch.func`` takes, which costs 60 us for an inspection."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, name: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
        ctx.kernel, ctx.name = kernel, name
        output = kernel.run(read, keep=True)
        _keep(ctx, read, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _gradient(ctx, 2, grads, lambda read: _call_backward(ctx.name, ctx.kernel, read))
        return (None, None, *found)


class _PlainBackward(torch.autograd.Function):
    """With ``create_graph``."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, name: str, *read: Any) -> tuple[Tensor, ...]:
        ctx.name = name
        return _filled(read, kernel.run_backward(name, read))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        _no_second_gradient(ctx.name)


class _Below(torch.autograd.Function):
    """As ``torch.func`` accepts it. Below the last transform ``apply`` chooses anew between the other ways."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        return super().apply(*args) if _torch.in_transform() else cls.below(*args)

    @classmethod
    def below(cls, *args: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(cls.apply, info.batch_size, in_dims, args)


class _Transformed(_Below):
    @staticmethod
    def forward(name: str, keep: bool, *read: Any) -> Any:
        return _Transformed.below(name, keep, *read)

    @classmethod
    def below(cls, name: str, keep: bool, *read: Any) -> Any:
        return _call(name, _kernels[name], read, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.name = inputs[0]
        _keep(ctx, inputs[2:], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _gradient(ctx, 2, grads, lambda read: _call_backward(ctx.name, _kernels[ctx.name], read))
        return (None, None, *found)


class _TransformedBackward(_Below):
    @staticmethod
    def forward(name: str, *read: Any) -> Any:
        return _TransformedBackward.below(name, *read)

    @classmethod
    def below(cls, name: str, *read: Any) -> Any:
        return _call_backward(name, _kernels[name], read)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        _no_second_gradient(ctx.name)


def _one_by_one(
    run: Callable[..., tuple[Tensor, ...]], number: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for ``torch.vmap``: one call after the other, since one call keeps all cores busy."""
    batched = [isinstance(dim, int) for dim in in_dims]

    def of(n: int) -> list[Any]:
        return [v.select(dim, n) if b else v for v, dim, b in zip(args, in_dims, batched, strict=True)]

    if number:
        found = tuple(torch.stack(values) for values in zip(*(run(*of(n)) for n in range(number)), strict=True))
    else:  # no element: call with zeros for the shapes
        shapes = [
            v.shape[:dim] + v.shape[dim + 1 :] if b else () for v, dim, b in zip(args, in_dims, batched, strict=True)
        ]
        made = run(*(v.new_zeros(s) if b else v for v, s, b in zip(args, shapes, batched, strict=True)))
        found = tuple(v.new_empty(0, *v.shape) for v in made)
    return found, (0,) * len(found)


_TENSORS = "Tensor x, Tensor w_ih, Tensor w_hh, "
_ENTRY = "Tensor? w_hr, Tensor entry_h, Tensor entry_c, Tensor starts, "


def _unwrapped(read: Sequence[Any]) -> list[Any]:
    """What the dispatcher gives to a kernel has memory; a subclass with memory is seen as the tensor that it is."""
    return [v.as_subclass(Tensor) if isinstance(v, Tensor) and type(v) is not Tensor else v for v in read]


@torch.library.custom_op(
    "rnn_backends::layer",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(str backend, {_TENSORS}Tensor? bias, {_ENTRY}bool keep) -> (Tensor, Tensor, Tensor)",
)
def _layer(backend: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _kernel(backend, read[0].device).run(_unwrapped(read[:8]), read[8])


@torch.library.custom_op(
    "rnn_backends::layer_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(str backend, Tensor? grad_h, Tensor? grad_c, {_TENSORS}{_ENTRY}Tensor h, Tensor c, Tensor gates, "
    f"bool[] needs) -> ({', '.join(['Tensor'] * 7)})",
)
def _layer_backward(backend: str, *read: Any) -> tuple[Tensor, ...]:
    read = tuple(_unwrapped(read))
    return _filled(read, _kernel(backend, read[2].device).run_backward(backend, read))


@_layer.register_fake
def _(backend: str, *read: Any) -> tuple[Tensor, Tensor, Tensor]:
    (x, w_hh), keep = (read[0], read[2]), read[8]
    (T, B, _), H = x.shape, w_hh.shape[0] // 4
    gates_of = _kernel(backend, x.device).gates_of
    gates = x.new_empty(T, B, *gates_of(H, x.dtype)) if keep else x.new_empty(0)
    return x.new_empty(T, B, w_hh.shape[1]), x.new_empty(T, B, H), gates


@_layer_backward.register_fake
def _(backend: str, *read: Any) -> tuple[Tensor, ...]:
    _, _, x, w_ih, w_hh, w_hr, entry_h, entry_c, _, _, _, _, needs = read
    values = (x, w_ih, w_hh, w_hh.new_empty(w_hh.shape[0]), w_hr, entry_h, entry_c)
    shapes = [v.shape if need and v is not None else (0,) for v, need in zip(values, needs, strict=True)]
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.name = inputs[0]
    _keep(ctx, inputs[1:9], output)


def _operator_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    found = _gradient(ctx, 1, grads, lambda read: torch.ops.rnn_backends.layer_backward(ctx.name, *read))
    return (None, *found, None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.name = inputs[0]


def _operator_second_gradient(ctx: Any, *grads: Tensor | None) -> NoReturn:
    _no_second_gradient(ctx.name)


_layer.register_autograd(_operator_gradient, setup_context=_setup)
_layer_backward.register_autograd(_operator_second_gradient, setup_context=_setup_backward)


@_layer.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return _one_by_one(torch.ops.rnn_backends.layer, info.batch_size, in_dims, args)


@_layer_backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return _one_by_one(torch.ops.rnn_backends.layer_backward, info.batch_size, in_dims, args)
