"""Reports as JSON lines, and the difference of two."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console
from rnn_conformance.report.diff import changes
from rnn_conformance.report.model import BackendRun, Header, LawInfo, Report, ReportError, Results
from rnn_conformance.report.terminal import print_results
from rnn_conformance.suite.verdict import LawResult

LAWS = {name: LawInfo("values", f"{name} holds.") for name in ("one", "two", "three")}


def results(**verdicts: str) -> Results:
    """One backend that passes all laws except the given ones."""
    rows = [
        LawResult(
            "mine", law, verdicts.get(law, "passed"), 3, 1, math.inf if law == "two" else 0.1, "a\u2028b", "T2", 0.5
        )  # type: ignore[arg-type]
        for law in LAWS
    ]
    header = Header("mine", "cpu", "quick", 7, tuple(LAWS), {"torch": "2"}, ("CartPole",), ("vmap",))
    return Results(
        "quick", 7, LAWS, tuple(LAWS), (BackendRun("mine", Report(header, rows), time_ratio=1.5),), False,
        ("CartPole",), 9.0, {"torch": "2"}, "2027-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_what_is_written_is_read_again() -> None:
    assert Results.from_json(results().to_json()) == results()
    assert Results.from_json(results(one="failed").to_json()).status == 1


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_time_on_a_gpu_is_said_to_be_no_measure_of_speed(device: str) -> None:
    found = results()
    found = replace(found, runs=tuple(replace(run, device=device) for run in found.runs))
    written = Console(record=True, width=150, file=io.StringIO())
    print_results(found, written, "CartPole-v1")
    assert ("little about speed" in written.export_text()) == (device != "cpu")


def test_each_line_is_json_by_the_letter() -> None:
    written = [line for line in results(one="crashed").to_json().split("\n") if line]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in written]
    assert [row["kind"] for row in rows] == ["header", "result", "result", "result", "footer"]
    assert rows[0]["runs"][0]["expected"] == list(LAWS)
    assert rows[2]["worst_error_ratio"] == "inf"
    assert rows[-1] == {
        "kind": "footer", "results": 3, "verdicts": {"crashed": 1, "passed": 2}, "complete": True, "status": 1,
        "seconds": 9.0,
    }  # fmt: skip


def lines(change) -> str:
    """The report with changed lines."""
    rows = [json.loads(line) for line in results().to_json().split("\n") if line]
    change(rows)
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.pop(), "no footer: it is truncated"),
        (lambda rows: rows.pop(2), "mine has no result of two"),
        (lambda rows: rows.insert(1, rows[1].copy()), "unexpected result of one"),
        (lambda rows: rows[1].update(law="four"), "no result of one; mine has an unexpected result of four"),
        (lambda rows: rows[1].update(backend="yours"), "does not expect a result of yours on cpu"),
        (lambda rows: rows[1].update(device="cuda"), "does not expect a result of mine on cuda"),
        (lambda rows: rows[0]["runs"][0]["expected"].append("four"), "mine has no result of four"),
        (lambda rows: rows[0].update(runs=[]), "does not expect"),
        (lambda rows: rows[0].update(format="rnn-conformance 99"), "not a header of the format"),
        (lambda rows: rows.pop(0), "not a header of the format"),
        (lambda rows: rows[-1].update(results=47), "the footer counts 47 results, there are 3"),
        (lambda rows: rows[-1].update(verdicts={"failed": 1, "passed": 2}), "the footer counts the verdicts"),
        (lambda rows: rows[-1].update(status=1), "the footer says exit status 1, the results give 0"),
        (lambda rows: rows[1].update(verdict="great"), "one has the unknown verdict 'great'"),
        (lambda rows: rows[1].update(colour="red"), "has unknown fields: colour"),
        (lambda rows: rows[0]["runs"][0].update(reason="interrupted"), "mine was not run: interrupted"),
        (lambda rows: rows.clear(), "not a report"),
    ],
)
def test_a_report_that_does_not_reconcile_is_refused(change, says: str) -> None:
    with pytest.raises(ReportError) as caught:
        Results.from_json(lines(change))
    assert says in str(caught.value)


@pytest.mark.parametrize("written", ["", "{", "[]", "null", '"text"', "{}", results().to_json()[:300]])
def test_what_is_no_report_is_refused(written: str) -> None:
    with pytest.raises(ReportError, match="not a report"):
        Results.from_json(written)


def test_an_incomplete_run_is_written_and_refused_when_read() -> None:
    short = replace(results(), runs=(BackendRun("mine", reason="interrupted"),))
    written = short.to_json()
    assert json.loads(written.splitlines()[-1])["complete"] is False
    with pytest.raises(ReportError, match="mine was not run: interrupted"):
        Results.from_json(written)


@pytest.mark.parametrize(
    ("old", "new", "kind", "bad"),
    [
        ("passed", "failed", "worse", True),
        ("passed", "declined", "worse", True),
        ("failed", "silently_wrong", "worse", True),
        ("failed", "passed", "better", False),
        ("declined", "under_claimed", "better", False),
        ("under_claimed", "passed", "better", False),
    ],
)
def test_a_difference_is_better_or_worse(old: str, new: str, kind: str, bad: bool) -> None:
    (change,) = changes(results(two=old), results(two=new))
    assert (change.kind, change.law, change.bad) == (kind, "two", bad)


def test_no_difference_is_none() -> None:
    assert changes(results(two="failed"), results(two="failed")) == []


def test_what_is_gone_and_what_is_new() -> None:
    whole = results(one="failed")
    part = replace(whole.runs[0].report, results=whole.runs[0].results[1:])  # type: ignore[type-var]
    short = replace(whole, runs=(replace(whole.runs[0], report=part),))
    (gone,) = changes(whole, short)
    assert (gone.kind, gone.law, gone.bad) == ("gone", "one", False)
    (new,) = changes(short, whole)
    assert (new.kind, new.law, new.bad) == ("new", "one", True)


def test_a_waiver_that_goes_away_makes_it_worse() -> None:
    failed = results(two="failed")
    rows = [replace(r, waived="known") if r.law == "two" else r for r in failed.runs[0].results]
    report = replace(failed.runs[0].report, results=rows)  # type: ignore[type-var]
    waived = replace(failed, runs=(replace(failed.runs[0], report=report),))
    assert Results.from_json(waived.to_json()).waived == 1
    assert [change.kind for change in changes(waived, failed)] == ["worse"]
