"""A right LSTM over torch alone, in replaceable parts, of which defects and variants are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rnn_backends import LayerFunction, LayerWeights, State, StepFunction
from rnn_backends.unroll import accumulation_views
from torch import Tensor

Gates = tuple[Tensor, Tensor, Tensor, Tensor]
Reset = Callable[[State, State, Tensor, int], State]
"""``(state before, entry [T, B, .], starts [T, B], t) -> state`` that step ``t`` reads."""


def gates_of(w: LayerWeights, x: Tensor, h: Tensor) -> Gates:
    """The four pre-activations i, f, g, o, ``[B, H]`` each."""
    a = x @ w.w_ih.T + h @ w.w_hh.T
    if w.b_ih is not None and w.b_hh is not None:
        a = a + w.b_ih + w.b_hh
    i, f, g, o = a.chunk(4, -1)
    return i, f, g, o


def output_of(w: LayerWeights, h: Tensor, c: Tensor) -> State:
    """Project ``h`` if there is a projection."""
    return State(h if w.w_hr is None else h @ w.w_hr.T, c)


def finish(w: LayerWeights, gates: Gates, c: Tensor) -> State:
    """The cell after its products."""
    i, f, g, o = gates
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c.tanh(), c)


def step(w: LayerWeights, x: Tensor, state: State) -> State:
    """One right step."""
    return finish(w, gates_of(w, x, state.h), state.c)


def restart(state: State, entry: State, starts: Tensor, t: int) -> State:
    """``state`` before step ``t``, with ``entry [T, B, .]`` where a sequence starts."""
    at = starts[t].unsqueeze(-1)
    return State(torch.where(at, entry.h[t], state.h), torch.where(at, entry.c[t], state.c))


def layer(one: StepFunction = step, reset: Reset = restart) -> LayerFunction:
    """A layer function of a step and a reset rule."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        state, hs, cs = State(entry.h[0], entry.c[0]), [], []
        shared = shared_by(w, len(x) if x.element_size() == 2 else 1)
        for t in range(len(x)):
            state = one(shared[t % len(shared)], x[t], reset(state, entry, starts, t))
            hs.append(state.h)
            cs.append(state.c)
        return State(torch.stack(hs), torch.stack(cs))

    return run


def shared_by(w: LayerWeights, number: int) -> list[LayerWeights]:
    """``number`` views of the weights, so that gradients in 16 bits are added up in pairs."""
    result = [[None] * number if v is None else accumulation_views(v, number)[:number] for v in w]
    return [LayerWeights(*parts) for parts in zip(*result, strict=True)]


right = layer()
"""The right layer."""


def each(change: Callable[[Tensor], Tensor], w: LayerWeights) -> LayerWeights:
    """Weights with a change to every existing one."""
    w_ih, w_hh = change(w.w_ih), change(w.w_hh)
    b_ih, b_hh, w_hr = (None if v is None else change(v) for v in w[2:])
    return LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr)


def both(change: Callable[[Tensor], Tensor], state: State) -> State:
    """A state with a change to h and to c."""
    return State(change(state.h), change(state.c))


def ends(starts: Tensor) -> Tensor:
    """``[T, B, 1]`` bool: where a sequence ends."""
    return torch.cat([starts[1:], torch.ones_like(starts[:1])]).unsqueeze(-1)
