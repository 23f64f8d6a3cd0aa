"""LSTM and LSTMModule break their word: modes, padding, keys, shapes, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rnn_backends.lstm as core
import torch
from rnn_backends import LSTM, LayerWeights, LSTMBackend, LSTMModule, State, layout
from rnn_backends.resets import ends_of
from torch import Tensor

from ..planting import Patch, in_core
from ..right import both, ends, right

PADDING, KEYS = "hidden_outputs_are_zero_padded", "the_tensordict_is_filled_in_place"


def _nan_between_ends(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The contract promises c at sequences' ends only."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.where(ends(starts), c, float("nan")))


def _padding(wrong: Callable[[Tensor, Tensor], Tensor]) -> list[Patch]:
    return [Patch(core, "at_ends", lambda state, starts: both(lambda v: wrong(v, starts), state))]


@in_core(PADDING)
def not_padded() -> list[Patch]:
    """The hidden outputs are the states of every step."""
    return _padding(lambda states, starts: states)


@in_core(PADDING, "recurrent_mode_starts_from_stored_states")
def only_the_last_step_filled() -> list[Patch]:
    """The hidden outputs are zero where a sequence ends in the middle of a row."""
    return _padding(lambda states, starts: torch.cat([torch.zeros_like(states[:-1]), states[-1:]]))


@in_core(PADDING)
def filled_at_starts() -> list[Patch]:
    """The hidden outputs are filled where sequences start, and at the last step."""

    def wrong(states: Tensor, starts: Tensor) -> Tensor:
        at = starts.clone()
        at[-1] = True
        return torch.where(at.unsqueeze(-1), states, 0)

    return _padding(wrong)


@in_core(PADDING, on=LSTMBackend("defect", _nan_between_ends))
def padded_by_multiplication() -> list[Patch]:
    """The padding is a multiplication, on a backend that leaves NaN where nothing is promised."""
    return _padding(lambda states, starts: states * ends_of(starts).unsqueeze(-1))


@in_core(PADDING)
def padded_with_almost_zero() -> list[Patch]:
    """The padding is 1e-30."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, 1e-30))


@in_core("gradients_flow_through_recurrent_mode")
def padding_passes_gradients() -> list[Patch]:
    """The padded positions are zero, and gradients that arrive there flow on into the states."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, states - states.detach()))


@in_core("gradients_flow_through_recurrent_mode")
def hidden_outputs_detached() -> list[Patch]:
    """The hidden outputs have no gradient."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, 0).detach())


@in_core("sequential_mode_starts_from_zero", "any_story_agrees_with_the_model")
def steps_never_reset() -> list[Patch]:
    """In sequential mode a step with is_init starts from the state that comes in."""
    return [Patch(core, "zero_at", lambda state, is_init: state)]


@in_core("sequential_mode_starts_from_zero", "steps_equal_recurrent_mode")
def steps_always_reset() -> list[Patch]:
    """In sequential mode every step starts from zeros."""
    return [Patch(core, "zero_at", lambda state, is_init: both(torch.zeros_like, state))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_h_only() -> list[Patch]:
    """In sequential mode a step with is_init keeps the c that comes in."""
    original = core.zero_at
    return [Patch(core, "zero_at", lambda state, is_init: State(original(state, is_init).h, state.c))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_all_rows() -> list[Patch]:
    """In sequential mode one row's is_init resets the whole batch."""
    original = core.zero_at
    return [Patch(core, "zero_at", lambda s, is_init: original(s, is_init.any().expand_as(is_init)))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_the_first_layer_only() -> list[Patch]:
    """In sequential mode only the first layer resets."""
    original = core.zero_at

    def wrong(state: State, is_init: Tensor) -> State:
        return State(
            *(torch.cat([z[:, :1], v[:, 1:]], 1) for z, v in zip(original(state, is_init), state, strict=True))
        )

    return [Patch(core, "zero_at", wrong)]


def _entry(change: Any) -> list[Patch]:
    original = LSTM._entry
    return [Patch(LSTM, "_entry", lambda self, x, stored: original(self, x, change(stored)))]


@in_core("recurrent_mode_starts_from_stored_states")
def recurrent_mode_starts_from_zeros() -> list[Patch]:
    """In recurrent mode sequences start from zeros whatever is stored."""
    return _entry(lambda stored: None)


@in_core("recurrent_mode_starts_from_stored_states")
def recurrent_mode_swaps_h_and_c() -> list[Patch]:
    """In recurrent mode the stored h is read as c and c as h, where their sizes agree."""
    return _entry(lambda s: State(s.c, s.h) if s and s.h.shape == s.c.shape else s)


@in_core("absent_states_are_zeros")
def absent_states_are_ones() -> list[Patch]:
    """Without hidden keys sequences start from ones."""
    original = LSTM.zero_state
    return [Patch(LSTM, "zero_state", lambda *args: both(torch.ones_like, original(*args)))]


@in_core("recurrent_mode_starts_from_stored_states")
def is_init_empties_the_first_state() -> list[Patch]:
    """In recurrent mode is_init at t = 0 makes the initial state zero and not the stored one."""
    original = LSTM.replay

    def replay(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, every_step: bool = False) -> Any:
        if stored is not None:
            at = torch.cat([is_init[:1], torch.zeros_like(is_init[1:])]).unsqueeze(-1)
            stored = both(lambda v: torch.where(at, 0, v), stored)
        return original(self, x, is_init, stored, every_step)

    return [Patch(LSTM, "replay", replay)]


@in_core("a_stream_restarts_from_zero")
def a_stream_ignores_its_first_reset() -> list[Patch]:
    """Called on tensors, is_init at the first step is ignored and hx is carried in."""
    original = core.entry_from_hx

    def wrong(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        kept = None if is_init is None else torch.cat([torch.zeros_like(is_init[:1]), is_init[1:]])
        return original(h0, T, kept)

    return [Patch(core, "entry_from_hx", wrong)]


@in_core("cut_and_carried_equals_whole", "without_resets_is_init_may_be_left_out")
def a_stream_drops_hx() -> list[Patch]:
    """Called on tensors with is_init, every row starts from zeros, and hx is dropped."""
    original = core.entry_from_hx

    def wrong(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        return original(h0, T, None if is_init is None else is_init | True)

    return [Patch(core, "entry_from_hx", wrong)]


@in_core("a_stream_restarts_from_zero")
def a_stream_restarts_from_hx() -> list[Patch]:
    """Called on tensors, a start in the middle of a row is from hx and not from zeros."""
    return [Patch(core, "entry_from_hx", lambda h0, T, is_init: h0.expand(T, -1, -1))]


@in_core("batch_first_is_a_transposition")
def batch_first_reshapes() -> list[Patch]:
    """With batch_first the input is reshaped and not transposed."""

    def wrong(self: LSTM, value: Tensor, batched: bool) -> Tensor:
        if not batched:
            return value.unsqueeze(1)
        return value.reshape(value.shape[1], value.shape[0], *value.shape[2:]) if self.batch_first else value

    return [Patch(LSTM, "_time_major", wrong)]


@in_core("unbatched_is_a_batch_of_one")
def unbatched_ignores_hx() -> list[Patch]:
    """An input without a batch dimension starts from zeros whatever hx is."""
    original = LSTM._initial

    def wrong(self: LSTM, hx: Any, batch: tuple[int, ...], casts: bool) -> State | None:
        return original(self, hx, batch, casts) if batch else None

    return [Patch(LSTM, "_initial", wrong)]


@in_core("is_init_may_have_a_trailing_one")
def a_trailing_one_hides_resets() -> list[Patch]:
    """``is_init`` with a trailing one is taken, and ignored."""
    original = core.check_is_init

    def wrong(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        found = original(is_init, shape, device)
        return found if is_init.shape == shape else torch.zeros_like(found)

    return [Patch(core, "check_is_init", wrong)]


@in_core("no_state_is_zero_state", "absent_states_are_zeros")
def no_state_is_ones() -> list[Patch]:
    """Without hx a stream starts from ones."""
    original = LSTM.zero_state
    return [Patch(LSTM, "zero_state", lambda *args: both(torch.ones_like, original(*args)))]


@in_core("no_state_is_zero_state")
def no_state_is_the_last_one() -> list[Patch]:
    """Without hx a stream goes on from where the last call ended."""
    original, left = LSTM._over_time, dict[int, tuple[LSTM, State]]()

    def wrong(self: LSTM, x: Tensor, state: State | None, is_init: Tensor | None) -> Any:
        before = left[id(self)][1] if state is None and id(self) in left else state
        state = before if before is not None and before.h.shape[1] == x.shape[1] else state
        output, after = original(self, x, state, is_init)
        left[id(self)] = self, both(torch.Tensor.detach, after)
        return output, after

    return [Patch(LSTM, "_over_time", wrong)]


def _fold(change: Any) -> list[Patch]:
    original = layout.fold_time
    return [Patch(layout, "fold_time", lambda inputs: original(change(inputs)))]


@in_core("any_batch_shape")
def deep_batches_folded_in_another_order() -> list[Patch]:
    """A batch of several dimensions is folded with the last of them slowest."""

    def turned(inputs: layout.Inputs) -> layout.Inputs:
        if inputs.x.ndim < 4:
            return inputs
        turn = [v.transpose(0, 1).reshape(v.shape) for v in (inputs.x, inputs.is_init)]
        return inputs._replace(x=turn[0], is_init=turn[1])

    return _fold(turned)


@in_core("recurrent_mode_starts_from_stored_states")
def time_and_batch_mixed_up() -> list[Patch]:
    """In recurrent mode the reset mask is reshaped to time first and not transposed."""
    original = layout.fold_time

    def wrong(inputs: layout.Inputs) -> Any:
        x, is_init, stored = original(inputs)
        return x, inputs.is_init.reshape(is_init.shape), stored

    return [Patch(layout, "fold_time", wrong)]


@in_core(KEYS)
def reads_what_it_wrote() -> list[Patch]:
    """The input's hidden entries are overwritten by the hidden outputs."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        found = original(td, values)
        for key, value in values.items():
            if isinstance(key, tuple):
                td.set(key[1:], value)
        return found

    return [Patch(layout, "write", wrong)]


@in_core(KEYS)
def scratch_keys_left() -> list[Patch]:
    """A scratch entry stays in the TensorDict."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        return original(td, {**values, "_scratch": next(iter(values.values()))})

    return [Patch(layout, "write", wrong)]


@in_core(KEYS)
def another_tensordict_given_back() -> list[Patch]:
    """The module fills and gives back a copy of the TensorDict."""
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td.copy(), values))]


@in_core(KEYS)
def hidden_states_under_the_root() -> list[Patch]:
    """The hidden outputs are written beside the inputs and not under next."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        return original(td, {(k[-1] + "_new" if isinstance(k, tuple) else k): v for k, v in values.items()})

    return [Patch(layout, "write", wrong)]


@in_core("hidden_outputs_are_zero_padded")
def hidden_outputs_swapped() -> list[Patch]:
    """h is written under c's key and c under h's."""
    original = LSTMModule._as_stored
    return [Patch(LSTMModule, "_as_stored", lambda self, state: State(*reversed(original(self, state))))]


@in_core(KEYS)
def is_init_inverted_in_place() -> list[Patch]:
    """The reset mask is inverted in place while it is read, and stays so."""
    original = layout.read

    def wrong(td: Any, keys: Any, *rest: Any) -> Any:
        found = original(td, keys, *rest)
        kept = found._replace(is_init=found.is_init.clone())
        td.get(keys[3]).logical_not_()
        return kept

    return [Patch(layout, "read", wrong)]


@in_core("carrying_zero_padded_states_on_is_exact")
def the_last_end_not_filled() -> list[Patch]:
    """The hidden outputs are filled where sequences end within a row, and not at the row's last step."""

    def wrong(states: Tensor, starts: Tensor) -> Tensor:
        at = ends_of(starts)
        return torch.where(torch.cat([at[:-1], ~at[-1:]]).unsqueeze(-1), states, 0)

    return _padding(wrong)


@in_core("gradients_flow_without_stored_states")
def td_out_filled_with_detached_features() -> list[Patch]:
    """The features that are written into a TensorDict have no gradient where there are no stored states."""
    original = LSTM.replay

    def wrong(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, every_step: bool = False) -> Any:
        output, state = original(self, x, is_init, stored, every_step)
        return output if stored is not None else output.detach(), state

    return [Patch(LSTM, "replay", wrong)]
