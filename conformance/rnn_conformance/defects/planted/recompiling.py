"""Defects that the laws of ``laws/recompiling.py`` kill first."""

from __future__ import annotations

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State, Trait
from torch import Tensor

from ..planting import FULLGRAPH, backend, made
from ..right import both, right


@made("other_sizes_compile_nothing_more", by_numbers=False)
def compiled_for_every_length() -> LayerFunction:
    """The loop over time is compiled, so every new T compiles again."""
    run = torch.compile(right, backend="eager")

    def layer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return State(*run(w, x, entry, starts))

    return layer


@backend("a_compiled_function_takes_any_batch", by_numbers=False)
def traced_row_by_row() -> LSTMBackend:
    """The batch runs row by row, so compiled code has one copy for each batch size."""

    def layer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        rows = [
            right(w, x[:, b : b + 1], State(entry.h[:, b : b + 1], entry.c[:, b : b + 1]), starts[:, b : b + 1])
            for b in range(x.shape[1])
        ]
        return State(torch.cat([row.h for row in rows], 1), torch.cat([row.c for row in rows], 1))

    return LSTMBackend("defect", layer, traits=frozenset({Trait.FULLGRAPH}))


@made("a_compiled_function_follows_sizes_resets_and_mode", traits=FULLGRAPH, by_numbers=False)
def compiled_for_the_first_length() -> LayerFunction:
    """Compiled code runs the first call's number of steps; the last one is repeated for the rest."""
    first: list[int] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not torch.compiler.is_compiling():
            return right(w, x, entry, starts)
        if not first:
            first.append(len(x))
        steps = min(len(x), first[0])
        ran = right(w, x[:steps], both(lambda v: v[:steps], entry), starts[:steps])
        return both(lambda v: torch.cat([v, v[-1:].expand(len(x) - steps, -1, -1)]), ran)

    return run


@made("a_compiled_function_follows_sizes_resets_and_mode", traits=FULLGRAPH, by_numbers=False)
def compiled_with_resets_kept_by_shape() -> LayerFunction:
    """Compiled code reuses the resets of the first call of each shape."""
    plans: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not torch.compiler.is_compiling():
            return right(w, x, entry, starts)
        shape = tuple(starts.shape)
        if shape not in plans:
            plans[shape] = starts.clone()
        return right(w, x, entry, plans[shape])

    return run
