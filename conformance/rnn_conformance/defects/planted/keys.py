"""TensorDict keys: read, written, refused or called otherwise than promised."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMModule, State, Trait, layout
from torch import Tensor

from ..planting import Patch, backend, in_core
from ..right import both, ends, right


def _read(change: Any) -> list[Patch]:
    original = layout.read
    return [Patch(layout, "read", lambda td, keys, *rest: original(td, change(keys), *rest))]


def _write(change: Any) -> list[Patch]:
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td, change(td, values)))]


@in_core("nested_keys")
def nested_keys_read_by_their_last_name() -> list[Patch]:
    """Nested keys are read by their last name only."""
    return _read(lambda keys: [key[-1] if isinstance(key, tuple) else key for key in keys])


@in_core("nested_keys")
def the_reset_key_is_is_init() -> list[Patch]:
    """The reset mask is read under its last name, whatever its key is."""
    return _read(lambda keys: [*keys[:3], keys[3][-1] if isinstance(keys[3], tuple) else keys[3]])


@in_core("another_tensordict_may_be_written")
def tensordict_out_gets_a_copy() -> list[Patch]:
    """What is written is written to the TensorDict that was read, too."""
    original = layout.read
    seen: list[Any] = []

    def read(td: Any, *rest: Any) -> Any:
        seen[:] = [td]
        return original(td, *rest)

    def write(td: Any, values: Any) -> Any:
        seen[0].update({"features": values["features"]} if "features" in values else {})
        return written(td, values)

    written = layout.write
    return [Patch(layout, "read", read), Patch(layout, "write", write)]


@in_core("another_tensordict_may_be_written")
def tensordict_out_is_not_given_back() -> list[Patch]:
    """tensordict_out is filled, and a copy of it given back."""
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td, values).copy())]


@in_core("lazily_stacked_tensordicts_are_read_and_written")
def lazy_stacks_written_in_reverse() -> list[Patch]:
    """A lazy stack gets its rows in reverse."""

    def wrong(td: Any, values: Any) -> Any:
        lazy = type(td).__name__ == "LazyStackedTensorDict"
        return {key: value.flip(0) if lazy else value for key, value in values.items()}

    return _write(wrong)


@in_core("a_locked_tensordict_is_refused_or_written_in_place")
def locked_tensordicts_unlocked() -> list[Patch]:
    """A locked TensorDict is unlocked and written to."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        return original(td.unlock_() if td.is_locked else td, values)

    return [Patch(layout, "check_writable", lambda td, keys: None), Patch(layout, "write", wrong)]


@in_core("selected_outputs_are_the_only_ones")
def selected_outputs_have_the_step_before() -> list[Patch]:
    """Where only the output is asked for, it comes one step late."""
    from rnn_backends import LSTM

    original = LSTM.replay_output
    return [Patch(LSTM, "replay_output", lambda *args: original(*args).roll(1, 0))]


@in_core("keyword_calls_equal_the_tensordict")
def keyword_calls_swap_h_and_c() -> list[Patch]:
    """Called by keyword, h and c come back swapped."""
    original = LSTMModule.forward

    def wrong(self: LSTMModule, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        return (found[0], found[2], found[1]) if isinstance(found, tuple) else found

    return [Patch(LSTMModule, "forward", wrong)]


@in_core("the_reset_mask_may_lack_its_last_dimension")
def a_short_reset_mask_is_ignored() -> list[Patch]:
    """A reset mask without a trailing one is taken as all false."""
    original = layout.read

    def wrong(td: Any, keys: Any, *rest: Any) -> Any:
        found = original(td, keys, *rest)
        short = td.get(keys[3]).ndim == td.ndim
        return found._replace(is_init=torch.zeros_like(found.is_init)) if short else found

    return [Patch(layout, "read", wrong)]


@in_core("an_empty_batch_passes_through")
def an_empty_batch_gets_a_row() -> list[Patch]:
    """An empty batch comes out with one row of features more than it has, in the last dimension."""

    def wrong(td: Any, values: Any) -> Any:
        empty = td.batch_size.numel() == 0
        return {key: torch.cat([value, value], -1) if empty else value for key, value in values.items()}

    return _write(wrong)


@backend("every_hidden_state_on_request")
def every_state_claimed_and_padded() -> LSTMBackend:
    """CELL_STATES is claimed, and c is zero where no sequence ends."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, torch.where(ends(starts), c, 0))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@backend("every_hidden_state_on_request")
def every_state_claimed_without_gradients() -> LSTMBackend:
    """CELL_STATES is claimed, and c has a gradient at sequences' ends only."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, torch.where(ends(starts), c, c.detach()))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@in_core("no_key_but_its_own_is_touched")
def entries_replaced_by_their_copies() -> list[Patch]:
    """Entries that were read are replaced by equal copies."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        for key in ("observation", "is_init"):
            if key in td.keys():  # noqa: SIM118
                td.set(key, td.get(key).clone())
        return original(td, values)

    return [Patch(layout, "write", wrong)]


@in_core("no_key_but_its_own_is_touched")
def next_emptied_first() -> list[Patch]:
    """``next`` is made anew: what the environment wrote there is gone, for rewards are set to zero."""
    original = layout.write

    def wrong(td: Any, values: Any) -> Any:
        if "reward" in td.keys():  # noqa: SIM118
            td.set("reward", torch.zeros_like(td.get("reward")))
        return original(td, values)

    return [Patch(layout, "write", wrong)]


@in_core("more_batch_dimensions_keep_their_order")
def batch_dimensions_unfolded_in_another_order() -> list[Patch]:
    """A batch of two dimensions comes out with the first one fastest."""
    original = layout.unfold_time

    def wrong(value: Tensor, batch: Any) -> Tensor:
        if len(batch) < 2:
            return original(value, batch)
        turned = original(value, tuple(batch)[::-1])
        return turned.transpose(0, len(batch) - 1)

    return [Patch(layout, "unfold_time", wrong)]


@in_core("more_batch_dimensions_keep_their_order")
def a_steps_batch_unfolded_in_another_order() -> list[Patch]:
    """In sequential mode a batch of two dimensions comes out with the first one fastest."""
    original = layout.unfold_step

    def wrong(value: Tensor, batch: Any) -> Tensor:
        if len(batch) < 2:
            return original(value, batch)
        return original(value, tuple(batch)[::-1]).transpose(0, len(batch) - 1)

    return [Patch(layout, "unfold_step", wrong)]


@in_core("hidden_outputs_are_zero_padded", "recurrent_mode_starts_from_stored_states")
def hidden_states_layer_and_time_swapped() -> list[Patch]:
    """The stored states are read with time reversed."""
    original = layout.fold_time

    def wrong(inputs: Any) -> Any:
        x, is_init, stored = original(inputs)
        return x, is_init, None if stored is None else both(lambda v: v.flip(1), stored)

    return [Patch(layout, "fold_time", wrong)]
