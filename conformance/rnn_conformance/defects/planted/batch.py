"""Defects that the laws of ``laws/batch.py`` kill first."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from ..hand_written import Kernel
from ..planting import in_layer, in_reset, restart
from ..right import both, right


@in_layer("permuting_rows_permutes_the_answer", "a_batch_is_its_rows_alone", "gradient_of_other_rows_is_zero")
def rows_mixed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A thousandth of a weighted mean over the rows is subtracted from each row."""
    weights = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device).view(1, -1, 1)
    return right(w, x - 1e-3 * (x * weights).mean(1, keepdim=True), entry, starts)


@in_reset("a_batch_is_its_rows_alone")
def one_row_resets_all(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset of one row resets the whole batch."""
    return restart(state, entry, starts.any(1, keepdim=True).expand_as(starts), t)


@in_reset("a_batch_is_its_rows_alone")
def another_rows_resets(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A row resets where the previous row should reset."""
    return restart(state, entry, starts.roll(1, 1), t)


@in_reset("a_batch_is_its_rows_alone")
def another_rows_stored_state(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A sequence starts from the state stored in the next row."""
    return restart(state, both(lambda v: v.roll(1, 1), entry), starts, t)


@in_layer("nan_stays_in_its_row", "gradient_of_other_rows_is_zero")
def input_centred_over_the_batch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is centred over the batch and shifted back: right up to rounding, but NaN spreads to all rows."""
    mean = x.mean(1, keepdim=True)
    return right(w, (x - mean) + mean * (1 + 1e-12), entry, starts)


@in_layer("one_row")
def one_row_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """squeeze() without a dimension: with one row, time is reversed."""
    result = right(w, x, entry, starts)
    return both(lambda v: v.flip(0), result) if x.shape[1] == 1 and len(x) > 1 else result


@in_layer("no_rows")
def no_rows_are_one(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A batch of no rows is returned as a batch of one."""
    if x.shape[1]:
        return right(w, x, entry, starts)
    return State(*(v.new_zeros(v.shape[0], 1, v.shape[2]) for v in entry))


@in_layer("no_rows")
def gradients_of_no_rows_are_nan(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights' gradients are a mean over steps and rows times their number: NaN if there are none."""

    class Averaging(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            number = torch.tensor(len(da), dtype=da.dtype, device=da.device)
            return (da.T @ v) / number * number

    return Averaging()(w, x, entry, starts)


@in_layer("no_rows")
def bias_gradients_of_no_rows_are_unwritten(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of an empty batch the biases' gradients are never written: whatever their memory holds."""

    class Leaving(Kernel):
        def biases(self, da: Tensor) -> tuple[Tensor, Tensor]:
            total = da.sum((0, 1)) if da.numel() else torch.full_like(da[0].sum(0), 7)
            return total, total.clone()

    return Leaving()(w, x, entry, starts)
