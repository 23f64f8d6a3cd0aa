"""Defects that the laws of ``laws/keys.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, InputError, LayerWeights, LSTMBackend, LSTMModule, State, Trait, layout, module
from tensordict import TensorDictBase
from tensordict.nn import skip_existing
from torch import Tensor

from ..planting import Patch, backend, in_core
from ..right import both, ends, right


def _read(change: Any) -> list[Patch]:
    original = layout.read
    return [Patch(layout, "read", lambda td, keys, *rest: original(td, change(keys), *rest))]


@in_core("nested_keys")
def nested_keys_read_by_their_last_name() -> list[Patch]:
    """Nested keys are read by their last name only."""
    return _read(lambda keys: [key[-1] if isinstance(key, tuple) else key for key in keys])


@in_core("nested_keys")
def the_reset_key_is_read_by_its_last_name() -> list[Patch]:
    """A nested key of the reset mask is read by its last name only."""
    return _read(lambda keys: [*keys[:3], keys[3][-1] if isinstance(keys[3], tuple) else keys[3]])


@in_core("more_batch_dimensions_keep_their_order")
def batch_dimensions_unfolded_in_another_order() -> list[Patch]:
    """In recurrent mode a batch of two dimensions is unfolded with the first one fastest."""
    original = layout.unfold_time

    def replacement(value: Tensor, batch: Any) -> Tensor:
        if len(batch) < 2:
            return original(value, batch)
        turned = original(value, tuple(batch)[::-1])
        return turned.transpose(0, len(batch) - 1)

    return [Patch(layout, "unfold_time", replacement)]


@in_core("more_batch_dimensions_keep_their_order")
def a_steps_batch_unfolded_in_another_order() -> list[Patch]:
    """In sequential mode a batch of two dimensions is unfolded with the first one fastest."""
    original = layout.unfold_step

    def replacement(value: Tensor, batch: Any) -> Tensor:
        if len(batch) < 2:
            return original(value, batch)
        return original(value, tuple(batch)[::-1]).transpose(0, len(batch) - 1)

    return [Patch(layout, "unfold_step", replacement)]


@in_core("another_tensordict_may_be_written")
def the_input_is_written_too() -> list[Patch]:
    """Features written to tensordict_out are also written to the TensorDict that was read."""
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
def tensordict_out_is_not_returned() -> list[Patch]:
    """tensordict_out is filled, and a copy of it is returned."""
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td, values).copy())]


@in_core("another_tensordict_may_be_written", round=3, survived=3)
def locked_input_refused_despite_tensordict_out() -> list[Patch]:
    """A locked input is refused although tensordict_out receives the results."""

    def replacement(
        self: LSTMModule, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None
    ) -> TensorDictBase:
        if skip_existing() and self._has_results(tensordict):
            return tensordict
        recurrent = self.recurrent_mode
        if recurrent and not tensordict.ndim:
            raise InputError("recurrent mode needs a time dimension, the last of the batch size; got a 0-d TensorDict")
        read = layout.read(tensordict, self.in_keys, self.lstm)
        layout.check_writable(tensordict, self.out_keys)
        values = (self._over_time if recurrent else self._one_step)(self.lstm, read)
        out = tensordict if tensordict_out is None else tensordict_out
        return layout.write(out, {key: values[key] for key in self.out_keys})

    return [Patch(LSTMModule, "_forward", replacement)]


@in_core("the_primer_fits_the_first_step", round=3, survived=3)
def primer_in_default_dtype() -> list[Patch]:
    """The primer's hidden states have torch's default dtype instead of the weights', so the first step rejects them."""

    def replacement(self: LSTMModule) -> Any:
        from torchrl.data import Unbounded
        from torchrl.envs import TensorDictPrimer

        pairs = list(zip(self.in_keys[1:3], self.out_keys_source[1:], strict=True))
        for read, written in pairs:
            if written != ("next", *(read if isinstance(read, tuple) else (read,))):
                raise InputError(f"a primer needs out_keys ('next', <in_key>), got {written!r} for {read!r}")
        spec = self.lstm.spec
        sizes = (spec.output_size, spec.hidden_size)
        return TensorDictPrimer(
            {read: Unbounded(shape=(spec.num_states, size)) for (read, _), size in zip(pairs, sizes, strict=True)},
            expand_specs=True,
        )

    return [Patch(LSTMModule, "make_tensordict_primer", replacement)]


def _write(change: Any) -> list[Patch]:
    original = layout.write
    return [Patch(layout, "write", lambda td, values: original(td, change(td, values)))]


@in_core("lazily_stacked_tensordicts_are_read_and_written")
def lazy_stacks_written_in_reverse() -> list[Patch]:
    """A lazily stacked TensorDict gets its rows in reverse."""

    def replacement(td: Any, values: Any) -> Any:
        lazy = type(td).__name__ == "LazyStackedTensorDict"
        return {key: value.flip(0) if lazy else value for key, value in values.items()}

    return _write(replacement)


@in_core("a_locked_tensordict_is_refused_or_written_in_place")
def locked_tensordicts_unlocked() -> list[Patch]:
    """A locked TensorDict is unlocked and written to."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        return original(td.unlock_() if td.is_locked else td, values)

    return [Patch(layout, "check_writable", lambda td, keys: None), Patch(layout, "write", replacement)]


@in_core("a_locked_tensordict_is_refused_or_written_in_place", round=3)
def locked_results_are_swapped() -> list[Patch]:
    """A locked TensorDict's entries are replaced instead of written in place."""

    def replacement(td: TensorDictBase, values: dict[Any, Tensor]) -> TensorDictBase:
        if td.is_locked:
            with td.unlock_():
                for key, value in values.items():
                    td.set(key, value)
            return td
        for key, value in values.items():
            td.set(key, value)
        return td

    return [Patch(layout, "write", replacement)]


@in_core("selected_outputs_are_the_only_ones")
def selected_outputs_have_the_step_before() -> list[Patch]:
    """If select_out_keys selects only the output, it is one step late."""
    from rnn_backends import LSTM

    original = LSTM.replay

    def replacement(self: LSTM, x: Tensor, is_init: Tensor, stored: Any, states: Any = "ends") -> Any:
        output, found = original(self, x, is_init, stored, states)
        return output.roll(1, 0) if states is None else output, found

    return [Patch(LSTM, "replay", replacement)]


@in_core("selected_outputs_are_the_only_ones", round=1)
def selected_out_keys_lose_resets() -> list[Patch]:
    """If select_out_keys selects only the output, resets are ignored."""
    original = LSTM.replay

    def replacement(self: LSTM, x: Tensor, is_init: Tensor, stored: Any, states: Any = "ends") -> Any:
        return original(self, x, torch.zeros_like(is_init) if states is None else is_init, stored, states)

    return [Patch(LSTM, "replay", replacement)]


@in_core("selected_outputs_are_the_only_ones", round=4)
def selected_out_keys_shift() -> list[Patch]:
    """After select_out_keys results are paired with the remaining keys in order, so that c's key gets h."""

    def patch(name: str) -> Patch:
        original = getattr(LSTMModule, name)

        def replacement(self: LSTMModule, lstm: LSTM, read: layout.Inputs) -> Any:
            return dict(zip(self.out_keys, original(self, lstm, read).values(), strict=False))

        return Patch(LSTMModule, name, replacement)

    return [patch("_one_step"), patch("_over_time")]


@in_core("selected_outputs_are_the_only_ones", round=(3, 7), survived=3)
def any_single_selected_key_gets_the_output() -> list[Patch]:
    """In recurrent mode a single selected key gets the output, even if it is a hidden state's key."""

    def replacement(self: LSTMModule, lstm: LSTM, read: layout.Inputs) -> dict[Any, Tensor]:
        x, is_init, stored = layout.fold_time(read)
        batch = read.is_init.shape[:-1]
        if len(self.out_keys) == 1:
            y, _ = lstm.replay(x, is_init, stored, None)
            return {self.out_keys[0]: layout.unfold_time(y, batch)}
        y, state = lstm.replay(x, is_init, stored, self.hidden_output)
        assert state is not None
        values = (layout.unfold_time(value, batch) for value in (y, *module._as_stored(lstm, state)))
        return dict(zip(self.out_keys_source, values, strict=True))

    return [Patch(LSTMModule, "_over_time", replacement)]


@in_core("keyword_calls_equal_the_tensordict")
def keyword_calls_swap_h_and_c() -> list[Patch]:
    """Called with keyword arguments, the module returns h and c swapped."""
    original = LSTMModule.forward

    def replacement(self: LSTMModule, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        return (result[0], result[2], result[1]) if isinstance(result, tuple) else result

    return [Patch(LSTMModule, "forward", replacement)]


@in_core("the_reset_mask_may_lack_its_last_dimension")
def a_short_reset_mask_is_ignored() -> list[Patch]:
    """A reset mask without the trailing dimension of one is ignored."""
    original = layout.read

    def replacement(td: Any, keys: Any, *rest: Any) -> Any:
        result = original(td, keys, *rest)
        short = td.get(keys[3]).ndim == td.ndim
        return result._replace(is_init=torch.zeros_like(result.is_init)) if short else result

    return [Patch(layout, "read", replacement)]


@in_core("an_empty_batch_passes_through")
def an_empty_batch_doubles_its_features() -> list[Patch]:
    """The output of an empty batch has twice its number of features."""

    def replacement(td: Any, values: Any) -> Any:
        empty = td.batch_size.numel() == 0
        return {key: torch.cat([value, value], -1) if empty else value for key, value in values.items()}

    return _write(replacement)


@backend("every_hidden_state_on_request")
def every_state_claimed_without_gradients() -> LSTMBackend:
    """CELL_STATES is claimed, but c has a gradient only at sequences' ends."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, torch.where(ends(starts), c, c.detach()))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@in_core("only_its_own_keys_are_written")
def entries_replaced_by_their_copies() -> list[Patch]:
    """Entries that were read are replaced by equal copies."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        for key in ("observation", "is_init"):
            if key in td.keys():  # noqa: SIM118
                td.set(key, td.get(key).clone())
        return original(td, values)

    return [Patch(layout, "write", replacement)]


@in_core("only_its_own_keys_are_written")
def rewards_set_to_zero() -> list[Patch]:
    """A reward at the root of the TensorDict is set to zero when the results are written."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        if "reward" in td.keys():  # noqa: SIM118
            td.set("reward", torch.zeros_like(td.get("reward")))
        return original(td, values)

    return [Patch(layout, "write", replacement)]


@in_core("only_complete_results_are_skipped", round=6, survived=6)
def one_result_is_taken_for_all() -> list[Patch]:
    """With set_skip_existing a TensorDict with only the output is skipped: the next states stay missing."""

    def _has_results(self: Any, td: Any) -> bool:
        written = self.out_keys
        return written[0] in td.keys(True) and not any(key in written for key in self.in_keys)

    return [Patch(LSTMModule, "_has_results", _has_results)]


@in_core("a_locked_tensordict_is_refused_or_written_in_place", round=9)
def a_locked_tensordict_unlocked_to_be_written() -> list[Patch]:
    """A locked TensorDict is unlocked, gets new tensors and is locked again: other views keep the old ones."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        if not td.is_locked:
            return original(td, values)
        td.unlock_()
        for key, value in values.items():
            td.set(key, value)
        return td.lock_()

    return [Patch(layout, "write", replacement)]


@in_core("the_primer_fits_the_first_step", round=9)
def a_primer_of_float32_whatever_the_weights() -> list[Patch]:
    """The primer's states are float32, even for a module in float64."""
    original = LSTMModule.make_tensordict_primer

    def replacement(self: LSTMModule) -> Any:
        from torchrl.data import Unbounded
        from torchrl.envs import TensorDictPrimer

        original(self)
        sizes = (self.lstm.spec.output_size, self.lstm.spec.hidden_size)
        return TensorDictPrimer(
            {
                key: Unbounded(shape=(self.lstm.spec.num_states, size))
                for key, size in zip(self.in_keys[1:3], sizes, strict=True)
            },
            expand_specs=True,
        )

    return [Patch(LSTMModule, "make_tensordict_primer", replacement)]


@in_core("more_batch_dimensions_keep_their_order")
def states_of_three_batch_dimensions_transposed() -> list[Patch]:
    """Stored states of a batch of three dimensions are read with the first dimension fastest."""
    original = layout.fold_time

    def replacement(inputs: layout.Inputs) -> Any:
        if inputs.x.ndim != 5 or inputs.stored is None:
            return original(inputs)
        stored = both(lambda value: value.transpose(0, 2).reshape(value.shape), inputs.stored)
        return original(inputs._replace(stored=stored))

    return [Patch(layout, "fold_time", replacement)]


@in_core("more_batch_dimensions_keep_their_order")
def three_batch_dimensions_unfolded_in_another_order() -> list[Patch]:
    """In recurrent mode results of a batch of three dimensions have the first two in each other's place."""
    original = layout.unfold_time

    def replacement(value: Tensor, batch: Any) -> Tensor:
        if len(batch) != 3:
            return original(value, batch)
        return original(value, (batch[1], batch[0], batch[2])).transpose(0, 1)

    return [Patch(layout, "unfold_time", replacement)]


@in_core("more_batch_dimensions_keep_their_order")
def a_step_of_three_batch_dimensions_unfolds_two() -> list[Patch]:
    """A step of a batch of three dimensions writes the last two in each other's place."""
    original = layout.unfold_step

    def replacement(value: Tensor, batch: Any) -> Tensor:
        if len(batch) != 3:
            return original(value, batch)
        return original(value, (batch[0], batch[2], batch[1])).transpose(1, 2)

    return [Patch(layout, "unfold_step", replacement)]


_LOCKED = "a_locked_tensordict_is_refused_or_written_in_place"


def _written_by(check: Callable[[Tensor, Tensor], bool]) -> list[Patch]:
    """Results are copied into a locked TensorDict where ``check(room, result)`` is true of all."""
    original = layout.write

    def replacement(td: TensorDictBase, values: dict[Any, Tensor]) -> TensorDictBase:
        if not td.is_locked:
            return original(td, values)
        if not all(check(td.get(key), value) for key, value in values.items()):
            raise InputError("it does not fit")
        for key, value in values.items():
            td.get(key).copy_(value)
        return td

    return [Patch(layout, "write", replacement)]


@in_core(_LOCKED)
def results_broadcast_into_a_locked_tensordict() -> list[Patch]:
    """Room in a locked TensorDict is not checked: a result is broadcast into it, or torch's error is raised."""
    return _written_by(lambda room, value: True)


@in_core(_LOCKED)
def results_cast_into_a_locked_tensordict() -> list[Patch]:
    """Room in a locked TensorDict is checked for its shape alone: a result is cast to the room's dtype."""
    return _written_by(lambda room, value: room.shape == value.shape)


@in_core(_LOCKED)
def each_result_is_checked_when_its_turn_comes() -> list[Patch]:
    """Room in a locked TensorDict is checked result by result: the first ones are written before the error."""
    original = layout.write

    def replacement(td: TensorDictBase, values: dict[Any, Tensor]) -> TensorDictBase:
        if not td.is_locked:
            return original(td, values)
        for key, value in values.items():
            original(td, {key: value})
        return td

    return [Patch(layout, "write", replacement)]
