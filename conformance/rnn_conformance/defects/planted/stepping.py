"""Defects that the laws of ``laws/stepping.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import torch
from rnn_backends import LSTM, LayerWeights, LSTMBackend, LSTMSpec, State, execution
from rnn_backends.resets import entry_from_hx
from torch import Tensor, nn

from ..planting import Patch, backend, in_core, in_layer
from ..right import both, layer, right, step


@in_layer("sequence_equals_its_steps", "one_step")
def one_step_without_recurrent_bias(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With one step the recurrent bias is left out: acting and training differ."""
    return right(w._replace(b_hh=0 * w.b_hh) if len(x) == 1 and w.b_hh is not None else w, x, entry, starts)


@in_core("sequence_equals_its_steps", round=1)
def step_mode_ignores_stored_c_for_many_rows() -> list[Patch]:
    """In sequential mode with more than three rows the incoming c is taken as zero."""
    original = LSTM.step_batch_first

    def replacement(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> Any:
        stored = State(stored.h, 0 * stored.c) if stored is not None and len(x) > 3 else stored
        return original(self, x, stored, is_init)

    return [Patch(LSTM, "step_batch_first", replacement)]


@backend("sequence_equals_its_steps")
def step_by_another_cell() -> LSTMBackend:
    """The step function ignores the recurrent bias."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        w = w if w.b_hh is None else w._replace(b_hh=0 * w.b_hh)
        out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
        return State(out.h[0], out.c[0])

    return LSTMBackend("defect", right, step=one)


@backend("sequence_equals_its_steps", "steps_equal_recurrent_mode")
def step_keeps_the_old_c() -> LSTMBackend:
    """The step function returns the incoming c."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
        return State(out.h[0], state.c)

    return LSTMBackend("defect", right, step=one)


@in_core("cut_and_carried_equals_whole", "without_resets_is_init_may_be_left_out")
def a_stream_restarts_at_every_step() -> list[Patch]:
    """Called on tensors with is_init, hx is dropped and every step starts from zeros."""
    original = execution.entry_from_hx

    def replacement(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        return original(h0, T, None if is_init is None else is_init | True)

    return [Patch(execution, "entry_from_hx", replacement)]


@in_layer("cut_and_carried_equals_whole")
def the_first_step_is_special(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """At the first step of each call a tenth of the old c is added to the new one, so that cutting a row matters."""
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w, x, state)
        return State(result.h, result.c + 0.1 * state.c) if next(calls) == 0 else result

    return layer(one)(w, x, entry, starts)


@in_core("cut_and_carried_equals_whole", round=3)
def rows_of_one_step_keep_hx() -> list[Patch]:
    """LSTM(x, hx, is_init=) with T = 1 starts from hx even if is_init is true."""

    def replacement(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        return h0.expand(T, -1, -1) if is_init is None or T == 1 else entry_from_hx(h0, T, is_init)

    return [Patch(execution, "entry_from_hx", replacement)]


@in_layer("one_step")
def one_step_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """squeeze() without a dimension: with one step the rows, or the units, are reversed."""
    result = right(w, x, entry, starts)
    return both(lambda v: v.flip(1) if v.shape[1] > 1 else v.flip(2), result) if len(x) == 1 else result


@in_layer("the_future_is_not_read", "infinity_stays_in_its_sequence")
def all_steps_in_one_sum(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Zero times the sum over all steps is added to each."""
    result = right(w, x, entry, starts)
    return State(result.h + 0 * x.sum(), result.c)


def _stacked(change: Callable[[Tensor], Tensor]) -> LSTMBackend:
    """A backend that runs all layers at once by torch.nn.LSTM, its states changed on the way in."""

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        flat = [v for layer in w for v in layer if v is not None]
        lstm = nn.LSTM(*astuple(spec)[:4], False, 0.0, spec.bidirectional, spec.proj_size, dtype=x.dtype)
        named = dict(zip((name for name, _ in lstm.named_parameters()), flat, strict=True))
        output, (h, c) = torch.func.functional_call(lstm, named, (x, tuple(change(v) for v in state)))
        return output, State(h, c)

    return LSTMBackend("defect", right, stack=stack)


@backend("without_resets_is_init_may_be_left_out", "state_dict_is_torchs")
def all_layers_at_once_from_zeros() -> LSTMBackend:
    """The stack function starts from zeros instead of hx."""
    return _stacked(torch.zeros_like)


@backend("without_resets_is_init_may_be_left_out")
def all_layers_at_once_in_reversed_order() -> LSTMBackend:
    """The stack function takes the layers' initial states in reverse order."""
    return _stacked(lambda v: v.flip(0) if len(v) > 1 else -v)


@in_core("no_state_is_zero_state", "absent_states_are_zeros")
def no_state_is_ones() -> list[Patch]:
    """Without hx or stored states sequences start from ones."""
    original, original_entry = LSTM.zero_state, LSTM._entry

    def entry(self: LSTM, x: Any, stored: State | None) -> list[State]:
        found = original_entry(self, x, stored)
        return found if stored is not None else [both(torch.ones_like, state) for state in found]

    return [
        Patch(LSTM, "zero_state", lambda *args: both(torch.ones_like, original(*args))),
        Patch(LSTM, "_entry", entry),
    ]


@in_core("no_state_is_zero_state")
def no_state_is_the_last_calls() -> list[Patch]:
    """Without hx a call starts from the final state of the previous one."""
    original, left = LSTM._over_time, dict[int, tuple[LSTM, State]]()

    def replacement(self: LSTM, x: Tensor, state: State | None, is_init: Tensor | None) -> Any:
        before = left[id(self)][1] if state is None and id(self) in left else state
        state = before if before is not None and before.h.shape[1] == x.shape[1] else state
        output, after = original(self, x, state, is_init)
        left[id(self)] = self, both(torch.Tensor.detach, after)
        return output, after

    return [Patch(LSTM, "_over_time", replacement)]


@in_core("no_state_is_zero_state", round=1)
def zero_state_is_one_half_beyond_input_size() -> list[Patch]:
    """Zero states are made with the input size: if the hidden size is larger the rest of c is 0.5."""
    original, original_entry = LSTM.zero_state, LSTM._entry

    def half(lstm: LSTM, state: State) -> State:
        rest = torch.arange(lstm.hidden_size, device=state.c.device) >= lstm.input_size
        return State(state.h, state.c + 0.5 * rest.to(state.c.dtype))

    def replacement(self: LSTM, *args: Any) -> State:
        return half(self, original(self, *args))

    def entry(self: LSTM, x: Any, stored: State | None) -> list[State]:
        found = original_entry(self, x, stored)
        return found if stored is not None else [half(self, state) for state in found]

    return [Patch(LSTM, "zero_state", replacement), Patch(LSTM, "_entry", entry)]
