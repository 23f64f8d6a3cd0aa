"""What only shows in a compiler's counters or in two processes."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait
from torch import Tensor

from ..planting import backend, in_layer, made
from ..right import right


@made("other_sizes_compile_nothing_more", by_numbers=False)
def compiled_for_every_length():
    """The loop over time is compiled, so every new T compiles anew."""
    run = torch.compile(right, backend="eager")

    def layer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return State(*run(w, x, entry, starts))

    return layer


@backend("a_compiled_function_takes_any_batch", by_numbers=False)
def traced_row_by_row() -> LSTMBackend:
    """The rows of the batch are run in a loop, so a compiled function has as many copies as there are batch sizes."""

    def layer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        rows = [
            right(w, x[:, b : b + 1], State(entry.h[:, b : b + 1], entry.c[:, b : b + 1]), starts[:, b : b + 1])
            for b in range(x.shape[1])
        ]
        return State(torch.cat([row.h for row in rows], 1), torch.cat([row.c for row in rows], 1))

    return LSTMBackend("defect", layer, traits=frozenset({Trait.FULLGRAPH}))


@in_layer("data_parallel_gradients_are_averaged", by_numbers=False)
def averages_gradients_itself(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where several processes train together it divides its gradients by their number, which DDP does already."""
    ran = right(w, x, entry, starts)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        share = 1 / torch.distributed.get_world_size()
        return State(*(v.detach() * (1 - share) + v * share for v in ran))
    return ran
