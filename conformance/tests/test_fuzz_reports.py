"""A fixed budget of damaged reports and tokens: each is rejected with a message, or keeps its meaning."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from rnn_conformance.cli.main import cli
from rnn_conformance.report.model import BackendRun, Header, LawInfo, Report, ReportError, Results
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.verdict import LawResult

BUDGET = 2000
TOKEN = "T2.B1.I1.H1.f64.s0"
LAWS = {
    name: LawInfo("values", f"{name} holds.", "vmap" if name == "two" else None) for name in ("one", "two", "three")
}


def report() -> Results:
    """Two backends; one fails a law and has a waived failure."""
    runs = []
    for backend, verdicts in (
        ("mine", ("passed", "declined", "under_claimed")),
        ("yours", ("failed", "crashed", "passed")),
    ):
        rows = [
            LawResult(backend, law, verdict, 3, 1, math.inf if law == "one" else 0.1, "a\u2028b", TOKEN, 0.5)
            for law, verdict in zip(LAWS, verdicts, strict=True)
        ]  # fmt: skip
        rows[1] = replace(rows[1], waived="known" if backend == "yours" else "")
        header = Header(backend, "cpu", "quick", 7, tuple(LAWS), {"torch": "2"}, ("CartPole",), ("vmap",))
        runs.append(BackendRun(backend, Report(header, rows), time_ratio=1.5))
    return Results(
        "quick", 7, LAWS, tuple(LAWS), tuple(runs), False, ("CartPole",), 9.0, {"torch": "2"},
        "2027-01-01T00:00:00+00:00",
    )  # fmt: skip


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1.5, -0.0, 10**30, 2**63, "", "inf", "passed", "mine", "\x1b[31m", "\ud800", [], {},
    [[]], {"a": 1}, ["mine"], [None],
)  # fmt: skip
WORDS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400, "0x1", "nul", "'a'", '"\\ud800"',
    "[" * 100_000, '{"a":' * 100_000, "\x00", "\ufeff", "{}", "[]", '{"a":1,"a":2}', "-", '"\\u12"',
)  # fmt: skip


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a value, as a path of keys."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


def mutated(draw: random.Random, rows: list[Any]) -> str:
    """The report's lines, damaged in one of several ways."""
    kind = draw.randrange(9)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if kind == 0:
        text = "\n".join(lines)
        return text[: draw.randrange(len(text))]
    if kind == 1:
        lines[draw.randrange(len(lines))] = draw.choice(WORDS)
        return "\n".join(lines)
    if kind == 2:
        line = draw.randrange(len(lines))
        at = draw.randrange(len(lines[line]))
        lines[line] = lines[line][:at] + draw.choice((*WORDS, "", "x", "}", ",")) + lines[line][at + 1 :]
        return "\n".join(lines)
    if kind == 3:
        return "\n".join(draw.sample(lines, draw.randrange(len(lines) + 1)))
    if kind == 4:
        return "\n".join([*lines, *draw.choices(lines, k=draw.randrange(1, 4))])
    for _ in range(1 if kind < 8 else 3):
        row = draw.choice(rows)
        *path, last = draw.choice(places(row)[1:])
        inner = row
        for key in path:
            inner = inner[key]
        if kind == 5 and isinstance(inner, dict):
            inner.pop(last)
        elif kind == 6 and isinstance(inner, dict):
            inner[draw.choice(("x", "kind", "law", "device", "verdict"))] = inner.pop(last)
        else:
            inner[last] = draw.choice(VALUES)
        if kind == 8 and draw.random() < 0.5:
            break
    return "\n".join(json.dumps(row) for row in rows)


def read(written: str) -> Results | str:
    """The report, or the reason why it is rejected."""
    try:
        return Results.from_json(written)
    except ReportError as error:
        return str(error)


def parse(token: str) -> Case | str:
    """The case, or the reason why there is none."""
    try:
        return Case.parse(token)
    except ValueError as error:
        return str(error)


def test_a_damaged_report_is_rejected_in_words_or_says_the_same() -> None:
    rejected = 0
    for number in range(BUDGET):
        draw = random.Random(number)
        rows = [json.loads(line) for line in report().to_json().split("\n") if line]
        written = mutated(draw, rows)
        found = read(written)
        if isinstance(found, str):
            rejected += 1
            assert 0 < len(found.encode()) < 2000, number
            continue
        # a report that was read can be written, with the same results
        assert Results.from_json(found.to_json()) == found, number
        assert found.status == report().status, number
        assert sum(map(len, (run.results for run in found.runs))) == 6, number
    assert rejected > BUDGET // 2


@pytest.mark.parametrize(
    "content",
    [
        report().to_json().encode("utf-16"),
        report().to_json().encode("utf-8-sig"),
        b"\xff\xfe\x00",
        b"",
        b"\x00" * 1000,
        b"[" * 200_000,
        b'{"kind": "header", "format": ["rnn-conformance 1"]}',
        report().to_json().replace("mine", "m\u00ef").replace("\u2028", "").encode("latin-1", "replace"),
    ],
)
def test_a_file_in_another_encoding_has_exit_status_3_and_no_traceback(tmp_path, content: bytes) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(report().to_json(), encoding="utf-8")
    bad.write_bytes(content)
    for order in ((good, bad), (bad, good)):
        done = CliRunner().invoke(cli, ["diff", *map(str, order)])
        assert done.exit_code == 3, done.output
        assert isinstance(done.exception, SystemExit)
        assert done.output.startswith(str(bad))


def test_a_mutated_token_is_a_possible_case_or_an_error_in_words() -> None:
    tokens = ("T2.B1.I1.H1.f64.s0", "T5.B3.I2.H7.L2.P3.nobias.bi.d20.f32.r1a.zeros.strided.s9")
    alphabet = "TBIHLPdrs.0123456789abcdefnobias -_:\n\u0663\u00b2\"'\\{}"
    parsed = 0
    for number in range(BUDGET):
        draw = random.Random(number)
        text = list(draw.choice(tokens))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text[at : at + draw.randrange(3)] = draw.choice(("", *alphabet, "99999999999999999999"))
            text = text or ["T"]
        token = "".join(text)
        case = parse(token)
        if isinstance(case, str):
            assert "token" in case, number
            continue
        parsed += 1
        assert case.why_impossible() is None
        assert Case.parse(case.token) == case
    assert parsed > BUDGET // 100


@pytest.mark.parametrize(
    "token",
    [
        "T0.B1.I1.H1.f64.s0", "T2.B1.I0.H1.f64.s0", "T2.B1.I1.H0.f64.s0", "T2.B1.I1.H4.L0.f64.s0",
        "T2.B1.I1.H4.P4.f64.s0", "T2.B1.I1.H4.P9.f64.s0", "T2.B1.I1.H1.d101.f64.s0", "T2.B1.I1.H1.f64.r4.s0",
        "T2.B1.I1.H1.f64.s9223372036854775808", "T999999.B999999.I1.H1.f64.s0", "T2.B1.I1.H999999.f64.s0",
        "T2.B1.I1.H1.L999999999.f64.s0", "T\u0662.B1.I1.H1.f64.s0", "T2.B1.I1.H1.f64.s-1", "T2.B1.I1.H1.f64.s0\n", "",
    ],
)  # fmt: skip
def test_an_impossible_token_is_a_usage_error_of_replay_and_of_waivers(tmp_path, token: str) -> None:
    arguments = ["replay", token, "--law", "one_row", "--backend", "vmap"]
    for more in ([], ["--script"]):
        done = CliRunner().invoke(cli, [*arguments, *more])
        assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
        assert "TOKEN" in done.output
    waivers = tmp_path / "waivers.toml"
    row = {"backend": "vmap", "law": "one_row", "reason": "r", "link": "l", "token": token}
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    waivers.write_text("\n".join(["[[waiver]]", *lines, "expires = 2999-01-01"]))
    done = CliRunner().invoke(cli, ["check", "vmap", "-k", "one_row", "--profile", "smoke", "--waivers", str(waivers)])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
    assert "--waivers" in done.output


@pytest.mark.parametrize(
    ("law", "token"),
    [("rollout_equals_torch_lstm", "CartPole-v1:H0.f32.s5"), ("rollout_equals_torch_lstm", "Mine-v1:H8.f32.s5")],
)
def test_a_token_of_no_rollout_is_a_usage_error(tmp_path, law: str, token: str) -> None:
    done = CliRunner().invoke(cli, ["replay", token, "--law", law, "--backend", "vmap"])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
    waivers = tmp_path / "waivers.toml"
    row = {"backend": "vmap", "law": law, "reason": "r", "link": "l", "token": token}
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    waivers.write_text("\n".join(["[[waiver]]", *lines, "expires = 2999-01-01"]))
    done = CliRunner().invoke(cli, ["check", "vmap", "-k", law, "--profile", "smoke", "--waivers", str(waivers)])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
