"""Planted defects and correct variants, as layer functions over torch only; a kill must come from a named law."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rnn_backends import LayerFunction, LayerWeights, State
from torch import Tensor

Gates = tuple[Tensor, Tensor, Tensor, Tensor]


def gates_of(w: LayerWeights, x: Tensor, h: Tensor) -> Gates:
    a = x @ w.w_ih.T + h @ w.w_hh.T
    if w.b_ih is not None and w.b_hh is not None:
        a = a + w.b_ih + w.b_hh
    i, f, g, o = a.chunk(4, -1)
    return i, f, g, o


def finish(w: LayerWeights, gates: Gates, c: Tensor) -> State:
    i, f, g, o = gates
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return State(h if w.w_hr is None else h @ w.w_hr.T, c)


def cell(w: LayerWeights, x: Tensor, state: State) -> State:
    return finish(w, gates_of(w, x, state.h), state.c)


Cell = Callable[[LayerWeights, Tensor, State], State]
Reset = Callable[[State, State, Tensor, int], State]


def restart(state: State, entry: State, starts: Tensor, t: int) -> State:
    """``state`` before step ``t``, with ``entry [T, B, .]`` where a sequence starts."""
    at = starts[t].unsqueeze(-1)
    return State(torch.where(at, entry.h[t], state.h), torch.where(at, entry.c[t], state.c))


def layer(step: Cell = cell, reset: Reset = restart) -> LayerFunction:
    """A layer function of a step and a reset rule."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        state, hs, cs = State(entry.h[0], entry.c[0]), [], []
        for t in range(len(x)):
            state = step(w, x[t], reset(state, entry, starts, t))
            hs.append(state.h)
            cs.append(state.c)
        return State(torch.stack(hs), torch.stack(cs))

    return run


right = layer()


def gates(order: str) -> LayerFunction:
    """The gates read in another order than i, f, g, o."""

    def step(w: LayerWeights, x: Tensor, state: State) -> State:
        found = dict(zip(order, gates_of(w, x, state.h), strict=True))
        return finish(w, (found["i"], found["f"], found["g"], found["o"]), state.c)

    return layer(step)


def with_weights(change: Callable[[LayerWeights], LayerWeights]) -> LayerFunction:
    return lambda w, x, entry, starts: right(change(w), x, entry, starts)


def with_inputs(change: Callable[[Tensor, State, Tensor], tuple[Tensor, State, Tensor]]) -> LayerFunction:
    return lambda w, x, entry, starts: right(w, *change(x, entry, starts))


def with_result(change: Callable[[State, State, Tensor], State]) -> LayerFunction:
    return lambda w, x, entry, starts: change(right(w, x, entry, starts), entry, starts)


def no_output_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c
    return State(h if w.w_hr is None else h @ w.w_hr.T, c)


def forget_plus_one(w: LayerWeights, x: Tensor, state: State) -> State:
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f + 1, g, o), state.c)


def hard_sigmoid(w: LayerWeights, x: Tensor, state: State) -> State:
    i, f, g, o = gates_of(w, x, state.h)
    c = torch.clamp(f / 4 + 0.5, 0, 1) * state.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return State(h if w.w_hr is None else h @ w.w_hr.T, c)


def peephole(w: LayerWeights, x: Tensor, state: State) -> State:
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f, g, o + state.c), state.c)


def detached(w: LayerWeights, x: Tensor, state: State) -> State:
    return cell(w, x, State(state.h.detach(), state.c.detach()))


def nan_hidden(w: LayerWeights, x: Tensor, state: State) -> State:
    return cell(w, x.nan_to_num(), state)


def half_inside(w: LayerWeights, x: Tensor, state: State) -> State:
    low = LayerWeights(*(None if v is None else v.float() for v in w))
    found = cell(low, x.float(), State(state.h.float(), state.c.float()))
    return State(found.h.to(x.dtype), found.c.to(x.dtype))


def times_not_reset(state: State, entry: State, starts: Tensor, t: int) -> State:
    at = starts[t].unsqueeze(-1).to(state.h.dtype)
    return State(state.h * (1 - at) + entry.h[t] * at, state.c * (1 - at) + entry.c[t] * at)


def one_late(state: State, entry: State, starts: Tensor, t: int) -> State:
    return state if t == 0 else restart(state, entry, starts.roll(1, 0), t) if t > 1 else state


def one_early(state: State, entry: State, starts: Tensor, t: int) -> State:
    nxt = min(t + 1, len(starts) - 1)
    return restart(state, entry, torch.where(torch.tensor(t == 0), starts, starts.roll(-1, 0)), t) if nxt > t else state


def only_h(state: State, entry: State, starts: Tensor, t: int) -> State:
    found = restart(state, entry, starts, t)
    return found if t == 0 else State(found.h, state.c)


def only_c(state: State, entry: State, starts: Tensor, t: int) -> State:
    found = restart(state, entry, starts, t)
    return found if t == 0 else State(state.h, found.c)


def whole_batch(state: State, entry: State, starts: Tensor, t: int) -> State:
    return restart(state, entry, starts.any(1, keepdim=True).expand_as(starts), t)


def to_zero(state: State, entry: State, starts: Tensor, t: int) -> State:
    if t == 0:
        return restart(state, entry, starts, t)
    return restart(state, State(torch.zeros_like(entry.h), torch.zeros_like(entry.c)), starts, t)


def never(state: State, entry: State, starts: Tensor, t: int) -> State:
    return state


def every_step(state: State, entry: State, starts: Tensor, t: int) -> State:
    return State(entry.h[t], entry.c[t])


def not_twice(state: State, entry: State, starts: Tensor, t: int) -> State:
    return state if t > 0 and bool(starts[t - 1].all()) else restart(state, entry, starts, t)


class _LeakyWhere(torch.autograd.Function):
    """``where`` whose backward lets the gradient through to what was not chosen."""

    @staticmethod
    def forward(ctx, at, chosen, other):
        return torch.where(at, chosen, other)

    @staticmethod
    def backward(ctx, grad):
        return None, grad, grad


def leaks_through(state: State, entry: State, starts: Tensor, t: int) -> State:
    at = starts[t].unsqueeze(-1)
    return State(*(_LeakyWhere.apply(at, new[t], old) for new, old in zip(entry, state, strict=True)))


def detached_entry(state: State, entry: State, starts: Tensor, t: int) -> State:
    return restart(state, State(entry.h.detach(), entry.c.detach()), starts, t)


def writes_starts(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    found = right(w, x, entry, starts)
    starts[1:] = False
    return found


def writes_x(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    found = right(w, x * 1.0, State(entry.h * 1.0, entry.c * 1.0), starts)
    with torch.no_grad():
        x.add_(1)
    return found


def remembers() -> LayerFunction:
    kept: dict[tuple[int, ...], State] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        found = right(w, x, entry, starts)
        old = kept.get(tuple(x.shape))
        kept[tuple(x.shape)] = State(found.h.detach(), found.c.detach())
        return found if old is None else State(found.h + 0 * old.h + 1e-3 * old.h, found.c)

    return run


def stale_weights() -> LayerFunction:
    packed: dict[int, LayerWeights] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        old = packed.setdefault(id(w.w_ih), LayerWeights(*(None if v is None else v.detach().clone() for v in w)))
        return right(old, x, entry, starts)

    return run


def shared_scratch() -> LayerFunction:
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        found = right(w, x, entry, starts)
        if found.h.requires_grad:
            return found
        into = scratch.setdefault(tuple(found.h.shape), torch.empty_like(found.h))
        return State(into.copy_(found.h), found.c)

    return run


def random_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    torch.rand(1)
    return right(w, x, entry, starts)


def sees_the_future(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    found = right(w, x, entry, starts)
    return State(found.h + 0 * x.sum(), found.c)


def mixes_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    return right(w, x + 1e-3 * (x - x.mean(1, keepdim=True)), entry, starts)


def carries_unprojected(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    if w.w_hr is None:
        return right(w, x, entry, starts)
    P = w.w_hr.shape[0]

    def step(w: LayerWeights, x: Tensor, state: State) -> State:
        found = cell(w._replace(w_hr=None), x, state)
        return State(found.h[..., :P], found.c)

    found = layer(step)(w, x, entry, starts)
    return State(torch.nn.functional.pad(found.h, (0, w.w_hr.shape[1] - P)) @ w.w_hr.T, found.c)


def one_row_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    found = right(w, x, entry, starts)
    return State(*(v.flip(0) if x.shape[1] == 1 and len(x) > 1 else v for v in found))
