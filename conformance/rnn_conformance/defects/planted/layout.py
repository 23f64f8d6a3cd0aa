"""Memory is read as if it lay otherwise."""

from __future__ import annotations

import torch
from rnn_backends import LayerFunction, LayerWeights, State
from torch import Tensor

from ..planting import in_layer, made
from ..right import both, right

LAYOUT = "memory_layout_does_not_matter"


def _strides(shape: torch.Size) -> list[int]:
    strides: list[int] = []
    size = 1
    for n in reversed(shape):
        strides.insert(0, size)
        size *= n
    return strides


def _as_if_contiguous(v: Tensor) -> Tensor:
    held = v.untyped_storage().nbytes() // v.element_size() - v.storage_offset()
    fits = held >= v.numel() and v.numel()
    return v.as_strided(v.shape, _strides(v.shape), v.storage_offset()) if fits else v


@in_layer(LAYOUT)
def input_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's memory is read as if it were contiguous."""
    return right(w, _as_if_contiguous(x), entry, starts)


@in_layer(LAYOUT)
def states_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The stored states' memory is read as if it were contiguous."""
    return right(w, x, both(_as_if_contiguous, entry), starts)


@in_layer(LAYOUT)
def starts_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts' memory is read as if it were contiguous."""
    return right(w, x, entry, _as_if_contiguous(starts))


@in_layer("output_equals_reference", LAYOUT)
def storage_offset_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is read from the beginning of its storage."""
    return right(w, x.as_strided(x.shape, x.stride(), 0), entry, starts)


@in_layer("expanded_states_are_read")
def expanded_states_taken_as_absent(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """States that are expanded over time are taken for none at all."""
    absent = entry.h.stride(0) == 0 and len(x) > 1
    return right(w, x, both(torch.zeros_like, entry) if absent else entry, starts)


@made("a_result_outlives_the_next_call")
def c_in_shared_scratch() -> LayerFunction:
    """Without gradients the cell state lies in scratch memory kept by shape."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        if c.requires_grad:
            return State(h, c)
        into = scratch.setdefault((*c.shape, id(w.w_ih)), torch.empty_like(c))
        return State(h, into.copy_(c))

    return run
