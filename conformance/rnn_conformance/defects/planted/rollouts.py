"""Defects that the laws of ``laws/rollouts.py`` kill first."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from ..planting import in_layer
from ..right import right


@in_layer("rollout_equals_torch_lstm", "rollout_equals_steps", "rollout_gradients")
def resets_missed_in_long_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In rows of more than 50 steps a sequence continues past its end."""
    if len(x) > 50:
        starts = torch.zeros_like(starts)
        starts[0] = True
    return right(w, x, entry, starts)


@in_layer("rollout_equals_torch_lstm", "rollout_equals_steps")
def resets_counted_in_one_byte(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Resets after step 127 are missed: their steps are numbered in a signed byte."""
    starts = starts.clone()
    starts[128:] = False
    return right(w, x, entry, starts)


@in_layer("rollout_hidden_outputs")
def only_the_last_end_of_a_long_row(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In rows of more than 50 steps the cell state is right only at the row's end."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.cat([torch.zeros_like(c[:-1]), c[-1:]]) if len(x) > 50 else c)


@in_layer("rollout_gradients")
def stored_states_cut_off_in_long_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In rows of more than 50 steps no gradient reaches the stored h."""
    return right(w, x, State(entry.h.detach() + 0 * entry.h, entry.c) if len(x) > 50 else entry, starts)
