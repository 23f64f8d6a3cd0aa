"""Each example runs as its reader would run it, at a tiny size, and teaches with ``--help``."""

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_train_r2d2_runs_and_writes_its_result_and_its_picture(tmp_path):
    run("train_r2d2.py", "--frames", 2000, "--updates", 2, "--out", tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["result"]["frames"] == 2048
    assert 0 < data["result"]["evaluated_return"] <= 500
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_r2d2_brings_states_and_values_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    r2d2 = importlib.import_module("train_r2d2")
    memory, network = r2d2.make_model(argparse.Namespace(no_memory=False, backend="vmap", device="cpu"))
    explore = r2d2.EGreedyModule((env := r2d2.make_env(memory, 0)).action_spec, 0.5, 0.5)
    with torch.no_grad():
        rows = env.rollout(64, r2d2.TensorDictSequential(network, explore), break_when_any_done=False)
        known = rows.clone()
        rows.update({name: torch.randn_like(rows[name]) * ~rows["is_init"].unsqueeze(-1) for name in r2d2.STATE})
        rows[:, 0].update(known[:, 0].select(*r2d2.STATE))
        states, values = r2d2.replay(network, rows)  # same weights, so it finds the stored values
    assert known["is_init"][:, 1:].any()
    for name in r2d2.STATE:
        torch.testing.assert_close(states[name], known[name])
    goes_on = ~known["next", "done"][:, :-1].squeeze(-1)
    torch.testing.assert_close(values[:, :-1][goes_on], known["action_value"][:, 1:][goes_on])


def test_train_sac_runs_and_writes_its_result_and_its_picture(tmp_path):
    run("train_sac.py", "--frames", 1760, "--updates", 2, "--out", tmp_path / "result.json")  # two updates at the end
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["options"]["runs_on"] not in ("cudnn", "torchscript")  # they have no vmap
    assert data["result"]["frames"] == 1760
    assert -2000 < data["result"]["evaluated_return"] < 0
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("way", [(), ("--fsdp",)], ids=["ddp", "fsdp2"])
def test_two_processes_train_one_model(way):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(EXAMPLES / "many_machines.py"), "--updates", "30", "--backend", "cudnn", *way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(value) for value in re.findall(r"processes ([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0]
    assert len(re.findall(r"process \d: weights", done.stdout)) == 2
    assert len(set(re.findall(r"weights sum to ([-.\d]+)", done.stdout))) == 1


def test_collectors_act_in_processes_of_their_own():
    said = run("many_machines.py", "--collectors", 2, "--backend", "cudnn")
    assert said.count("of 2 processes, states (2, 2, 32, 1, 64)") == 4


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train_r2d2.py", ("hidden_output", "burn-in", "(5)")),
        ("train_sac.py", ("SliceSampler", "--no-memory", "Burn-in", "(5)")),
        ("many_machines.py", ("torchrun", "FSDP2")),
    ],
)
def test_help_of_the_others_teaches_too(program, words):
    said = run(program, "--help")
    assert all(word in said for word in words)


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


def test_recurrent_ppo_of_stable_baselines_has_the_same_losses(tmp_path):
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: pip install sb3-contrib")
    run("sb3_recurrent_ppo.py", "--iterations", 2, "--steps", 32, "--hidden", 8, "--out", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert result["first_losses_differ_by"] < 1e-5  # of their size


def test_the_page_has_the_policy_of_the_example():
    source = (EXAMPLES / "sb3_recurrent_ppo.py").read_text()
    policy = source[source.index("class FastPolicy") : source.index("class Timed")].strip()
    assert policy in (EXAMPLES.parent / "docs" / "from_torch.md").read_text()
