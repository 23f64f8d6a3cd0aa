"""Options: every option of torch.nn.LSTM means what it means there."""

from __future__ import annotations

import warnings

import torch
from rnn_backends import State
from torch import nn

from ..suite.compare import identical
from ..suite.law import law
from ..suite.trial import Ran, Trial
from ..suite.verdict import LawBroken
from ._shared import agrees_with_reference


@law(wide=True, L=(2, 3))
def layers(trial: Trial) -> None:
    """Each layer reads the h of the one below: values and gradients equal the reference's."""
    agrees_with_reference(trial, gradients=True)


@law(
    costly=True, once=True, L=(12,), T=(3,), B=(2,), I=(3,), H=(3,), P=(0,), layout=("contiguous",),
    profiles=("quick", "full"),
)  # fmt: skip
def twelve_layers(trial: Trial) -> None:
    """Twelve layers keep their order: values and gradients are right, in a call, a step and a step that restarts."""
    agrees_with_reference(trial, gradients=True)
    lstm, inputs = trial.lstm(), trial.inputs
    with torch.no_grad():
        ran = trial.stream(lstm, inputs.x, (inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous()))
        first = State(inputs.h[:, 0], inputs.c[:, 0])
        output, state = lstm.step(inputs.x[0], first)
        again, restarted = lstm.step(inputs.x[0], first, torch.ones_like(inputs.starts[0]))
        zero, from_zero = lstm.step(inputs.x[0], State(*map(torch.zeros_like, first)))
    for name, value, right in (
        ("output", again, zero),
        ("h", restarted.h, from_zero.h),
        ("c", restarted.c, from_zero.c),
    ):
        trial.agree(f"{name} of a step that restarts", value, right, None, "")
    for what, steps, found in (("a call", trial.case.T, ran), ("a step", 1, Ran(output.unsqueeze(0), *state))):
        starts = torch.zeros_like(inputs.starts[:steps])
        starts[0] = True
        part = inputs._replace(x=inputs.x[:steps], h=inputs.h[:, :steps], c=inputs.c[:, :steps], starts=starts)
        expected = trial.reference(part)
        trial.agree(f"output of {what}", found.output, expected.output)
        trial.agree(f"h after {what}", found.h, expected.end_h[:, -1], 1, "layer b unit")
        trial.agree(f"c after {what}", found.c, expected.end_c[:, -1], 1, "layer b unit")


@law(wide=True, bidirectional=(True,))
def bidirectional(trial: Trial) -> None:
    """The reverse direction runs each sequence from its last step to its first, from its own stored state."""
    agrees_with_reference(trial, gradients=True)


@law(wide=True, P=(1, 2, 3), H=(3, 5))
def projection(trial: Trial) -> None:
    """With a projection the projected h is both the output and the recurrent state; c keeps its size."""
    agrees_with_reference(trial, gradients=True)


@law(bias=(False,))
def no_bias(trial: Trial) -> None:
    """With ``bias=False`` values and gradients equal those of the reference without biases."""
    agrees_with_reference(trial, gradients=True)


@law(bias=(True,), profiles=("quick", "full"))
def both_biases_count(trial: Trial) -> None:
    """The input's and the recurrent bias are both added: values and gradients equal the reference's."""
    agrees_with_reference(trial, gradients=True)


def _stream(trial: Trial, train: bool, seed: int = 0) -> Ran:
    lstm = trial.lstm().train(train)
    torch.manual_seed(seed)
    return trial.stream(lstm, trial.inputs.x, None, trial.is_init)


@law(dropout=(30, 100), L=(2, 3), stored=("zeros",))
def no_dropout_in_evaluation(trial: Trial) -> None:
    """In evaluation nothing is dropped."""
    trial.agree("output", _stream(trial, train=False).output, trial.expected.output)


@law(dropout=(30, 100), L=(1,), stored=("zeros",), profiles=("quick", "full"))
def no_dropout_after_the_last_layer(trial: Trial) -> None:
    """In training the last layer's output is not dropped, so one layer has no dropout at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that this dropout has no effect
        trial.agree("output", _stream(trial, train=True).output, trial.expected.output)


@law(
    dropout=(100,),
    L=(2,),
    stored=("zeros",),
    resets=("none",),
    bidirectional=(False,),
    P=(0,),
    profiles=("quick", "full"),
)
def dropout_of_everything_leaves_the_biases(trial: Trial) -> None:
    """With dropout 1 in training the second layer reads zeros: its results do not depend on the first layer."""
    actual = _stream(trial, train=True).output
    x = torch.zeros(trial.case.T, trial.case.B, trial.case.H, dtype=actual.dtype, device=actual.device)
    second = nn.LSTM(trial.case.H, trial.case.H, bias=trial.case.bias, dtype=actual.dtype, device=actual.device)
    weights = {n[:-1] + "0": v for n, v in trial.inputs.weights.items() if n.endswith("_l1")}
    second.load_state_dict(weights)
    trial.agree("output", actual, second(x)[0], scale=2)


@law(
    dropout=(50,),
    L=(2, 3),
    H=(8,),
    T=(4, 6),
    B=(3,),
    bias=(True,),
    P=(0,),
    stored=("zeros",),
    profiles=("quick", "full"),
)
def dropout_follows_the_seed(trial: Trial) -> None:
    """In training the same seed gives the same dropout mask, and another seed another mask."""
    once, again, other = (_stream(trial, True, seed).output for seed in (1, 1, 2))
    identical("output with the same seed", again, once, "t b unit")
    if torch.equal(once, other):
        raise LawBroken(
            "two seeds give the same output in training with dropout 0.5: nothing was dropped, or always the same"
        )
