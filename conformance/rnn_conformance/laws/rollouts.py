"""Rollouts: recorded episodes of real environments through ``LSTMModule``, as a training loop runs them."""

from __future__ import annotations

import torch
from rnn_backends import LSTMModule
from tensordict import TensorDict

from ..suite.compare import demand
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reach import CHEAP_DTYPE
from ..suite.reference import Expected, torch_per_trajectory
from ..suite.trial import Ran, Trial, differentiate

HIDDEN = ("recurrent_state_h", "recurrent_state_c")


@law(rollouts=True, drawn=False, dtype=CHEAP_DTYPE)
def rollout_equals_torch_lstm(trial: Trial) -> None:
    """Recurrent mode equals torch.nn.LSTM run over each trajectory from the state stored at its start."""
    inputs = _inputs(trial)
    ran = _recurrent(_module(trial, inputs), trial.tensordict(inputs))
    trial.agree("output", ran.output, _expected(trial, inputs).output)


@law(rollouts=True, drawn=False, dtype=CHEAP_DTYPE)
def rollout_equals_steps(trial: Trial) -> None:
    """Recurrent mode over a rollout equals acting step by step: the same outputs, the same state at each end."""
    inputs = _inputs(trial)
    module, td = _module(trial, inputs), trial.tensordict(inputs).exclude(*HIDDEN)
    with torch.no_grad():
        ran, acted = _recurrent(module, td.clone()), _stepped(module, td)
    trial.agree("output", ran.output, acted.output, scale=2)  # both sides have rounding errors
    trial.agree_states("the end state", ran, acted.h, acted.c, scale=2)


@law(rollouts=True, drawn=False, dtype=CHEAP_DTYPE)
def rollout_hidden_outputs(trial: Trial) -> None:
    """The hidden outputs are the state at every trajectory's end, also in the middle of a row, and zero elsewhere."""
    inputs = _inputs(trial)
    ran, expected = _recurrent(_module(trial, inputs), trial.tensordict(inputs)), _expected(trial, inputs)
    between = ~trial.ends[None, ..., None]
    for name, actual, right in (("h", ran.h, expected.end_h), ("c", ran.c, expected.end_c)):
        what = f"hidden output {name}"
        demand(what, ~between | (actual == 0), actual, "exactly 0, as no trajectory ends there", "layer t b unit")
        trial.agree(what, actual, right, 2, "layer t b unit")


@law(rollouts=True, drawn=False, dtype=CHEAP_DTYPE)
def rollout_gradients(trial: Trial) -> None:
    """Gradients of observations, stored states and weights equal those through torch.nn.LSTM a trajectory at a time."""
    inputs = _inputs(trial)
    module = _module(trial, inputs)
    for value in (inputs.x, inputs.h, inputs.c):
        value.requires_grad_()
    leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(module.lstm.named_parameters())}
    actual = differentiate(trial.loss(_recurrent(module, trial.tensordict(inputs))), leaves)

    exact = _double(inputs)
    for value in exact.leaves.values():
        value.requires_grad_()
    right = torch_per_trajectory(exact.weights, exact.x, exact.h, exact.c, exact.starts, 1, False)
    trial.agree_gradients(actual, differentiate(trial.loss(Ran(right.output, right.end_h, right.end_c)), exact.leaves))


def _inputs(trial: Trial) -> Inputs:
    """The tensors, with weights from U(-1, 1) / sqrt(H) as in torch: larger ones make long rows chaotic."""
    return trial.fresh().weighted(trial.case.H**-0.5)


def _module(trial: Trial, inputs: Inputs) -> LSTMModule:
    module = trial.module()
    with torch.no_grad():
        for name, value in inputs.weights.items():
            module.lstm.get_parameter(name).copy_(value)
    return module


def _double(inputs: Inputs) -> Inputs:
    """The inputs in float64 on the CPU."""
    x, h, c = (value.detach().cpu().double() for value in inputs[:3])
    return Inputs(x, h, c, inputs.starts.cpu(), {n: v.cpu().double() for n, v in inputs.weights.items()})


def _expected(trial: Trial, inputs: Inputs) -> Expected:
    """torch.nn.LSTM in float64, run over each trajectory alone from the state stored at its first step."""
    exact = _double(inputs)
    with torch.no_grad():
        return torch_per_trajectory(exact.weights, exact.x, exact.h, exact.c, exact.starts, 1, False)


def _recurrent(module: LSTMModule, td: TensorDict) -> Ran:
    """Output ``[T, B, H]`` and hidden outputs ``[1, T, B, H]`` of the recurrent mode."""
    out = module.set_recurrent_mode(True)(td)
    h, c = (out["next", key].permute(2, 1, 0, 3) for key in HIDDEN)
    return Ran(out["features"].transpose(0, 1), h, c)


def _stepped(module: LSTMModule, td: TensorDict) -> Ran:
    """Output and states after every step of the sequential mode, as an actor calls it; shapes of :func:`_recurrent`."""
    module = module.set_recurrent_mode(False)
    carried: dict[str, torch.Tensor] = {}
    steps: list[TensorDict] = []
    for now in td.unbind(1):
        out = module(now.select("observation", "is_init").update(carried))
        steps.append(out)
        carried = {key: out["next", key] for key in HIDDEN}
    h, c = (torch.stack([out["next", key] for out in steps], 1).permute(2, 1, 0, 3) for key in HIDDEN)
    return Ran(torch.stack([out["features"] for out in steps]), h, c)
