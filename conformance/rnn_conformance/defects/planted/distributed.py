"""Defects that the laws of ``laws/distributed.py`` kill first."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from ..planting import in_layer
from ..right import right


@in_layer("data_parallel_gradients_are_averaged", by_numbers=False)
def averages_gradients_itself(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In distributed training gradients are divided by the number of processes, which DDP does already."""
    ran = right(w, x, entry, starts)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        share = 1 / torch.distributed.get_world_size()
        return State(*(v.detach() * (1 - share) + v * share for v in ran))
    return ran


def _is_distributed(value: Tensor) -> bool:
    return type(value).__name__ == "DTensor"


@in_layer("distributed_tensors_are_right_or_refused", by_numbers=False)
def distributed_weights_have_no_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of a distributed recurrent weight is lost."""
    if _is_distributed(w.w_hh):
        w = w._replace(w_hh=w.w_hh.detach())
    return right(w, x, entry, starts)


@in_layer("distributed_tensors_are_right_or_refused", by_numbers=False)
def distributed_resets_are_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A distributed reset mask is ignored."""
    if _is_distributed(starts):
        starts = torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])
    return right(w, x, entry, starts)
