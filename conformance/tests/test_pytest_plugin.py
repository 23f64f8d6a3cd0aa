"""The pytest front, as an author runs it: in processes of its own, with its own settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rnn_conformance import pytest_plugin
from rnn_conformance.verdicts import PROFILE_NAMES

THREE_LINES = """
from rnn_conformance.pytest_plugin import laws

test_mine = laws("vmap", only=("one_row", "one_step"), profile="smoke")
"""
WRONG = """
from rnn_backends import Backend, State
from rnn_backends.unroll import unroll
from rnn_conformance.pytest_plugin import laws


def layer(weights, x, entry, starts):
    found = unroll(weights, x, entry, starts)
    return State(found.h + 1, found.c)


test_wrong = laws(Backend("wrong", layer), only=("one_row", "vmap_over_data"), profile="smoke")
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


def run(folder: Path, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", code) if code else ("-m", "pytest")), *QUIET * (code is None), *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RNN_BACKENDS"))}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
        env=inherited | {"COLUMNS": "200"}, check=False,
    )  # fmt: skip


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """pytest's last line, by word."""
    last = done.stdout.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|xfailed|error)", last)}


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
    done = run(tmp_path, code=SEEN)
    assert "SEEN ['rnn_conformance', 'rnn_conformance.pytest_plugin']" in done.stdout, done.stdout + done.stderr
    assert outcomes(done) == {"passed": 1}
    assert "rnn_conformance:" not in done.stdout


def test_a_file_that_only_imports_laws_brings_in_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "from rnn_conformance.pytest_plugin import laws\ndef test_nothing(): pass\n"
    )
    assert "SEEN ['rnn_conformance', 'rnn_conformance.pytest_plugin']" in run(tmp_path, code=SEEN).stdout


def test_three_lines_are_one_test_a_law(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(THREE_LINES)
    done = run(tmp_path, "-v", "-W", "error")
    assert outcomes(done) == {"passed": 2}, done.stdout + done.stderr
    assert "test_mine.py::test_mine::one_row[vmap] PASSED" in done.stdout
    assert "rnn_conformance: 2 laws ran, 0 waived" in done.stdout
    assert outcomes(run(tmp_path, "test_mine.py::test_mine::one_row[vmap]")) == {"passed": 1}


def test_an_installed_backend_needs_no_file(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--pyargs", "rnn_conformance", "--rnn-backend", "vmap", "--rnn-backend", "cudnn",
        "--rnn-profile", "smoke", "--rnn-law", "one_row",
    )  # fmt: skip
    assert outcomes(done) == {"passed": 2}, done.stdout + done.stderr


def test_a_failure_has_the_laws_sentence_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(WRONG)
    done = run(tmp_path, "-ra")
    assert done.returncode == 1
    assert outcomes(done) == {"failed": 1, "skipped": 1}, done.stdout + done.stderr
    for says in (
        "✗ wrong: one_row (failed)",
        "law     A batch of one is a batch: output and states equal the reference's.",
        "found   output differs first at [t=0, b=0, unit=0]: came",
        "again   rnn-backends replay T",
        "or      pytest 'test_wrong.py::test_wrong::one_row[wrong]' --rnn-seed 1",
        "SKIPPED [1] test_wrong.py:1:",
    ):
        assert says in done.stdout
    assert "Traceback" not in done.stdout


def test_waivers_beside_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "waivers.toml").write_text(WAIVER)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_wrong.py").write_text(WRONG.replace('profile="smoke"', 'profile="smoke", waivers="../waivers.toml"'))
    done = run(tmp_path, "--rnn-law", "one_row", "-rx")
    assert outcomes(done) == {"xfailed": 1}, done.stdout + done.stderr
    assert "not yet (https://example.org/3, until 2999-01-01)" in done.stdout
    assert "rnn_conformance: 1 laws ran, 1 waived" in done.stdout
    (tests / "test_wrong.py").write_text(WRONG)
    assert outcomes(run(tmp_path, "--rnn-law", "one_row", "--rnn-waivers", "waivers.toml")) == {"xfailed": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no backend is named: pytest --pyargs rnn_conformance --rnn-backend NAME"),
        (("--rnn-backend", "vmpa"), "Did you mean 'vmap'?"),
        (("--rnn-backend", "vmap", "--rnn-law", "one_roww"), "Did you mean 'one_row'?"),
        (("--rnn-backend", "vmap", "--rnn-waivers", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_is_not_there_is_an_error_and_not_an_empty_run(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = run(tmp_path, "--pyargs", "rnn_conformance", *arguments)
    assert done.returncode == 2
    assert says in done.stdout


def test_the_options_know_every_profile() -> None:
    class Parser:
        def getgroup(self, *_: str) -> Parser:
            return self

        def addoption(self, name: str, choices: tuple[str, ...] = PROFILE_NAMES, **_: object) -> None:
            assert choices == PROFILE_NAMES

    pytest_plugin.pytest_addoption(Parser())  # type: ignore[arg-type]
