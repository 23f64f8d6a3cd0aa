"""torch's fused kernel, in pieces of time if one call would take memory that malloc returns to the system each time.
For training on a CPU oneDNN saves about 62 bytes per unit and cell until the backward pass, 43 in bfloat16. Blocks
larger than 32 MiB glibc's malloc gets from the system page by page, and returns when they are freed: the next call has
a page fault for every page again, which takes half of a step's time at B64-T128-H256. Pieces in a chain (h and c pass
from one to the next) compute the same, in memory that malloc keeps. docs/performance.md, "The allocator", has the
figures.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache

import torch
from rnn_backends import State, UnsupportedError
from torch import Tensor

from .. import _torch
from ..openmp import lacks_threads
from . import target
from .flat import flat_weights

WORKSPACE = {torch.float32: 62, torch.bfloat16: 43}
"""Bytes that the kernel saves for each unit and cell, measured; other dtypes use another kernel."""

GIVEN_BACK = 31 << 20
"""Bytes: glibc's largest mmap threshold is 32 MiB (M_MMAP_THRESHOLD in mallopt(3)), headers included."""

PIECE = 24 << 20
"""Bytes of a piece: the best of 8 to 31 MiB for B64-T128-H256, B1024-T32-H128 and B32-T512-H128."""

PER_CALL = 128
"""The cost of one more call of the kernel (it packs the weights, and adds up their gradients), in rows times steps."""

SHARE = 8
"""The largest share of the whole that the calls after the first may cost; otherwise it stays one call."""

MANY_ROWS, MANY_UNITS = 32, 8192
"""From this many rows, and rows times units, one step of the fused kernel is faster than ``torch.lstm_cell``."""


def run(
    params: list[Tensor], x: Tensor, state: State, bias: bool, layers: int = 1, bidirectional: bool = False
) -> tuple[Tensor, State]:
    """``torch.lstm`` over dense rows.

    Args:
        params: of all layers, in torch's order.
        x: ``[T, B, I]``.
        state: ``State([layers * D, B, P], [layers * D, B, H])``.
        bias: whether there are biases.
        layers: how many.
        bidirectional: whether ``D`` is 2.

    Returns:
        ``y [T, B, D * P]`` and the final state.

    Raises:
        UnsupportedError: oneDNN would compute wrong numbers.
    """
    if x.device.type == "cpu":
        reason = untrusted(x.dtype, state.h.shape[2] != state.c.shape[2])
        if reason is not None:
            raise UnsupportedError("cudnn", "these threads", reason, ["vmap"])
    if _computes_wide(x, state):
        wide = [v.float() for v in params], x.float(), State(state.h.float(), state.c.float())
        y, end = run(*wide, bias, layers, bidirectional)
        return y.to(x.dtype), State(end.h.to(x.dtype), end.c.to(x.dtype))
    if target.serves(x):
        params, bias = in_one_buffer(params, bias, state, layers, bidirectional), True
        state = contiguous(state)
    T, train = x.shape[0], _trains(params, x, state)
    pieces = 1 if bidirectional else _pieces(x, state, layers)
    ys = []
    for part in x.split(-(-T // pieces)) if pieces > 1 else (x,):
        y, h, c = _torch.fused_lstm(part, state, params, bias, layers, train, bidirectional)
        ys.append(y)
        state = State(h, c)
    return torch.cat(ys) if len(ys) > 1 else ys[0], state


def run_flat(params: list[Tensor], x: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """:func:`run` of one layer on a GPU, with parameters that are in cuDNN's layout already, biases included.

    Returns:
        ``y [T, B, P]`` and the final ``c [1, B, H]``.
    """
    state = contiguous(state)
    y, _, c = _torch.fused_lstm(x, state, params, True, 1, _trains(params, x, state), False)
    return y, c


def _trains(params: list[Tensor], x: Tensor, state: State) -> bool:
    """Whether there may be a backward pass. In a trace also with gradients disabled: torch.jit.trace compares its graph
    with one that it records without them.
    """
    if torch.jit.is_tracing():
        return any(v.requires_grad for v in (*params, x, *state))
    return torch.is_grad_enabled()


def in_one_buffer(params: list[Tensor], bias: bool, state: State, layers: int, bidirectional: bool) -> list[Tensor]:
    """The weights in cuDNN's layout, biases included: see flat.py."""
    H, P = state.c.shape[2], state.h.shape[2]
    return flat_weights(params, bias, H, P if P != H else 0, layers, bidirectional)


def contiguous(state: State) -> State:
    """The state in the layout that ``_cudnn_rnn`` requires; oneDNN takes any layout."""
    h = state.h.contiguous()
    return State(h, h if state.c is state.h else state.c.contiguous())


def step(params: list[Tensor], x: Tensor, state: State, bias: bool) -> State:
    """One step without a projection: ``x [B, I]``, ``State([B, H], [B, H])`` -> the next state.

    For many rows, acting on a CPU uses the fused kernel: its products are oneDNN's, up to twice as fast.
    """
    if not _steps_fused(x, state):
        return State(*_torch.lstm_cell(x, state, params))
    hx = state.h.unsqueeze(0), state.c.unsqueeze(0)
    y, _, c = _torch.fused_lstm(x.unsqueeze(0), hx, params, bias, 1, False, False)
    return State(y.squeeze(0), c.squeeze(0))


def _steps_fused(x: Tensor, state: State) -> bool:
    """Whether there are enough rows, and neither gradients nor a compiler."""
    (rows, units), device = state.c.shape, x.device.type
    return (
        rows >= MANY_ROWS
        and rows * units >= MANY_UNITS
        and not torch.is_grad_enabled()
        and (device, x.dtype) == ("cpu", torch.float32)
        and not torch.compiler.is_compiling()
        and is_fused(x.dtype, projected=False)
        and lacks_threads() is None
    )


def _computes_wide(x: Tensor, state: State) -> bool:
    """Whether to compute in float32: on a CPU in 16 bits if oneDNN's kernel cannot run.

    torch's other kernel adds the weights' gradients up step by step in 16 bits: after 600 steps they are up to 14 % off
    in bfloat16. In float16 it is 8 to 20 times slower than in float32 too.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    served = is_fused(x.dtype, state.h.shape[2] != state.c.shape[2])
    return not served and (torch.is_grad_enabled() or x.dtype == torch.float16)


def is_fused(dtype: torch.dtype, projected: bool) -> bool:
    """Whether oneDNN's kernel can run on a CPU; torch's other kernel takes a few operators per step."""
    return not projected and bool(torch.backends.mkldnn.enabled) and _onednn_knows(dtype)


def untrusted(dtype: torch.dtype, projected: bool) -> str | None:
    """Why oneDNN's kernel, which a call would run on a CPU, computes wrong numbers now; else ``None``."""
    runs = dtype != torch.float64 and is_fused(torch.float32, projected)  # 16 bits in float32, if not as they are
    return lacks_threads() if runs else None


@lru_cache(maxsize=4)
def _onednn_knows(dtype: torch.dtype) -> bool:
    """Whether this build has oneDNN, and this processor the instructions of its kernel for a dtype."""
    if dtype not in (torch.bfloat16, torch.float16):
        return torch.backends.mkldnn.is_available() and dtype == torch.float32
    return torch.backends.mkldnn.is_available() and _torch.onednn_knows(dtype)


def _pieces(x: Tensor, state: State, layers: int) -> int:
    """The number of calls in a chain."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or not _gives_back():
        return 1
    size = _workspace(x, state, layers)
    if size <= GIVEN_BACK:
        return 1
    T, B, _ = x.shape
    pieces = min(-(-size // PIECE), T)
    return pieces if (pieces - 1) * PER_CALL * SHARE <= T * B else 1


def _workspace(x: Tensor, state: State, layers: int) -> int:
    """Bytes that oneDNN's kernel saves for the backward pass; with a projection it is not used."""
    if state.h.shape[2] != state.c.shape[2]:
        return 0
    return WORKSPACE.get(x.dtype, 0) * x.shape[0] * x.shape[1] * state.c.shape[2] * layers


@lru_cache(maxsize=1)
def _gives_back() -> bool:
    """Whether memory comes from glibc's malloc with its default settings."""
    others = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    return platform.libc_ver()[0] == "glibc" and not any(os.environ.get(name) for name in others)
