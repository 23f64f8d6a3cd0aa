"""A call changes what it was given, or keeps something for the next."""

from __future__ import annotations

from itertools import count

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State
from torch import Tensor

from ..planting import backend, in_layer, made
from ..right import both, right


@in_layer("nothing_passed_in_changes")
def starts_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts are emptied once they were used."""
    found = right(w, x, entry, starts)
    starts[1:] = False
    return found


@in_layer("nothing_passed_in_changes")
def starts_inverted_and_back(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts are inverted in place, and back: another thread could see it."""
    starts.logical_not_()
    try:
        return right(w, x, entry, ~starts)
    finally:
        starts.logical_not_()


@in_layer("nothing_passed_in_changes")
def input_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is changed in place."""
    found = right(w, x * 1.0, both(lambda v: v * 1.0, entry), starts)
    with torch.no_grad():
        x.add_(1)
    return found


@in_layer("nothing_passed_in_changes")
def stored_states_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Stored states that are not read are set to zero in place."""
    found = right(w, x, both(torch.clone, entry), starts)
    with torch.no_grad():
        entry.c.copy_(torch.where(starts.unsqueeze(-1), entry.c, 0))
    return found


@in_layer("nothing_passed_in_changes")
def weights_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights are rounded to float32 in place, under the name of packing."""
    found = right(w, x, entry, starts)
    with torch.no_grad():
        w.w_hh.data.copy_(w.w_hh.float())
    return found


@in_layer("results_share_no_memory_with_inputs")
def c_in_the_stored_states_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without gradients the cell state is written into the stored states' memory, and given from there."""
    h, c = right(w, x, entry, starts)
    return State(h, c if torch.is_grad_enabled() else entry.c.copy_(c))


@in_layer("h_and_c_share_no_memory")
def h_and_c_in_one_buffer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without gradients, resets and projection, c lies in h's buffer one step on: right at the last step only."""
    h, c = right(w, x, entry, starts)
    if torch.is_grad_enabled() or h.shape != c.shape or bool(starts[1:].any()):
        return State(h, c)
    buffer = torch.cat([h, c[-1:]])
    return State(buffer[:-1], buffer[1:])


@made("a_result_outlives_the_next_call")
def output_in_shared_scratch() -> LayerFunction:
    """Without gradients the output lies in scratch memory that the next call overwrites."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        found = right(w, x, entry, starts)
        if found.h.requires_grad:
            return found
        into = scratch.setdefault((*found.h.shape, id(w.w_ih)), torch.empty_like(found.h))
        return State(into.copy_(found.h), found.c)

    return run


@made("same_call_same_answer")
def the_call_before_added() -> LayerFunction:
    """A thousandth of the result of the call before is added, where shapes agree."""
    kept: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        old = kept.get(tuple(h.shape))
        kept[tuple(h.shape)] = h.detach()
        return State(h if old is None else h + 1e-3 * old, c)

    return run


@made("same_call_same_answer")
def not_repeatable() -> LayerFunction:
    """Calls round in one of seven ways, in turn, as atomic sums do: the answer is not repeatable."""
    calls = count()

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h * (1 + 1e-15 * (next(calls) % 7)), c)

    return run


@made("edited_weights_are_seen")
def answers_remembered_by_input() -> LayerFunction:
    """An answer is remembered by the input's memory and given again, whatever the weights are by then."""
    kept: dict[int, tuple[Tensor, State]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        old = kept.get(x.data_ptr())
        if old is not None and old[0].shape == x.shape and torch.equal(old[0], x):
            return old[1]
        found = right(w, x, entry, starts)
        kept[x.data_ptr()] = (x.clone(), found)
        return found

    return run


@in_layer("global_state_is_left_alone")
def random_numbers_drawn(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Random numbers are drawn, so what the user draws next differs."""
    torch.rand(1)
    return right(w, x, entry, starts)


@backend("global_state_is_left_alone", by_numbers=False)
def matmul_precision_changed() -> LSTMBackend:
    """The precision of float32 products is set for the whole process."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        now = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if now == "highest" else "highest")
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@backend("global_state_is_left_alone", by_numbers=False)
def seeds_the_generator() -> LSTMBackend:
    """The global generator is seeded anew at every call, in the name of reproducibility."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        torch.manual_seed(1234)
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@made("trained_over_what_was_seen_in_inference_mode", by_numbers=False)
def resets_kept_from_inference_mode() -> LayerFunction:
    """What is made of the resets is kept for the next call over the same ones, in inference mode too."""
    kept: dict[bytes, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = bytes(starts.cpu().numpy())
        if key not in kept:
            kept[key] = torch.arange(len(x), device=x.device)
        return right(w, x.index_select(0, kept[key]), entry, starts)

    return run
