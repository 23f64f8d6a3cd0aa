"""The fourth round, the other half: kernels of their own, most with a backward pass written by hand.

A law is named where one was written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State, StepFunction
from torch import Tensor
from torch.nn.functional import linear

from .hand_written import _NotTwice
from .planting import backend, in_layer, made
from .right import layer, output_of, right, step


def _once(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...], saved: list[Tensor]) -> tuple[Tensor | None, ...]:
    read = [v for v in saved if v is not None and v.is_floating_point()]
    needed = (g if need else None for g, need in zip(grads, needs, strict=True))
    return tuple(None if g is None else _NotTwice.apply(g, *read) for g in needed)


def _forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    w_hr: Tensor | None,
    entry_h: Tensor,
    entry_c: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``h [T, B, P]``, ``c [T, B, H]`` and the activated gates ``[T, B, 4, H]``."""
    (T, B, _), H, P = x.shape, w_hh.shape[0] // 4, w_hh.shape[1]
    sums, begin = linear(x, w_ih, bias), starts.unsqueeze(-1)
    hs, cs, gates = x.new_empty(T, B, P), x.new_empty(T, B, H), x.new_empty(T, B, 4, H)
    h, c = entry_h[0], entry_c[0]
    for t in range(T):
        h, c = torch.where(begin[t], entry_h[t], h), torch.where(begin[t], entry_c[t], c)
        i, f, g, o = (sums[t] + linear(h, w_hh)).view(B, 4, H).unbind(1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        if w_hr is not None:
            h = linear(h, w_hr)
        gates[t] = torch.stack([i, f, g, o], 1)
        hs[t], cs[t] = h, c
    return hs, cs, gates


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows [N, 4H] @ matrix [4H, K]``."""
    return rows @ matrix


def _before(values: Tensor, entry: Tensor, starts: Tensor) -> Tensor:
    """``[T, B, .]``: what entered each step."""
    return torch.where(starts.unsqueeze(-1), entry, torch.cat([values[:1], values[:-1]]))


def _summed(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """``rows.T @ values`` over all steps and rows, half precision summed in float32."""
    dtype = torch.float32 if like.dtype.itemsize == 2 else like.dtype
    return (rows.to(dtype).t() @ values.flatten(0, 1).to(dtype)).to(like.dtype)


def _backward(
    read: tuple[Any, ...],
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    product: Callable[[Tensor, Tensor], Tensor] = _product,
    block: int = 0,
) -> tuple[Any, ...]:
    """Gradients of x, w_ih, w_hh, bias, w_hr, entry_h and entry_c, last step first."""
    x, w_ih, w_hh, w_hr, entry_h, entry_c, starts = read
    T, B, _, H = gates.shape
    begin = starts.unsqueeze(-1)
    c_before = _before(c, entry_c, starts)
    grad_gates, grad_m, out_h = torch.empty_like(gates), None, torch.empty_like(h)
    into_h, into_c = torch.zeros_like(h), torch.zeros_like(c)
    dh, dc = torch.zeros_like(h[0]), torch.zeros_like(c[0])
    for t in range(T - 1, -1, -1):
        if block and (t + 1) % block == 0:
            dc = torch.zeros_like(dc)
        i, f, g, o = gates[t].unbind(1)
        out_h[t] = dh = grad_h[t] + dh
        grad_m = dh if w_hr is None else dh @ w_hr
        squashed = c[t].tanh()
        dc = grad_c[t] + dc + grad_m * o * (1 - squashed * squashed)
        parts = (
            dc * g * i * (1 - i),
            dc * c_before[t] * f * (1 - f),
            dc * i * (1 - g * g),
            grad_m * squashed * o * (1 - o),
        )
        grad_gates[t] = torch.stack(parts, 1)
        dh, dc = product(grad_gates[t].flatten(1), w_hh), dc * f
        into_h[t], into_c[t] = torch.where(begin[t], dh, 0), torch.where(begin[t], dc, 0)
        dh, dc = torch.where(begin[t], 0, dh), torch.where(begin[t], 0, dc)
    rows = grad_gates.view(T * B, 4 * H)
    grad_x = product(rows, w_ih).view(x.shape)
    in_w_ih, in_w_hh = _summed(rows, x, w_ih), _summed(rows, _before(h, entry_h, starts), w_hh)
    bias = rows.sum(0)
    in_w_hr = None if w_hr is None else _summed(out_h.flatten(0, 1), gates[:, :, 3] * c.tanh(), w_hr)
    return grad_x, in_w_ih, in_w_hh, bias, in_w_hr, into_h, into_c


def _by_hand(
    product: Callable[[Tensor, Tensor], Tensor] = _product, block: int = 0, on_ctx: bool = False
) -> LayerFunction:
    """The kernel as a layer function; without arguments it is right."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            return _forward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = inputs
            h, c, gates = output
            ctx.mark_non_differentiable(gates)
            ctx.h = h.detach() if on_ctx else None  # detached: no cycle from the graph to its own output
            kept = [] if on_ctx else [h]
            ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, c, gates, *kept)

        @staticmethod
        def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, _: Any) -> Any:
            *read, c, gates = ctx.saved_tensors[:9]
            h = ctx.h if on_ctx else ctx.saved_tensors[9]
            with torch.autocast(c.device.type, enabled=False), torch.no_grad():
                grads = _backward(tuple(read), h, c, gates, grad_h, grad_c, product, block)
            return (*_once(grads, ctx.needs_input_grad[:7], ctx.saved_tensors), None)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        bias = w.b_ih if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
        h, c, _ = Kernel.apply(x, w.w_ih, w.w_hh, bias, w.w_hr, entry.h, entry.c, starts)
        return State(h, c)

    return run


UNITS = 32
"""Units of a block: what fits into the registers."""


@made()
def last_block_of_units_overlaps() -> LayerFunction:
    """The last block of 32 units is moved back to be full, and going backward the units under both count twice."""

    def product(rows: Tensor, matrix: Tensor) -> Tensor:
        H = matrix.shape[0] // 4
        rows, matrix = rows.reshape(-1, 4, H), matrix.reshape(4, H, -1)
        total = rows.new_zeros(len(rows), matrix.shape[2])
        for first in range(0, H, UNITS):
            first = max(0, min(first, H - UNITS))  # no masked tail: compute some again
            block = slice(first, first + UNITS)
            total += rows[:, :, block].flatten(1) @ matrix[:, block].flatten(0, 1)
        return total

    return _by_hand(product)


@made()
def gradient_of_c_ends_with_its_block_of_time() -> LayerFunction:
    """The backward pass goes in blocks of 128 steps and hands on the gradient of h, and not that of c."""
    return _by_hand(block=128)


@made()
def output_is_kept_where_edits_are_not_seen() -> LayerFunction:
    """The backward pass keeps h outside save_for_backward: a relu_ on the output changes w_hh's gradient silently."""
    return _by_hand(on_ctx=True)


@made("a_batch_with_nan_leaves_nothing_behind")
def padding_is_what_the_last_batch_left() -> LayerFunction:
    """Sequences are packed into a kept workspace whose padding is not cleared: a NaN of an old batch is in gradients.

    Zero gradients at the padding hide all that is finite there. Who skips a batch with NaN finds it in the next.
    """
    mine = threading.local()

    def workspace(size: int, like: Tensor) -> Tensor:
        kept = mine.__dict__.setdefault("kept", {})
        key = (like.dtype, like.device)
        with torch.inference_mode(False):
            if key not in kept or kept[key].numel() < size:
                kept[key] = torch.zeros(size, dtype=like.dtype, device=like.device)
        return kept[key][:size]

    def places(starts: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """The cell ``[T * B]`` of each step, the first step ``[n]`` of each sequence, longest length, and ``n``."""
        T, B = starts.shape
        t = torch.arange(T, device=starts.device).unsqueeze(-1)
        first = torch.where(starts, t, 0).cummax(0).values
        index = first * B + torch.arange(B, device=starts.device)
        heads, number = index.flatten().unique(return_inverse=True)
        age = (t - first).flatten()
        n, longest = len(heads), int(age.max()) + 1 if age.numel() else 1
        return age * n + number, heads, longest, n

    def pack(x: Tensor, cell: Tensor, longest: int, n: int) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # their tensors cannot be written into others
            packed = x.new_zeros(longest * n, x.shape[2]).index_copy(0, cell, x.flatten(0, 1))
        else:
            packed = workspace(longest * n * x.shape[2], x).view(longest * n, x.shape[2])
            packed.index_copy_(0, cell, x.flatten(0, 1))
        return packed.view(longest, n, x.shape[2])

    def alone(longest: int, n: int, like: Tensor) -> Tensor:
        starts = torch.zeros(longest, n, dtype=torch.bool, device=like.device)
        starts[0] = True
        return starts

    class Packed(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = inputs
            cell, heads, longest, n = places(starts)
            h0, c0 = (v.flatten(0, 1)[heads].expand(longest, n, -1) for v in (entry_h, entry_c))
            packed = pack(x, cell, longest, n)
            h, c, gates = _forward(packed, w_ih, w_hh, bias, w_hr, h0, c0, alone(longest, n, x))
            at_steps = (v.flatten(0, 1)[cell].view(*starts.shape, v.shape[2]) for v in (h, c))
            return (*at_steps, h, c, gates)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = inputs
            ctx.mark_non_differentiable(*output[2:])
            ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output[2:])

        @staticmethod
        def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, *_: Any) -> Any:
            x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates = ctx.saved_tensors
            with torch.autocast(x.device.type, enabled=False), torch.no_grad():
                grads = gradients(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates, grad_h, grad_c)
            return (*_once(grads, ctx.needs_input_grad[:7], ctx.saved_tensors), None)

    def gradients(
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        w_hr: Tensor | None,
        entry_h: Tensor,
        entry_c: Tensor,
        starts: Tensor,
        h: Tensor,
        c: Tensor,
        gates: Tensor,
        grad_h: Tensor,
        grad_c: Tensor,
    ) -> tuple[Tensor | None, ...]:
        cell, heads, longest, n = places(starts)
        live = torch.zeros(longest * n, dtype=torch.bool, device=x.device).index_fill(0, cell, True).view(longest, n, 1)
        # the states and gates of padded steps are cleared, so that nothing of them flows back
        h, c, gates = torch.where(live, h, 0), torch.where(live, c, 0), torch.where(live.unsqueeze(-1), gates, 0)
        h0, c0 = (v.flatten(0, 1)[heads].expand(longest, n, -1) for v in (entry_h, entry_c))
        into = []
        for grad in (grad_h, grad_c):
            spread = grad.new_zeros(longest * n, grad.shape[2])
            spread.index_copy_(0, cell, grad.flatten(0, 1))
            into.append(spread.view(longest, n, grad.shape[2]))
        packed, begins = pack(x, cell, longest, n), alone(longest, n, x)
        found = _backward((packed, w_ih, w_hh, w_hr, h0, c0, begins), h, c, gates, into[0], into[1])
        grad_x = found[0].flatten(0, 1)[cell].view(x.shape)
        entries = []
        for grad, like in zip(found[5:], (entry_h, entry_c), strict=True):
            whole = grad.new_zeros(like.shape[0] * like.shape[1], like.shape[2])
            entries.append(whole.index_copy_(0, heads, grad[0]).view(like.shape))
        return (grad_x, *found[1:5], *entries)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        bias = w.b_ih if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
        h, c, *_ = Packed.apply(x, w.w_ih, w.w_hh, bias, w.w_hr, entry.h, entry.c, starts)
        return State(h, c)

    return run


@backend("a_result_outlives_the_next_call")
def acting_takes_two_buffers_in_turn() -> LSTMBackend:
    """Without gradients a step writes its state into two buffers in turn: a state kept longer changes two steps on."""
    mine = threading.local()

    def acting() -> StepFunction:
        def run(w: LayerWeights, x: Tensor, state: State) -> State:
            if torch.is_grad_enabled():
                return step(w, x, state)
            found = step(w, x, state)
            key = (
                w.w_ih.data_ptr(),
                found.h.shape,
                found.c.shape,
                x.dtype,
                x.device,
                torch.is_inference_mode_enabled(),
            )
            turns = mine.__dict__.setdefault("turns", {})
            if key not in turns:
                turns[key] = [State(torch.empty_like(found.h), torch.empty_like(found.c)) for _ in range(2)]
            turns[key].reverse()
            out: State = turns[key][0]
            out.h.copy_(found.h)
            out.c.copy_(found.c)
            return State(out.h.view_as(out.h), out.c.view_as(out.c))

        return run

    return LSTMBackend("defect", right, step=acting())


@in_layer()
def weights_are_split_by_assumed_strides(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gates' weights are cut out with as_strided for a contiguous matrix: a transposed parameter is read askew."""
    H = w.w_hh.shape[0] // 4

    def split(matrix: Tensor) -> Tensor:
        n = matrix.shape[1]
        return matrix.as_strided((4, H, n), (H * n, n, 1))

    w_ih, w_hh = split(w.w_ih), split(w.w_hh)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        sums = [x @ a.T + state.h @ b.T for a, b in zip(w_ih, w_hh, strict=True)]
        if w.b_ih is not None and w.b_hh is not None:
            sums = [a + b for a, b in zip(sums, (w.b_ih + w.b_hh).view(4, H), strict=True)]
        i, f, g, o = sums
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        return output_of(w, o.sigmoid() * c.tanh(), c)

    return layer(one)(w, x, entry, starts)


@in_layer("long_rows_in_bfloat16")
def step_numbers_have_the_datas_dtype(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A start is where a step's number equals its sequence's first, in x's dtype: bfloat16 restarts again after 256."""
    t = torch.arange(len(x), device=x.device).to(x.dtype).unsqueeze(-1)
    first = torch.where(starts, t, 0).cummax(0).values
    return right(w, x, entry, first == t)
