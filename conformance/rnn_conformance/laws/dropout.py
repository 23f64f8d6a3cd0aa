"""Dropout: between layers, in training, with torch's own random numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from rnn_backends import State
from torch import Tensor

from ..suite.compare import identical
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reference import reference
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import LawBroken

DEEP: dict[str, Any] = {"dropout": (30, 50), "L": (2, 3), "T": (3, 2, 1, 6), "B": (1, 2, 3)}


class _Dropped(NamedTuple):
    """The reference with dropout: ``output [T, B, D*P]`` and the end states, ``[L*D, T, B, .]``."""

    output: Tensor
    h: Tensor
    c: Tensor


def _masks(trial: Trial, T: int, seed: int) -> list[Tensor]:
    """The masks of torch.nn.functional.dropout, called between the layers after ``manual_seed(seed)``."""
    case, x = trial.case, trial.inputs.x
    torch.manual_seed(seed)
    shape = (T, case.B, case.spec.output_size * case.spec.directions)
    ones = torch.ones(shape, dtype=x.dtype, device=x.device)
    return [torch.nn.functional.dropout(ones, case.dropout / 100, True).cpu() for _ in range(case.L - 1)]


def _random_state(trial: Trial) -> Tensor:
    """The state of the random generator of the case's device."""
    device = torch.device(trial.device)
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _dropped(trial: Trial, inputs: Inputs, masks: list[Tensor]) -> _Dropped:
    """The reference's results layer by layer, with each layer's input multiplied by its mask."""
    case, D = trial.case, trial.case.spec.directions
    x, h, c, starts = (v.cpu() for v in inputs[:4])
    ends_h, ends_c = [], []
    for layer in range(case.L):
        own = {n.replace(f"_l{layer}", "_l0"): w.cpu() for n, w in inputs.weights.items() if f"_l{layer}" in n}
        x = x.double() if layer == 0 else x * masks[layer - 1].double()
        rows = slice(layer * D, (layer + 1) * D)
        found = reference(own, x, h[rows], c[rows], starts, 1, case.bidirectional)
        x = found.output
        ends_h.append(found.end_h)
        ends_c.append(found.end_c)
    return _Dropped(x, torch.cat(ends_h), torch.cat(ends_c))


@law(wide=True, **DEEP)
def dropout_is_torchs_between_layers(trial: Trial) -> None:
    """In training each layer but the first reads torch.nn.functional.dropout of the one below; nothing else draws."""
    expected, after = _dropped(trial, trial.inputs, _masks(trial, trial.case.T, 7)), _random_state(trial)
    lstm = trial.lstm().train()
    torch.manual_seed(7)
    ran = trial.run(lstm)
    identical("the random state after the call", _random_state(trial), after, "byte")
    trial.agree("output", ran.output, expected.output)
    trial.agree_states("the end state", ran, expected.h, expected.c)


@law(profiles=("quick", "full"), **DEEP)
def dropout_goes_backward_through_the_same_mask(trial: Trial) -> None:
    """The gradients in training use the masks drawn in the forward pass."""
    inputs, masks = trial.fresh(), _masks(trial, trial.case.T, 7)
    for value in inputs.leaves.values():
        value.requires_grad_()
    expected = differentiate(trial.loss(Ran(*_dropped(trial, inputs, masks))), inputs.leaves)
    lstm = trial.lstm().train()
    torch.manual_seed(7)
    trial.agree_gradients(trial.gradients(trial.loss, lstm), expected)


@law(wide=True, profiles=("quick", "full"), **DEEP)
def dropout_of_a_step_is_torchs(trial: Trial) -> None:
    """A step in training draws the mask of one step, and the next step draws a new one."""
    lstm, inputs = trial.lstm().train(), trial.inputs
    for t in range(min(2, trial.case.T)):
        at = slice(t, t + 1)
        now = Inputs(inputs.x[at], inputs.h[:, at], inputs.c[:, at], inputs.starts[:1], inputs.weights)
        expected, after = _dropped(trial, now, _masks(trial, 1, 11 + t)), _random_state(trial)
        torch.manual_seed(11 + t)
        output, state = lstm.step(inputs.x[t], State(inputs.h[:, t], inputs.c[:, t]))
        identical(f"the random state after step {t}", _random_state(trial), after, "byte")
        trial.agree(f"output of step {t}", output, expected.output[0], 0, "b unit")
        trial.agree(f"c of step {t}", state.c, expected.c[:, 0], 1, "layer b unit")


@law(dropout=(50,), L=(2, 3), bias=(True,), profiles=("quick", "full"))
def training_and_evaluation_follow_the_module(trial: Trial) -> None:
    """``train()`` and ``eval()`` take effect at the next call, and evaluation draws no random numbers."""
    lstm = trial.lstm()
    for _ in range(2):
        lstm.train()
        expected = _dropped(trial, trial.inputs, _masks(trial, trial.case.T, 3))
        torch.manual_seed(3)
        trial.agree("output in training", trial.run(lstm).output, expected.output)
        before = torch.random.get_rng_state()
        trial.agree("output in evaluation", trial.run(lstm.eval()).output, trial.expected.output)
        identical("the random state after evaluation", torch.random.get_rng_state(), before, "byte")


@law(dropout=(50,), L=(2,), H=(8,), T=(6,), B=(3,), P=(0,), bidirectional=(False,), profiles=("quick", "full"))
def every_step_and_row_has_its_own_mask(trial: Trial) -> None:
    """The dropout mask differs from step to step, from row to row, and from call to call."""
    lstm = trial.lstm().train()
    inputs = trial.inputs._replace(
        x=torch.zeros_like(trial.inputs.x), h=torch.zeros_like(trial.inputs.h), c=torch.zeros_like(trial.inputs.c),
        starts=torch.ones_like(trial.inputs.starts),
    )  # fmt: skip
    once, again = trial.run(lstm, inputs).output, trial.run(lstm, inputs).output
    same = {
        "two calls": torch.equal(once, again),
        "all steps": bool((once == once[:1]).all()),
        "all rows": bool((once == once[:, :1]).all()),
    }
    for what, equal in same.items():
        if equal and trial.case.bias:
            raise LawBroken(f"in training with dropout 0.5, {what} have the same mask")


@law(dropout=(50,), L=(2,), profiles=("quick", "full"))
def dropout_may_be_set_later(trial: Trial) -> None:
    """``lstm.dropout = p``, as in torch.nn.LSTM, takes effect at the next call and the next step."""
    lstm = trial.lstm().train()
    trial.run(lstm)
    lstm.dropout = 0.0
    trial.agree("output with dropout set to 0", trial.run(lstm).output, trial.expected.output)
    x, zero = trial.inputs.x[:1], trial.inputs._replace(h=trial.inputs.h[:, :1] * 0, c=trial.inputs.c[:, :1] * 0)
    step, _ = lstm.step(x[0], None)
    right = trial.reference(zero._replace(x=x, starts=trial.inputs.starts[:1])).output[0]
    trial.agree("output of a step with dropout set to 0", step, right, 0, "b unit")
    lstm.dropout = trial.case.dropout / 100
    torch.manual_seed(5)
    output = trial.run(lstm).output
    trial.agree("output", output, _dropped(trial, trial.inputs, _masks(trial, trial.case.T, 5)).output)
