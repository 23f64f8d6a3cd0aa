"""Defects that the laws of ``laws/layout.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTM, LayerWeights, State, get_backend
from rnn_backends import lstm as core
from rnn_backends.authoring import is_plain
from rnn_backends_plugins import cudnn
from torch import Tensor

from ..planting import Patch, in_core, in_layer
from ..right import both, layer, output_of, right


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


@in_layer("memory_layout_does_not_matter")
def input_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's memory is read as if it were contiguous."""
    return right(w, _as_if_contiguous(x), entry, starts)


@in_layer("memory_layout_does_not_matter")
def states_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The stored states' memory is read as if it were contiguous."""
    return right(w, x, both(_as_if_contiguous, entry), starts)


@in_layer("memory_layout_does_not_matter")
def starts_read_as_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts' memory is read as if it were contiguous."""
    return right(w, x, entry, _as_if_contiguous(starts))


@in_layer("weights_may_have_any_layout", round=2, survived=2)
def transposed_recurrent_weight_read_raw(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A recurrent weight that lies transposed in memory is read as if it were contiguous."""
    raw = w.w_hh
    if not raw.is_contiguous() and raw.T.is_contiguous():
        raw = raw.T.reshape(raw.shape)
    return right(w._replace(w_hh=raw), x, entry, starts)


@in_layer("weights_may_have_any_layout", round=5)
def weights_are_split_by_assumed_strides(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gates' weights are cut out with as_strided, assuming contiguous memory: transposed weights are misread."""
    H = w.w_hh.shape[0] // 4

    def split(matrix: Tensor) -> Tensor:
        n = matrix.shape[1]
        return matrix.as_strided((4, H, n), (H * n, n, 1))

    w_ih, w_hh = split(w.w_ih), split(w.w_hh)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        sums = [x @ a.T + state.h @ b.T for a, b in zip(w_ih, w_hh, strict=True)]
        if w.b_ih is not None and w.b_hh is not None:
            sums = [a + b for a, b in zip(sums, (w.b_ih + w.b_hh).view(4, H), strict=True)]
        i, f, g, o = sums
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        return output_of(w, o.sigmoid() * c.tanh(), c)

    return layer(one)(w, x, entry, starts)


@in_layer("expanded_states_are_read")
def expanded_states_taken_as_absent(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Stored states that are expanded over time are taken as absent."""
    absent = entry.h.stride(0) == 0 and len(x) > 1
    return right(w, x, both(torch.zeros_like, entry) if absent else entry, starts)


@in_core("expanded_states_are_read", on=get_backend("cudnn"), round=5, survived=5)
def one_state_guessed_from_the_stride_of_time() -> list[Patch]:
    """cudnn treats stored states expanded over time as one state: every row starts from that of row 0."""

    def is_one_state(entry: State) -> bool:
        return all(v.stride()[0] == 0 for v in entry)

    return [Patch(cudnn, "is_one_state", is_one_state)]


@in_core("batch_first_is_a_transposition")
def batch_first_reshapes() -> list[Patch]:
    """With batch_first the input is reshaped instead of transposed."""

    def replacement(self: LSTM, value: Tensor, batched: bool) -> Tensor:
        if not batched:
            return value.unsqueeze(1)
        return value.reshape(value.shape[1], value.shape[0], *value.shape[2:]) if self.batch_first else value

    return [Patch(LSTM, "_time_major", replacement)]


@in_core("unbatched_is_a_batch_of_one")
def unbatched_ignores_hx() -> list[Patch]:
    """Input without a batch dimension ignores hx and starts from zeros."""
    original = LSTM._initial

    def replacement(self: LSTM, hx: Any, batch: tuple[int, ...], casts: bool) -> State | None:
        return original(self, hx, batch, casts) if batch else None

    return [Patch(LSTM, "_initial", replacement)]


@in_core("is_init_may_have_a_trailing_one")
def a_trailing_one_hides_resets() -> list[Patch]:
    """``is_init`` with a trailing dimension of one is accepted and ignored."""
    original = core.check_is_init

    def replacement(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        result = original(is_init, shape, device)
        return result if is_init.shape == shape else torch.zeros_like(result)

    return [Patch(core, "check_is_init", replacement)]


def _at(v: Tensor, pitches: list[int]) -> Tensor:
    """``v`` read from its dense memory with these strides, modulo its size, so that no read passes the end."""
    index = torch.zeros(v.shape, dtype=torch.long)
    for dim, pitch in enumerate(pitches):
        index = index + torch.arange(v.shape[dim]).view(-1, *[1] * (v.ndim - dim - 1)) * pitch
    return v.reshape(-1)[index % v.numel()]


@in_layer("strides_of_sizes_of_one_are_not_read", round=2)
def leading_dimension_of_a_single_row(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Contiguous input is read with stride(1) between rows, which is arbitrary for a batch of one row."""
    x, (steps, batch, size) = x.contiguous(), x.shape
    lead = x.stride(1)
    if batch == 1 and lead != size and x.numel():
        rows = torch.arange(steps, device=x.device).unsqueeze(-1) * lead + torch.arange(size, device=x.device)
        x = x.reshape(-1)[rows % x.numel()].unsqueeze(1)  # a kernel would read beyond the end
    return right(w, x, entry, starts)


@in_layer("strides_of_sizes_of_one_are_not_read", round=8, survived=8)
def time_pitch_from_the_stride_of_one_row(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The stored states' stride over time is taken as B times that over rows, which is arbitrary for B = 1."""
    if x.shape[1] == 1 and x.numel():
        entry = both(lambda v: _at(v, [v.stride(1), 0, 1]) if v.is_contiguous() else v, entry)
    return right(w, x, entry, starts)


@in_layer("strides_of_sizes_of_one_are_not_read", round=8, survived=8)
def row_pitch_from_the_stride_of_one_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With one step the stride over rows is taken as 1 / B of that over time, which is arbitrary for T = 1."""
    if len(x) == 1 and x.numel() and x.is_contiguous():
        x = _at(x, [0, x.stride(0) // x.shape[1], 1])
    return right(w, x, entry, starts)


@in_layer("strides_of_sizes_of_one_are_not_read", round=8, survived=8)
def layout_of_starts_guessed_from_strides(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Starts count as batch first in memory if the stride over rows is the larger one: arbitrary for B = 1."""
    if starts.shape[1] == 1 and starts.stride(1) > starts.stride(0):
        first = torch.zeros_like(starts)
        first[0] = True
        return right(w, x, entry, first)
    return right(w, x, entry, starts)


@in_layer("strides_of_sizes_of_one_are_not_read", round=9)
def a_rows_pitch_taken_from_the_stride_of_one_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """For a contiguous input the stride over rows is taken as stride(0) / B, which is arbitrary for T = 1."""
    T, B, features = x.shape
    if B and x.is_contiguous() and is_plain([x]) and x.stride(0) // B != features:
        storage = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
        begin = int(x.storage_offset())
        at = torch.arange(T * B).unsqueeze(-1) * (x.stride(0) // B) + torch.arange(begin, begin + features)
        read = storage[at.clamp(max=len(storage) - 1)].view(x.shape)
        x = x + (read - x).detach()
    return right(w, x, entry, starts)


@in_layer("memory_layout_does_not_matter", round=10)
def the_cell_states_last_stride_taken_as_one(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The stored cell states are read with a stride of one over the units, whatever it is."""
    c = entry.c
    if c.numel() and c.shape[-1] > 1 and c.stride(-1) > 1:
        entry = State(entry.h, c.as_strided(c.shape, (*c.stride()[:-1], 1)))
    return right(w, x, entry, starts)


@in_layer("expanded_states_are_read")
def an_expanded_input_shares_resets(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If the input is expanded over the batch, row 0's resets count for all rows."""
    if x.shape[1] > 1 and x.stride(1) == 0:
        starts = starts[:, :1].expand_as(starts)
    return right(w, x, entry, starts)


@in_layer("expanded_states_are_read")
def a_constant_input_is_one_sequence(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If the input is expanded over time, only the first step starts a sequence."""
    if len(x) > 1 and x.stride(0) == 0:
        starts = torch.cat([starts[:1], torch.zeros_like(starts[1:])])
    return right(w, x, entry, starts)


@in_layer("expanded_states_are_read")
def an_expanded_mask_is_read_as_packed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A reset mask that is expanded over the batch is read as if its rows lay one behind the other."""
    if starts.shape[1] > 1 and starts.stride(1) == 0:
        column = starts[:, 0]
        packed = torch.arange(starts.numel(), device=x.device).view(starts.shape) % len(column)
        starts = column[packed]
        starts[0] = True
    return right(w, x, entry, starts)
