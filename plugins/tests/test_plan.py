"""Plans: every real step has its own cell, sequences stay whole, and the cuts between them are complete."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rnn_backends_plugins.cudnn.costs import ELSEWHERE, Costs, costs_of
from rnn_backends_plugins.cudnn.plan import FLUSH, HOLD, PROBE, REAL, Sequences, _cuts, make_plan

AS_IT_IS, SEARCHING = Costs(8, 128, 0.5), Costs(8, 128, -1e6)
"""Small batches stay aligned because the search costs time; a free search tests tiles and buckets."""


@st.composite
def batches(draw):
    T, B = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    starts = rng.random((T, B)) < draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    starts[0] = True
    seqs = Sequences.of(starts)
    must_head = rng.random(len(seqs.row)) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    return starts, seqs, must_head, draw(st.booleans()), draw(st.sampled_from([AS_IT_IS, SEARCHING]))


def cell_map(plan):
    """cell -> (block, step, row)."""
    where = {}
    for k, block in enumerate(plan.blocks):
        for step in range(block.steps):
            for row in range(block.rows):
                where[block.first_cell + step * block.rows + row] = (k, step, row)
    return where


def by_row(plan):
    """(block, row) -> the kinds of its cells, step by step, and the batch index of the real ones."""
    index_of = {int(cell): index for index, cell in enumerate(plan.cell)}
    rows = {}
    for cell, (k, _, row) in cell_map(plan).items():
        rows.setdefault((k, row), []).append((int(plan.kind[cell]), index_of.get(cell)))
    return list(rows.values())


@settings(max_examples=150, deadline=None)
@given(batches())
def test_every_step_has_its_own_cell(batch):
    starts, seqs, must_head, every_end, costs = batch
    plan = make_plan(seqs, must_head, every_end, costs)
    assert len(set(plan.cell.tolist())) == starts.size
    assert (plan.kind[plan.cell] == REAL).all()
    assert int((plan.kind == REAL).sum()) == starts.size
    assert len(plan.kind) == sum(b.steps * b.rows for b in plan.blocks)


@settings(max_examples=150, deadline=None)
@given(batches())
def test_rows_are_whole_sequences_with_complete_cuts_between_them(batch):
    starts, seqs, must_head, every_end, costs = batch
    B = starts.shape[1]
    plan = make_plan(seqs, must_head, every_end, costs)
    ends = np.append(starts[1:], np.ones((1, B), bool), 0).reshape(-1)
    starts = starts.reshape(-1)
    forced = set(seqs.start_index[must_head].tolist())
    cut = [HOLD, PROBE, FLUSH] if every_end else [FLUSH]
    rows, shown = by_row(plan), dict(zip(plan.probes.tolist(), plan.probed.tolist(), strict=True))
    for cells, head, tail in zip(rows, plan.heads.tolist(), plan.tails.tolist(), strict=True):
        assert cells[0][1] == head
        before, last_end, gap = None, None, []
        for kind, index in cells:
            if kind != REAL:
                gap.append(kind)
                continue
            if starts[index]:
                assert index == head or index not in forced
                assert index == head or gap == cut
            else:
                assert not gap
                assert index == before + B
            before, gap = index, []
            last_end = index if ends[index] else last_end
        assert last_end == tail == before
        assert set(gap) <= {HOLD}
    assert (sorted([*plan.tails.tolist(), *shown.values()]) == np.flatnonzero(ends).tolist()) or not every_end


@settings(max_examples=150, deadline=None)
@given(batches())
def test_probes_stand_behind_the_step_they_show(batch):
    _, seqs, must_head, _, costs = batch
    plan = make_plan(seqs, must_head, True, costs)
    where = cell_map(plan)
    for probe, end in zip(plan.probes.tolist(), plan.probed.tolist(), strict=True):
        k, step, row = where[probe]
        assert where[int(plan.cell[end])] == (k, step - 2, row)


@settings(max_examples=150, deadline=None)
@given(batches())
def test_final_sequences_are_tails_when_only_they_are_asked_for(batch):
    starts, seqs, must_head, _, costs = batch
    plan = make_plan(seqs, must_head, False, costs)
    T, B = starts.shape
    assert sorted(i for i in plan.tails.tolist() if i >= (T - 1) * B) == list(range((T - 1) * B, T * B))


@pytest.mark.parametrize("every_end", [True, False])
@pytest.mark.parametrize("rate", [0.01, 0.03, 0.2])
@pytest.mark.parametrize("costs", [AS_IT_IS, SEARCHING])
def test_few_resets_cost_few_steps(every_end, rate, costs):
    """The cost by the planner's own measure."""
    rng = np.random.default_rng(0)
    starts = rng.random((128, 64)) < rate
    starts[0] = True
    seqs = Sequences.of(starts)
    plan = make_plan(seqs, np.zeros(len(seqs.row), bool), every_end, costs)
    assert sum(b.steps * (b.rows + costs.step) for b in plan.blocks) < 1.3 * 128 * (64 + costs.step)


def test_a_small_batch_stays_aligned():
    """Without much to save there is no search: row and order remain, each cut is one step more."""
    starts = np.zeros((12, 3), bool)
    starts[0], starts[4, 1], starts[6, 1], starts[5, 2] = True, True, True, True
    seqs = Sequences.of(starts)
    plan = make_plan(seqs, np.zeros(len(seqs.row), bool), False, Costs(8, 128, 1.5))
    assert [(block.steps, block.rows) for block in plan.blocks] == [(14, 3)]
    t, b = np.divmod(np.arange(36), 3)
    late = np.cumsum(starts, 0)[t, b] - 1
    assert (plan.cell.numpy() == (t + late) * 3 + b).all()


@settings(max_examples=150, deadline=None)
@given(batches())
def test_the_last_step_of_each_row_is_found_in_the_rows_order(batch):
    starts, seqs, must_head, _, costs = batch
    T, B = starts.shape
    plan = make_plan(seqs, must_head, False, costs)
    assert plan.tails[plan.last].tolist() == [(T - 1) * B + b for b in range(B)]


def test_costs_follow_the_size_and_the_kernel():
    small, large = (costs_of(H, torch.float32, "cpu", fused=True, train=True) for H in (32, 512))
    assert small.step > large.step > 1  # in cells; a small cell takes little time
    assert costs_of(128, torch.float32, "cpu", fused=False, train=True).step > 10
    assert costs_of(128, torch.float64, "cpu", fused=False, train=True).step > 5
    forward, train = (costs_of(128, torch.float32, "cpu", fused=True, train=train) for train in (False, True))
    assert forward.search(100) == pytest.approx(3 * train.search(100))  # less time to save
    assert costs_of(128, torch.float32, "cuda", fused=False, train=True) == ELSEWHERE


def test_a_step_that_costs_much_is_shared_by_more_rows():
    """The same sequences: with expensive steps they are packed into more rows, and so take fewer steps."""
    rng = np.random.default_rng(1)
    starts = rng.random((256, 8)) < 0.05
    starts[0] = True
    seqs = Sequences.of(starts)
    cheap, dear = (make_plan(seqs, np.zeros(len(seqs.row), bool), True, Costs(step, 300, -1e6)) for step in (1, 60))
    assert len(dear.blocks) == 1
    assert dear.blocks[0].steps < cheap.blocks[0].steps


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 3, 10, 60, 90]), min_size=1, max_size=9),
    st.sampled_from([0, 1, 20]),
    st.sampled_from([0, 5, 40, 400]),
)
def test_no_other_cuts_cost_less(lengths, step, call):
    lengths = np.array(sorted(lengths, reverse=True))
    n = len(lengths)

    def cost(cuts):
        return sum(int(lengths[first]) * (last - first + step) + call for first, last in cuts)

    def every(first):
        if first == n:
            yield []
        for last in range(first + 1, n + 1):
            for rest in every(last):
                yield [(first, last), *rest]

    found = _cuts(lengths, Costs(step, call, 0))
    assert cost(found) == min(map(cost, every(0)))
    assert [last for _, last in found[:-1]] == [first for first, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, n)
