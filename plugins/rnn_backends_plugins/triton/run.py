"""Calls of the Triton kernels: buffers, launches, and the products that need no recurrence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from rnn_backends import LayerWeights, State, UnsupportedError
from rnn_backends.authoring import Arguments, Needs, Run
from torch import Tensor

from .._torch import padded
from . import kernels, products
from .device import INTERPRETED, card_of, itemsize_of, operand_of, precision_of
from .launch import Compilation, Launcher, compile_together
from .plan import MOST_ROWS, Plan, batch_of, plan
from .products import unit_stride

STEP_TILES = ((64, 32), (16, 16))
"""Rows and hidden units of a program of the step: large, so that the weights are read few times, where these are
programs for half of the GPU; else the fewest, so that a small batch has many programs."""

_COUNTERS = 32
"""int32 numbers between two counters: each has a line of the cache of its own."""


def plan_for(H: int, B: int, dtype: torch.dtype, device: torch.device, backward: bool = False) -> Plan:
    """The plan for these sizes on this device."""
    return _plan_of(H, B, itemsize_of(dtype), device, backward)


@lru_cache(maxsize=4096)
def _plan_of(H: int, B: int, itemsize: int, device: torch.device, backward: bool) -> Plan:
    card = card_of(device)
    return plan(H, itemsize, batch_of(H, B, itemsize, card), card, backward)


def _as_it_is() -> AbstractContextManager[None]:
    """No gradient and no autocast for torch's own products: a context only where one of them is on."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
        return _all_off()
    return _NOTHING_ON


@contextmanager
def _all_off() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


_NOTHING_ON = nullcontext()


def forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer: a :data:`~rnn_backends.authoring.Forward`."""
    (T, B, H, _), x = given.sizes, given.x
    _check_rows(T * B)
    h, c = x.new_empty(T, B, H), x.new_empty(T, B, H)
    if not T * B * H:
        return h, c, x.new_empty(T, B, 4, H) if keep else x.new_empty(0)
    with _as_it_is():
        chosen = plan_for(H, B, x.dtype, x.device)
        launch = _launcher_of_forward(given, chosen, keep)
        if not INTERPRETED and launch.is_new_to(x.device):
            compile_together(_compilations(given, launch, keep), x.device)
        gates = products.of_inputs(x, given.w_ih, given.bias)
        _launch_forward(given, gates, h, c, chosen, launch)
    return h, c, gates.view(T, B, 4, H) if keep else x.new_empty(0)


def _check_rows(rows: int) -> None:
    """Raise :class:`UnsupportedError` if the batch has more rows, times steps, than the kernels can count."""
    if rows > MOST_ROWS:
        reason = f"its kernels count rows times steps in 32 bits, {MOST_ROWS} at most: split the batch"
        raise UnsupportedError("triton", f"{rows} rows times steps", reason, ["cudnn", "vmap"])


def _compilations(given: Arguments, forward: Launcher, keep: bool) -> list[Compilation]:
    """What a call compiles, with the backward pass after it where nothing but ``h`` has a gradient given."""
    (_, B, H, _), dtype = given.sizes, given.x.dtype
    starts = {"starts": torch.uint8, "counters": torch.int32}
    carry = torch.float32 if forward.constants["STEPS"] else dtype
    found: list[Compilation] = [
        (forward, dtype, {**starts, "carry": carry}),
        *products.compilations(given, backward=False),
    ]
    if keep:
        chosen = plan_for(H, B, dtype, given.x.device, backward=True)
        launch = _launcher_of_backward(
            given, chosen, (True, False), (given.entry_h.requires_grad, given.entry_c.requires_grad)
        )
        found[:0] = [(launch, dtype, {**starts, "parts": torch.float32, "carry": torch.float32})]
        found += products.compilations(given, backward=True)
    return found


def _launch_forward(given: Arguments, gates: Tensor, h: Tensor, c: Tensor, chosen: Plan, launch: Launcher) -> None:
    (T, B, *_), x = given.sizes, given.x
    tiles = -(-B // chosen.rows)
    programs, steps = _grid(chosen, tiles, x.device)
    entry_h, entry_c = unit_stride(given.entry_h), unit_stride(given.entry_c)
    into, counters = _exchanged(given.entry_h[0], chosen, tiles)
    carry = _carried(x, chosen, tiles) if steps else c
    starts = given.starts.view(torch.uint8)
    w_hh = given.w_hh.contiguous()
    strides = (*starts.stride(), *entry_h.stride()[:2], *entry_c.stride()[:2])
    tensors = (gates, w_hh, starts, entry_h, entry_c, h, c, into, carry, counters)
    for t0, t1 in ((t, t + 1) for t in range(T)) if steps else ((0, T),):
        launch((programs, chosen.slices), tensors, (T, B, t0, t1, tiles, *strides))


def _launcher_of_forward(given: Arguments, chosen: Plan, keep: bool) -> Launcher:
    (_, B, H, _), x = given.sizes, given.x
    _, steps = _grid(chosen, -(-B // chosen.rows), x.device)
    return _launcher(
        *(kernels.forward_kernel, chosen, H, steps, x.dtype, precision_of(x.dtype)),
        AHEAD=chosen.ahead,
        KEEP=keep,
        ONE_ENTRY=_is_one_row(given.entry_h) and _is_one_row(given.entry_c),
    )


def _exchanged(first: Tensor, chosen: Plan, tiles: int) -> tuple[Tensor, Tensor]:
    """``into`` and ``counters`` of :func:`~.kernels.forward_kernel`, in one allocation that is zeroed once.

    Args:
        first: ``[B, H]``, the ``h`` that enters the first step.
        chosen: how the layer is cut.
        tiles: how many tiles there are.
    """
    (B, H), rows = first.shape, 2 * tiles * chosen.rows
    for_counters = -(-4 * _COUNTERS * tiles // (chosen.padded * first.itemsize))
    zeros = padded(first, (0, chosen.padded - H, 0, rows + for_counters - B), 0.0)
    into, counters = zeros.split_with_sizes((rows, for_counters))
    return into, counters.view(-1).view(torch.int32)


def backward(given: Arguments, run: Run, needs: Needs) -> list[Tensor | None]:
    """The gradients: a :data:`~rnn_backends.authoring.Backward`."""
    (T, B, H, _), x = given.sizes, given.x
    _check_rows(T * B)
    if not T * B * H:
        like = (given.x, given.w_ih, given.w_hh, None, None, given.entry_h, given.entry_c)
        found = [x.new_zeros(4 * H) if value is None else torch.zeros_like(value) for value in like]
        return [value if need else None for value, need in zip(found, needs, strict=True)]
    with _as_it_is():
        # A program reads its own gates of a step before it writes their gradient, and no other program reads them.
        grad_gates = run.gates if run.last else torch.empty_like(run.gates)
        entry_h = x.new_zeros(T, B, H) if needs.entry_h else None
        entry_c = x.new_zeros(T, B, H) if needs.entry_c else None
        chosen = plan_for(H, B, x.dtype, x.device, backward=True)
        _launch_backward(given, run, grad_gates, entry_h, entry_c, chosen)
        of_weights: tuple[Tensor | None, ...] = (None, None, None)
        if needs.w_ih or needs.w_hh or needs.bias:
            w_ih, w_hh, bias = products.of_weights(given, run.h, grad_gates)
            of_weights = w_ih if needs.w_ih else None, w_hh if needs.w_hh else None, bias if needs.bias else None
        # After the weights' gradients, whose partial sums were in this memory.
        grad_x = products.of_grad_gates(grad_gates.view(T, B, 4 * H), given.w_ih) if needs.x else None
    return [grad_x, *of_weights, None, entry_h, entry_c]


def _launch_backward(
    given: Arguments, run: Run, grad_gates: Tensor, entry_h: Tensor | None, entry_c: Tensor | None, chosen: Plan
) -> None:
    (T, B, *_), x = given.sizes, given.x
    tiles = -(-B // chosen.rows)
    programs, steps = _grid(chosen, tiles, x.device)
    stored_c = unit_stride(given.entry_c)
    parts = x.new_empty(2, chosen.slices, programs * chosen.rows, chosen.padded, dtype=torch.float32)
    carry = _carried(x, chosen, tiles) if steps else parts
    counters = torch.zeros(programs * _COUNTERS, dtype=torch.int32, device=x.device)
    starts = given.starts.view(torch.uint8)
    w_hh = given.w_hh.contiguous()
    grad_h = None if run.grad_h is None else run.grad_h.contiguous()
    grad_c = None if run.grad_c is None else run.grad_c.contiguous()
    first = -1 if entry_h is not None or entry_c is not None else 0
    launch = _launcher_of_backward(
        given, chosen, (grad_h is not None, grad_c is not None), (entry_h is not None, entry_c is not None)
    )
    tensors = (
        *(run.gates, w_hh, starts, stored_c, run.c),
        *(run.c if value is None else value for value in (grad_h, grad_c)),
        grad_gates,
        *(grad_gates if value is None else value for value in (entry_h, entry_c)),
        *(parts, carry, counters),
    )
    strides = (*starts.stride(), *stored_c.stride()[:2])
    for t0, t1 in ((t, t + 1) for t in range(T - 1, first - 1, -1)) if steps else ((first, T),):
        launch((programs, chosen.slices), tensors, (T, B, t0, t1, tiles, *strides))


def _launcher_of_backward(
    given: Arguments, chosen: Plan, grads: tuple[bool, bool], entries: tuple[bool, bool]
) -> Launcher:
    """Of which of ``h`` and ``c`` a gradient is given, and of which stored states one is needed."""
    (_, B, H, _), x = given.sizes, given.x
    _, steps = _grid(chosen, -(-B // chosen.rows), x.device)
    return _launcher(
        *(kernels.backward_kernel, chosen, H, steps, x.dtype, precision_of(x.dtype)),
        HAS_GRAD_H=grads[0],
        HAS_GRAD_C=grads[1],
        NEED_ENTRY_H=entries[0],
        NEED_ENTRY_C=entries[1],
        ONE_ENTRY=_is_one_row(given.entry_c),
    )


def _is_one_row(entry: Tensor) -> bool:
    """Whether every place of ``[T, B, H]`` is one row of memory, like the zeros that core passes for no state."""
    (T, B, _), (of_t, of_b, of_unit) = entry.shape, entry.stride()
    return (T == 1 or not of_t) and (B == 1 or not of_b) and of_unit == 1


def _grid(chosen: Plan, tiles: int, device: torch.device) -> tuple[int, bool]:
    """Programs along the first axis, and whether each step is a launch of its own."""
    together = chosen.programs(tiles, card_of(device))
    steps = not together or (INTERPRETED and chosen.slices > 1)  # the interpreter knows no two programs at a time
    return (tiles if steps else together), steps


def _carried(x: Tensor, chosen: Plan, tiles: int) -> Tensor:
    """``carry`` of both kernels: only where each step is a launch, else any tensor will do."""
    return x.new_zeros(tiles * chosen.rows, chosen.slices * chosen.units, dtype=torch.float32)


@lru_cache(maxsize=1024)
def _launcher(
    kernel: Any, chosen: Plan, H: int, steps: bool, dtype: torch.dtype, precision: str, **flags: int
) -> Launcher:
    """One of the two kernels over time with its compile-time arguments; every tensor's dtype follows from them."""
    # A cooperative launch fails where its programs do not fit on the GPU together; none could wait for ever.
    # Fused multiply-add is Triton's default; 3.9 warns unless it is given explicitly.
    together = (
        {} if INTERPRETED else {"launch_cooperative_grid": chosen.slices > 1 and not steps, "enable_fp_fusion": True}
    )
    constants = {
        "H": H,
        "U": chosen.units,
        "G": chosen.slices,
        "BB": chosen.rows,
        "KP": chosen.padded,
        "BK": chosen.piece,
        "RESIDENT": chosen.resident,
        "STEPS": steps,
        "WAITS": chosen.slices > 1 and not steps,
        "PRECISION": precision,
        "OPERAND": operand_of(dtype),
        "num_warps": chosen.warps,
        "num_stages": 1,
        **together,
        **flags,
    }
    return Launcher(kernel, constants)


@lru_cache
def step_tile(B: int, H: int, device: torch.device) -> tuple[int, int]:
    """Rows and hidden units of a program of the step."""
    large, small = STEP_TILES
    return large if 2 * -(-B // large[0]) * -(-H // large[1]) >= card_of(device).sms else small


def step(weights: LayerWeights, x: Tensor, state: State, starts: Tensor | None = None) -> State:
    """One step in one launch, its products included, without a gradient.

    Args:
        weights: contiguous.
        x: ``[B, I]``.
        state: ``State([B, H], [B, H])``.
        starts: ``[B]`` bool: where the state counts as zero.
    """
    B, H = state.h.shape
    _check_rows(B)
    found = State(x.new_empty(B, H), x.new_empty(B, H))
    if B * H:
        _launch_step(weights, x, state, starts, found, None, 1, 0)
    return found


def step_stack(weights: list[LayerWeights], x: Tensor, state: State, starts: Tensor | None) -> tuple[Tensor, State]:
    """One step of all layers, one launch each and nothing else.

    Args:
        weights: contiguous.
        x: ``[B, I]``.
        state: ``State([B, L, H], [B, L, H])``.
        starts: ``[B]`` bool: where the state counts as zero.

    Returns:
        ``[B, H]`` and the new state, with memory of its own.
    """
    B, L, H = state.h.shape
    _check_rows(B)
    output, found = x.new_empty(B, H), State(x.new_empty(B, L, H), x.new_empty(B, L, H))
    if B * H:
        h, c = state.h.unbind(1), state.c.unbind(1)
        for k, layer in enumerate(weights):
            _launch_step(layer, x, State(h[k], c[k]), starts, found, output if k == L - 1 else None, L, k)
            x = found.h.select(1, k)
    return output, found


def _launch_step(
    weights: LayerWeights,
    x: Tensor,
    state: State,
    starts: Tensor | None,
    found: State,
    output: Tensor | None,
    layers: int,
    layer: int,
) -> None:
    """One step of layer ``layer`` of ``layers``, into its place of ``found`` and, if it is the last, ``output``."""
    (w_ih, w_hh, b_ih, b_hh, _), (h, c), B, H = weights, state, *state.h.shape
    x, h, c = unit_stride(x), unit_stride(h), unit_stride(c)
    begins = h if starts is None else starts.view(torch.uint8)
    rows, units = step_tile(B, H, x.device)
    launch = _step_launcher(
        *(kernels.step_kernel, x.shape[1], H, rows, units, h.dtype, precision_of(h.dtype)),
        HAS_B_IH=b_ih is not None,
        HAS_B_HH=b_hh is not None,
        HAS_STARTS=starts is not None,
        HAS_OUTPUT=output is not None,
    )
    biases = w_ih if b_ih is None else b_ih, w_ih if b_hh is None else b_hh
    launch(
        (-(-B // rows), -(-H // units)),
        (x, w_ih, w_hh, *biases, h, c, begins, *found, found.h if output is None else output),
        (B, x.stride(0), h.stride(0), c.stride(0), begins.stride(0), layers, layer),
    )


@lru_cache(maxsize=1024)
def _step_launcher(
    kernel: Any,
    I: int,  # noqa: E741
    H: int,
    rows: int,
    units: int,
    dtype: torch.dtype,
    precision: str,
    **flags: bool,
) -> Launcher:
    """The kernel of one step with its compile-time arguments."""
    constants = {
        "I": I,
        "H": H,
        "U": units,
        "BB": rows,
        "BK": 64,
        "PRECISION": precision,
        "OPERAND": operand_of(dtype),
        "num_warps": 4,
        **({} if INTERPRETED else {"enable_fp_fusion": True}),
        **flags,
    }
    return Launcher(kernel, constants)
