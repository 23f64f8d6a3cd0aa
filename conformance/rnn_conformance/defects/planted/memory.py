"""Defects that the laws of ``laws/memory.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, LSTMSpec, State, layout
from rnn_backends.authoring import SteppedLayer
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from ..planting import Patch, backend, in_core, in_layer, made
from ..right import right
from ..right_stack import all_layers


@in_layer("scratch_memory_is_written_before_it_is_read", by_numbers=False)
def scratch_read_unwritten(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Uninitialised memory is multiplied by zero and added."""
    h, c = right(w, x, entry, starts)
    return State(h + 0 * torch.empty_like(h), c)


@made("a_call_keeps_nothing", by_numbers=False)
def every_output_kept() -> LayerFunction:
    """Outputs are kept in a list, with their graphs: memory grows with every call."""
    cache: list[Tensor] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        result = right(w, x, entry, starts)
        cache.append(result.h)
        return result

    return run


@made("a_call_keeps_nothing", by_numbers=False)
def the_last_input_kept() -> LayerFunction:
    """The last input is kept until the next call."""
    cache: dict[str, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        cache["x"] = x
        return right(w, x, entry, starts)

    return run


@in_core("results_share_no_memory_with_each_other")
def h_n_is_a_view_of_the_output() -> list[Patch]:
    """With one layer and one direction h_n is in the output's memory."""
    original = LSTM._over_time

    def replacement(self: LSTM, x: Tensor, *rest: Any) -> Any:
        output, state = original(self, x, *rest)
        return output, State(output[-1:], state.c) if self.spec.num_states == 1 else state

    return [Patch(LSTM, "_over_time", replacement)]


@in_core("results_share_no_memory_with_each_other", round=1)
def features_lie_in_shared_scratch() -> list[Patch]:
    """In recurrent mode without gradients, results of one shape share memory with those of the next call."""
    original, cache = layout.unfold_time, dict[Any, Tensor]()

    def replacement(value: Tensor, batch: Any) -> Tensor:
        result = original(value, batch)
        if result.requires_grad or torch.is_grad_enabled():
            return result
        into = cache.setdefault((tuple(result.shape), result.dtype), torch.empty_like(result))
        return into.copy_(result)

    return [Patch(layout, "unfold_time", replacement)]


@in_core("results_share_no_memory_with_each_other", round=3)
def step_output_is_the_state() -> list[Patch]:
    """In sequential mode the output of a one-directional LSTM shares memory with its next h."""
    original = LSTM.step_batch_first

    def replacement(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        output, after = original(self, x, stored, is_init)
        return (output if self.bidirectional else after.h[:, -1]), after

    return [Patch(LSTM, "step_batch_first", replacement)]


@in_core("results_in_a_tensordict_outlive_the_next_call", round=7, survived=7)
def results_over_results() -> list[Patch]:
    """Results are written over existing entries of the same shape, which changes the previous results."""

    def write(td: TensorDictBase, values: dict[NestedKey, Tensor]) -> TensorDictBase:
        for key, value in values.items():
            there = td.get(key, None)
            if td.is_locked or (there is not None and there.shape == value.shape):
                td.set_(key, value)
            else:
                td.set(key, value)
        return td

    return [Patch(layout, "write", write)]


@in_core("results_in_a_tensordict_outlive_the_next_call", round=6, survived=6)
def results_written_into_existing_entries() -> list[Patch]:
    """Results are written in place into the tensors under their keys, which may be shared or views."""

    def write(td: Any, values: Any) -> Any:
        for key, value in values.items():
            if td.is_locked:
                td.set_(key, value)
            else:
                td.set(key, value, inplace=True)
        return td

    return [Patch(layout, "write", write)]


@backend("results_share_no_memory_with_each_other", round=10, survived=10)
def the_last_state_is_a_view_of_the_output() -> LSTMBackend:
    """The function for all layers returns the output's last step as h_n, in the output's memory."""

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        y, (h, c) = all_layers(w, x, state, spec)
        return y, State(y[-1:] if len(h) == 1 else h, c)

    return LSTMBackend("defect", right, stack=stack)


@backend("results_share_no_memory_with_each_other")
def the_state_of_a_row_of_one_step_is_its_output() -> LSTMBackend:
    """A fast path for a row of one step returns its output as h_n too."""

    def row(w: LayerWeights, info: Any, x: Tensor, hx: Any, is_init: Any, batch_first: bool) -> Any:
        if hx is None or is_init is not None or batch_first or len(x) != 1 or torch.is_grad_enabled():
            return None
        out = right(w, x, State(*hx), torch.ones(x.shape[:2], dtype=torch.bool))
        return out.h, (out.h, out.c)

    return LSTMBackend("defect", SteppedLayer(right, row))


@backend("results_share_no_memory_with_each_other")
def the_last_cell_state_overwrites_the_initial_one() -> LSTMBackend:
    """Without gradients the function for all layers writes the last cell state over the initial one."""

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        y, (h, c) = all_layers(w, x, state, spec)
        plain = not c.requires_grad and not state.c.is_inference() and state.c.is_contiguous()
        return y, State(h, state.c.copy_(c) if plain else c)

    return LSTMBackend("defect", right, stack=stack)
