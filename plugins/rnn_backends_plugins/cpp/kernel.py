"""The kernel's functions over tensors: they pass addresses, strides and sizes of memory to lstm.cpp."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import c_bool, c_char_p, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from rnn_backends import InputError, RNNBackendsError, State, UnsupportedError
from rnn_backends.authoring import Arguments, Needs, RowRead, Run, WeightInfo, available, check_memory
from torch import Tensor

from .build import library
from .compiler import BuildError
from .memory import empty

BUFFERS = (
    *("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c", "starts", "h", "c", "gates"),
    *("grad_h", "grad_c", *(f"grad_{name}" for name in Needs._fields), "scratch", "is_init"),
)
"""All buffers that the kernel reads or writes, in the order of ``Layer.room``."""


class Layer(ctypes.Structure):
    """``struct Layer`` of layer.h, field by field."""

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


def _packer(*filled: str) -> struct.Struct:
    """A packer of a ``Layer`` in which only these fields are not zero; it takes a third of the time of ctypes."""
    return struct.Struct("".join("q" if name in filled else "8x" for name in (field[0] for field in Layer._fields_)))


_READ = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c")
_STRIDES = ("x_b", "entry_h_b", "entry_c_b")
_STEP = _packer(
    *("T", "B", "I", "H", "P", "threads", *_READ, *_STRIDES, "h", "c", "gates", "is_init", "is_init_b"),
    *(f"room_{name}" for name in (*_READ, "h", "c", "gates", "is_init")),
)
_READ_BACK = ("x", "w_ih", "w_hh", "w_hr", "entry_h", "entry_c")
_READ_AFTER = ("h", "c", "gates", "grad_h", "grad_c")
_GRADIENTS = tuple(f"grad_{name}" for name in Needs._fields)
_STEP_BACK = _packer(
    *("T", "B", "I", "H", "P", "threads", *_READ_BACK, *_STRIDES, *_READ_AFTER, "grad_h_b", "grad_c_b", *_GRADIENTS),
    *("is_init", "is_init_b", *(f"room_{name}" for name in (*_READ_BACK, *_READ_AFTER, *_GRADIENTS, "is_init"))),
)


_LAYER = struct.Struct(f"{len(Layer._fields_)}q")
"""A packer of all fields of a ``Layer``, eight bytes each."""

_AT = {field[0]: at for at, field in enumerate(Layer._fields_)}
_PLACES = {name: (_AT[name], _AT[f"room_{name}"]) for name in BUFFERS}


class Kernel(NamedTuple):
    """The library's functions; their argument ``wide`` tells float64 from float32."""

    forward: Any
    backward: Any
    step: Any
    step_backward: Any
    scratch: Any
    message: Any
    lanes: dict[torch.dtype, int]


_FREED = 64
"""The address of a tensor without memory: 0 stands for an absent one. The kernel checks sizes before it reads."""

WIDE = (torch.float32, torch.float64)
"""The dtypes that the kernel computes in."""

NO_MEMORY, INVALID = 1, 2
"""Two values of ``Status`` in status.h."""


class OutOfMemoryError(RNNBackendsError, MemoryError, RuntimeError):
    """The kernel cannot allocate memory. It is a RuntimeError as well, like the errors of torch's allocator."""


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """The functions, with their types.

    Raises:
        UnsupportedError: the kernel is unavailable (a module unpickled on another machine runs without a check).
    """
    try:
        found, here = library(), c_void_p  # a Layer, or its bytes
    except BuildError as error:
        raise UnsupportedError("cpp", "this machine", str(error), ["cudnn", "vmap"]) from error
    for function in (found.rnn_forward, found.rnn_backward, found.rnn_step, found.rnn_step_backward):
        function.argtypes, function.restype = [here, c_bool], c_int32
    found.rnn_scratch.argtypes, found.rnn_scratch.restype = [here, c_bool, c_bool], c_int64
    found.rnn_message.argtypes, found.rnn_message.restype = [], c_char_p
    found.rnn_lanes.argtypes, found.rnn_lanes.restype = [c_bool], c_int64
    lanes = {torch.float32: found.rnn_lanes(False), torch.float64: found.rnn_lanes(True)}
    passes = found.rnn_forward, found.rnn_backward, found.rnn_step, found.rnn_step_backward
    return Kernel(*passes, found.rnn_scratch, found.rnn_message, lanes)


def gates_of(H: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """The gates' shape after ``[T, B]``: registers of units, gates, units per register."""
    lanes = kernel().lanes[dtype]
    return -(-H // lanes), 4, lanes


def forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer: a :data:`~..operators.Forward`, in float32 or float64, on the CPU."""
    (T, B, H, P), x = given.sizes, given.x
    h, c = x.new_empty(T, B, P), x.new_empty(T, B, H)
    gates = empty((T, B, *gates_of(H, x.dtype)), x.dtype) if keep else x.new_empty(0)
    layer, held = _layer(given)
    _place(layer, "h", h)
    _place(layer, "c", c)
    if keep:
        _place(layer, "gates", gates)
    _call(kernel().forward, layer, given, held)
    return h, c, gates


def backward(given: Arguments, run: Run, needs: Needs) -> list[Tensor | None]:
    """The gradients of a layer: a :data:`~..operators.Backward`."""
    layer, held = _layer(given)
    _place(layer, "h", run.h)
    _place(layer, "c", run.c)
    _place(layer, "gates", run.gates)
    if run.grad_h is not None:
        held.append(_point(layer, "grad_h", run.grad_h))
    if run.grad_c is not None:
        held.append(_point(layer, "grad_c", run.grad_c))
    grads: list[Tensor | None] = []
    like = (given.x, given.w_ih, given.w_hh, None, given.w_hr, given.entry_h, given.entry_c)
    for name, need, value in zip(Needs._fields, needs, like, strict=True):
        found = None
        if need and not (name == "w_hr" and value is None):
            size = (given.w_ih.shape[0],) if value is None else value.shape
            filled = name.startswith("entry") or not given.starts.numel()  # an entry has gradients only at starts
            found = given.x.new_zeros(size) if filled else given.x.new_empty(size)
            _place(layer, f"grad_{name}", found)
        grads.append(found)
    _call(kernel().backward, layer, given, held, run)
    return grads


def step(info: WeightInfo, x: Tensor, state: State, is_init: Tensor | None = None) -> State:
    """One step without a gradient: ``x [B, I]``, ``State([B, P], [B, H])`` -> the next state.

    Args:
        info: facts about the weights, which are on the CPU.
        x: a plain tensor of float32 or float64 on the CPU.
        state: likewise; it may have a dimension of layers too, of one: ``State([B, 1, P], [B, 1, H])``.
        is_init: ``[B]`` bool: true where the state counts as zero.

    Returns:
        The next state, shaped like ``state``, in memory of its own.

    Raises:
        InputError: sizes or dtypes do not fit together.
    """
    (h, c), dtype, (inputs, H, P) = state, x.dtype, info.sizes
    B = x.shape[0] if x.ndim else 0
    layers = (1,) if h.ndim == 3 else ()
    fits = x.shape == (B, inputs) and h.shape == (B, *layers, P) and c.shape == (B, *layers, H)
    if not fits or not dtype == h.dtype == c.dtype == info.dtype:
        given = ", ".join(f"{n} {tuple(v.shape)} {v.dtype}" for n, v in zip("xhc", (x, h, c), strict=True))
        raise InputError(f"a step's x and state do not fit I, H, P = {info.sizes} in {info.dtype}: {given}")
    size = x.itemsize
    if not (x.is_contiguous() and h.is_contiguous() and c.is_contiguous()):
        x, h, c = map(_contiguous, (x, h, c))
    h_out, c_out = h.new_empty(*h.shape), h.new_empty(*c.shape)  # apart: torch takes twice as long to parse a tuple
    reset = (0, 0, 0)
    if is_init is not None:
        if is_init.shape != (B,) or is_init.dtype != torch.bool:
            raise InputError(f"is_init must be [{B}] bool, got {tuple(is_init.shape)} {is_init.dtype}")
        reset = is_init.data_ptr() or _FREED, is_init.stride()[0], available(is_init)
    layer = _STEP.pack(
        *(1, B, inputs, H, P, torch.get_num_threads()),
        x.data_ptr(),
        *info.pointers,
        *(h.data_ptr(), c.data_ptr(), inputs, P, H, h_out.data_ptr(), c_out.data_ptr(), 0, reset[0], reset[1]),
        x.untyped_storage().nbytes() // size - x.storage_offset(),  # plain.available
        *info.capacities,
        h.untyped_storage().nbytes() // size - h.storage_offset(),
        c.untyped_storage().nbytes() // size - c.storage_offset(),
        *(B * P, B * H, 0, reset[2]),
    )
    status = kernel().step(layer, dtype == torch.float64)
    if status:
        _check_status(status)
    return State(h_out, c_out)


def row(
    info: WeightInfo, x: Tensor, h: Tensor, c: Tensor, is_init: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A row of one step: a :data:`~..one_step.RowForward`."""
    B, H, P, size = x.shape[1], info.sizes[1], info.sizes[2], x.itemsize
    (_, x_b, x_1), (_, h_b, h_1), (_, c_b, c_1) = x.stride(), h.stride(), c.stride()
    if not x_1 == h_1 == c_1 == 1 or not B or x.dtype not in WIDE:
        return None
    h_out, c_out = h.new_empty(1, B, P), h.new_empty(1, B, H)
    gates, at, count = _NO_GATES, 0, 0
    if keep:
        shape = gates_of(H, x.dtype)
        gates = h.new_empty(1, B, *shape)
        at, count = gates.data_ptr(), B * shape[0] * 4 * shape[2]
    reset = (0, 0, 0) if is_init is None else (is_init.data_ptr() or _FREED, is_init.stride()[1], available(is_init))
    layer = _STEP.pack(
        *(1, B, info.sizes[0], H, P, torch.get_num_threads()),
        x.data_ptr(),
        *info.pointers,
        *(h.data_ptr(), c.data_ptr(), x_b, h_b, c_b, h_out.data_ptr(), c_out.data_ptr(), at, reset[0], reset[1]),
        x.untyped_storage().nbytes() // size - x.storage_offset(),
        *info.capacities,
        h.untyped_storage().nbytes() // size - h.storage_offset(),
        c.untyped_storage().nbytes() // size - c.storage_offset(),
        *(B * P, B * H, count, reset[2]),
    )
    status = kernel().step(layer, size == 8)
    if status:
        if status == INVALID:
            return None
        _check_status(status)
    return h_out, c_out, gates


def row_backward(
    read: RowRead, grad_h: Tensor | None, grad_c: Tensor | None, needs: Needs
) -> Sequence[Tensor | None] | None:
    """The gradients of a row of one step: a :data:`~..one_step.RowBackward`."""
    x, w_ih, w_hh, w_hr, h, c, is_init, h_out, c_out, gates = read
    (_, B, inputs), (_, H), P = x.shape, c.shape[1:], h.shape[2]
    size, empty = x.itemsize, x.new_empty
    if grad_h is not None and grad_h.stride()[2] != 1:
        grad_h = grad_h.contiguous()
    if grad_c is not None and grad_c.stride()[2] != 1:
        grad_c = grad_c.contiguous()
    found = (
        empty(*x.shape) if needs[0] else None,
        empty(*w_ih.shape) if needs[1] else None,
        empty(*w_hh.shape) if needs[2] else None,
        empty(4 * H) if needs[3] else None,
        empty(*w_hr.shape) if needs[4] and w_hr is not None else None,
        empty(*h.shape) if needs[5] else None,
        empty(*c.shape) if needs[6] else None,
    )
    given = (x, w_ih, w_hh, w_hr, h, c, h_out, c_out, gates, grad_h, grad_c)
    at = [0 if v is None else v.data_ptr() or _FREED for v in given]
    rooms = [0 if v is None else v.untyped_storage().nbytes() // size - v.storage_offset() for v in given]
    reset = (0, 0, 0) if is_init is None else (is_init.data_ptr() or _FREED, is_init.stride()[1], available(is_init))
    layer = _STEP_BACK.pack(
        *(1, B, inputs, H, P, torch.get_num_threads(), *at[:6], x.stride()[1], h.stride()[1], c.stride()[1]),
        *at[6:],
        0 if grad_h is None else grad_h.stride()[1],
        0 if grad_c is None else grad_c.stride()[1],
        *[0 if v is None else v.data_ptr() for v in found],
        *(*reset[:2], *rooms),
        *[0 if v is None else v.numel() for v in found],
        reset[2],
    )
    status = kernel().step_backward(layer, size == 8)
    if status:
        if status == INVALID:
            return None
        _check_status(status)
    return found


_NO_GATES = torch.empty(0)


def _contiguous(value: Tensor) -> Tensor:
    """A contiguous copy, after a check of the memory to copy from."""
    check_memory([("a tensor of the call", value)])
    return value.contiguous()


def _layer(given: Arguments) -> tuple[list[int], list[Tensor]]:
    """The fields of the struct, and the tensors that they point to, to be kept alive while the kernel runs."""
    T, B, H, P = given.sizes
    layer = [0] * len(_AT)
    layer[:6] = T, B, given.x.shape[2], H, P, torch.get_num_threads()
    held = [
        _point(layer, "x", given.x),
        _point(layer, "entry_h", given.entry_h),
        _point(layer, "entry_c", given.entry_c),
        _point(layer, "starts", given.starts),
    ]
    for name, value in (("w_ih", given.w_ih), ("w_hh", given.w_hh), ("b_ih", given.bias), ("w_hr", given.w_hr)):
        if value is not None:
            held.append(value if value.is_contiguous() else _contiguous(value))
            _place(layer, name, held[-1])
    return layer, held


def _place(layer: list[int], name: str, value: Tensor) -> None:
    """Set the address of a contiguous tensor, and the size of its memory (``plain.available``)."""
    at, room = _PLACES[name]
    layer[at] = value.data_ptr() or _FREED
    layer[room] = value.untyped_storage().nbytes() // value.itemsize - int(value.storage_offset())


def _point(layer: list[int], name: str, value: Tensor) -> Tensor:
    """Set the address and strides of ``[T, B, ...]``, or of a copy if its last dimension is not contiguous."""
    stride = value.stride()
    if value.ndim == 3 and stride[2] != 1 and value.shape[2] != 1:
        value = _contiguous(value)
        stride = value.stride()
    _place(layer, name, value)
    at = _AT[f"{name}_t"]
    layer[at : at + 2] = stride[:2]
    return value


def _call(function: Any, layer: list[int], given: Arguments, held: list[Tensor], run: Run | None = None) -> None:
    """Call the kernel with scratch memory; ``run`` for the backward pass."""
    x = given.x
    wide = x.dtype == torch.float64
    if not x.shape[0] * x.shape[1]:
        return
    size = kernel().scratch(_LAYER.pack(*layer), wide, run is not None)
    _check_status(max(0, -size))
    held.append(empty((size,), torch.uint8))
    _place(layer, "scratch", held[-1])
    status = function(_LAYER.pack(*layer), wide)
    if status == INVALID:  # core's message, if a storage is too small
        check_memory((*given._asdict().items(), *(() if run is None else run._asdict().items())))
    _check_status(status)


def _check_status(status: int) -> None:
    """Raise the error for a ``Status`` of status.h other than ``DONE``.

    Raises:
        OutOfMemoryError: the kernel cannot allocate memory.
        InputError: the kernel rejects sizes or strides.
        RuntimeError: any other exception in C++.
    """
    if not status:
        return
    words = kernel().message().decode(errors="replace")
    if status == NO_MEMORY:
        raise OutOfMemoryError(f"the cpp kernel is out of memory: {words} (a smaller batch or hidden size needs less)")
    if status == INVALID:
        raise InputError(f"the cpp kernel rejects this call: {words}")
    raise RuntimeError(f"the cpp kernel failed: {words}")
