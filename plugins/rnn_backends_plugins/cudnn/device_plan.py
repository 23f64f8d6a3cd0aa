"""A plan made on the device: the place of each step, without reading single sequences on the host. There are three
layouts, each with a fixed number of operators for any batch:

- **aligned at the end**: every sequence stays in its row, and the rows end together. A step's place is ``t`` plus one
  gap for each start before it in its row, plus what the row is shorter than the longest one (a cumulative sum). All
  synthetic steps are FLUSH, those in front of a row too: so every sequence has to start from zeros, and only the cell
  states at the row's end can be read. The host knows the largest number of starts in a row.
- **aligned at the begin**: the same, but the rows begin together, so that they may start from any state; after a row's
  last sequence steps hold its state.
- **buckets**: one sequence per row, sorted by length on the device, in blocks that the host has chosen by the lengths.
  No synthetic step is a cut here, so sequences may start from any state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import target
from .costs import Costs
from .inputs import CallInputs
from .plan import FLUSH, HOLD, PROBE, Block, _cuts
from .widened import FEATURES, ONLY_FLUSH, ONLY_HOLD, Kinds

NEAR = 1.25
"""If the rows have at most this many times the batch's steps, sequences stay in them without a search for a better
plan."""


@dataclass(eq=False)
class DevicePlan:
    """A plan. Indices into a batch are ``t * B + b``; cells are numbered over all blocks.

    Attributes:
        blocks: the blocks, which the kernel runs one after the other.
        cell: ``[T * B]``: the cell of each real step.
        kinds: of the synthetic steps.
        features: ``[cells, .]``: the last features of each synthetic step, on real steps any number; ``[1, .]`` if all
            are the same, and ``None`` if they are FLUSH.
        shows: ``[(T - 1) * B]``: the cell that shows the cell state after each step where a sequence ends, and the
            step's own cell elsewhere; ``None`` without probes.
        heads: ``[rows]``: index of each row's first step; ``None`` if it is the batch's own row, at ``t = 0``.
        tails: ``[rows]``: index of each row's last step, likewise.
        last: ``[B]``: the row in which each row of the batch ends, likewise.
    """

    blocks: tuple[Block, ...]
    cell: Tensor
    kinds: Kinds
    features: Tensor | None = None
    shows: Tensor | None = None
    heads: Tensor | None = None
    tails: Tensor | None = None
    last: Tensor | None = None


def make_device_plan(
    call: CallInputs, starts: Tensor, must_head: bool, from_zeros: bool, every_end: bool, costs: Costs
) -> DevicePlan:
    """The cheapest of the layouts.

    Args:
        call: the facts that the host has read.
        starts: ``[T, B]`` bool, on the device: the call's, or those of the reverse direction.
        must_head: whether every sequence must be the first of its row.
        from_zeros: whether every sequence starts from zeros.
        every_end: whether the cell state is required at every end (then a gap is three steps).
        costs: of a step and of a call, in cells.
    """
    T, B = starts.shape
    starts = starts.contiguous()  # so that all indices are contiguous
    steps = T + (3 if every_end else 1) * (call.most - 1)
    if not must_head and (steps <= NEAR * T or _stays_aligned(call, steps, B, costs)):
        return _aligned_at_end(starts, steps) if from_zeros and not every_end else _aligned(starts, steps, every_end)
    return _buckets(starts, call.lengths, _cuts(call.lengths, costs))


def _stays_aligned(call: CallInputs, steps: int, B: int, costs: Costs) -> bool:
    """Whether buckets would cost more."""
    lengths, cuts = call.lengths, _cuts(call.lengths, costs)
    bucketed = sum(int(lengths[first]) * (last - first + costs.step) + costs.call for first, last in cuts)
    return steps * (B + costs.step) + costs.call <= bucketed


def _aligned_at_end(starts: Tensor, steps: int) -> DevicePlan:
    T, B = starts.shape
    number = starts.cumsum(0)
    shorter = number.sub(number.select(0, -1)).view(-1)  # by the sequences that follow
    cell = torch.arange((steps - T) * B, steps * B, device=starts.device).add_(shorter, alpha=B)
    return DevicePlan((Block(0, steps, B),), cell, ONLY_FLUSH)


_PACKED = {kind: int(np.array(values, np.int8).view(np.int64)[0]) for kind, values in FEATURES.items()}
"""All features of a cell as one number, so that one fill sets them."""


def _aligned(starts: Tensor, steps: int, every_end: bool) -> DevicePlan:
    T, B = starts.shape
    gap = 3 if every_end else 1
    place = torch.arange(-gap * B, (T - gap) * B, device=starts.device).view(T, B)
    cell = place.add_(starts.cumsum(0), alpha=gap * B)
    real, shows = cell.view(-1), None
    # `kinds` begins one step (with probes: two) before the first cell, so that `real` is an index of the cells before
    # each step. Where no sequence starts, the fills hit real steps, or FLUSH steps, which the second one fills again.
    before = 2 if every_end else 1
    kinds = torch.full(((steps + before) * B, 1), _PACKED[HOLD], device=starts.device)
    if every_end:
        shows = cell[:-1].add(starts[1:], alpha=2 * B).view(-1)
        kinds.index_fill_(0, real, _PACKED[PROBE])
    kinds[(before - 1) * B :].index_fill_(0, real, _PACKED[FLUSH])
    features = kinds[before * B :].view(torch.int8)
    return DevicePlan(
        (Block(0, steps, B),), real, (HOLD, FLUSH, PROBE) if every_end else (HOLD, FLUSH), features, shows
    )


def _buckets(starts: Tensor, lengths: np.ndarray, cuts: list[tuple[int, int]]) -> DevicePlan:
    T, B = starts.shape
    device, number = starts.device, len(lengths)
    time = torch.arange(T, device=device).unsqueeze(1)
    row = torch.arange(B, device=device)
    first = torch.where(starts, time, 0).cummax(0)[0]
    later = torch.where(starts, time, T).flip(0).cummin(0)[0].flip(0)  # the next start, a start itself included
    end = torch.cat([later[1:], torch.full_like(later[:1], T)])  # behind each sequence's last step
    length = torch.where(starts, end - time, 0).view(-1)
    order = torch.sort(length, descending=True, stable=True)[1]
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(T * B, device=device))
    own = rank.index_select(0, (first * B + row).view(-1)).view(T, B)
    heads = order[:number]
    tails = (end.view(-1).index_select(0, heads) - 1) * B + heads % B
    blocks, cells = [], 0
    for begin, stop in cuts:
        blocks.append(Block(cells, int(lengths[begin]), stop - begin))
        cells += blocks[-1].steps * blocks[-1].rows
    table = np.array([(cut[1], block.first_cell - cut[0], block.rows) for cut, block in zip(cuts, blocks, strict=True)])
    stop, base, rows = target.send(torch.from_numpy(table.T.copy()), device)
    which = torch.bucketize(own, stop, right=True).view(-1)
    cell = base[which].view(T, B) + (time - first) * rows[which].view(T, B) + own
    return DevicePlan(
        tuple(blocks), cell.view(-1), ONLY_HOLD, torch.ones(1, 1, device=device), None, heads, tails, own[-1]
    )
