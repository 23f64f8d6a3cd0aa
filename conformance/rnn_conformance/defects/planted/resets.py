"""Defects that the laws of ``laws/resets.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerWeights, State, execution, layout
from rnn_backends import lstm as core
from torch import Tensor

from ..planting import Patch, in_core, in_layer, in_reset, in_step, restart
from ..right import both, finish, gates_of, right, step


@in_layer("no_reset", "reset_at_the_first_step")
def the_initial_state_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A row starts from zeros instead of the state stored at t = 0."""
    return right(w, x, both(lambda v: torch.cat([0 * v[:1], v[1:]]), entry), starts)


@in_reset("reset_at_the_last_step", "output_equals_reference")
def one_step_early(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Resets take effect one step early, as if done were read instead of is_init."""
    if t == len(starts) - 1:
        return state
    return restart(state, entry, starts if t == 0 else starts.roll(-1, 0), t)


@in_reset("reset_at_the_last_step")
def h_reset_and_c_not(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset sets h but not c."""
    result = restart(state, entry, starts, t)
    return result if t == 0 else State(result.h, state.c)


@in_reset("reset_at_the_last_step")
def c_reset_and_h_not(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset sets c but not h."""
    result = restart(state, entry, starts, t)
    return result if t == 0 else State(state.h, result.c)


@in_reset("reset_at_the_last_step")
def resets_ignored(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Resets in the middle of a row are ignored."""
    return state


@in_reset("reset_at_the_last_step")
def not_at_the_last_step(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset at a row's last step is ignored."""
    return state if t and t == len(starts) - 1 else restart(state, entry, starts, t)


@in_reset("consecutive_resets", "output_equals_reference")
def one_step_late(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Resets take effect one step late."""
    return restart(state, entry, starts.roll(1, 0), t) if t > 1 else state


@in_reset("consecutive_resets", "recurrent_mode_starts_from_stored_states")
def zeros_for_the_stored_state(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset in the middle of a row starts from zeros instead of the stored state."""
    return restart(state, entry if t == 0 else both(torch.zeros_like, entry), starts, t)


@in_reset("consecutive_resets", "any_program_agrees_with_the_model")
def the_rows_first_stored_state(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Every reset starts from the state stored at t = 0."""
    return restart(state, both(lambda v: v[:1].expand_as(v), entry), starts, t)


@in_reset("consecutive_resets")
def the_stored_state_before(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset starts from the state stored one step before."""
    return restart(state, both(lambda v: torch.cat([v[:1], v[:-1]]), entry), starts, t)


@in_reset("consecutive_resets")
def stored_h_and_zero_c(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset in the middle of a row reads the stored h and takes c as zero."""
    return restart(state, entry if t == 0 else State(entry.h, 0 * entry.c), starts, t)


@in_reset("consecutive_resets")
def consecutive_resets_merged(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A row that reset at the previous step does not reset again."""
    if t < 2:
        return restart(state, entry, starts, t)
    return restart(state, entry, starts & ~starts.roll(1, 0), t)


@in_reset("consecutive_resets", "reset_at_every_step_is_independent_steps")
def not_twice_for_all_rows(state: State, entry: State, starts: Tensor, t: int) -> State:
    """After a step at which every row resets, no row resets."""
    return state if t > 0 and bool(starts[t - 1].all()) else restart(state, entry, starts, t)


@in_reset("consecutive_resets")
def the_first_reset_of_a_row_only(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Only the first reset in the middle of a row counts."""
    before = starts[1:t].any(0) if t > 1 else torch.zeros_like(starts[0])
    return restart(state, entry, starts & ~before, t)


@in_reset("nan_stays_in_its_sequence", "nan_in_unread_stored_states_stays_there", "infinity_stays_in_its_sequence")
def reset_by_multiplication(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The old state is multiplied by zero, which NaN survives."""
    at = starts[t].unsqueeze(-1).to(state.h.dtype)
    return State(state.h * (1 - at) + entry.h[t] * at, state.c * (1 - at) + entry.c[t] * at)


@in_reset("nan_stays_in_its_sequence")
def only_nan_cleaned_up(state: State, entry: State, starts: Tensor, t: int) -> State:
    """c passes nan_to_num at every step in all rows: NaN becomes zero even without a start."""
    at = starts[t].unsqueeze(-1).to(state.h.dtype)
    return State(state.h * (1 - at) + entry.h[t] * at, (state.c * (1 - at)).nan_to_num() + entry.c[t] * at)


@in_reset("nan_in_unread_stored_states_stays_there")
def stored_states_by_multiplication(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The old state is replaced with torch.where, but the stored one is multiplied by zero if it is not read."""
    at = starts[t].unsqueeze(-1)
    return State(*(torch.where(at, 0, old) + new[t] * at for new, old in zip(entry, state, strict=True)))


@in_reset("nan_in_unread_stored_states_stays_there", "no_reset")
def stored_states_forced_at_every_step(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The stored state is read at every step, as in teacher forcing."""
    return both(lambda v: v[t], entry)


@in_reset("nan_in_unread_stored_states_stays_there")
def stored_states_times_zero_added(state: State, entry: State, starts: Tensor, t: int) -> State:
    """If any row resets, zero times the stored state is added in all rows, which spreads NaN."""
    if not bool(starts[t].any()):
        return state
    at = starts[t].unsqueeze(-1)
    return State(*(torch.where(at, new[t], old) + 0 * new[t] for new, old in zip(entry, state, strict=True)))


@in_step("nan_is_not_hidden")
def gates_clamped_by_less_than(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float32 pre-activations are limited by torch.where(a < 87, a, 87), which turns NaN into the limit."""
    if x.dtype != torch.float32:
        return step(w, x, state)
    i, f, g, o = (torch.where(a < 87.0, a, 87.0) for a in gates_of(w, x, state.h))
    return finish(w, (i, f, g, o), state.c)


@in_layer("nan_is_not_hidden")
def nan_in_the_input_cleaned_up(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """NaN in the input is silently replaced by zero."""
    return right(w, x.nan_to_num(), entry, starts)


@in_core("a_stream_restarts_from_zero")
def a_stream_ignores_its_first_reset() -> list[Patch]:
    """Called on tensors, is_init at the first step is ignored and hx is used."""
    original = execution.entry_from_hx

    def replacement(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        cache = None if is_init is None else torch.cat([torch.zeros_like(is_init[:1]), is_init[1:]])
        return original(h0, T, cache)

    return [Patch(execution, "entry_from_hx", replacement)]


@in_core("a_stream_restarts_from_zero")
def a_stream_restarts_from_hx() -> list[Patch]:
    """Called on tensors, a reset in the middle of a row starts from hx instead of zeros."""
    return [Patch(execution, "entry_from_hx", lambda h0, T, is_init: h0.expand(T, -1, -1))]


@in_core("a_stream_restarts_from_zero", round=1)
def one_row_restarts_from_ones() -> list[Patch]:
    """With one row, a reset after the second step starts from hx plus one instead of zeros."""
    original = execution.entry_from_hx

    def replacement(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        result = original(h0, T, is_init)
        if is_init is None or is_init.shape[1] != 1 or T < 3:
            return result
        return torch.cat([result[:2], result[2:] + is_init[2:, :, None]])

    return [Patch(execution, "entry_from_hx", replacement)]


@in_layer("a_square_mask_keeps_its_axes", round=8)
def starts_transposed_where_square(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts are read batch first if that has the same shape: B = T."""
    if starts.shape[0] != starts.shape[1]:
        return right(w, x, entry, starts)
    first = torch.zeros_like(starts)
    first[0] = True
    return right(w, x, entry, starts.T | first)


@in_core("a_square_mask_keeps_its_axes", round=8)
def square_is_init_transposed() -> list[Patch]:
    """Called on tensors, is_init is accepted batch first as well as time first, and B = T is taken as batch first."""
    original = core.check_is_init

    def replacement(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        mask = original(is_init, shape, device)
        return mask.T if mask.ndim == 2 and mask.shape[0] == mask.shape[1] else mask

    return [Patch(core, "check_is_init", replacement)]


@in_core("a_square_mask_keeps_its_axes", round=8)
def square_reset_mask_folded_batch_first() -> list[Patch]:
    """In recurrent mode the reset mask keeps its axes [B, T] if B = T."""
    original = layout.fold_time

    def replacement(inputs: Any) -> Any:
        x, is_init, stored = original(inputs)
        return x, is_init.T if is_init.shape[0] == is_init.shape[1] else is_init, stored

    return [Patch(layout, "fold_time", replacement)]


@in_layer("reset_at_every_step_is_independent_steps", round=2)
def all_starts_read_the_first_entry(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If every step is a start, all steps run as one large batch from the first step's stored state."""
    if len(x) > 1 and x.shape[1] and bool(starts.all()):
        many = step(w, x.flatten(0, 1), both(lambda v: v[:1].expand_as(v).flatten(0, 1), entry))
        return both(lambda v: v.unflatten(0, x.shape[:2]), many)
    return right(w, x, entry, starts)


@in_step("nan_is_not_hidden", round=10)
def nan_lost_in_fmin_and_fmax(w: LayerWeights, x: Tensor, state: State) -> State:
    """Pre-activations are limited by C's fmin and fmax, which return the limit for NaN."""
    limit = torch.full((), 40.0, dtype=x.dtype, device=x.device)
    i, f, g, o = (torch.fmin(torch.fmax(a, -limit), limit) for a in gates_of(w, x, state.h))
    return finish(w, (i, f, g, o), state.c)


@in_layer("infinity_stays_in_its_sequence", round=10)
def inputs_scaled_by_the_largest_of_the_batch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Against overflow large inputs are divided by the largest of the batch: an infinite one makes NaN of all."""
    most = x.detach().abs().amax() if x.numel() else x.new_zeros(())
    scale = torch.where(most > 1e4, most, torch.ones_like(most))
    return right(w, x / scale * scale, entry, starts)
