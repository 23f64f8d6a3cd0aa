"""The kernel's functions over tensors: strides and memory are seen to here; lstm.cpp reads without looking."""

from __future__ import annotations

import ctypes
import struct
from ctypes import byref, c_bool, c_char_p, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from rnn_backends import InputError, RNNBackendsError, State, UnsupportedError
from rnn_backends.authoring import Arguments, KnownWeights, Needs, Run, available, check_memory
from torch import Tensor

from .build import BuildError, library
from .memory import empty

BUFFERS = (
    *("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c", "starts", "h", "c", "gates"),
    *("grad_h", "grad_c", *(f"grad_{name}" for name in Needs._fields), "scratch", "is_init"),
)
"""Everything that the kernel reads or writes, in the order of ``Layer.room``."""


class Layer(ctypes.Structure):
    """``struct Layer`` of layer.h, field for field."""

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
        *((f"room_{name}", c_int64) for name in BUFFERS),
    ]


_READ_BY_STEP = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c")
_FILLED_BY_STEP = {
    *("T", "B", "I", "H", "P", "threads", *_READ_BY_STEP, "x_b", "entry_h_b", "entry_c_b", "h", "c", "is_init"),
    *("is_init_b", *(f"room_{name}" for name in (*_READ_BY_STEP, "h", "c", "is_init"))),
}
_STEP = struct.Struct(
    "".join("q" if name in _FILLED_BY_STEP else "8x" for name in (field[0] for field in Layer._fields_))
)
"""A ``Layer`` with what a step fills in, as bytes: packed in a third of the time that ctypes takes."""


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
        found, here = library(), c_void_p  # a Layer, or its bytes
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
    _place(layer, h=h, c=c, gates=gates if keep else None)
    _call(kernel().forward, layer, x, held, back=False)
    return h, c, gates


def backward(given: Arguments, run: Run, needs: Needs) -> list[Tensor | None]:
    """The gradients: a :data:`~..operators.Backward`."""
    layer, held = _layer(given)
    _place(layer, h=run.h, c=run.c, gates=run.gates)
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
            _place(layer, **{f"grad_{name}": found})
        grads.append(found)
    _call(kernel().backward, layer, given.x, held, back=True)
    return grads


def step(known: KnownWeights, x: Tensor, state: State, is_init: Tensor | None = None) -> State:
    """One step without a gradient: ``x [B, I]``, ``State([B, P], [B, H])`` -> the next state.

    Args:
        known: what is known of the weights, on the CPU.
        x, state: plain tensors, of float32 or float64, on the CPU.
        is_init: ``[B]`` bool: where the state is taken as zero.
    """
    (h, c), dtype, (inputs, H, P) = state, x.dtype, known.sizes
    B = x.shape[0] if x.ndim else 0
    fits = x.shape == (B, inputs) and h.shape == (B, P) and c.shape == (B, H)
    if not fits or not dtype == h.dtype == c.dtype == known.dtype:
        given = ", ".join(f"{n} {tuple(v.shape)} {v.dtype}" for n, v in zip("xhc", (x, h, c), strict=True))
        raise InputError(f"a step's x and state do not fit I, H, P = {known.sizes} in {known.dtype}: {given}")
    size = x.itemsize
    if not (x.is_contiguous() and h.is_contiguous() and c.is_contiguous()):
        x, h, c = map(_contiguous, (x, h, c))
    h_out, c_out = h.new_empty(B, P), h.new_empty(B, H)
    reset = (0, 0, 0)
    if is_init is not None:
        if is_init.shape != (B,) or is_init.dtype != torch.bool:
            raise InputError(f"is_init must be [{B}] bool, got {tuple(is_init.shape)} {is_init.dtype}")
        reset = is_init.data_ptr(), is_init.stride()[0], available(is_init)
    layer = _STEP.pack(
        *(1, B, inputs, H, P, torch.get_num_threads()),
        x.data_ptr(),
        *known.pointers,
        *(h.data_ptr(), c.data_ptr(), inputs, P, H, h_out.data_ptr(), c_out.data_ptr(), reset[0], reset[1]),
        x.untyped_storage().nbytes() // size - x.storage_offset(),  # plain.available
        *known.rooms,
        h.untyped_storage().nbytes() // size - h.storage_offset(),
        c.untyped_storage().nbytes() // size - c.storage_offset(),
        *(B * P, B * H, reset[2]),
    )
    status = kernel().step(layer, dtype == torch.float64)
    if status:
        _check_status(status)
    return State(h_out, c_out)


def _contiguous(value: Tensor) -> Tensor:
    """A copy, once it is known that there is something to copy."""
    check_memory([("a tensor of a step", value)])
    return value.contiguous()


def _layer(given: Arguments) -> tuple[Layer, list[Tensor]]:
    """The struct, and what it points at: to be held while the kernel runs."""
    T, B, H, P = given.sizes
    layer = Layer(T, B, given.x.shape[2], H, P, torch.get_num_threads())
    held = [_point(layer, name, getattr(given, name)) for name in ("x", "entry_h", "entry_c", "starts")]
    for name, value in (("w_ih", given.w_ih), ("w_hh", given.w_hh), ("b_ih", given.bias), ("w_hr", given.w_hr)):
        if value is not None:
            held.append(value.contiguous())
            _place(layer, **{name: held[-1]})
    return layer, held


def _place(layer: Layer, **buffers: Tensor | None) -> None:
    """Let contiguous tensors be found by their names, with the room that there is."""
    for name, value in buffers.items():
        if value is not None:
            setattr(layer, name, value.data_ptr())
            setattr(layer, f"room_{name}", available(value))


def _point(layer: Layer, name: str, value: Tensor) -> Tensor:
    """Let ``[T, B, ...]`` be found at ``name``; where a last dimension's numbers are not side by side, a copy of it."""
    if value.ndim == 3 and value.stride(2) != 1 and value.shape[2] != 1:
        value = value.contiguous()
    t, b = value.stride()[:2]
    _place(layer, **{name: value})
    setattr(layer, f"{name}_t", t)
    setattr(layer, f"{name}_b", b)
    return value


def _call(function: Any, layer: Layer, x: Tensor, held: list[Tensor], back: bool) -> None:
    """With memory to work in."""
    wide = x.dtype == torch.float64
    if not layer.T * layer.B:
        return
    size = kernel().scratch(byref(layer), wide, back)
    _check_status(max(0, -size))
    held.append(empty([size], torch.uint8))
    _place(layer, scratch=held[-1])
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
