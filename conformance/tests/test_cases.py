"""Cases: tokens replay, drawn values fit, inputs match the case."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.suite.case import LAYOUTS, Case, pattern
from rnn_conformance.suite.inputs import materialise, weight_shapes
from rnn_conformance.suite.strategies import CHOICES, cases, rich

quiet = hypothesis.settings(database=None, deadline=None, max_examples=60)


@quiet
@given(cases({}))
def test_token_replays(case):
    assert Case.parse(case.token) == case


def test_token_is_stable():
    case = Case(4, 2, 3, 5, L=2, P=1, bias=False, bidirectional=True, dropout=30, dtype="f32", resets=0x1A, seed=7)
    assert case.token == "T4.B2.I3.H5.L2.P1.nobias.bi.d30.f32.r1a.s7"
    assert Case(2, 1, 1, 1).token == "T2.B1.I1.H1.f64.s0"


@pytest.mark.parametrize(
    ("token", "says"),
    [("T2.B1.I1.Q3", "'Q3'"), ("T2.B1.I1", "lacks H"), ("T2.T3.B1.I1.H1", "repeats T"), ("", "''")],
)
def test_a_bad_token_says_what_is_wrong(token, says):
    with pytest.raises(ValueError, match=says):
        Case.parse(token)


@pytest.mark.parametrize("name", LAWS)
def test_rich_cases_fit_every_law(name):
    where = LAWS[name].where
    found = rich(where)
    assert found
    for case in found:
        for field, allowed in where.items():
            if field not in ("resets", "P"):
                assert getattr(case, field) in allowed
        assert case.P < case.H
        assert case.resets < 1 << case.T * case.B or case.B == 0
    assert set(where) <= set(CHOICES), "a misspelt field would be ignored"


def test_patterns():
    assert pattern("consecutive", 5, 1) == 0b00110
    assert pattern("last", 3, 2) == 0b100_100
    assert pattern("all", 2, 2) == 0b11_11
    assert pattern("first", 2, 2) == 0b01_01
    assert pattern("none", 2, 2) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_memory_and_not_numbers(layout):
    plain = materialise(Case(4, 3, 2, 2, seed=5))
    other = materialise(Case(4, 3, 2, 2, seed=5, layout=layout))
    assert torch.equal(plain.x, other.x)
    assert torch.equal(plain.starts, other.starts)
    assert plain.starts[0].all()
    if layout in ("transposed", "strided"):
        assert not other.x.is_contiguous()
    if layout == "offset":
        assert other.x.storage_offset() > 0


def test_dtypes_see_the_same_numbers():
    wide, narrow = materialise(Case(3, 2, 2, 2, seed=9)), materialise(Case(3, 2, 2, 2, seed=9, dtype="f32"))
    assert torch.equal(wide.x.float(), narrow.x)
    assert narrow.weights["weight_ih_l0"].dtype == torch.float32


def test_weight_shapes_are_torchs():
    case = Case(1, 1, 3, 4, L=2, P=2, bidirectional=True)
    lstm = torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    assert {n: tuple(p.shape) for n, p in lstm.named_parameters()} == weight_shapes(case)


def test_a_case_without_rows_is_possible_and_replayed() -> None:
    from rnn_conformance.check import replay

    assert Case.parse("T2.B0.I1.H1.f64.s0").B == 0
    assert replay("vmap", "no_rows", "T2.B0.I1.H1.f64.s0").verdict == "passed"
