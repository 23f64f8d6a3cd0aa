"""Waivers: strict when they are read, strict when they are applied."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from rnn_backends import LSTMBackend, State, get_backend
from rnn_conformance.check import check_backend
from rnn_conformance.report.model import Report
from rnn_conformance.waivers import Waiver, WaiverError, apply, read

LAW = "one_row"
TOKEN = "T2.B1.I1.H1.f64.s0"
GOOD = f"""
[[waiver]]
backend = "mine"
law = "{LAW}"
reason = "not yet"
link = "https://example.org/3"
token = "{TOKEN}"
expires = 2027-03-01
"""
TODAY = date(2027, 3, 1)
unroll = get_backend("vmap").layer


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "waivers.toml"
    file.write_text(text)
    return file


def test_a_waiver_holds_to_the_end_of_its_last_day(tmp_path: Path) -> None:
    (waiver,) = read(written(tmp_path, GOOD), TODAY)
    assert waiver == Waiver("mine", LAW, "not yet", "https://example.org/3", TOKEN, TODAY)
    with pytest.raises(WaiverError, match=r"waiver 1: one_row for mine expired on 2027-03-01"):
        read(written(tmp_path, GOOD), date(2027, 3, 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("one_row", "one_roww"), "Did you mean 'one_row'?"),
        (GOOD.replace("one_row", "one"), "there is no law 'one'"),
        (GOOD.replace('reason = "not yet"\n', ""), "it has no reason"),
        (GOOD.replace('"not yet"', '""'), "reason = '' is not a string"),
        (GOOD.replace("expires = 2027-03-01", 'expires = "2027-03-01"'), "not a date"),
        (GOOD.replace("expires = 2027-03-01", "expires = 2027-03-01T00:00:00"), "not a date"),
        (GOOD.replace("expires = 2027-03-01", ""), "it has no expires"),
        (GOOD + 'why = "typo"', "unknown key: why"),
        (GOOD.replace(TOKEN, "T2.Q1"), "'Q1' in the token"),
        (GOOD + GOOD, "waiver 2: one_row is waived twice for mine on cpu"),
        (GOOD.replace("[[waiver]]", "[[waivers]]"), "found waivers"),
        (GOOD.replace("[[waiver]]", "[waiver]"), "expected nothing but"),
        ("[[waiver]", "waivers.toml"),
    ],
)
def test_what_is_not_as_it_should_be_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(WaiverError) as caught:
        read(written(tmp_path, text), TODAY)
    assert says in str(caught.value)


def test_a_token_of_a_rollout_law_is_read_too(tmp_path: Path) -> None:
    text = GOOD.replace(LAW, "rollout_gradients").replace(TOKEN, "CartPole-v1:H8.f32.s5")
    assert read(written(tmp_path, text), TODAY)[0].token == "CartPole-v1:H8.f32.s5"
    with pytest.raises(WaiverError, match="looks like"):
        read(written(tmp_path, GOOD.replace(LAW, "rollout_gradients")), TODAY)


def wrong(w, x, entry, starts):
    found = unroll(w, x, entry, starts)
    return State(found.h + 1, found.c)


def wrong_for_three_rows(w, x, entry, starts):
    found = unroll(w, x, entry, starts)
    return State(found.h + (x.shape[1] == 3), found.c)


def checked(layer, *waivers: Waiver, law: str = LAW, device: str = "cpu") -> Report:
    backend = LSTMBackend("mine", layer)
    report = check_backend(backend, laws=[law], profile="smoke", seed=1, shrink=False, device=device)
    return apply(waivers, report, backend)


def waiver(**fields: str) -> Waiver:
    usual = {"backend": "mine", "law": LAW, "reason": "not yet", "link": "https://example.org/3", "token": TOKEN}
    return Waiver(**usual | fields, expires=TODAY)  # type: ignore[arg-type]


def test_a_failure_that_is_waived_is_no_failure_but_counted() -> None:
    report = checked(wrong, waiver())
    assert report.ok
    assert report.failures == []
    (result,) = report.waived
    assert (result.verdict, result.state) == ("failed", "waived")
    assert result.waived == "not yet (https://example.org/3, until 2027-03-01)"
    assert report.count("passed") == report.count("failed") == 0


def test_a_waived_law_that_passes_is_a_failure() -> None:
    report = checked(unroll, waiver())
    (result,) = report.failures
    assert result.verdict == "failed"
    assert "this waiver is out of date (waived as: not yet). Delete it" in result.message
    assert result.token == TOKEN


def test_a_waiver_whose_case_passes_excuses_no_other_case() -> None:
    report = checked(wrong_for_three_rows, waiver(law="output_equals_reference"), law="output_equals_reference")
    (result,) = report.failures
    assert "The run found another case: output differs first at" in result.message


def test_a_waived_case_that_the_run_missed_stays_waived() -> None:
    def wrong_for_seven_steps(w, x, entry, starts):
        found = unroll(w, x, entry, starts)
        return State(found.h + (len(x) == 9), found.c)

    report = checked(wrong_for_seven_steps, waiver(token="T9.B1.I1.H1.f64.s0"))
    assert [result.law for result in report.waived] == [LAW]


@pytest.mark.parametrize("other", [{"backend": "yours"}, {"law": "one_step"}, {"device": "cuda"}])
def test_a_waiver_of_something_else_excuses_nothing(other: dict[str, str]) -> None:
    report = checked(wrong, waiver(**other))
    assert not report.ok
    assert report.waived == []
