"""A right layer with a backward pass written by hand, in parts that can be replaced: for defects and a variant."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from .right import finish, gates_of, restart


class Kernel:
    """A right layer with a hand-written backward pass, in parts that can be replaced."""

    def save(self, ctx: Any, x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, w: LayerWeights, *made: Tensor) -> None:
        """Save tensors for the backward pass: ``made`` is pre-activations, activations, h, c."""
        ctx.save_for_backward(x, eh, ec, starts, *w, *made)

    def saved(self, ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, LayerWeights, Tensor, Tensor, Tensor, Tensor]:
        """The saved tensors."""
        x, eh, ec, starts, w_ih, w_hh, b_ih, b_hh, w_hr, pre, acts, h, c = ctx.saved_tensors
        return x, eh, ec, starts, LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr), pre, acts, h, c

    def incoming(self, grad: Tensor, later: Tensor) -> Tensor:
        """The gradient of a step's output, that of the later steps included."""
        return grad + later

    def cell_before(self, before: Tensor, acts: Tensor, c: Tensor) -> Tensor:
        """The cell state that each step read."""
        return before

    def slopes(self, pre: Tensor, acts: Tensor) -> Tensor:
        """Derivatives of the activations."""
        i, f, g, o = acts.chunk(4, -1)
        return torch.cat([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], -1)

    def after(self, acts: Tensor, da: Tensor) -> None:
        """Called with the buffers when the gates' gradients are known."""

    def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        """The gradient of a weight: ``da [T*B, 4H]``, ``v [T*B, .]``."""
        return da.T @ v

    def biases(self, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the biases: ``da [T, B, 4H]``."""
        return da.sum((0, 1)), da.sum((0, 1))

    def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
        """The backward pass."""
        x, eh, ec, starts, w, pre, acts, h, c = self.saved(ctx)
        return self.run_back(ctx, x, eh, ec, starts, starts, w, pre, acts, h, c, gh, gc)

    def run_back(
        self,
        ctx: Any,
        x: Tensor,
        eh: Tensor,
        ec: Tensor,
        starts: Tensor,
        read: Tensor,
        w: LayerWeights,
        pre: Tensor,
        acts: Tensor,
        h: Tensor,
        c: Tensor,
        gh: Tensor,
        gc: Tensor,
    ) -> Any:
        """The backward loop; ``read`` is true where values came from the entry, ``starts`` where gradients stop."""
        at, on = read.unsqueeze(-1), starts.unsqueeze(-1)
        hp = torch.where(at, eh, torch.cat([eh[:1], h[:-1]]))
        cp = self.cell_before(torch.where(at, ec, torch.cat([ec[:1], c[:-1]])), acts, c)
        slopes, tc = self.slopes(pre, acts), c.tanh()
        i, f, g, o = acts.chunk(4, -1)
        dh, dc = torch.zeros_like(eh[0]), torch.zeros_like(ec[0])
        zh, zc = dh, dc
        das, dehs, decs, dhs = [], [], [], []
        for t in range(len(x) - 1, -1, -1):
            dh, dc = self.incoming(gh[t], dh), gc[t] + dc
            dhs.append(dh)
            dm = dh if w.w_hr is None else dh @ w.w_hr
            dc = dc + dm * o[t] * (1 - tc[t] * tc[t])
            da = torch.cat([dc * g[t], dc * cp[t], dc * i[t], dm * tc[t]], -1) * slopes[t]
            das.append(da)
            dh, dc = da @ w.w_hh, dc * f[t]
            dehs.append(torch.where(on[t], dh, zh))
            decs.append(torch.where(on[t], dc, zc))
            dh, dc = torch.where(on[t], zh, dh), torch.where(on[t], zc, dc)
        da, deh, dec, dhs_ = (torch.stack(v[::-1]) for v in (das, dehs, decs, dhs))
        dw_hr = None if w.w_hr is None else dhs_.flatten(0, 1).T @ (o * tc).flatten(0, 1)
        self.after(acts, da)
        flat = da.flatten(0, 1)
        dw_ih = self.products(flat, x.flatten(0, 1), w.w_ih)
        dw_hh = self.products(flat, hp.flatten(0, 1), w.w_hh)
        db_ih, db_hh = (None, None) if w.b_ih is None else self.biases(da)
        return da @ w.w_ih, deh, dec, dw_ih, dw_hh, db_ih, db_hh, dw_hr

    def __call__(self, w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run the layer."""
        h, c, *_ = _Run.apply(self, x, entry.h, entry.c, starts, *w)
        return State(h, c)


def values(x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pre-activations, activations, h and c of every step."""
    pres, acts, hs, cs = [], [], [], []
    state = State(eh[0], ec[0])
    for t in range(len(x)):
        state = restart(state, State(eh, ec), starts, t)
        gates = gates_of(w, x[t], state.h)
        i, f, g, o = gates
        state = finish(w, gates, state.c)
        pres.append(torch.cat(gates, -1))
        acts.append(torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1))
        hs.append(state.h)
        cs.append(state.c)
    return torch.stack(pres), torch.stack(acts), torch.stack(hs), torch.stack(cs)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, *w: Any) -> Any:
        pre, acts, h, c = values(x, eh, ec, starts, LayerWeights(*w))
        return h, c, pre, acts

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernel, x, eh, ec, starts, *w = inputs
        h, c, pre, acts = output
        ctx.mark_non_differentiable(pre, acts)
        ctx.kernel.save(ctx, x, eh, ec, starts, LayerWeights(*w), pre, acts, h, c)

    @staticmethod
    def backward(ctx: Any, gh: Tensor, gc: Tensor, *unused: Tensor) -> Any:
        leaves = [v for v in ctx.saved_tensors[:9] if v is not None and v.is_floating_point()]
        with torch.no_grad():
            dx, deh, dec, *dw = ctx.kernel.backward(ctx, gh, gc)
        once = (None if v is None else _NotTwice.apply(v, *leaves) for v in (dx, deh, dec, *dw))
        dx, deh, dec, *dw = once
        return None, dx, deh, dec, None, *dw


class _NotTwice(torch.autograd.Function):
    """A gradient and its inputs: differentiating it again raises an error."""

    @staticmethod
    def forward(gradient: Tensor, *leaves: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("this backward pass is written by hand and has no derivative")
