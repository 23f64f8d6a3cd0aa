"""The pytest plugin, as an author runs it in another folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rnn_conformance import pytest_plugin
from rnn_conformance.check import recordings
from rnn_conformance.suite.verdict import PROFILE_NAMES

pytest_plugins = ["pytester"]

THREE_LINES = """
from rnn_conformance.pytest_plugin import laws

test_mine = laws("vmap", only=("one_row", "one_step"), profile="smoke")
"""
WRONG = """
from rnn_backends import LSTMBackend, State
from rnn_backends.unroll import unroll
from rnn_conformance.pytest_plugin import laws


def layer(weights, x, entry, starts):
    found = unroll(weights, x, entry, starts)
    return State(found.h + 1, found.c)


test_wrong = laws(LSTMBackend("wrong", layer), only=("one_row", "vmap_over_data"), profile="smoke")
"""
WAIVER = """
[[waiver]]
backend = "wrong"
law = "one_row"
reason = "not yet"
link = "https://example.org/3"
token = "T2.B1.I1.H1.f64.s0"
expires = 2999-01-01
"""
QUIET = ("-p", "no:cacheprovider", "--rnn-seed", "1", "--rnn-no-shrink")


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    recordings()  # pytester forgets the imports of a run afterwards, and torch's extensions load only once


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    return lambda *arguments: pytester.runpytest_inprocess(*QUIET, *arguments)


def in_a_process(folder: Path) -> str:
    """The output of a run in a separate process."""
    command = [sys.executable, "-c", SEEN]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


SEEN = """
import sys, pytest
class Look:
    def pytest_sessionfinish(self, session):
        heavy = ("torch", "hypothesis", "rnn_backends", "tensordict", "rich", "click", "numpy", "rnn_conformance")
        print("SEEN", sorted(m for m in sys.modules if m.split(".")[0] in heavy))
raise SystemExit(pytest.main(["-p", "no:cacheprovider", "-q", "-s", *sys.argv[1:]], plugins=[Look()]))
"""


def test_it_costs_other_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_nothing():\n    pass\n")
    said = in_a_process(tmp_path)
    assert "SEEN ['rnn_conformance', 'rnn_conformance.pytest_plugin']" in said
    assert "1 passed" in said
    assert "rnn_conformance:" not in said


def test_a_file_that_only_imports_laws_brings_in_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "from rnn_conformance.pytest_plugin import laws\ndef test_nothing(): pass\n"
    )
    assert "SEEN ['rnn_conformance', 'rnn_conformance.pytest_plugin']" in in_a_process(tmp_path)


def test_three_lines_are_one_test_a_law(run, pytester: pytest.Pytester) -> None:
    (pytester.path / "test_mine.py").write_text(THREE_LINES)
    done = run("-v", "-W", "error")
    done.assert_outcomes(passed=2)
    assert "test_mine.py::test_mine::one_row[vmap] PASSED" in done.stdout.str()
    assert "rnn_conformance: 2 laws ran, 0 waived" in done.stdout.str()
    run("test_mine.py::test_mine::one_row[vmap]").assert_outcomes(passed=1)


def test_an_installed_backend_needs_no_file(run) -> None:
    done = run(
        "--pyargs", "rnn_conformance", "--rnn-backend", "vmap", "--rnn-backend", "cudnn",
        "--rnn-profile", "smoke", "--rnn-law", "one_row",
    )  # fmt: skip
    done.assert_outcomes(passed=2)


def test_a_failure_has_the_laws_sentence_and_says_what_to_do(run, pytester: pytest.Pytester) -> None:
    (pytester.path / "test_wrong.py").write_text(WRONG)
    done = run("-ra")
    assert done.ret == 1
    done.assert_outcomes(failed=1, skipped=1)
    for says in (
        "✗ wrong: one_row (failed)",
        "law     With a batch of one row, output and states equal the reference's.",
        "found   output differs first at [t=0, b=0, unit=0]: actual",
        "again   rnn-backends replay T",
        "or      pytest 'test_wrong.py::test_wrong::one_row[wrong]' --rnn-seed 1",
        "SKIPPED [1] test_wrong.py:1:",
    ):
        assert says in done.stdout.str()
    assert "Traceback" not in done.stdout.str()


def test_waivers_beside_the_file_and_on_the_command_line(run, pytester: pytest.Pytester) -> None:
    (pytester.path / "waivers.toml").write_text(WAIVER)
    tests = pytester.path / "tests"
    tests.mkdir()
    (tests / "test_wrong.py").write_text(WRONG.replace('profile="smoke"', 'profile="smoke", waivers="../waivers.toml"'))
    done = run("--rnn-law", "one_row", "-rx")
    done.assert_outcomes(xfailed=1)
    assert "not yet (https://example.org/3, until 2999-01-01)" in done.stdout.str()
    assert "rnn_conformance: 1 laws ran, 1 waived" in done.stdout.str()
    (tests / "test_wrong.py").write_text(WRONG)
    run("--rnn-law", "one_row", "--rnn-waivers", "waivers.toml").assert_outcomes(xfailed=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no backend is named: pytest --pyargs rnn_conformance --rnn-backend NAME"),
        (("--rnn-backend", "vmpa"), "Did you mean 'vmap'?"),
        (("--rnn-backend", "vmap", "--rnn-law", "one_roww"), "Did you mean 'one_row'?"),
        (("--rnn-backend", "vmap", "--rnn-waivers", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_is_not_there_is_an_error_and_not_an_empty_run(run, arguments: tuple[str, ...], says: str) -> None:
    done = run("--pyargs", "rnn_conformance", *arguments)
    assert done.ret == 2
    assert says in done.stdout.str()


def test_the_options_know_every_profile() -> None:
    class Parser:
        def getgroup(self, *_: str) -> Parser:
            return self

        def addoption(self, name: str, choices: tuple[str, ...] = PROFILE_NAMES, **_: object) -> None:
            assert choices == PROFILE_NAMES

    pytest_plugin.pytest_addoption(Parser())  # type: ignore[arg-type]
