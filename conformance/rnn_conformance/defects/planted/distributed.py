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
