"""Defects that the laws of ``laws/recurrent.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, LayerWeights, LSTMBackend, LSTMModule, State, execution, layout, module
from rnn_backends.resets import ends_of
from torch import Tensor

from ..planting import Patch, backend, in_core
from ..right import both, ends, right, step


def _entry(change: Any) -> list[Patch]:
    original = LSTM._entry
    return [Patch(LSTM, "_entry", lambda self, x, stored: original(self, x, change(stored)))]


@in_core("recurrent_mode_starts_from_stored_states")
def recurrent_mode_starts_from_zeros() -> list[Patch]:
    """In recurrent mode sequences start from zeros instead of the stored states."""
    return _entry(lambda stored: None)


@in_core("recurrent_mode_starts_from_stored_states")
def recurrent_mode_swaps_h_and_c() -> list[Patch]:
    """In recurrent mode the stored h and c are swapped if their sizes agree."""
    return _entry(lambda s: State(s.c, s.h) if s and s.h.shape == s.c.shape else s)


@in_core("recurrent_mode_starts_from_stored_states")
def is_init_clears_the_first_state() -> list[Patch]:
    """In recurrent mode is_init at t = 0 clears the stored state instead of reading it."""
    original = LSTM.replay

    def replay(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, states: Any = "ends") -> Any:
        if stored is not None:
            at = torch.cat([is_init[:1], torch.zeros_like(is_init[1:])]).unsqueeze(-1)
            stored = both(lambda v: torch.where(at, 0, v), stored)
        return original(self, x, is_init, stored, states)

    return [Patch(LSTM, "replay", replay)]


@in_core("recurrent_mode_starts_from_stored_states")
def reset_mask_reshaped_to_time_first() -> list[Patch]:
    """In recurrent mode the reset mask is reshaped to time first instead of transposed."""
    original = layout.fold_time

    def replacement(inputs: layout.Inputs) -> Any:
        x, is_init, stored = original(inputs)
        return x, inputs.is_init.reshape(is_init.shape), stored

    return [Patch(layout, "fold_time", replacement)]


@in_core("hidden_outputs_are_zero_padded", "recurrent_mode_starts_from_stored_states")
def stored_states_read_in_reversed_time() -> list[Patch]:
    """The stored states are read with time reversed."""
    original = layout.fold_time

    def replacement(inputs: Any) -> Any:
        x, is_init, stored = original(inputs)
        return x, is_init, None if stored is None else both(lambda v: v.flip(1), stored)

    return [Patch(layout, "fold_time", replacement)]


def _padding(replacement: Callable[[Tensor, Tensor], Tensor]) -> list[Patch]:
    return [Patch(execution, "at_ends", lambda state, starts: both(lambda v: replacement(v, starts), state))]


@in_core("hidden_outputs_are_zero_padded")
def hidden_outputs_not_padded() -> list[Patch]:
    """The hidden outputs are the states of every step."""
    return _padding(lambda states, starts: states)


@in_core("hidden_outputs_are_zero_padded", "recurrent_mode_starts_from_stored_states")
def hidden_outputs_of_the_last_step_only() -> list[Patch]:
    """The hidden outputs are zero where a sequence ends in the middle of a row."""
    return _padding(lambda states, starts: torch.cat([torch.zeros_like(states[:-1]), states[-1:]]))


@in_core("hidden_outputs_are_zero_padded")
def hidden_outputs_filled_at_starts() -> list[Patch]:
    """The hidden outputs are filled where sequences start, and at the last step."""

    def replacement(states: Tensor, starts: Tensor) -> Tensor:
        at = starts.clone()
        at[-1] = True
        return torch.where(at.unsqueeze(-1), states, 0)

    return _padding(replacement)


def _nan_between_ends(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The contract promises c only at sequences' ends."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.where(ends(starts), c, float("nan")))


@in_core("hidden_outputs_are_zero_padded", on=LSTMBackend("defect", _nan_between_ends))
def padded_by_multiplication() -> list[Patch]:
    """Hidden outputs are padded by a multiplication, on a backend that leaves NaN in c between ends."""
    return _padding(lambda states, starts: states * ends_of(starts).unsqueeze(-1))


@in_core("hidden_outputs_are_zero_padded")
def padded_with_almost_zero() -> list[Patch]:
    """Hidden outputs are padded with 1e-30."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, 1e-30))


@in_core("hidden_outputs_are_zero_padded")
def hidden_outputs_swapped() -> list[Patch]:
    """h is written under c's key and c under h's."""
    original = module._as_stored
    return [Patch(module, "_as_stored", lambda lstm, state: State(*reversed(original(lstm, state))))]


@in_core("padding_is_zero_where_states_are_nan", round=4, survived=4)
def padding_of_h_multiplies() -> list[Patch]:
    """The hidden output h is padded by a multiplication, so NaN or infinity within a sequence is not zeroed."""

    def replacement(state: State, starts: Tensor) -> State:
        ends = ends_of(starts).unsqueeze(-1)
        return State(state.h * ends, torch.where(ends, state.c, 0))

    return [Patch(execution, "at_ends", replacement)]


@in_core("sequential_mode_starts_from_zero", "any_program_agrees_with_the_model")
def steps_never_reset() -> list[Patch]:
    """In sequential mode a step with is_init starts from the incoming state."""
    return [Patch(execution, "zero_at", lambda state, is_init: state)]


@in_core("sequential_mode_starts_from_zero", "steps_equal_recurrent_mode")
def steps_always_reset() -> list[Patch]:
    """In sequential mode every step starts from zeros."""
    return [Patch(execution, "zero_at", lambda state, is_init: both(torch.zeros_like, state))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_h_only() -> list[Patch]:
    """In sequential mode a step with is_init keeps the incoming c."""
    original = execution.zero_at
    return [Patch(execution, "zero_at", lambda state, is_init: State(original(state, is_init).h, state.c))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_all_rows() -> list[Patch]:
    """In sequential mode one row's is_init resets the whole batch."""
    original = execution.zero_at
    return [Patch(execution, "zero_at", lambda s, is_init: original(s, is_init.any().expand_as(is_init)))]


@in_core("sequential_mode_starts_from_zero")
def steps_reset_the_first_layer_only() -> list[Patch]:
    """In sequential mode only the first layer resets."""
    original = execution.zero_at

    def replacement(state: State, is_init: Tensor) -> State:
        return State(
            *(torch.cat([z[:, :1], v[:, 1:]], 1) for z, v in zip(original(state, is_init), state, strict=True))
        )

    return [Patch(execution, "zero_at", replacement)]


def _one(w: LayerWeights, x: Tensor, state: State) -> State:
    out = right(w, x[None], State(state.h[None], state.c[None]), x.new_ones(1, len(x), dtype=torch.bool))
    return State(out.h[0], out.c[0])


@backend("sequential_mode_starts_from_zero")
def act_resets_every_row() -> LSTMBackend:
    """The act function resets every row as soon as one row has is_init."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(*(torch.where(is_init.any(), 0, v) for v in state)))

    return LSTMBackend("defect", right, act=act)


@backend("sequential_mode_starts_from_zero")
def act_keeps_c() -> LSTMBackend:
    """The act function resets h but keeps c."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(torch.where(is_init.unsqueeze(-1), 0, state.h), state.c))

    return LSTMBackend("defect", right, act=act)


@backend("acting_needs_no_gradient")
def a_step_without_gradients_by_another_cell() -> LSTMBackend:
    """Without gradients the step ignores the recurrent bias."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        if w.b_hh is not None and not torch.is_grad_enabled():
            w = w._replace(b_hh=0 * w.b_hh)
        return _one(w, x, state)

    return LSTMBackend("defect", right, step=one)


@backend("acting_needs_no_gradient", "sequential_mode_starts_from_zero")
def act_ignores_is_init() -> LSTMBackend:
    """The act function of a backend ignores is_init."""
    return LSTMBackend("defect", right, act=lambda w, x, state, is_init: _one(w, x, state))


@backend("acting_needs_no_gradient")
def act_multiplies_by_zero() -> LSTMBackend:
    """The act function resets by multiplying the state by zero, which keeps NaN."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        return _one(w, x, State(*(v * (~is_init).unsqueeze(-1) for v in state)))

    return LSTMBackend("defect", right, act=act)


@in_core("carried_hidden_outputs_are_exact")
def the_last_end_not_filled() -> list[Patch]:
    """The hidden outputs are filled where sequences end within a row, but not at the row's last step."""

    def replacement(states: Tensor, starts: Tensor) -> Tensor:
        at = ends_of(starts)
        return torch.where(torch.cat([at[:-1], ~at[-1:]]).unsqueeze(-1), states, 0)

    return _padding(replacement)


@in_core("the_tensordict_is_filled_in_place")
def hidden_inputs_overwritten() -> list[Patch]:
    """The input's hidden entries are overwritten by the hidden outputs."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        result = original(td, values)
        for key, value in values.items():
            if isinstance(key, tuple):
                td.set(key[1:], value)
        return result

    return [Patch(layout, "write", replacement)]


@in_core("the_tensordict_is_filled_in_place")
def scratch_keys_left() -> list[Patch]:
    """A scratch entry is left in the TensorDict."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        return original(td, {**values, "_scratch": next(iter(values.values()))})

    return [Patch(layout, "write", replacement)]


@in_core("the_tensordict_is_filled_in_place")
def a_copy_of_the_tensordict_is_returned() -> list[Patch]:
    """The module fills and returns a copy of the TensorDict."""
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td.copy(), values))]


@in_core("the_tensordict_is_filled_in_place")
def hidden_states_under_the_root() -> list[Patch]:
    """The hidden outputs are written at the root instead of under next."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        return original(td, {(k[-1] + "_new" if isinstance(k, tuple) else k): v for k, v in values.items()})

    return [Patch(layout, "write", replacement)]


@in_core("the_tensordict_is_filled_in_place")
def is_init_inverted_in_place() -> list[Patch]:
    """The reset mask is inverted in place while it is read, and stays inverted."""
    original = layout.read

    def replacement(td: Any, keys: Any, *rest: Any) -> Any:
        result = original(td, keys, *rest)
        cache = result._replace(is_init=result.is_init.clone())
        td.get(keys[3]).logical_not_()
        return cache

    return [Patch(layout, "read", replacement)]


@in_core("gradients_flow_through_recurrent_mode")
def padding_passes_gradients() -> list[Patch]:
    """Hidden outputs are zero at the padding, but gradients there flow into the states."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, states - states.detach()))


@in_core("gradients_flow_through_recurrent_mode")
def hidden_outputs_detached() -> list[Patch]:
    """The hidden outputs have no gradient."""
    return _padding(lambda states, starts: torch.where(ends_of(starts).unsqueeze(-1), states, 0).detach())


@in_core("gradients_flow_without_stored_states", round=1, survived=1)
def output_detached_without_stored_states() -> list[Patch]:
    """In recurrent mode without stored states the output has no gradient."""
    original = LSTM.replay

    def replacement(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, states: Any = "ends") -> Any:
        output, state = original(self, x, is_init, stored, states)
        return output if stored is not None else output.detach(), state

    return [Patch(LSTM, "replay", replacement)]


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


@in_core("hidden_outputs_are_zero_padded", round=8, survived=8)
def padding_is_negative_zero() -> list[Patch]:
    """Hidden outputs are padded with -0.0."""

    def replacement(state: State, starts: Tensor) -> State:
        ends = ends_of(starts).unsqueeze(-1)
        return both(lambda v: torch.where(ends, v, -0.0), state)

    return [Patch(execution, "at_ends", replacement)]


@in_core("hidden_outputs_are_zero_padded", round=8, survived=8)
def finite_states_are_padded_by_multiplication() -> list[Patch]:
    """Finite hidden outputs are padded by a multiplication, which gives -0.0 for negative ones."""

    def replacement(state: State, starts: Tensor) -> State:
        ends = ends_of(starts).unsqueeze(-1)
        return both(lambda v: torch.where(ends, v, torch.where(v.isfinite(), v * 0, 0)), state)

    return [Patch(execution, "at_ends", replacement)]


@backend("acting_needs_no_gradient", round=10)
def four_step_buffers_in_turn() -> LSTMBackend:
    """Without gradients a step writes into four buffers in turn: the fifth step overwrites the first one's state."""
    rings: dict[Any, list[State]] = {}

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        out = step(w, x, state)
        if out.h.requires_grad:
            return out
        key = out.h.shape, out.c.shape, out.h.dtype, torch.is_inference_mode_enabled()
        ring = rings.setdefault(key, [both(torch.empty_like, out) for _ in range(4)])
        ring.append(ring.pop(0))
        return State(ring[-1].h.copy_(out.h), ring[-1].c.copy_(out.c))

    return LSTMBackend("defect", right, step=one)


def _act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    return step(w, x, both(lambda v: torch.where(is_init.unsqueeze(-1), 0, v), state))


@backend("sequential_mode_starts_from_zero", round=10, survived=10)
def the_mask_of_a_step_read_byte_by_byte() -> LSTMBackend:
    """A step reads is_init as if it were contiguous: with a column of a rollout the wrong rows start."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        if is_init.stride(0) > 1:
            is_init = is_init.as_strided(is_init.shape, (1,))
        return _act(w, x, state, is_init)

    return LSTMBackend("defect", right, step=step, act=act)


@backend("sequential_mode_starts_from_zero")
def the_input_of_a_step_read_row_by_row() -> LSTMBackend:
    """A step reads its input as if its rows were contiguous, which they are not in a column of a rollout."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        if x.stride(-1) == 1 and x.stride(0) > x.shape[-1]:
            x = x.as_strided(x.shape, (x.shape[-1], 1))
        return _act(w, x, state, is_init)

    return LSTMBackend("defect", right, step=step, act=act)


@in_core("absent_states_are_zeros")
def lost_states_do_not_warn() -> list[Patch]:
    """An LSTMModule that acts without a state in the middle of sequences does not warn."""
    return [Patch(LSTMModule, "_notice_lost_state", lambda module, is_init: None)]


@in_core("absent_states_are_zeros")
def canonicalize_keeps_the_strides() -> list[Patch]:
    """LSTMModule.canonicalize returns entries as they lie in memory."""
    return [Patch(LSTMModule, "canonicalize", lambda module, data, inplace=False: data)]
