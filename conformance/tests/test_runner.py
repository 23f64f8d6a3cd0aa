"""The runner: verdicts, shrinking, replay, reports that reconcile."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from rnn_backends import LSTMBackend, State, UnsupportedError, get_backend
from rnn_conformance.check import check_backend, replay
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.report.model import Report
from rnn_conformance.suite import runner
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.inputs import Rollout
from rnn_conformance.suite.tolerances import worst_row

LAW = "output_equals_reference"
unroll = get_backend("vmap").layer


def wrong(w, x, entry, starts):
    found = unroll(w, x, entry, starts)
    return State(found.h * (1 + 1e-3 * (torch.arange(len(x)).reshape(-1, 1, 1) > 0)), found.c)


def check(layer, laws=(LAW,), **options):
    options = {"profile": "smoke", "rollouts": (), **options}
    return check_backend(LSTMBackend("mine", layer), laws=list(laws), **options)


def test_a_failure_says_where_how_much_and_replays_small(monkeypatch):
    monkeypatch.setattr(runner, "SHRINK_SECONDS", 600.0)  # a slow machine gets as far as a fast one
    report = check(wrong, seed=0)
    (result,) = report.results
    assert not report.ok
    assert result.verdict == "failed"
    assert result.message.startswith("output differs first at [t=")
    assert "expected" in result.message
    assert result.worst_error_ratio > 1e6
    case = Case.parse(result.token)
    assert (case.T, case.B, case.L) == (2, 1, 1), "shrunk to the smallest"
    again = replay(LSTMBackend("mine", wrong), LAW, result.token)
    assert (again.verdict, again.message) == (result.verdict, result.message)
    assert replay("vmap", LAW, result.token).verdict == "passed"


def test_a_backend_is_not_failed_by_a_law_that_is_newer_than_its_contract_version(monkeypatch):
    newer = dataclasses.replace(LAWS[LAW], since=2)
    monkeypatch.setitem(LAWS, LAW, newer)
    report = check(wrong, seed=0)
    (result,) = report.results
    assert report.ok
    assert (result.verdict, result.cases) == ("declined", 0)
    assert result.message == "a law since contract version 2; the backend is made for 1"
    assert replay(LSTMBackend("mine", wrong), LAW, "T2.B1.I1.H1.f32.s0").verdict == "declined"
    monkeypatch.setattr("rnn_backends.contract.CONTRACT_VERSION", 2)
    assert newer.not_yet(LSTMBackend("mine", wrong, contract_version=2)) is None
    assert all(law.since == 1 for law in LAWS.values() if law is not newer), "contract version 1 has all of these"


def test_the_same_seed_gives_the_same_report():
    one, two = check(wrong, seed=5, shrink=False), check(wrong, seed=5, shrink=False)
    assert [dataclasses.replace(r, seconds=0) for r in one.results] == [
        dataclasses.replace(r, seconds=0) for r in two.results
    ]


def test_an_assertion_of_somebody_else_is_a_crash():
    def asserts(w, x, entry, starts):
        raise AssertionError("of the backend's own")

    (result,) = check(asserts, shrink=False).results
    assert result.verdict == "crashed"
    assert "of the backend's own" in result.message


def test_a_crash_is_not_a_failure_of_the_law():
    def crashes(w, x, entry, starts):
        raise RuntimeError("no such kernel")

    (result,) = check(crashes, shrink=False).results
    assert result.verdict == "crashed"
    assert result.message == "RuntimeError: no such kernel"


def test_declining_what_was_accepted_is_a_failure():
    def declines(w, x, entry, starts):
        raise UnsupportedError("mine", "this", "too late")

    (result,) = check(declines, shrink=False).results
    assert result.verdict == "failed"
    assert "accepted at construction" in result.message


def test_nan_where_a_number_was_expected_is_infinitely_wrong():
    (result,) = check(lambda w, x, e, s: State(unroll(w, x, e, s).h * float("nan"), e.c), shrink=False).results
    assert result.verdict == "failed"
    assert math.isinf(result.worst_error_ratio)
    assert worst_row(torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2), 0) == math.inf


def test_report_round_trips_and_an_incomplete_one_is_refused():
    report = check(unroll, laws=["one_step", "one_row"], seed=1)
    assert report.ok
    assert Report.from_json(report.to_json()) == report
    short = Report(report.header, report.results[:1])
    assert not short.complete
    assert not short.ok
    assert short.missing == ("one_row",)
    with pytest.raises(ValueError, match=r"incomplete.*one_row"):
        Report.from_json(short.to_json())
    twice = Report(report.header, [*report.results, report.results[0]])
    assert twice.unexpected == ("one_step",)
    with pytest.raises(ValueError, match="not a report"):
        Report.from_json("{}")


def test_laws_are_chosen_by_name_or_part_and_unknown_ones_are_errors():
    assert [r.law for r in check(unroll, laws=["one_row"]).results] == ["one_row"]
    names = [r.law for r in check(unroll, laws=["batch_"]).results]
    assert names == [n for n, law in LAWS.items() if "batch_" in n and law.belongs("smoke")]
    with pytest.raises(ValueError, match="one_row"):
        check(unroll, laws=["one_roww"])
    with pytest.raises(ValueError, match="smoke, quick, full"):
        check_backend("vmap", profile="fast")


def test_progress_counts_every_law():
    seen = []
    check(unroll, laws=["one_step", "one_row"], on_progress=lambda *call: seen.append(call))
    assert seen == [("one_step", 0, 2), ("one_row", 1, 2), ("", 2, 2)]


def test_rollouts_are_run_over_and_named():
    is_init = torch.zeros(2, 9, dtype=torch.bool)
    is_init[:, 0], is_init[1, 4:6] = True, True
    rollout = Rollout("Recorded-v0", torch.randn(2, 9, 3), is_init)
    good = check(unroll, rollouts=[rollout], profile="quick")
    assert good.ok
    assert good.header.rollouts == ("Recorded-v0",)
    assert good.results[0].cases == check(unroll, profile="quick", seed=good.header.seed).results[0].cases + 1

    def wrong_when_long(w, x, entry, starts):
        return wrong(w, x, entry, starts) if len(x) == 9 else unroll(w, x, entry, starts)

    (result,) = check(wrong_when_long, rollouts=[rollout], profile="quick").results
    assert result.verdict == "failed"
    assert result.token.startswith("Recorded-v0:H4.f64.s")


def test_global_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    check(unroll, laws=["dropout", "one_row"])
    assert torch.equal(before, torch.random.get_rng_state())
