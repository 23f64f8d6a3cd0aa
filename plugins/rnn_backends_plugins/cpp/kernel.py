"""The kernel's functions over tensors: strides and memory are seen to here; lstm.cpp reads without looking."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_bool, c_char_p, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from rnn_backends import InputError, LayerWeights, RNNBackendsError, State, UnsupportedError
from rnn_backends.authoring import Arguments, Needs, Run
from torch import Tensor

from .build import BuildError, library
from .memory import empty


class Layer(ctypes.Structure):
    """``struct Layer`` of lstm.cpp, field for field."""

    _fields_ = [
        *((name, c_int64) for name in ("T", "B", "I", "H", "P", "threads")),
        *((name, c_void_p) for name in ("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c", "starts")),
        *((f"{name}_{axis}", c_int64) for name in ("x", "entry_h", "entry_c", "starts") for axis in "tb"),
        *((name, c_void_p) for name in ("h", "c", "gates", "grad_h", "grad_c")),
        *((f"{name}_{axis}", c_int64) for name in ("grad_h", "grad_c") for axis in "tb"),
        *((f"grad_{name}", c_void_p) for name in Needs._fields),
        ("scratch", c_void_p),
        ("is_init", c_void_p),
        ("is_init_b", c_int64),
    ]


class Kernel(NamedTuple):
    """The library's functions; their last argument says whether it is float64."""

    forward: Any
    backward: Any
    step: Any
    scratch: Any
    message: Any
    lanes: dict[torch.dtype, int]


NO_MEMORY, INVALID = 1, 2
"""Of status.h."""


class OutOfMemoryError(RNNBackendsError, MemoryError, RuntimeError):
    """The kernel's own memory cannot be had. A RuntimeError as well, as torch's allocator raises."""


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """The functions, with their types.

    Raises:
        UnsupportedError: there is none (a module that was pickled elsewhere asks nobody before it runs).
    """
    try:
        found, here = library(), ctypes.POINTER(Layer)
    except BuildError as error:
        raise UnsupportedError("cpp", "to run on this machine", str(error), ["cudnn", "vmap"]) from error
    for function in (found.rnn_forward, found.rnn_backward, found.rnn_step):
        function.argtypes, function.restype = [here, c_bool], c_int32
    found.rnn_scratch.argtypes, found.rnn_scratch.restype = [here, c_bool, c_bool], c_int64
    found.rnn_message.argtypes, found.rnn_message.restype = [], c_char_p
    found.rnn_lanes.argtypes, found.rnn_lanes.restype = [c_bool], c_int64
    lanes = {torch.float32: found.rnn_lanes(False), torch.float64: found.rnn_lanes(True)}
    return Kernel(found.rnn_forward, found.rnn_backward, found.rnn_step, found.rnn_scratch, found.rnn_message, lanes)


def gates_of(H: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """The gates' shape behind ``[T, B]``: registers of units, gates, units of a register."""
    lanes = kernel().lanes[dtype]
    return -(-H // lanes), 4, lanes


def forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer: a :data:`~..operators.Forward`, in float32 or float64, on the CPU."""
    (T, B, H, P), x = given.sizes, given.x
    h, c = x.new_empty(T, B, P), x.new_empty(T, B, H)
    gates = empty((T, B, *gates_of(H, x.dtype)), x.dtype) if keep else x.new_empty(0)
    layer, held = _layer(given)
    layer.h, layer.c, layer.gates = h.data_ptr(), c.data_ptr(), gates.data_ptr() if keep else None
    _call(kernel().forward, layer, x, held, back=False)
    return h, c, gates


def backward(given: Arguments, run: Run, needs: Needs) -> list[Tensor | None]:
    """The gradients: a :data:`~..operators.Backward`."""
    layer, held = _layer(given)
    layer.h, layer.c, layer.gates = run.h.data_ptr(), run.c.data_ptr(), run.gates.data_ptr()
    for name, value in (("grad_h", run.grad_h), ("grad_c", run.grad_c)):
        if value is not None:
            held.append(_point(layer, name, value))
    grads: list[Tensor | None] = []
    for name, need in needs._asdict().items():
        found = None
        if need and not (name == "w_hr" and given.w_hr is None):
            size = [len(given.w_ih)] if name == "bias" else getattr(given, name).shape
            filled = name.startswith("entry") or not given.starts.numel()  # an entry is read at starts alone
            found = given.x.new_zeros(size) if filled else given.x.new_empty(size)
            setattr(layer, f"grad_{name}", found.data_ptr())
        grads.append(found)
    _call(kernel().backward, layer, given.x, held, back=True)
    return grads


def step(w: LayerWeights, x: Tensor, state: State, is_init: Tensor | None = None) -> State:
    """One step without a gradient: ``x [B, I]``, ``State([B, P], [B, H])`` -> the next state.

    Args:
        w, x, state: of float32 or float64, on the CPU.
        is_init: ``[B]`` bool: where the state is taken as zero.
    """
    h, c = state
    _check_step(w, x, state)
    held = [v if v is None or v.is_contiguous() else v.contiguous() for v in (x, *w, h, c)]
    read = [None if v is None else v.data_ptr() for v in held]
    (B, H), (inputs, P) = c.shape, (x.shape[1], h.shape[1])
    out = State(h.new_empty(B, P), c.new_empty(B, H))
    layer = Layer(1, B, inputs, H, P, torch.get_num_threads(), *read, None, 0, inputs, 0, P, 0, H)
    layer.h, layer.c = out.h.data_ptr(), out.c.data_ptr()
    if is_init is not None:
        if is_init.shape != (B,) or is_init.dtype != torch.bool:
            raise InputError(f"is_init must be [{B}] bool, got {tuple(is_init.shape)} {is_init.dtype}")
        layer.is_init, layer.is_init_b = is_init.data_ptr(), is_init.stride(0)
    if B:
        _check_status(kernel().step(byref(layer), x.dtype == torch.float64))
    return out


def _check_step(w: LayerWeights, x: Tensor, state: State) -> None:
    """What :meth:`Arguments.checked` says of a layer, at a price that a step can pay."""
    (h, c), (w_ih, w_hh, b_ih, b_hh, w_hr), dtype = state, w, x.dtype
    B, inputs, P, H = len(x), x.shape[-1], h.shape[-1], c.shape[-1]
    if (
        (x.shape, h.shape, c.shape) == ((B, inputs), (B, P), (B, H))
        and (w_ih.shape, w_hh.shape) == ((4 * H, inputs), (4 * H, P))
        and dtype == h.dtype == c.dtype == w_ih.dtype == w_hh.dtype
        and (b_ih is None or (b_ih.shape == (4 * H,) and b_ih.dtype == dtype))
        and (b_hh is None or (b_hh.shape == (4 * H,) and b_hh.dtype == dtype))
        and (P == H if w_hr is None else w_hr.shape == (P, H) and w_hr.dtype == dtype)
    ):
        return
    named = zip(("x", *w._fields, "h", "c"), (x, *w, h, c), strict=True)
    given = ", ".join(f"{name} {tuple(v.shape)} {v.dtype}" for name, v in named if v is not None)
    raise InputError(f"a step's x, weights and state do not fit together: {given}")


def _layer(given: Arguments) -> tuple[Layer, list[Tensor]]:
    """The struct, and what it points at: to be held while the kernel runs."""
    T, B, H, P = given.sizes
    layer = Layer(T, B, given.x.shape[2], H, P, torch.get_num_threads())
    held = [_point(layer, name, getattr(given, name)) for name in ("x", "entry_h", "entry_c", "starts")]
    for name, value in (("w_ih", given.w_ih), ("w_hh", given.w_hh), ("b_ih", given.bias), ("w_hr", given.w_hr)):
        if value is not None:
            held.append(value.contiguous())
            setattr(layer, name, held[-1].data_ptr())
    return layer, held


def _point(layer: Layer, name: str, value: Tensor) -> Tensor:
    """Let ``[T, B, ...]`` be found at ``name``; where a last dimension's numbers are not side by side, a copy of it."""
    if value.ndim == 3 and value.stride(2) != 1 and value.shape[2] != 1:
        value = value.contiguous()
    setattr(layer, name, value.data_ptr())
    setattr(layer, f"{name}_t", value.stride(0))
    setattr(layer, f"{name}_b", value.stride(1))
    return value


def _call(function: Any, layer: Layer, x: Tensor, held: list[Tensor], back: bool) -> None:
    """With memory to work in."""
    wide = x.dtype == torch.float64
    if not layer.T * layer.B:
        return
    size = kernel().scratch(byref(layer), wide, back)
    _check_status(max(0, -size))
    held.append(empty([size], torch.uint8))
    layer.scratch = held[-1].data_ptr()
    _check_status(function(byref(layer), wide))


def _check_status(status: int) -> None:
    """Raise the error of a call that did not end well: a ``Status`` of status.h.

    Raises:
        OutOfMemoryError: the kernel found no memory.
        InputError: sizes or strides that the kernel refuses.
        RuntimeError: any other exception in C++.
    """
    if not status:
        return
    words = kernel().message().decode(errors="replace")
    if status == NO_MEMORY:
        raise OutOfMemoryError(f"the cpp kernel cannot work: {words} (a smaller batch or hidden size needs less)")
    if status == INVALID:
        raise InputError(f"the cpp kernel refuses this call: {words}")
    raise RuntimeError(f"the cpp kernel failed: {words}")
