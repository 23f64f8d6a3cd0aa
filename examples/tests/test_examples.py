"""Each example runs as its reader would run it, at a tiny size, and teaches with ``--help``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1]
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "results.py")


def run(program, *arguments):
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_fits_on_150_lines_and_is_named_in_the_readme(program):
    assert len((EXAMPLES / program).read_text().splitlines()) <= 150
    assert program in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("memory", [(), ("--no-memory",)], ids=["memory", "no-memory"])
def test_train_ppo_runs_and_writes_its_result_and_its_picture(memory, tmp_path):
    said = run("train_ppo.py", "--frames", 1500, "--backend", "cudnn", "--out", tmp_path / "result.json", *memory)
    assert "mean return" in said
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["options"]["runs_on"] == ("no memory" if memory else "cudnn")
    assert data["result"]["frames"] == data["curve"][-1][0] == 2048  # two whole iterations
    assert 0 < data["result"]["evaluated_return"] <= 500
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_help_teaches():
    said = run("train_ppo.py", "--help")
    assert all(word in said for word in ("--no-memory", "InitTracker", "primer", "--backend", "(5)"))


def test_swap_in_trains_alike_in_both_ways(tmp_path):
    sizes = ("--updates", 3, "--steps", 12, "--envs", 3, "--hidden", 8, "--resets", 0.3)
    said = run("swap_in.py", *sizes, "--backend", "cudnn", "--out", tmp_path / "result.json")
    assert "x as fast" in said
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["options"]["runs_on"] == "cudnn"
    assert 0 <= data["result"]["largest_loss_difference"] < 1e-5
    assert data["result"]["times_faster"] > 0
