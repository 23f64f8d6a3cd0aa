"""End states: what is carried on, and what is given at sequences' ends, is wrong."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait
from torch import Tensor

from .planting import backend, in_layer
from .right import ends, right

ENDS = "end_states_equal_reference"


@in_layer(ENDS, "hidden_outputs_are_zero_padded")
def c_of_the_last_step_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """c is right at the row's last step and zero where sequences end before it."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.cat([0 * c[:-1], c[-1:]]))


@in_layer(ENDS)
def c_of_the_step_before(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """c comes out one step late."""
    h, c = right(w, x, entry, starts)
    return State(h, c.roll(1, 0))


@in_layer("last_states_equal_reference", ENDS)
def c_after_its_tanh(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """tanh(c) is given for c."""
    h, c = right(w, x, entry, starts)
    return State(h, c.tanh())


@in_layer(ENDS)
def c_of_the_row_s_last_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every end gets the cell state of the row's last step."""
    h, c = right(w, x, entry, starts)
    return State(h, c[-1:] + 0 * c)


@in_layer(ENDS)
def c_of_the_next_start(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where a sequence ends within a row, c is the state the next one starts from."""
    h, c = right(w, x, entry, starts)
    nxt = torch.cat([entry.c[1:], c[-1:]])
    return State(h, torch.where(ends(starts), nxt, c))


@backend("cell_states_are_right_at_every_step")
def claims_cell_states() -> LSTMBackend:
    """CELL_STATES is claimed, and c is right only where sequences end."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, torch.where(ends(starts), c, 0))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@backend("last_states_equal_reference")
def layer_last_forgets_c() -> LSTMBackend:
    """The function for the last states gives the cell state of the step before."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, c.roll(1, 0))

    return LSTMBackend("defect", right, layer_last=last)


@backend("last_states_equal_reference", "a_stream_restarts_from_zero")
def layer_last_forgets_resets() -> LSTMBackend:
    """The function for the last states ignores resets."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, x, entry, torch.cat([starts[:1], torch.zeros_like(starts[1:])]))

    return LSTMBackend("defect", right, layer_last=last)


@backend("sequence_equals_its_steps")
def step_by_another_cell() -> LSTMBackend:
    """The step for acting forgets the recurrent bias."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        w = w if w.b_hh is None else w._replace(b_hh=0 * w.b_hh)
        out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
        return State(out.h[0], out.c[0])

    return LSTMBackend("defect", right, step=one)


@backend("sequence_equals_its_steps", "steps_equal_recurrent_mode")
def step_keeps_the_old_c() -> LSTMBackend:
    """The step for acting gives back the c that came in."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
        return State(out.h[0], state.c)

    return LSTMBackend("defect", right, step=one)


def _one(w: LayerWeights, x: Tensor, state: State) -> State:
    out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
    return State(out.h[0], out.c[0])


@backend("acting_needs_no_gradient")
def a_step_without_gradients_by_another_cell() -> LSTMBackend:
    """Where no gradient is asked for, the step forgets the recurrent bias."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        if w.b_hh is not None and not torch.is_grad_enabled():
            w = w._replace(b_hh=0 * w.b_hh)
        return _one(w, x, state)

    return LSTMBackend("defect", right, step=one)


@backend("acting_needs_no_gradient", "sequential_mode_starts_from_zero")
def act_ignores_is_init() -> LSTMBackend:
    """A step with resets starts from the state that comes in."""
    return LSTMBackend("defect", right, act=lambda w, x, state, is_init: _one(w, x, state))


@backend("sequential_mode_starts_from_zero")
def act_resets_every_row() -> LSTMBackend:
    """A step with resets starts every row from zeros as soon as one has a reset."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(*(torch.where(is_init.any(), 0, v) for v in state)))

    return LSTMBackend("defect", right, act=act)


@backend("acting_needs_no_gradient")
def act_multiplies_by_zero() -> LSTMBackend:
    """A step with resets multiplies the state by zero, which leaves NaN."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(*(v * (~is_init).unsqueeze(-1) for v in state)))

    return LSTMBackend("defect", right, act=act)


@backend("sequential_mode_starts_from_zero")
def act_keeps_c() -> LSTMBackend:
    """A step with resets makes h zero, and c stays."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(torch.where(is_init.unsqueeze(-1), 0, state.h), state.c))

    return LSTMBackend("defect", right, act=act)
