"""A second right layer with a backward pass written by hand: one product for the inputs of all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, State
from torch import Tensor
from torch.nn.functional import linear

from .hand_written import _NotTwice


def once(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...], saved: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The needed gradients, which cannot be differentiated again."""
    read = [v for v in saved if v is not None and v.is_floating_point()]
    needed = (g if need else None for g, need in zip(grads, needs, strict=True))
    return tuple(None if g is None else _NotTwice.apply(g, *read) for g in needed)


def forward_pass(
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


def product_of(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows [N, 4H] @ matrix [4H, K]``."""
    return rows @ matrix


def before_each(values: Tensor, entry: Tensor, starts: Tensor) -> Tensor:
    """``[T, B, .]``: the state before each step."""
    return torch.where(starts.unsqueeze(-1), entry, torch.cat([values[:1], values[:-1]]))


def summed(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """``rows.T @ values`` over all steps and rows, half precision summed in float32."""
    dtype = torch.float32 if like.dtype.itemsize == 2 else like.dtype
    return (rows.to(dtype).t() @ values.flatten(0, 1).to(dtype)).to(like.dtype)


def backward_pass(
    read: tuple[Any, ...],
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    product: Callable[[Tensor, Tensor], Tensor] = product_of,
    block: int = 0,
) -> tuple[Any, ...]:
    """Gradients of x, w_ih, w_hh, bias, w_hr, entry_h and entry_c, last step first."""
    x, w_ih, w_hh, w_hr, entry_h, entry_c, starts = read
    T, B, _, H = gates.shape
    begin = starts.unsqueeze(-1)
    c_before = before_each(c, entry_c, starts)
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
    in_w_ih, in_w_hh = summed(rows, x, w_ih), summed(rows, before_each(h, entry_h, starts), w_hh)
    bias = rows.sum(0)
    in_w_hr = None if w_hr is None else summed(out_h.flatten(0, 1), gates[:, :, 3] * c.tanh(), w_hr)
    return grad_x, in_w_ih, in_w_hh, bias, in_w_hr, into_h, into_c


def by_hand(
    product: Callable[[Tensor, Tensor], Tensor] = product_of, block: int = 0, on_ctx: bool = False
) -> LayerFunction:
    """The kernel as a layer function; without arguments it is right."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            return forward_pass(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = inputs
            h, c, gates = output
            ctx.mark_non_differentiable(gates)
            ctx.h = h.detach() if on_ctx else None  # detached: no cycle from the graph to its own output
            cache = [] if on_ctx else [h]
            ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, c, gates, *cache)

        @staticmethod
        def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, _: Any) -> Any:
            *read, c, gates = ctx.saved_tensors[:9]
            h = ctx.h if on_ctx else ctx.saved_tensors[9]
            with torch.autocast(c.device.type, enabled=False), torch.no_grad():
                grads = backward_pass(tuple(read), h, c, gates, grad_h, grad_c, product, block)
            return (*once(grads, ctx.needs_input_grad[:7], ctx.saved_tensors), None)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        bias = w.b_ih if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
        h, c, _ = Kernel.apply(x, w.w_ih, w.w_hh, bias, w.w_hr, entry.h, entry.c, starts)
        return State(h, c)

    return run
