"""The inputs of a call's plans, read from a GPU in one transfer, because each read waits for the GPU.

On a CPU reading costs nothing, so values are read when they are needed, and cuts are checked afterwards
(``flush.is_clean``). Here that would be a second wait. So all layers are inspected at once before anything runs, for
values that could leak through a cut: NaN, Inf, numbers so large that a sum of them may overflow, and states stored in
the middle of a row. The inspection reads only the largest absolute value of each tensor; the rest is arithmetic on a
few numbers, on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from .. import _torch
from . import target
from .widened import reach_of

LARGEST_STATE = 1e4
"""The largest stored cell state for which a PROBE keeps its precision."""


class LayerInputs(NamedTuple):
    """The facts about one layer in one direction.

    Attributes:
        is_stored: whether a sequence that is not the first of its row may start from a state that is not zero.
        is_bounded: whether all inputs are finite and small enough that none can leak through a FLUSH step.
        is_zero: whether every sequence starts from zeros.
        reach: far more than the state and the biases can add against a saturated gate.
    """

    is_stored: bool
    is_bounded: bool
    is_zero: bool
    reach: float


@dataclass(eq=False)
class CallInputs:
    """Facts about a call.

    Attributes:
        mask: ``[T, B]`` bool, on the host: where sequences start.
        starts: the same on the device.
        weights: of all layers.
        judge: gives the facts about each layer, when they are needed.
        bidirectional: whether every second layer runs in reverse.
        plans: the plans of this call, made on first use.
    """

    mask: np.ndarray
    starts: Tensor
    weights: Sequence[LayerWeights]
    judge: Callable[[], list[LayerInputs]]
    bidirectional: bool
    plans: dict[object, object] = field(default_factory=dict)

    def has(self, starts: Tensor) -> bool:
        """Whether these are the starts of the forward direction; core makes those of the reverse direction."""
        return starts is self.starts or (self.bidirectional and starts.shape == self.starts.shape)

    @cached_property
    def layers(self) -> list[LayerInputs]:
        """The facts about each layer."""
        return self.judge()

    @cached_property
    def most(self) -> int:
        """The largest number of sequences in a row."""
        numbers = np.add.reduce(self.mask.view(np.uint8), 0, np.min_scalar_type(len(self.mask)))
        return int(np.maximum.reduce(numbers))

    @cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of all sequences, in descending order."""
        T, _ = self.mask.shape
        first = np.flatnonzero(self.mask.T)  # of [B, T], where each row starts a sequence
        counts = np.bincount(np.diff(first, append=self.mask.size), minlength=T + 1)
        return np.repeat(np.arange(T, -1, -1), counts[::-1])


def inspect_inputs(
    weights: Sequence[LayerWeights],
    x: Tensor,
    entry: Sequence[State],
    starts: Tensor,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> CallInputs:
    """Read everything at once.

    Args:
        weights: of all layers, in torch's order.
        x: ``[T, B, I]``.
        entry: for each layer ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
        starts: ``[T, B]`` bool.
        bidirectional: whether every second layer runs in reverse.
        dropout: probability between the layers.
    """
    with torch.no_grad():
        values = [x]
        for layer, state in zip(weights, entry, strict=True):
            values += [value for value in layer if value is not None]
            values += _read_states(state, starts)
        sizes = _torch.largest(values)
        sizes = sizes if sizes.dtype.itemsize >= 4 else sizes.float()
        packed = torch.cat([sizes.view(torch.uint8), starts.view(torch.uint8).reshape(-1)])  # of one dtype: one launch
    found = target.read(packed)
    dtype, end = (np.float32, 4 * len(values)) if sizes.dtype.itemsize == 4 else (np.float64, 8 * len(values))
    T, B = starts.shape
    mask = found[end:].view(np.bool_).reshape(T, B)

    def judge() -> list[LayerInputs]:
        numbers: Iterator[float] = iter(found[:end].view(dtype).tolist())
        return _layers(numbers, weights, entry, T, bidirectional, dropout)

    return CallInputs(mask, starts, list(weights), judge, bidirectional)


def is_one_state(entry: State) -> bool:
    """Whether every step and row has the same memory, as for core's expanded zeros."""
    h, c = entry
    return h.stride()[:2] == (0, 0) and (h is c or c.stride()[:2] == (0, 0))


def _read_states(state: State, starts: Tensor) -> list[Tensor]:
    """The states' largest absolute values: first of those of the rows, then of those in their middle; the states
    themselves if all share one memory.
    """
    h, c = state
    if is_one_state(state):
        return [value.as_strided(value.shape[2:], value.stride()[2:]) for value in ([h] if h is c else [h, c])]
    largest = torch.stack([torch.linalg.vector_norm(value, math.inf, -1) for value in state], 1)
    read = torch.where(starts.unsqueeze(1), largest, 0)  # elsewhere the values are arbitrary
    return [read[0], read[1:]]


def _layers(
    numbers: Iterator[float],
    weights: Sequence[LayerWeights],
    entry: Sequence[State],
    T: int,
    bidirectional: bool,
    dropout: float,
) -> list[LayerInputs]:
    """Arithmetic on largest absolute values, with sums in place of maxima, because sums keep NaN."""
    directions = 2 if bidirectional else 1
    found: list[LayerInputs] = []
    dtype = weights[0].w_ih.dtype
    usual = reach_of(dtype)
    largest_x, next_x, sound = next(numbers), 0.0, True
    for k, (w, state) in enumerate(zip(weights, entry, strict=True)):
        if k and k % directions == 0:
            largest_x, next_x = next_x / (1 - dropout) if dropout < 1 else 0.0, 0.0
            sound = all(layer.is_bounded for layer in found)
        w_ih, w_hh = next(numbers), next(numbers)
        biases = sum(next(numbers) for bias in (w.b_ih, w.b_hh) if bias is not None)
        widest = 1.0 if w.w_hr is None else next(numbers) * w.w_hr.shape[1]
        if is_one_state(state):
            h = next(numbers)
            c = h if state.h is state.c else next(numbers)
            middle = h + c
        else:
            first, middle = next(numbers), next(numbers)
            h = c = first + middle
        if bidirectional and k % 2:  # in reverse the row's first sequence is the last
            middle = h + c
        by_state = (h + widest) * w_hh * w.w_hh.shape[1] + biases
        gates = (largest_x + 1) * w_ih * w.w_ih.shape[1] + by_state  # a synthetic step's inputs are at most one
        bounded = sound and gates < usual / 2 and c + T < LARGEST_STATE
        next_x = next_x + widest
        reach = usual if bounded else _beyond(by_state, dtype)
        found.append(LayerInputs(middle != 0, bounded, h + c == 0, reach))
    return found


def _beyond(terms: float, dtype: torch.dtype) -> float:
    """A reach far beyond the sum of these terms, as far as the dtype has such numbers."""
    usual = reach_of(dtype)
    return max(usual, min(2 * terms, torch.finfo(dtype).max / 8)) if terms < math.inf else usual
