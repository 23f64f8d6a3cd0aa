"""The places of all sequences in the dense calls of a kernel without resets: plain integers, no mathematics. Sequences
are independent, so they are packed one after the other into the rows of a few dense blocks. Between two neighbours
there are synthetic steps that clear the state (and first show the cell state, if required); after the last sequence of
a row there are steps that hold its state. A sequence that starts from a stored state must be the first of its row.

::

    row 0   a a a a a a | b b b .       a, b, c, ...: sequences       |: FLUSH (or HOLD PROBE FLUSH)
    row 1   c c c | d d d | e e         .: HOLD
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .costs import Costs

REAL, FLUSH, HOLD, PROBE = range(4)
"""The kind of a cell of a block: a real step, or a synthetic one (see flush.py)."""

MAX_BLOCKS = 12

_FULL = 1 << 40

Ints = np.ndarray


@dataclass(frozen=True)
class Sequences:
    """All sequences of a ``[T, B]`` batch, row by row: ``row [n]``, ``first [n]`` (time), ``length [n]``."""

    T: int
    B: int
    row: Ints
    first: Ints
    length: Ints

    @classmethod
    def of(cls, starts: Ints) -> Sequences:
        """The sequences of ``starts [T, B]`` bool, true at ``t = 0``."""
        T, B = starts.shape
        row, first = np.nonzero(starts.T)
        last = np.append(first[1:], 0)
        last[np.append(row[1:] != row[:-1], True)] = T
        return cls(T, B, row, first, last - first)

    @cached_property
    def start_index(self) -> Ints:
        """``t * B + b`` of each sequence's first step."""
        index: Ints = self.first * self.B + self.row
        return index

    @cached_property
    def end_index(self) -> Ints:
        """``t * B + b`` of each sequence's last step."""
        index: Ints = self.start_index + (self.length - 1) * self.B
        return index

    @cached_property
    def is_final(self) -> Ints:
        """Whether each sequence ends with its row, at ``T - 1``."""
        ends: Ints = self.first + self.length == self.T
        return ends


@dataclass(frozen=True)
class Block:
    """A dense ``[steps, rows]`` piece; its cells are ``first_cell + step * rows + row``."""

    first_cell: int
    steps: int
    rows: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan. Indices into a batch are ``t * B + b``; cells are numbered over all blocks.

    Attributes:
        blocks: the blocks, which the kernel runs one after the other.
        kind: ``[cells]`` int64: ``REAL``, ``FLUSH``, ``HOLD`` or ``PROBE``.
        cell: ``[T * B]``: the cell of each real step.
        heads: ``[rows of all blocks]``: index of the first step of each row's first sequence.
        tails: likewise, of the last step of its last sequence, which has the kernel's final state.
        last: ``[B]``: for each row of the batch, the index in ``tails`` of its last step, if each row has one.
        probes: cells that show a cell state.
        probed: for each of them the index of the step with the shown cell state.
        flushes: the cells that are ``FLUSH``.
    """

    blocks: tuple[Block, ...]
    kind: Tensor
    cell: Tensor
    heads: Tensor
    tails: Tensor
    last: Tensor
    probes: Tensor
    probed: Tensor
    flushes: Tensor


def make_plan(seqs: Sequences, must_head: Ints, every_end: bool, costs: Costs) -> Plan:
    """Make a plan. There is no search for a better plan if it could save less than the search costs.

    Args:
        seqs: the sequences.
        must_head: ``[n]`` bool: the sequences that may start from a state other than zero.
        every_end: whether the cell state is required at every end (then a gap is three steps), or only for the
            sequences that end with their row of the batch (then those are the last of their rows).
        costs: of steps, calls and the search.
    """
    gap = 3 if every_end else 1
    everything = np.arange(len(seqs.row))
    if not (must_head & (seqs.first > 0)).any():
        aligned = _aligned(seqs, gap)
        if _cost([aligned], costs) <= _least_cost(seqs, costs) + costs.search(len(seqs.row)):
            return _assemble(seqs, [aligned], gap)
    options = [_buckets(seqs, everything, costs)]
    if must_head.sum() <= seqs.B:
        options.append([_tile(seqs, everything, must_head, gap, every_end, costs)])
    elif not must_head.all():
        rest = everything[~must_head]
        tiled = _tile(seqs, rest, must_head[rest], gap, every_end, costs)
        options.append([*_buckets(seqs, everything[must_head], costs), tiled])
    return _assemble(seqs, min(options, key=lambda places: _cost(places, costs)), gap)


def aligned_plan(seqs: Sequences, every_end: bool) -> Plan:
    """The plan that keeps every sequence in its row."""
    gap = 3 if every_end else 1
    return _assemble(seqs, [_aligned(seqs, gap)], gap)


def tiled_plan(seqs: Sequences, rows: int, every_end: bool) -> Plan:
    """The plan that packs all sequences, none from a stored state, into this many rows."""
    gap, everything = 3 if every_end else 1, np.arange(len(seqs.row))
    return _assemble(seqs, [_tile(seqs, everything, np.zeros(len(seqs.row), bool), gap, every_end, rows)], gap)


def _cost(places: list[_Place], costs: Costs) -> float:
    """In cells."""
    return sum(place.steps * (place.rows + costs.step) + costs.call for place in places)


def _least_cost(seqs: Sequences, costs: Costs) -> float:
    """A lower bound of every plan's cost: one block without synthetic steps."""
    return seqs.T * seqs.B + int(seqs.length.max()) * costs.step + costs.call


@dataclass(frozen=True)
class _Place:
    """Sequences of one block: their indices, rows and first steps, and whether they are the first or last of their
    row."""

    which: Ints
    row: Ints
    step: Ints
    is_head: Ints
    is_tail: Ints
    steps: int
    rows: int


def _aligned(seqs: Sequences, gap: int) -> _Place:
    """Every sequence stays in its row of the batch, delayed by one gap for each sequence before it in the row."""
    is_head = seqs.first == 0
    n = np.arange(len(seqs.row))
    step = seqs.first + gap * (n - np.maximum.accumulate(np.where(is_head, n, 0)))
    return _Place(n, seqs.row, step, is_head, seqs.is_final, int((step + seqs.length).max()), seqs.B)


def _tile(seqs: Sequences, which: Ints, must_head: Ints, gap: int, every_end: bool, costs: Costs | int) -> _Place:
    """Longest first into the emptiest row; heads before all others, the batch's final sequences after them.

    The number of rows is the cheapest by ``costs``, or the given one.
    """
    length = seqs.length[which]
    final = seqs.is_final[which] & (not every_end)
    head_and_final = (
        must_head & final
    )  # a head that is also final: nothing may follow it, so the others need another row
    least = (must_head.sum(), final.sum(), head_and_final.sum() + (not must_head.all()))
    rows = costs if isinstance(costs, int) else _best_rows(length, gap, seqs.B, costs)
    rows = max(rows, *map(int, least))
    rank = np.where(must_head, 0, np.where(final, 1, 2))
    order = np.lexsort((-length, rank))
    load = np.zeros(rows, np.int64)
    row = np.empty(len(which), np.int64)
    capacity = max(int(length.max()), -(-int(length.sum() + gap * (len(which) - rows)) // rows)) + gap
    for group in (0, 1, 2):
        _fill(order[rank[order] == group], length + gap, load, row, capacity, once=group < 2)
        load[row[head_and_final]] = _FULL if group == 0 else load[row[head_and_final]]
    return _in_rows(which, length, row, np.where(final & ~must_head, 3, rank), gap, rows)


def _fill(waiting: Ints, size: Ints, load: Ints, row: Ints, capacity: int, once: bool) -> None:
    """Give each waiting sequence a row, in rounds: the longest is tried in the emptiest row, and waits if it does not
    fit. ``load`` and ``row`` are written. ``once``: no row takes two of these.
    """
    while len(waiting):
        rows = np.argsort(load, kind="stable")[: len(waiting)]
        meets = waiting[: len(rows)]
        fits = (load[rows] + size[meets] <= capacity) | once
        if not fits.any():
            capacity = int((load[rows] + size[meets]).min())
            continue
        row[meets[fits]] = rows[fits]
        load[rows[fits]] += size[meets[fits]]
        waiting = np.concatenate([meets[~fits], waiting[len(rows) :]])


def _in_rows(which: Ints, length: Ints, row: Ints, rank: Ints, gap: int, rows: int) -> _Place:
    """First steps from rows: the sequences of one row follow each other by rank, with gaps between them."""
    order = np.lexsort((rank, row))
    which, length, row = which[order], length[order], row[order]
    is_head = np.append(True, row[1:] != row[:-1])
    is_tail = np.append(is_head[1:], True)
    before = np.cumsum(length + gap) - (length + gap)
    step = before - np.maximum.accumulate(np.where(is_head, before, 0))
    return _Place(which, row, step, is_head, is_tail, int((step + length).max()), rows)


def _best_rows(length: Ints, gap: int, B: int, costs: Costs) -> int:
    """The cheapest number of rows of a block, among ``B`` times powers of two and a few more."""
    n, total = len(length), int(length.sum()) + gap * len(length)
    fewest = -(-total // int(length.max()))  # the fewest rows in which the longest sequence sets the steps
    options = [min(n, rows) for rows in (B, fewest, 2 * B, 4 * B, 8 * B)] + [n]

    def cost(rows: int) -> float:
        return max(int(length.max()), -(-(total - gap * rows) // rows)) * (rows + costs.step)

    return min(options, key=cost)


def _buckets(seqs: Sequences, which: Ints, costs: Costs) -> list[_Place]:
    """One sequence per row, in a few blocks of similar lengths."""
    which = which[np.argsort(-seqs.length[which], kind="stable")]
    places = []
    for first, last in _cuts(seqs.length[which], costs):
        part = which[first:last]
        yes, row = np.ones(len(part), bool), np.arange(len(part))
        places.append(_Place(part, row, 0 * row, yes, yes, int(seqs.length[part[0]]), len(part)))
    return places


def _cuts(length: Ints, costs: Costs) -> list[tuple[int, int]]:
    """Cut a descending list of lengths into at most MAX_BLOCKS pieces of minimal total cost, by dynamic programming.
    The cost is convex in the number of pieces (the costs have Monge's property), so the search ends at the first number
    of pieces that saves nothing.
    """
    edges = np.unique(np.linspace(0, len(length), 33).astype(int))
    ahead = edges[None, :] - edges[:, None]  # [from, to]
    price = np.where(ahead > 0, np.append(length, 0)[edges][:, None] * (ahead + costs.step) + costs.call, _FULL)
    best, origins = np.where(edges == 0, 0, _FULL), []
    for _ in range(MAX_BLOCKS):
        total = np.concatenate([best[:, None] + price, best[None, :]])  # one block more, or none
        origins.append(np.where(total.argmin(0) == len(edges), -1, total.argmin(0)))
        before, best = best[-1], total.min(0)
        if best[-1] >= before:
            break
    cuts, k = [], len(edges) - 1
    for back in reversed(origins):
        if back[k] >= 0 and k > 0:
            cuts.append((int(edges[back[k]]), int(edges[k])))
            k = int(back[k])
    return cuts[::-1]


def _assemble(seqs: Sequences, places: list[_Place], gap: int) -> Plan:
    blocks, kinds, heads, tails, probes, probed = [], [], [], [], [], []
    cell_of = np.empty(len(seqs.row), np.int64)  # of each sequence's first step
    stride = np.empty(len(seqs.row), np.int64)
    cells = 0
    for place in places:
        blocks.append(Block(cells, place.steps, place.rows))
        at = cells + place.step * place.rows + place.row
        cell_of[place.which], stride[place.which] = at, place.rows
        kind = np.full(place.steps * place.rows, HOLD, np.int64)
        inner = ~place.is_head
        kind[at[inner] - place.rows - cells] = FLUSH
        if gap == 3:
            shown = at[inner] - 2 * place.rows
            kind[shown - cells] = PROBE
            probes.append(shown)
            probed.append(seqs.end_index[place.which[~place.is_tail]])
        kinds.append(kind)
        heads.append(seqs.start_index[place.which[place.is_head]])
        tails.append(seqs.end_index[place.which[place.is_tail]])
        cells += place.steps * place.rows
    kind, cell = np.concatenate(kinds), _cell_of_steps(seqs, cell_of, stride)
    kind[cell] = REAL
    none = [np.empty(0, np.int64)]
    head, tail, probe, shows = (np.concatenate(v or none) for v in (heads, tails, probes, probed))
    final = np.flatnonzero(tail >= (seqs.T - 1) * seqs.B)
    last = final[tail[final].argsort()]
    arrays = (kind, cell, head, tail, last, probe, shows, np.flatnonzero(kind == FLUSH))
    return Plan(tuple(blocks), *(torch.from_numpy(v) for v in arrays))


def _cell_of_steps(seqs: Sequences, cell_of: Ints, stride: Ints) -> Ints:
    """``[T * B]``: the cell of each step, from the cells of the sequences' first steps."""
    sequence = np.repeat(np.arange(len(seqs.row)), seqs.length)  # sequences row by row, so steps are [B, T]
    t = np.tile(np.arange(seqs.T), seqs.B)
    cell = cell_of[sequence] + (t - seqs.first[sequence]) * stride[sequence]
    return np.ascontiguousarray(cell.reshape(seqs.B, seqs.T).T).reshape(-1)
