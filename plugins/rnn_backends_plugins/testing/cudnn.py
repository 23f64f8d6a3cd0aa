"""A stand-in for cuDNN on a CPU: the checks and the results of torch's ``_cudnn_rnn`` for an LSTM's call. It imitates
these lines of torch, read in the repository of 2026 (it contains ``allowTF32CuDNN(Float32Op::RNN)``, so it is later
than 2.9); torch 2.11 behaved accordingly on an H100:

aten/src/ATen/native/cudnn/RNN.cpp
    ``_cudnn_rnn``: ``TORCH_CHECK(hx.is_contiguous())``, the same for cx; WEIGHT_FORMAT_WARN and a copy into zeros
    without a buffer; ``get_parameters``, ``_viewOrCopyParams`` (a weight is *viewed* flat, so one that is not
    contiguous raises); outputs of a call without ``train`` have no backward pass.
    ``try_get_weight_buf``: which parameters count as one buffer. Without biases only the matrices are checked, so the
    memory in the biases' place is read as biases; only the last of all parameters must be contiguous.
    ``_cudnn_rnn_flatten_weight``: moves the parameters into one buffer, in place.
    ``use_rnn_persist_small_h``: the small-H kernel, up to H = 192 forward and 128 backward, not in float64.
    ``promote_rnn_math_type``: 16 bits are computed in float32.
    ``allowTF32CuDNN``: products of float32 in TF32.
aten/src/ATen/native/RNN.cpp
    ``lstm``, ``use_cudnn``: an empty input does not go to cuDNN.
torch/nn/modules/rnn.py
    ``RNNBase.flatten_parameters``: which modules' parameters are flattened: not bfloat16's.
tools/autograd/derivatives.yaml
    ``_cudnn_rnn_backward`` has no derivative.

Two things belong to cuDNN and are not in torch's source. The order in its buffer: all layers' matrices (``w_ih``,
``w_hh``, the projection), then all layers' biases; the failures on an H100 agree with that order. The small-H
kernel's precision: about 16 bits of mantissa, as measured there with TF32 off.

Missing: dropout inside the call (the plugin never uses it), packed sequences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import accumulate
from math import prod
from threading import local
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rnn_backends import LSTMBackend
from rnn_backends.authoring import SurveyedLayer, unreadable
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import _torch
from ..cudnn import flat, target

SMALL_H, SMALL_H_BACKWARD = 192, 128
"""Largest hidden sizes of the small-H kernel."""

SMALL_H_BITS, TF32_BITS = 16, 11
"""Significant bits of the factors of products in float32: of the small-H kernel, and of TF32."""

CHUNK_WARNING = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need to be compacted at "
    "every call, possibly greatly increasing memory usage. To compact weights again call flatten_parameters()."
)

SYNCS = frozenset(
    [
        "item",
        "tolist",
        "numpy",
        "__array__",
        "cpu",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "nonzero",
        "nonzero_static",
        "argwhere",
        "masked_select",
        "unique",
        "unique_consecutive",
        "bincount",
        "equal",
        "allclose",
        "is_nonzero",
        "histc",
        "__contains__",
        "count_nonzero_host",
        "pin_memory",
    ]
)
"""Names of functions that read the device, or make the host wait for it."""


class _Bits(NamedTuple):
    """Significant bits of the factors of a kernel's products; ``None``: all."""

    forward: int | None
    backward: int | None


class HostSyncError(AssertionError):
    """The host read a tensor that represents one on a GPU."""


@dataclass
class StandIn:
    """A record of the calls.

    Attributes:
        rounds: whether float32 is rounded, as the small-H kernel and TF32 round it.
        reads: the number of allowed reads of the device by the host.
        calls: the number of steps of each call of the kernel.
        torchs: the original ``torch.lstm``.
    """

    rounds: bool = False
    reads: int = 0
    calls: list[int] = field(default_factory=list)
    torchs: Callable[..., Any] = torch.lstm

    def lstm(
        self,
        x: Tensor,
        hx: Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``torch.lstm``, as cuDNN does it. Torch's own while a tracer records, whose graph would have the stand-in,
        and for subclasses, whose parts the dispatcher would pass on.
        """
        if x.numel() == 0 or unreadable((x, *hx, *params)) is not None:
            found: tuple[Tensor, Tensor, Tensor] = self.torchs(
                x, tuple(hx), list(params), has_biases, num_layers, dropout, train, bidirectional, batch_first
            )
            return found
        assert dropout == 0.0, "the stand-in draws no dropout"
        (h, c), T = hx, x.shape[1 if batch_first else 0]
        for name, value in (("hx", h), ("cx", c)):
            if not value.is_contiguous():
                raise RuntimeError(f"rnn: {name} is not contiguous")
        self.calls.append(T)
        H = c.shape[2]
        P = 0 if h.shape[2] == H else h.shape[2]
        weights = _effective(params, has_biases, x.shape[2], H, P, num_layers, bidirectional)
        bits = self._bits(x.dtype, H, P)

        def compute(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            wide = [value if value.dtype == torch.float64 else value.float() for value in (x, h, c, *weights)]
            found = _run(wide[0], (wide[1], wide[2]), wide[3:], bidirectional, batch_first, bits)
            return tuple(value.to(x.dtype) for value in found)

        if _torch.in_transform():
            y, h, c = compute(x, h, c, *weights)
        else:
            y, h, c = _Kernel.apply(compute, train, x, h, c, *weights)
        return y, h, c

    def _bits(self, dtype: torch.dtype, H: int, P: int) -> _Bits:
        """TF32 if torch allows it; otherwise only the small-H kernel, without a projection, rounds."""
        if not self.rounds or dtype == torch.float64:
            return _Bits(None, None)
        if dtype == torch.float32 and _torch.tf32_in_recurrent_networks():
            return _Bits(TF32_BITS, TF32_BITS)
        return _Bits(*(SMALL_H_BITS if P == 0 and limit >= H else None for limit in (SMALL_H, SMALL_H_BACKWARD)))


def order(I: int, H: int, P: int, layers: int, bidirectional: bool) -> flat.Layout:  # noqa: E741
    """cuDNN's order: the matrices of all layers, then their biases."""
    shapes = flat._shapes(I, H, P, layers, bidirectional)
    size = 5 if P else 4
    matrices = [k for k in range(len(shapes)) if k % size not in (2, 3)]
    biases = [k for k in range(len(shapes)) if k % size in (2, 3)]
    places = [*matrices, *biases]
    ends = list(accumulate(prod(shapes[k]) for k in places))
    offsets = dict(zip(places, [0, *ends[:-1]], strict=True))
    return flat.Layout.of(ends[-1], [offsets[k] for k in range(len(shapes))], shapes)


def flatten(
    weights: Sequence[Tensor],
    stride: int,
    I: int,  # noqa: E741
    mode: int,
    H: int,
    P: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> Tensor:
    """``torch._cudnn_rnn_flatten_weight``: the weights' memory becomes part of the buffer that is returned."""
    layout = order(I, H, P, layers, bidirectional)
    buffer = torch.zeros(layout.size, dtype=weights[0].dtype, device=weights[0].device)
    places = flat.places_of(len(weights), stride in (4, 5), P)
    for place, weight in zip(places, weights, strict=True):
        part = buffer[layout.offsets[place] :][: weight.numel()].view(weight.shape)
        part.copy_(weight.view(-1).view(weight.shape))  # the first view raises if it is not contiguous
        weight.set_(buffer.untyped_storage(), layout.offsets[place], weight.shape, part.stride())
    return buffer


def _flatten_parameters(lstm: nn.RNNBase) -> None:
    """``RNNBase.flatten_parameters``, for parameters that represent a GPU's."""
    weights = _torch.flat_weights(lstm)
    if weights is None:
        return
    known = (torch.float64, torch.float32, torch.float16)
    for weight in weights:
        if weight.dtype not in known or weight.device.type != "cpu" or weight.dtype != weights[0].dtype:
            return
    if len({weight.data_ptr() for weight in weights}) != len(weights) or lstm.mode != "LSTM":
        return
    per_layer = (4 if lstm.bias else 2) + (lstm.proj_size > 0)
    sizes = lstm.input_size, 2, lstm.hidden_size, lstm.proj_size, lstm.num_layers
    with torch.no_grad():
        flatten(weights, per_layer, *sizes, lstm.batch_first, bool(lstm.bidirectional))


def _effective(
    params: Sequence[Tensor],
    has_biases: bool,
    I: int,  # noqa: E741
    H: int,
    P: int,
    layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    """The weights that cuDNN would use, biases included; the gradient of each goes to its parameter."""
    layout, shapes = order(I, H, P, layers, bidirectional), flat._shapes(I, H, P, layers, bidirectional)
    places = flat.places_of(len(params), has_biases, P)
    plain = [_torch.unwrapped(value.detach()) for value in params]
    buffer = _try_buffer(plain, places, layout)
    if buffer is None:
        warnings.warn(CHUNK_WARNING, UserWarning, stacklevel=3)
        buffer = torch.zeros(layout.size, dtype=plain[0].dtype)
        for place, value in zip(places, plain, strict=True):
            start = layout.offsets[place]
            buffer[start : start + value.numel()] = value.view(-1)
    found = [
        buffer[start : start + prod(shape)].view(shape) for start, shape in zip(layout.offsets, shapes, strict=True)
    ]
    for place, value in zip(places, params, strict=True):
        found[place] = _Instead.apply(value, found[place].clone())
    return found


def _try_buffer(params: list[Tensor], places: list[int], layout: flat.Layout) -> Tensor | None:
    """``try_get_weight_buf``."""
    memory, step = params[0].untyped_storage(), params[0].element_size()
    if memory.nbytes() // step < layout.size:
        return None
    for place, value in zip(places, params, strict=True):
        if value.data_ptr() != memory.data_ptr() + layout.offsets[place] * step:
            return None
    if not params[-1].is_contiguous():
        return None
    return params[0].new_empty(0).set_(memory, 0, (layout.size,), (1,))


def _run(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: list[Tensor],
    bidirectional: bool,
    batch_first: bool,
    bits: _Bits,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM with ``bits`` significant bits in the factors of its products."""
    directions, size = 2 if bidirectional else 1, len(weights) // len(hx[0])

    def cut(value: Tensor) -> Tensor:
        result: Tensor = value if bits == (None, None) else _Rounded.apply(value, bits)
        return result

    x = x.transpose(0, 1) if batch_first else x
    hs, cs = [], []
    for k in range(0, len(hx[0]), directions):
        outputs = []
        for d in range(directions):
            w_ih, w_hh, b_ih, b_hh, *w_hr = weights[size * (k + d) : size * (k + d + 1)]
            h, c, ys = hx[0][k + d], hx[1][k + d], []
            from_input = cut(x) @ cut(w_ih).T + b_ih + b_hh
            for step in reversed(from_input.unbind()) if d else from_input.unbind():
                i, f, g, o = (step + cut(h) @ cut(w_hh).T).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                h = h @ w_hr[0].T if w_hr else h
                ys.append(h)
            hs.append(h)
            cs.append(c)
            outputs.append(torch.stack(ys[::-1] if d else ys))
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, torch.stack(hs), torch.stack(cs)


class _Instead(torch.autograd.Function):
    """``value`` in place of ``param``, which gets the gradient."""

    @staticmethod
    def forward(param: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


class _Rounded(torch.autograd.Function):
    """``value`` with ``bits.forward`` significant bits; its gradient has ``bits.backward``."""

    @staticmethod
    def forward(value: Tensor, bits: _Bits) -> Tensor:
        return _round(value, bits.forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bits = inputs[1].backward

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _round(grad, ctx.bits), None


def _round(value: Tensor, bits: int | None) -> Tensor:
    """Float32 ``value`` with this many significant bits (Veltkamp's splitting); unchanged if that would overflow."""
    if bits is None:
        return value.view_as(value)
    large = value * (2.0 ** (24 - bits) + 1)
    return torch.where(large.isfinite(), large - (large - value), value)


class _Kernel(torch.autograd.Function):
    """``_cudnn_rnn``: one operator, whose backward pass is one operator."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, ...]], train: bool, *values: Tensor) -> Any:
        ctx.compute, ctx.train = compute, train
        ctx.save_for_backward(*values)
        return compute(*values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not ctx.train:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        values = ctx.saved_tensors
        return None, None, *_KernelBackward.apply(ctx.compute, len(values), *values, *grads)


class _KernelBackward(torch.autograd.Function):
    """``_cudnn_rnn_backward``, which has no derivative."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, ...]], number: int, *values: Tensor) -> Any:
        inputs = [value.detach().requires_grad_() for value in values[:number]]
        with torch.enable_grad():
            outputs = compute(*inputs)
        return torch.autograd.grad(outputs, inputs, values[number:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("the derivative for '_cudnn_rnn_backward' is not implemented")


class NoHostSync(TorchFunctionMode):
    """Raises :class:`HostSyncError` if the host would read a tensor or wait for the device. Not in torch.jit.trace:
    there sizes are tensors, on the host.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not _place.allowed and not torch.jit.is_tracing() and (name in SYNCS or _reads(name, args, kwargs)):
            raise HostSyncError(f"{name} reads the device")
        return func(*args, **kwargs)


def _reads(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Functions that read the device only for some arguments."""
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, Tensor) and (part.dtype == torch.bool or part.ndim == 0) for part in index)
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        return "output_size" not in kwargs and not isinstance(args[-1], int)
    if name in ("to", "tensor", "as_tensor"):
        return any(str(value).startswith("cpu") for value in [*args[1:], *kwargs.values()] if not _is_data(value))
    return False


class _Place(local):
    """For each thread: whether it is at the only place where the host may read."""

    allowed = False


_place = _Place()


@contextmanager
def _allowed() -> Iterator[None]:
    _place.allowed = True
    try:
        yield
    finally:
        _place.allowed = False


def _is_data(value: Any) -> bool:
    return isinstance(value, (Tensor, list, tuple))


def guarded(backend: LSTMBackend) -> LSTMBackend:
    """The backend; its functions may read the device only by ``target.read``."""

    def kept(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if function is None:
            return None
        if isinstance(function, SurveyedLayer):
            inner = kept(function.function)
            assert inner is not None
            return SurveyedLayer(inner, survey)

        @wraps(function)
        def run(*args: Any) -> Any:
            with NoHostSync():
                return function(*args)

        return run

    @contextmanager
    def survey(*args: Any) -> Iterator[None]:
        assert isinstance(backend.layer, SurveyedLayer)
        with NoHostSync():
            context = backend.layer.survey(*args)
            context.__enter__()
        try:
            yield
        finally:
            context.__exit__(None, None, None)

    names = ("layer", "step", "stack", "layer_last", "act")
    functions: dict[str, Any] = {name: kept(getattr(backend, name)) for name in names}
    return replace(backend, **functions)


@contextmanager
def cuda_on_cpu(rounds: bool = False) -> Iterator[StandIn]:
    """CPU tensors represent a GPU's: the ``cudnn`` backend takes its CUDA path and meets this stand-in. So does
    ``torch.nn.LSTM``, with which the suite compares float32 on a device.


    Args:
        rounds: whether float32 is rounded, as the small-H kernel and TF32 round it.
    """
    stand_in, read = StandIn(rounds), target.read

    def counted(value: Tensor) -> Any:
        stand_in.reads += 1
        with _allowed():
            return read(value)

    def allowing(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any) -> Any:
            with _allowed():
                return function(*args)

        return run

    def serves(x: Tensor) -> bool:
        return bool(torch.backends.cudnn.enabled) and x.numel() > 0

    with (
        patch.object(torch, "lstm", stand_in.lstm),
        patch.object(_torch.functions_of_nn(), "lstm", stand_in.lstm, create=True),
        patch.object(torch, "_cudnn_rnn_flatten_weight", flatten),
        patch.object(nn.RNNBase, "flatten_parameters", _flatten_parameters),
        patch.object(target, "on_cuda", lambda value: True),
        patch.object(target, "serves", serves),
        patch.object(target, "read", counted),
        patch.object(target, "send", allowing(target.send)),
        patch.object(target, "constant", allowing(target.constant)),
    ):
        flat.layout.cache_clear()
        try:
            yield stand_in
        finally:
            flat.layout.cache_clear()
