"""A backend from outside: installed into a fresh virtual environment, listed, explained, run and checked there."""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_backend"
PROGRAM = """
import torch
from rnn_backends import LSTM

torch.manual_seed(0)
theirs = LSTM(3, 4, 2, proj_size=2, bidirectional=True, dtype=torch.float64, lstm_backend="rowwise")
assert theirs.lstm_backend == "rowwise"
x = torch.randn(9, 5, 3, dtype=torch.float64, requires_grad=True)
is_init = torch.rand(9, 5) < 0.3
results = []
for lstm in (theirs, theirs.with_backend("vmap")):
    output, (h_n, c_n) = lstm(x, is_init=is_init)
    loss = output.square().sum() + h_n.sum() + c_n.square().sum()
    results.append([output, h_n, c_n, *torch.autograd.grad(loss, [x, *lstm.parameters()])])
assert is_init.any()
torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-12)
"""

EXPLAIN = """
import json
from rnn_backends import LSTMSpec, explain
print(json.dumps({d: [(v.accepted, v.reason) for v in explain(LSTMSpec(3, 4), d) if v.name == "rowwise"][0]
                  for d in ("cpu", "meta")}))
"""


class Environment:
    """A virtual environment with access to this one's packages (torch need not be installed again)."""

    def __init__(self, path):
        self.path = path
        venv.create(path, with_pip=False)
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)}))
        # `addsitedir`, because a plain line would not read the .pth files there, an editable install's among them.
        (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        self.bin = path / ("Scripts" if os.name == "nt" else "bin")

    def run(self, *arguments):
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RNN_BACKENDS", "VIRTUAL_ENV"))}
        command = [str(self.bin / "python"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.path, env=outside)
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def command(self, *arguments):
        """The ``rnn-backends`` command, run by its entry point."""
        return self.run("-m", "rnn_conformance", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(EXAMPLE, folder / "source")
    environment = Environment(folder / "venv")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index")
    environment.run("-m", "pip", "install", *quiet, "--no-deps", "--no-build-isolation", str(source))
    shutil.rmtree(source)  # the installed copy runs, not the source
    return environment


def test_it_is_not_installed_here():
    import rnn_backends

    assert "rowwise" not in rnn_backends.names()


def test_it_is_installed_there(environment):
    where = environment.run("-c", "import rowwise_backend; print(rowwise_backend.__file__)").strip()
    assert Path(where).is_relative_to(environment.path)


def test_it_runs_with_resets_and_gives_what_vmap_gives(environment):
    environment.run("-W", "error", "-c", PROGRAM)


def test_the_code_in_its_readme_runs(environment):
    code = (EXAMPLE / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    environment.run("-W", "error", "-c", code + "assert lstm.lstm_backend == 'rowwise'")


def test_it_is_listed(environment):
    listed = environment.command("list")
    assert "rowwise" in listed
    assert "rnn-backends-rowwise 0.1.0" in " ".join(listed.split())


def test_it_is_explained(environment):
    verdicts = json.loads(environment.run("-c", EXPLAIN))
    assert verdicts["cpu"] == [True, None]
    assert verdicts["meta"] == [False, "it has been tried on cpu only, not on meta"]
    assert "rowwise" in environment.command("explain")


@pytest.mark.slow
def test_it_is_checked(environment):
    report = environment.path / "report.json"
    table = environment.command("check", "rowwise", "--profile", "smoke", "--json", str(report))
    assert "rowwise" in table
    assert "rowwise" in report.read_text()
