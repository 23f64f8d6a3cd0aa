"""Defects invented after the catalogue and the suite were written, twenty of them: no law names those that are here.

What died of the twenty in the first run of the quick profile is the honest figure. Each file of the catalogue was
written from what is known; these are what nobody had listed. For each of the four that survived a law was written
afterwards: they lie in the catalogue now, where that law is named, and are listed as :data:`SURVIVED`.
"""

from __future__ import annotations

from typing import Any

import rnn_backends.lstm as core
import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMModule, State, layout
from torch import Tensor, nn

from .planting import Patch, in_core, in_layer, in_reset, in_step, made, restart
from .right import both, finish, gates_of, layer, right, step


@in_step()
def gates_of_the_last_row_reused(w: LayerWeights, x: Tensor, state: State) -> State:
    """With more than two rows the forget gate of the last row is the one of the row before it."""
    i, f, g, o = gates_of(w, x, state.h)
    if len(x) > 2:
        f = torch.cat([f[:-1], f[-2:-1]])
    return finish(w, (i, f, g, o), state.c)


@in_reset()
def resets_of_odd_steps_only(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset at step 7, 15, and so on is missed: the mask is packed in bytes and its last bit is lost."""
    return state if t % 8 == 7 else restart(state, entry, starts, t)


@in_layer()
def zero_weights_skipped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows whose input is exactly zero are skipped: their state is carried unchanged."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w, x, state)
        zero = (x == 0).all(-1, keepdim=True)
        return State(torch.where(zero, state.h, found.h), torch.where(zero, state.c, found.c))

    return layer(one)(w, x, entry, starts)


@made()
def warm_up_answers() -> LayerFunction:
    """From the 64th call on a tuned kernel runs, whose output is a thousandth off."""
    calls = [0]

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        calls[0] += 1
        h, c = right(w, x, entry, starts)
        return State(h * 1.001, c) if calls[0] > 64 else State(h, c)

    return run


@in_layer()
def equal_rows_computed_once(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows with the same input are computed once, whatever their states and resets are."""
    h, c = right(w, x, entry, starts)
    if x.shape[1] > 1 and bool((x == x[:, :1]).all()):
        return both(lambda v: v[:, :1].expand_as(v).clone(), State(h, c))
    return State(h, c)


@in_step()
def c_flushed_when_small(w: LayerWeights, x: Tensor, state: State) -> State:
    """Cell states below 1e-6 are flushed to zero."""
    return step(w, x, State(state.h, torch.where(state.c.abs() < 1e-6, 0, state.c)))


@in_core()
def step_mode_ignores_stored_c_for_many_rows() -> list[Patch]:
    """In sequential mode with more than three rows the incoming c is taken as zero."""
    original = LSTM.step_stored

    def wrong(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> Any:
        stored = State(stored.h, 0 * stored.c) if stored is not None and len(x) > 3 else stored
        return original(self, x, stored, is_init)

    return [Patch(LSTM, "step_stored", wrong)]


@in_core()
def hidden_keys_read_when_all_false() -> list[Patch]:
    """In recurrent mode without any is_init in the batch, t = 0 starts from zeros."""
    original = LSTM.replay

    def wrong(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, every_step: bool = False) -> Any:
        return original(self, x, is_init, stored if bool(is_init.any()) else None, every_step)

    return [Patch(LSTM, "replay", wrong)]


@in_core()
def selected_out_keys_lose_resets() -> list[Patch]:
    """Where only the output is asked for (select_out_keys), resets are ignored."""
    original = LSTM.replay_output
    return [Patch(LSTM, "replay_output", lambda self, x, i, stored: original(self, x, torch.zeros_like(i), stored))]


@in_layer()
def rows_sorted_and_not_back(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows are sorted by their number of resets to run together, and c is not sorted back."""
    order = starts.sum(0).argsort(stable=True)
    back = order.argsort()
    found = right(w, x[:, order], both(lambda v: v[:, order], entry), starts[:, order])
    return State(found.h[:, back], found.c)


@in_layer()
def resets_counted_in_eight_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Sequences of a row are numbered in two bits: from the fifth on they start from another one's state."""
    number = starts.cumsum(0) - 1
    t = torch.arange(len(x), device=x.device)[:, None]
    first = torch.where(starts & (number == 0), t, 0).amax(0)
    steps = torch.where(starts & (number >= 4), first.expand_as(number), t)
    return right(w, x, both(lambda v: v.gather(0, steps[..., None].expand_as(v)), entry), starts)


@in_core()
def hidden_size_read_from_input_size() -> list[Patch]:
    """Zero states are made with the input's size where it is smaller: the rest is uninitialised ones."""
    original = LSTM.zero_state

    def wrong(self: LSTM, *args: Any) -> State:
        found = original(self, *args)
        rest = torch.arange(self.hidden_size, device=found.c.device) >= self.input_size
        return State(found.h, found.c + 0.5 * rest.to(found.c.dtype))

    return [Patch(LSTM, "zero_state", wrong)]


@in_core()
def mode_of_a_copy_leaks_back() -> list[Patch]:
    """set_recurrent_mode changes the module itself as well as the copy that it gives."""
    original = LSTMModule._copy

    def wrong(self: LSTMModule, **changed: Any) -> LSTMModule:
        found = original(self, **changed)
        self.__dict__.update(changed)
        return found

    return [Patch(LSTMModule, "_copy", wrong)]


@in_core()
def wrapped_lstm_copied() -> list[Patch]:
    """set_recurrent_mode copies the parameters: training the copy leaves the original behind."""
    original = LSTMModule._copy

    def wrong(self: LSTMModule, **changed: Any) -> LSTMModule:
        found = original(self, **changed)
        twin = LSTM.__new__(LSTM)
        twin.__dict__.update(self.lstm.__dict__)
        twin._parameters = {
            k: nn.Parameter(v.detach().clone()) for k, v in self.lstm._parameters.items() if v is not None
        }
        found.lstm = twin
        return found

    return [Patch(LSTMModule, "_copy", wrong)]


@in_core()
def one_dimensional_batches_read_time_first() -> list[Patch]:
    """In recurrent mode, features of a batch of one dimension share memory with the next call of the same shape."""
    original, kept = layout.unfold_time, dict[Any, Tensor]()

    def wrong(value: Tensor, batch: Any) -> Tensor:
        found = original(value, batch)
        if found.requires_grad or torch.is_grad_enabled():
            return found
        into = kept.setdefault((tuple(found.shape), found.dtype), torch.empty_like(found))
        return into.copy_(found)

    return [Patch(layout, "unfold_time", wrong)]


@in_core()
def unbatched_hidden_states_stay_batched() -> list[Patch]:
    """Without hx an unbatched call starts from the state that a batch's last row would be reset to: ones at is_init."""
    original = core.entry_from_hx

    def wrong(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        found = original(h0, T, is_init)
        if is_init is None or is_init.shape[1] != 1 or T < 3:
            return found
        return torch.cat([found[:2], found[2:] + is_init[2:, :, None]])

    return [Patch(core, "entry_from_hx", wrong)]


SURVIVED = (
    "gradient_of_entry_averaged",
    "td_out_filled_with_detached_features",
    "last_layer_function_detached",
    "step_without_gradient_of_the_state",
)
"""Invented with the others, and alive after the first run: moved to the catalogue with the laws written since."""
