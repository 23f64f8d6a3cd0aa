"""The programs of ``--script``: they need only torch and the backend, and a token cannot inject code."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rnn_backends import get_backend, register, unregister
from rnn_conformance.check import case_of
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.report.model import BackendRun, Header, Report, Results
from rnn_conformance.script import program, write_scripts
from rnn_conformance.suite.inputs import materialise
from rnn_conformance.suite.verdict import LawResult

LAW = "output_equals_reference"
TOKENS = (
    "T2.B1.I1.H1.f64.r2.s0",
    "T3.B2.I2.H3.L2.P2.nobias.bi.f32.r5.strided.s9",
    "T4.B3.I2.H5.L2.d50.bf16.r25.zeros.transposed.s1",
    "T3.B2.I2.H3.f64.offset.s3",
)
ALONE = "import sys; sys.modules['rnn_conformance'] = None; exec(compile(sys.stdin.read(), 'case.py', 'exec'))"


@pytest.mark.parametrize("token", [*TOKENS, "CartPole-v1:H8.f32.s5"])
def test_a_program_needs_torch_and_the_backend_alone(token: str) -> None:
    law = "rollout_equals_torch_lstm" if ":" in token else LAW
    source = program("vmap", law, token)
    done = subprocess.run([sys.executable, "-c", ALONE], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "output: error" in done.stdout
    assert "gradient of weight_hh_l0: error" in done.stdout
    assert "differs" not in done.stdout


def run(source: str) -> tuple[dict, object]:
    """The variables of the program, and its exit status."""
    names: dict = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        exec(compile(source, "case.py", "exec"), names)
    return names, ended.value.code


@pytest.mark.parametrize("token", [*TOKENS, "Pendulum-v1:H3.f32.s5"])
def test_a_program_draws_the_suites_numbers(token: str) -> None:
    law = "rollout_equals_torch_lstm" if ":" in token else LAW
    names, status = run(program("vmap", law, token))
    case, rollout = case_of(law, token)
    wanted = materialise(case, rollout=rollout)
    for name in ("x", "h", "c", "starts"):
        torch.testing.assert_close(names[name].detach(), getattr(wanted, name), rtol=0, atol=0)
        assert names[name].stride() == getattr(wanted, name).stride()
    for name, value in wanted.weights.items():
        torch.testing.assert_close(names["weights"][name], value, rtol=0, atol=0)
    assert not status


NAMES = (
    'mine"); __import__("pathlib").Path("pwned").touch(); ("',
    "mine'''\"\"\"\nimport pathlib; pathlib.Path('pwned').touch()\n",
    "mine\\",
    "{0.__class__}{}",
    "mine\u2028\x0c\r\x00\x1b[31m",
    "x[/]",
)


@pytest.fixture
def named(request):
    """The plain unroll under another name, with a wrong sign."""
    unroll = get_backend("vmap").layer

    def wrong(weights, x, entry, starts):
        h, c = unroll(weights, x, entry, starts)
        return type(entry)(-h, c)

    backend = replace(get_backend("vmap"), name=request.param, layer=wrong, step=None, act=None)
    try:
        register(backend)
    except Exception as error:
        pytest.skip(f"it cannot be registered: {error}")
    yield backend
    unregister(backend.name)


@pytest.mark.parametrize("named", NAMES, indirect=True)
@pytest.mark.parametrize("message", ["", *NAMES])
def test_nothing_can_come_of_a_name_or_a_message(named, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, status = run(program(named.name, LAW, TOKENS[0], message=message))
    assert status
    assert names["lstm"].lstm_backend == named.name
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "token",
    [
        'T2.B1.I1.H1.f64.s0"); __import__("os").system("touch pwned"); ("',
        "T2.B1.I1.H1.f64.s0\nimport os",
        'x"+str(1):H8.f32.s5',
        'CartPole-v1:H8.f32.s5"',
        "CartPole-v1:T64.B8.I4.H8.f32.s5",
    ],
)
@pytest.mark.parametrize("law", [LAW, "rollout_equals_torch_lstm"])
def test_a_crafted_token_is_no_token(law: str, token: str) -> None:
    with pytest.raises(ValueError, match=r"token|rollout"):
        program("vmap", law, token)


def test_a_files_name_stays_in_its_folder(tmp_path: Path) -> None:
    rows = [LawResult("../../x/..\\y", LAW, "failed", token=TOKENS[0], message="m")]
    header = Header("../../x/..\\y", "cpu", "smoke", 1, (LAW,))
    run_ = BackendRun(rows[0].backend, Report(header, rows))
    folder = tmp_path / "a" / "b"
    written = list(write_scripts(Results("smoke", 1, {}, (LAW,), (run_,)), folder))
    assert [path.parent for path in written] == [folder]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == written
    assert LAWS[LAW].sentence in written[0].read_text()
