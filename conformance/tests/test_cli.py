"""The ``rnn-backends`` command: its output, its imports and its exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click import Option
from click.testing import CliRunner, Result
from rnn_backends import LayerWeights, LSTMBackend, State, names, register, unregister
from rnn_backends.unroll import unroll
from rnn_conformance import check
from rnn_conformance.cli import check_run
from rnn_conformance.cli.main import cli
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.report.model import Results
from rnn_conformance.rollouts import recorded as rollouts
from rnn_conformance.suite import runner
from rnn_conformance.suite.verdict import PROFILE_NAMES
from torch import Tensor

ONE_LAW = ("--profile", "smoke", "-k", "rollout_equals_torch_lstm")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)


@pytest.fixture
def _shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(check, "rollouts", rollouts.shipped)  # nothing here depends on the source of the rollouts
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

    register(LSTMBackend("never-resets", layer))
    yield "never-resets"
    unregister("never-resets")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


SHOWN = sorted(name for name, command in cli.commands.items() if not command.hidden)


def test_help_teaches_with_examples() -> None:
    for command in SHOWN:
        said = call(command, "--help").output
        assert "Examples:\n  rnn-backends " in said
        assert f"  rnn-backends {command} " in said.partition("Examples:")[2]
    assert "0 every law held   1 a law failed" in call("check", "--help").output


@pytest.mark.parametrize("command", ["", *SHOWN])
def test_help_fits_eighty_columns_and_describes_every_option(command: str) -> None:
    ran = CliRunner().invoke(cli, [*command.split(), "--help"], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert [line for line in ran.output.splitlines() if len(line) > 80] == []
    described = cli.commands[command] if command else cli
    without = [option.opts[-1] for option in described.params if isinstance(option, Option) and not option.help]
    assert without == []
    if not command:
        listed = ran.output.partition("Commands:\n")[2]
        assert {line.split()[0] for line in listed.splitlines()} == set(SHOWN)
        assert "..." not in listed, "a command without a short_help is cut"


def test_laws_judge_without_docstrings_and_assert_statements() -> None:
    """PYTHONOPTIMIZE=2 strips them; a wrong backend fails all the same."""
    code = (
        "import torch\n"
        "from rnn_backends import LSTMBackend, register, get_backend\n"
        "from rnn_backends.unroll import unroll\n"
        "from rnn_conformance.__main__ import main\n"
        "register(LSTMBackend('never-resets', lambda w, x, e, s: unroll(w, x, e, (s.cumsum(0) == 1) & s)))\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    base = {"capture_output": True, "text": True, "timeout": 240, "stdin": subprocess.DEVNULL, "env": environment}
    laws = subprocess.run([sys.executable, "-c", code, "laws"], **base)
    assert laws.returncode == 0, laws.stderr
    for name, expected in (("vmap", 0), ("never-resets", 1)):
        done = subprocess.run([sys.executable, "-c", code, "check", name, "-k", "resets", "--profile", "smoke"], **base)
        assert done.returncode == expected, done.stdout + done.stderr


CRASHES = """
import ctypes, sys
from rnn_backends import LSTMBackend, register
from rnn_conformance.__main__ import main

register(LSTMBackend("crashing", lambda weights, x, entry, starts: ctypes.string_at(0)))
sys.argv = ["rnn-backends", "check", "crashing", "--profile", "smoke", "-k", "reset_at_the_last_step"]
main()
"""


def test_a_kernel_that_ends_the_process_is_located() -> None:
    done = run_python(CRASHES)
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr
    assert "in reset_at_the_last_step" in done.stderr


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
        "import sys; from rnn_conformance.cli.main import cli; cli(['list', '--names'], standalone_mode=False);"
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
        "law     Recurrent mode equals torch.nn.LSTM run over each trajectory",
        "found   output differs first at [t=",
        "error   ",
        "again   rnn-backends replay CartPole-v1:H8.f32.s3 --law rollout_equals_torch_lstm --backend never-resets",
        "✗ 1 failed",
        "; 0 waived",
    ):
        assert says in result.output
    report = Results.from_json(file.read_text())
    assert report.status == 1
    assert [run.results[0].verdict for run in report.runs] == ["passed", "failed"]
    again = call(*result.output.partition("again   rnn-backends ")[2].splitlines()[0].split())
    assert again.exit_code == 1, "the line that it prints replays the failure"
    assert again.output.splitlines()[0] == "✗ failed  never-resets: rollout_equals_torch_lstm"


@pytest.mark.usefixtures("_shipped")
def test_json_on_standard_output_is_only_json() -> None:
    result = call("check", "vmap", *ONE_LAW, "--json", "-")
    report = Results.from_json(result.stdout)
    assert "24 resets" in report.rollouts[0]
    assert "✓ held" in result.stderr


@pytest.mark.usefixtures("_shipped")
def test_an_interrupted_run_exits_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run_law", interrupt)
    result = call("check", "vmap", *ONE_LAW)
    assert result.exit_code == 3
    assert "interrupted" in result.output
    assert "the run is incomplete" in result.output


@pytest.mark.usefixtures("_shipped")
def test_a_backend_that_cannot_be_loaded_makes_the_run_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_run, "_loaded", lambda name: (name, "its library is missing"))
    result = call("check", "vmap", *ONE_LAW)
    assert result.exit_code == 3
    assert "? not run" in result.output
    assert "as a share" not in result.output  # no number, no explanation of it
    assert "over torch.nn.LSTM" not in result.output
    assert "? vmap: its library is missing" in result.output


def test_the_whole_command_as_a_person_runs_it() -> None:
    """A whole run in a separate process, piped: plain lines, no control characters, one table."""
    code = "import sys; from rnn_conformance.__main__ import main; main()"
    done = run_python(code, "check", "vmap", "--profile", "smoke", "-k", "rollout", "-k", "gradient")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines() == ["checking vmap (1 of 1) ..."]
    assert "\x1b" not in done.stdout
    table = done.stdout.partition("error  the worst")[0].splitlines()[2:]
    assert max(map(len, table)) <= 80


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


ENDS = """
import sys
import click
from rnn_conformance.__main__ import main

def end(*args):
    raise {error}

click.Command.invoke = end
sys.argv = ["rnn-backends", "laws"]
main()
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted: there is no verdict"),
        ("ValueError('a fault')", 70, "ValueError: a fault"),
        ("ModuleNotFoundError(name='elsewhere')", 70, "ModuleNotFoundError"),
        ("SystemExit(3)", 3, ""),
    ],
)
def test_an_end_without_a_verdict_has_a_status_of_its_own(error: str, status: int, said: str) -> None:
    done = run_python(ENDS.format(error=error))
    assert done.returncode == status
    assert done.stderr.strip().endswith(said)


def test_laws_are_listed_by_subject_with_a_sentence_each() -> None:
    said = call("laws").output
    assert said.index("values\n") < said.index("  output_equals_reference\n") < said.index("rollouts\n")
    assert f"{len(LAWS)} laws;" in said
    rows = json.loads(call("laws", "--json").output)
    assert [row["law"] for row in rows] == list(LAWS)
    assert all(row["sentence"].endswith(".") for row in rows)


def test_every_law_is_explained() -> None:
    for law in LAWS:
        said = call("laws", law).output
        for word in (law, "subject", "tolerance", "profiles", "def "):
            assert word in said


def test_an_unknown_law_exits_2() -> None:
    result = call("laws", "one_roww")
    assert result.exit_code == 2
    assert "Did you mean 'one_row'?" in result.output


@pytest.mark.parametrize(("typed", "hint"), [("gradeints", "gradients"), ("bflaot16", "bfloat16"), ("nosuch", None)])
def test_a_part_of_a_name_gets_a_near_part_as_hint_and_no_guess(typed: str, hint: str | None) -> None:
    part, whole = (call(*given, typed).output for given in (("check", "vmap", "-k"), ("laws",)))
    if hint is None:
        assert "Did you mean" not in part + whole
        return
    assert f"Did you mean '{hint}'?" in part
    suggested = whole.partition("Did you mean '")[2].partition("'")[0]
    assert suggested in LAWS
    assert hint in suggested


TOKEN = "T2.B1.I1.H1.f64.r2.s0"


@pytest.mark.usefixtures("_shipped")
@pytest.mark.parametrize(
    ("law", "token"),
    [
        ("output_equals_reference", TOKEN),
        ("output_equals_reference", "CartPole-v1:H4.f64.s0"),
        ("rollout_gradients", "CartPole-v1:H8.f32.s5"),
    ],
)
def test_every_kind_of_token_is_replayed(wrong: str, law: str, token: str) -> None:
    good = call("replay", token, "--law", law, "--backend", "vmap")
    assert (good.exit_code, good.output.splitlines()[0]) == (0, f"✓ passed  vmap: {law}")
    bad = call("replay", token, "--law", law, "--backend", wrong)
    assert bad.exit_code == 1
    assert "differs first at" in bad.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("T2.Q", "--law", "one_row", "--backend", "vmap"), "'Q' in the token"),
        ((TOKEN, "--law", "one_roww", "--backend", "vmap"), "Did you mean 'one_row'?"),
        ((TOKEN, "--law", "one_row", "--backend", "vmpa"), "Did you mean 'vmap'?"),
        ((TOKEN, "--law", "rollout_gradients", "--backend", "vmap"), "looks like CartPole-v1:H8.f32.s5"),
        (("Pole:" + TOKEN, "--law", "one_row", "--backend", "vmap"), "there is no rollout 'Pole'"),
    ],
)
def test_a_replay_of_nothing_exits_2(arguments: tuple[str, ...], says: str) -> None:
    result = call("replay", *arguments)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize("token", [TOKEN, "T3.B2.I2.H3.L2.P2.nobias.bi.f32.r5.strided.s9"])
def test_a_script_runs_and_ends_with_the_line_that_runs_the_law(token: str) -> None:
    script = call("replay", token, "--law", "output_equals_reference_in_float32", "--backend", "vmap", "--script")
    done = run_python(script.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"rnn-backends replay {token} --law output_equals_reference")
    assert "expected output, torch.nn.LSTM" in done.stdout


@pytest.mark.usefixtures("_shipped")
def test_check_writes_a_script_for_each_failure_that_fails_where_it_should(wrong: str, tmp_path: Path) -> None:
    options = ("--profile", "smoke", "--no-shrink", "-k", "one_row", "-k", "rollout_gradients")
    result = call("check", wrong, *options, "--script", str(tmp_path / "failures"))
    assert result.exit_code == 1
    files = sorted(path.name for path in (tmp_path / "failures").iterdir())
    assert files == ["never-resets_one_row.py", "never-resets_rollout_gradients.py"]
    for name in files:
        source = (tmp_path / "failures" / name).read_text()
        assert "differs first at" in source
        with pytest.raises((AssertionError, SystemExit)) as caught:
            exec(compile(source, name, "exec"), {"__name__": "__main__"})
        assert not isinstance(caught.value, SystemExit) or caught.value.code


@pytest.mark.usefixtures("_shipped")
def test_two_devices_are_two_rows_and_columns(wrong: str, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    result = call("check", "vmap", wrong, *ONE_LAW, "--device", "cpu,cpu:0", "--html", str(html), "--seed", "3")
    assert "1 law ran on 4 of 4 backends" in result.output
    assert "never-resets on cpu:0: rollout_equals_torch_lstm (failed)" in result.output
    assert f"--backend {wrong} --device cpu:0" in result.output
    assert '<th scope="col">vmap on cpu:0</th>' in html.read_text()


@pytest.mark.usefixtures("_shipped")
def test_waivers_excuse_and_the_last_line_counts_them(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    row = 'law = "rollout_equals_torch_lstm"\nreason = "known"\nlink = "https://example.org"\n'
    row += 'token = "CartPole-v1:H8.f32.s5"\nexpires = 2999-01-01\n'
    file.write_text(f'[[waiver]]\nbackend = "{wrong}"\n{row}')
    result = call("check", wrong, *ONE_LAW, "--waivers", str(file))
    assert result.exit_code == 0, result.output
    assert result.output.strip().splitlines()[-1].endswith("; 1 waived")
    assert "✓ every law held apart from waived failures" in result.output
    file.write_text(f'[[waiver]]\nbackend = "vmap"\n{row}')
    result = call("check", "vmap", *ONE_LAW, "--waivers", str(file))
    assert result.exit_code == 1
    assert "this waiver is out of date" in result.output
    file.write_text(file.read_text().replace("2999", "1999"))
    result = call("check", "vmap", *ONE_LAW, "--waivers", str(file))
    assert result.exit_code == 2
    assert "expired on 1999-01-01" in result.output


@pytest.mark.usefixtures("_shipped")
def test_what_is_not_claimed_and_works_fails_only_if_strict() -> None:
    register(LSTMBackend("modest", unroll))
    try:
        options = ("check", "modest", "--profile", "smoke", "-k", "double_backward")
        assert call(*options).exit_code == 0
        result = call(*options, "--strict")
    finally:
        unregister("modest")
    assert result.exit_code == 1
    assert "double_backward works and is not claimed" in result.output


@pytest.mark.usefixtures("_shipped")
def test_diff_says_what_is_worse_and_exits_1(wrong: str, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("old.jsonl", "new.jsonl")]
    assert call("check", "vmap", *ONE_LAW, "--seed", "3", "--json", files[0]).exit_code == 0
    Path(files[1]).write_text(
        Path(files[0]).read_text().replace('"passed"', '"failed"').replace('"status": 0', '"status": 1')
    )
    same = call("diff", files[0], files[0])
    assert (same.exit_code, same.output) == (0, "0 worse, 0 gone, 0 new, 0 better, 1 the same\n")
    worse = call("diff", *files)
    assert worse.exit_code == 1
    assert "worse   vmap: rollout_equals_torch_lstm  ✓ passed -> ✗ failed" in worse.output
    assert call("diff", *reversed(files)).exit_code == 0
    Path(files[1]).write_text(Path(files[0]).read_text().rpartition('{"kind": "footer"')[0])
    refused = call("diff", *files)
    assert refused.exit_code == 3
    assert "new.jsonl: the report has no footer: it is truncated" in refused.output


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(option: str, tmp_path: Path) -> None:
    result = call("check", "vmap", option, str(tmp_path / "nowhere" / "report"))
    assert result.exit_code == 2
    assert "there is no folder" in result.output


def test_profiles_are_the_runners() -> None:
    assert tuple(runner.PROFILES) == PROFILE_NAMES
    assert set(runner.ROLLOUT_HIDDEN_SIZES) == set(PROFILE_NAMES)


def test_the_python_front_is_lazy_and_runs_the_same_laws() -> None:
    code = (
        "import sys, rnn_conformance; assert not {'torch', 'hypothesis', 'click'} & set(sys.modules);"
        "report = rnn_conformance.check_backend('vmap', laws=['rollout_equals_torch', 'one_row'], profile='smoke');"
        "assert report.ok and 'vmap' in report.header.claimed, report; assert 'click' not in sys.modules;"
        "print(*report.header.expected)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["one_row", "rollout_equals_torch_lstm"]
