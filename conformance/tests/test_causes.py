"""Failures grouped by cause: the plainest law is shown, the others are counted."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rnn_backends import LayerWeights, LSTMBackend, State, get_backend
from rnn_conformance.check import check_backend
from rnn_conformance.report.causes import causes
from rnn_conformance.report.model import BackendRun, Results
from rnn_conformance.report.terminal import failures_text, runs_table
from rnn_conformance.suite.verdict import LawResult
from torch import Tensor

right = get_backend("vmap").layer


def failed(law: str, cause: str = "", verdict: str = "failed") -> LawResult:
    return LawResult("mine", law, verdict, 3, message="wrong", token="T2.B1.I1.H1.f64.s0", cause=cause)  # type: ignore[arg-type]


def test_laws_that_fail_where_a_plainer_one_fails_are_its_others() -> None:
    worst = failed("double_backward", "output", "silently_wrong")
    found = causes([worst, failed("layers"), failed("output"), failed("no_bias", "output")], ("output", "layers"))
    assert [(cause.first.law, [other.law for other in cause.others]) for cause in found] == [
        ("output", ["double_backward", "no_bias"]),
        ("layers", []),
    ]


def test_a_cause_that_is_waived_or_gone_leaves_its_laws_to_themselves() -> None:
    assert [cause.first.law for cause in causes([failed("layers", "output")], ("output", "layers"))] == ["layers"]


def scaled(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    found = right(w, x, entry, starts)
    return State(1.001 * found.h, found.c)


def test_one_bug_is_one_cause_and_the_first_told_is_the_plainest() -> None:
    report = check_backend(LSTMBackend("scaled", scaled), profile="smoke", seed=3)
    assert len(report.failures) > 30
    assert report.failures[0].verdict == "silently_wrong"
    (only,) = causes(report.failures, report.header.expected)
    assert only.first.law == "output_equals_reference"
    run = BackendRun("scaled", report)
    text = failures_text(run, Results("smoke", 3, {}, report.header.expected, (run,)))
    assert text.startswith("✗ scaled: output_equals_reference (failed)")
    assert (
        f"also    {len(only.others)} laws fail where this one fails too: output_equals_reference_in_float32, " in text
    )


def test_two_bugs_are_two_causes() -> None:
    def two(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        found = right(w, x, entry, starts)
        if len(x) == 1:
            return State(1.001 * found.h, found.c)
        return State(found.h + 0 * found.h.sum(1, keepdim=True), found.c)  # NaN of one row reaches the others

    report = check_backend(LSTMBackend("two", two), profile="smoke", seed=3, laws=["one_step", "nan_stays_in_its_row"])
    assert len(report.failures) == 2
    assert [cause.others for cause in causes(report.failures, report.header.expected)] == [(), ()]


def test_the_table_fits_eighty_columns_and_breaks_no_word() -> None:
    results = [failed("output"), *(LawResult("mine", f"law{k}", "declined") for k in range(100))]
    report = check_backend(LSTMBackend("scaled", scaled), profile="smoke", seed=3, laws=["one_row"])
    run = BackendRun("never-resets", type(report)(report.header, results))
    console = Console(width=80, record=True, file=StringIO())
    console.print(runs_table([run]))
    heading = console.export_text().splitlines()[1]
    assert heading.split() == ["backend", "verdict", "passed", "declined", "failed", "error", "time"]
