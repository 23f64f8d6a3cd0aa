"""The ``rnn-backends`` command: what it prints, what it imports and how it exits."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rnn_backends import Backend, LayerWeights, State, names, register, unregister
from rnn_backends.unroll import unroll
from rnn_conformance import check, job, report_lines, rollout_laws, rollouts
from rnn_conformance.cli import cli
from torch import Tensor

ONE_LAW = ("--profile", "smoke", "-k", "rollout_equals_torch_lstm")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)


@pytest.fixture
def _shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(check, "rollouts", rollouts.shipped)  # nothing here depends on who recorded them
    check.recordings.cache_clear()
    yield
    check.recordings.cache_clear()


@pytest.fixture
def wrong() -> Iterator[str]:
    """A backend that never resets, registered in this process."""

    def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        first = torch.zeros_like(starts)
        first[0] = True
        return unroll(weights, x, entry, first)

    register(Backend("never-resets", layer))
    yield "never-resets"
    unregister("never-resets")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_help_teaches_with_examples() -> None:
    assert "rnn-backends explain" in call("--help").output
    for command in ("list", "explain", "check"):
        said = call(command, "--help").output
        assert f"Examples:\n  rnn-backends {command}" in said
    assert "0 every law held   1 a law failed" in call("check", "--help").output


def test_list_is_a_table_with_reasons(wrong: str) -> None:
    result = call("list")
    assert result.exit_code == 0
    for word in ("backend", "state", "vmap", "rnn-backends 0", "ready", wrong, "this process"):
        assert word in result.output


def test_list_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(call("list", "--json").output)}
    assert rows["vmap"]["state"] == "ready"
    assert rows["vmap"]["reason"] is None


def test_a_disabled_backend_is_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_BACKENDS_DISABLE", "vmap")
    row = next(row for row in json.loads(call("list", "--json").output) if row["name"] == "vmap")
    assert row["state"] == "disabled"


def test_list_names_imports_no_plugin() -> None:
    code = (
        "import sys; from rnn_conformance.cli import cli; cli(['list', '--names'], standalone_mode=False);"
        "assert not [m for m in sys.modules if m.startswith(('rnn_backends_plugins', 'torchrl', 'hypothesis'))]"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(names())


def test_explain_says_who_accepts_and_what_auto_takes() -> None:
    result = call("explain", "--num-layers", "2", "--no-bias")
    assert result.exit_code == 0
    assert "LSTM(8, 64, num_layers=2, bias=False) on cpu in float32" in result.output
    assert result.output.count("takes it") == 1


def test_explain_as_json() -> None:
    said = json.loads(call("explain", "--hidden-size", "5", "--dtype", "float64", "--json").output)
    assert said["spec"]["hidden_size"] == 5
    assert said["dtype"] == "float64"
    assert sum(row["chosen"] for row in said["backends"]) == 1
    assert {row["name"] for row in said["backends"]} >= {"vmap"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("explain", "--proj-size", "64"), "smaller than --hidden-size"),
        (("explain", "--device", "quantum"), "--device"),
        (("explain", "--hidden-size", "0"), "--hidden-size"),
        (("check", "vmpa"), "Did you mean 'vmap'?"),
        (("check", "-k", "rollout_gradeints"), "Did you mean 'rollout_gradients'?"),
        (("check", "--profile", "thorough"), "smoke"),
        (("chekc",), "chekc"),
    ],
)
def test_bad_usage_exits_2_and_says_why(arguments: tuple[str, ...], says: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.usefixtures("_shipped")
def test_check_that_holds_exits_0_and_says_how_many_laws_ran() -> None:
    result = call("check", "vmap", *ONE_LAW, "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "✓ held" in result.output
    assert "every law held: 1 law ran on 1 of 1 backends, 2 cases, profile smoke, seed 1" in result.output
    assert "CartPole-v1 8 x 64 steps, 24 resets;" in result.output


@pytest.mark.usefixtures("_shipped")
def test_an_alias_checks_its_backend_once() -> None:
    assert "1 of 1 backends" in call("check", "torchrl", "vmap", *ONE_LAW).output


@pytest.mark.usefixtures("_shipped")
def test_check_that_fails_exits_1_and_says_what_to_do(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = call("check", "vmap", wrong, *ONE_LAW, "--seed", "3", "--json", str(file))
    assert result.exit_code == 1
    for says in (
        "✗ never-resets: rollout_equals_torch_lstm (failed)",
        "law     The recurrent mode gives what torch.nn.LSTM gives",
        "found   output differs first at [b=0, t=",
        "error   ",
        "again   rnn-backends replay CartPole-v1.H8.s3 --law rollout_equals_torch_lstm --backend never-resets",
        "✗ 1 failed",
        "; 0 waived",
    ):
        assert says in result.output
    report = report_lines.read(file.read_text())
    assert report.status == 1
    assert [outcome.results[0].verdict for outcome in report.outcomes] == ["passed", "failed"]
    again = call(*result.output.partition("again   rnn-backends ")[2].splitlines()[0].split())
    assert again.exit_code == 1, "the line that it prints replays the failure"
    assert again.output.splitlines()[0] == "✗ failed  never-resets: rollout_equals_torch_lstm"


@pytest.mark.usefixtures("_shipped")
def test_json_on_standard_output_is_only_json() -> None:
    result = call("check", "vmap", *ONE_LAW, "--json", "-")
    report = report_lines.read(result.stdout)
    assert "24 resets" in report.rollouts[0]
    assert "✓ held" in result.stderr


@pytest.mark.usefixtures("_shipped")
def test_an_interrupted_run_exits_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_laws.RolloutChecks, "run", interrupt)
    result = call("check", "vmap", *ONE_LAW)
    assert result.exit_code == 3
    assert "interrupted" in result.output
    assert "the run is incomplete" in result.output


@pytest.mark.usefixtures("_shipped")
def test_a_backend_that_cannot_be_loaded_makes_the_run_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "known_backend", lambda name: (name, "its library is missing"))
    result = call("check", "vmap", *ONE_LAW)
    assert result.exit_code == 3
    assert "? not run" in result.output
    assert "? vmap: its library is missing" in result.output


def test_the_whole_command_as_a_person_runs_it() -> None:
    """Everything once, in a process of its own, piped: plain lines, no control characters, one table."""
    code = "import sys; from rnn_conformance.__main__ import main; main()"
    done = run_python(code, "check", "vmap", "--profile", "smoke", "-k", "rollout", "-k", "gradient")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines() == ["checking vmap (1 of 1) ..."]
    assert "\x1b" not in done.stdout
    assert done.stdout.count("worst error") == 2  # the column and what it means


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [("click", ["list"], "cli"), ("rich", ["list"], "cli"), ("hypothesis", ["check", "vmap"], "conformance")],
)
def test_a_missing_package_is_named_with_its_extra(missing: str, arguments: list[str], extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from rnn_conformance.__main__ import main; main()"
    done = run_python(code, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"rnn-backends: {missing} is not installed. Run: pip install 'rnn-backends[{extra}]'"
    )
