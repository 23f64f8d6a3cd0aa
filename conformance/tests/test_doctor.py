"""``rnn-backends doctor``: the built-in policy is healthy; a planted mistake is named, with its line and its place."""

import sys

import pytest
from click.testing import CliRunner, Result
from rnn_conformance.cli.main import cli

AGENT = """
import torch
from rnn_backends import LSTMModule
from rnn_conformance.doctor_example import make_env as right_env, make_policy as right_policy
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, TransformedEnv

def policy():
    return right_policy()

def no_tracker(policy):
    return TransformedEnv(GymEnv("CartPole-v1"), policy[0].make_tensordict_primer())

def no_primer():
    return TransformedEnv(GymEnv("CartPole-v1"), InitTracker())

def rows(policy):
    both = Compose(InitTracker(), policy[0].make_tensordict_primer())
    env = TransformedEnv(SerialEnv(2, lambda: GymEnv("CartPole-v1")), both)
    with torch.no_grad():
        return env.rollout(8, policy, break_when_any_done=False)

def swapped(policy):
    return rows(policy).transpose(0, 1)

def stale(policy):
    data = rows(policy)
    with torch.no_grad():
        policy[0].lstm.weight_hh_l0.mul_(2)
    return data

def no_policy():
    return torch.nn.Linear(4, 2)

def nothing():
    pass
"""


@pytest.fixture
def agent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_agent.py").write_text(AGENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    return "my_agent"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ("doctor", "--steps", "24", *arguments), env={"COLUMNS": "200"}, catch_exceptions=False
    )


def test_the_built_in_example_is_healthy() -> None:
    result = call()
    assert result.exit_code == 0, result.output
    assert result.output.startswith("healthy: acting and replay agree over 24 steps")


@pytest.mark.parametrize(
    ("env", "name", "line"),
    [
        ("no_tracker", "no InitTracker", "env.append_transform(InitTracker())"),
        ("no_primer", "no primer", "env.append_transform(module.make_tensordict_primer())"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_line_and_place(
    agent: str, env: str, name: str, line: str
) -> None:
    result = call(f"{agent}:policy", f"{agent}:{env}")
    assert result.exit_code == 1
    assert f"{name}: " in result.output
    assert line in result.output
    at = AGENT[: AGENT.index(f"def {env}")].count("\n") + 1
    assert f"my_agent.py:{at}" in result.output


@pytest.mark.parametrize(
    ("data", "name"), [("swapped", "batch and time swapped"), ("stale", "stale states in a buffer")]
)
def test_a_mistake_in_stored_rows_is_named(agent: str, data: str, name: str) -> None:
    result = call(f"{agent}:policy", f"{agent}:right_env", "--data", f"{agent}:{data}")
    assert result.exit_code == 1
    assert f"{name}: " in result.output
    assert "the data is made in " in result.output


def test_right_rows_are_healthy(agent: str) -> None:
    result = call(f"{agent}:policy", f"{agent}:right_env", "--data", f"{agent}:rows")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["my_agent:policy"], "give POLICY and ENV, or neither"),
        (["my_agent", "my_agent:no_primer"], "is given as pkg.mod:function, got 'my_agent'"),
        (["nowhere:policy", "my_agent:no_primer"], "nowhere cannot be imported"),
        (["my_agent:nobody", "my_agent:no_primer"], "my_agent has no function nobody"),
        (["my_agent:nothing", "my_agent:no_primer"], "has to return a module, and returned NoneType"),
        (["my_agent:policy", "my_agent:nothing"], "has to return a TorchRL environment, and returned NoneType"),
        (
            ["my_agent:policy", "my_agent:no_primer", "--data", "my_agent:nothing"],
            "has to return a TensorDict, and returned NoneType",
        ),
        (["my_agent:no_policy", "my_agent:no_primer"], "holds no rnn_backends.LSTMModule: Linear"),
    ],
)
def test_what_cannot_be_judged_is_refused(agent: str, arguments: list[str], reason: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert reason in result.output
