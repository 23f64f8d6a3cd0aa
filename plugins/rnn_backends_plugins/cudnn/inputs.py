"""What a plan is made from, read off a GPU in one transfer: to read is to wait until the GPU has reached that point.

On a CPU reading costs nothing, so there it is read where it is needed, and whether a cut did its work is seen
afterwards (``flush.is_clean``). Here that would be a second wait, so what could spoil a cut is looked for beforehand:
NaN, Inf, or numbers so large that a sum of them may become one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from . import target

LARGEST_STATE = 1e4
"""Of a stored cell state: beyond it a PROBE could lose its precision."""


class PlanInputs(NamedTuple):
    """What is known of a batch.

    Attributes:
        starts: ``[T, B]`` bool.
        stored: ``[T, B]`` bool: a sequence starts here from a state that is not known to be zero.
        is_bounded: whether all inputs are finite and small enough that none can leak through a FLUSH step.
    """

    starts: np.ndarray
    stored: np.ndarray
    is_bounded: bool


def inspect_inputs(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> PlanInputs:
    """Read everything at once.

    Args:
        weights: of the layer.
        x: ``[T, B, I]``.
        entry: ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
        starts: ``[T, B]`` bool.
    """
    with torch.no_grad():
        read = State(*(v.detach()[:1, :1] for v in entry)) if is_one_state(entry) else _where(starts, entry)
        stored = (read.h.any(-1) | read.c.any(-1)) & starts
        found = torch.cat([starts.flatten(), stored.flatten(), _is_bounded(weights, x, read).reshape(1)])
    seen = target.read(found)
    first, second = seen[:-1].reshape(2, *starts.shape)
    return PlanInputs(first, second, bool(seen[-1]))


def is_one_state(entry: State) -> bool:
    """Whether the same memory is seen at every step and in every row, as where core says "zeros"."""
    return all(v.stride()[:2] == (0, 0) for v in entry)


def _where(starts: Tensor, entry: State) -> State:
    """What is read: elsewhere there may be anything."""
    return State(*(torch.where(starts.unsqueeze(-1), v.detach(), 0) for v in entry))


def _is_bounded(w: LayerWeights, x: Tensor, read: State) -> Tensor:
    """A bool on the device; NaN anywhere makes it false, as it compares with nothing."""
    by_x, by_h = (v.detach().abs().sum(1).amax() for v in (w.w_ih, w.w_hh))
    widest = torch.ones_like(by_h) if w.w_hr is None else w.w_hr.detach().abs().sum(1).amax()
    gates = _largest(x) * by_x + torch.maximum(_largest(read.h), widest) * by_h
    for bias in (w.b_ih, w.b_hh):
        gates = gates if bias is None else gates + _largest(bias)
    limit = torch.finfo(x.dtype).max / 8
    return (gates < limit) & (_largest(read.c) + x.shape[0] < LARGEST_STATE)


def _largest(value: Tensor) -> Tensor:
    return value.detach().abs().amax() if value.numel() else value.new_zeros(())
