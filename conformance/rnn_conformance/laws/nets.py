"""LSTMNet: an MLP, the LSTM and a linear layer, over one step or many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rnn_backends import LSTMNet, UnsupportedError
from torch import Tensor

from ..suite.compare import identical
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reference import Expected
from ..suite.trial import Trial, differentiate
from ..suite.verdict import Declined, LawBroken

FEATURES, OUT = 3, 2
NO_RESETS: dict[str, Any] = {"resets": ("none",), "B": (1, 2, 3)}


def _net(trial: Trial) -> LSTMNet:
    """An LSTMNet on the backend; its LSTM has the case's weights."""
    case = trial.case
    trial.lstm()  # raises Declined for a rejected case
    lstm = {
        "input_size": case.I, "hidden_size": case.H, "num_layers": case.L, "bias": case.bias,
        "bidirectional": case.bidirectional, "proj_size": case.P,
    }  # fmt: skip
    mlp = {"in_features": FEATURES, "out_features": case.I, "depth": 1, "num_cells": 4}
    try:
        net = LSTMNet(OUT, lstm, mlp, trial.device, lstm_backend=trial.backend).to(case.torch_dtype)
    except UnsupportedError as error:
        raise Declined(error.reason) from error
    net.lstm.load_state_dict(trial.inputs.weights)
    return net


def _input(trial: Trial) -> Tensor:
    """``[B, T, F]``."""
    return trial.noise(torch.empty(trial.case.B, trial.case.T, FEATURES), 41).to(trial.device)


def _right(trial: Trial, net: LSTMNet, x: Tensor, stored: bool) -> Expected:
    """The reference's results after the net's own MLP, in float64: ``x [B, T, F]``."""
    inputs = trial.inputs
    exact = {name: value.double() for name, value in net.mlp.state_dict(keep_vars=True).items()}
    features = torch.func.functional_call(net.mlp, exact, (x.double(),)).transpose(0, 1)
    T = x.shape[1]
    h, c = (v[:, :T].double() * stored for v in (inputs.h, inputs.c))
    weights = {n: p.double().cpu() for n, p in net.lstm.named_parameters()}
    starts = torch.zeros_like(inputs.starts[:T])
    starts[0] = True
    return trial.reference(Inputs(features, h, c, starts, weights))


def _head(net: LSTMNet, output: Tensor) -> Tensor:
    """The result of the last linear layer, in float64."""
    return torch.nn.functional.linear(output, net.linear.weight.double().cpu(), net.linear.bias.double().cpu())


@law(**NO_RESETS)
def a_net_over_time_is_its_parts(trial: Trial) -> None:
    """Over many steps LSTMNet equals its parts; it returns the incoming states, and the last states after zeros."""
    net, x, inputs = _net(trial), _input(trial), trial.inputs
    given = inputs.h.permute(2, 1, 0, 3), inputs.c.permute(2, 1, 0, 3)
    for stored in (given, None):
        with torch.no_grad():
            y, h_in, c_in, h, c = net(x, *stored) if stored else net(x)
            expected = _right(trial, net, x, stored is not None)
        trial.agree("y", y, _head(net, expected.output.transpose(0, 1)), 0, "b t feature", scale=2)
        for name, actual, first in zip(("hidden0_in", "hidden1_in"), (h_in, c_in), given, strict=True):
            identical(name, actual, first if stored else torch.zeros_like(first), "b t layer unit")
        for name, actual, right in (("hidden0_out", h, expected.end_h), ("hidden1_out", c, expected.end_c)):
            identical(
                f"{name} before the last step", actual[:, :-1], torch.zeros_like(actual[:, :-1]), "b t layer unit"
            )
            trial.agree(
                f"{name} at the last step", actual[:, -1], right[:, -1].transpose(0, 1), 0, "b layer unit", scale=2
            )


@law(**NO_RESETS)
def a_net_over_one_step_is_its_parts(trial: Trial) -> None:
    """For one step of a batch or of one row LSTMNet returns its parts' output and the states after the step."""
    net, x, inputs = _net(trial), _input(trial)[:, :1], trial.inputs
    h0, c0 = inputs.h[:, 0].transpose(0, 1), inputs.c[:, 0].transpose(0, 1)
    with torch.no_grad():
        batch, row = net(x[:, 0], h0, c0), net(x[0, 0], h0[0], c0[0])
        expected = _right(trial, net, x, True)
    right = (_head(net, expected.output[0]), expected.end_h[:, 0].transpose(0, 1), expected.end_c[:, 0].transpose(0, 1))
    for name, many, one, value in zip(
        ("y", "hidden0_out", "hidden1_out"), (batch[0], *batch[3:]), (row[0], *row[3:]), right, strict=True
    ):
        trial.agree(f"{name} of a batch", many, value, 0, "b ...", scale=2)
        trial.agree(f"{name} of one row", one, value[0], None, "...", scale=2)


@law(profiles=("quick", "full"), **NO_RESETS)
def gradients_flow_through_a_net(trial: Trial) -> None:
    """A loss of LSTMNet's output has the parts' gradients for every parameter and for the input."""
    net, x = _net(trial), _input(trial).requires_grad_()
    y = net(x)[0]
    cotangent = trial.noise(y, 43).to(y)
    leaves = {"input": x, **dict(net.named_parameters())}
    actual = differentiate((y * cotangent).sum(), leaves)
    exact = _net(trial).double()
    exact.load_state_dict({n: v.double() for n, v in net.state_dict().items()})
    own = x.detach().double().requires_grad_()
    right = _right(trial, exact, own, False)
    exact_leaves = {"input": own, **dict(exact.named_parameters())}
    expected = differentiate(
        (_head(exact, right.output.transpose(0, 1)) * cotangent.double().cpu()).sum(), exact_leaves
    )
    trial.agree_gradients(actual, expected, scale=2)


@law(T=(1,), B=(1,), L=(1,), P=(0,), H=(2,))
def a_net_leaves_its_options_alone(trial: Trial) -> None:
    """LSTMNet does not change its dictionaries of options, so that they can be used again."""
    trial.lstm(replace(trial.case, I=2, H=2, dtype="f32"))  # raises Declined for a rejected case
    lstm, mlp = {"input_size": 2, "hidden_size": 2}, {"in_features": 3, "out_features": 2}
    before = dict(lstm), dict(mlp)
    LSTMNet(OUT, lstm, mlp, trial.device, lstm_backend=trial.backend)
    if (lstm, mlp) != before:
        raise LawBroken(f"LSTMNet changed its options from {before} to {(lstm, mlp)}")


@law(T=(1,), B=(1,), L=(1,), P=(0,), H=(2,))
def the_mlp_has_a_bias_if_requested(trial: Trial) -> None:
    """``bias_last_layer=False`` leaves the MLP's last layer without bias, with in_features given or inferred."""
    trial.lstm(replace(trial.case, I=2, H=2, dtype="f32"))  # raises Declined for a rejected case
    for features in (FEATURES, None):
        for depth in (0, 1):
            options = {"in_features": features, "out_features": 2, "depth": depth, "bias_last_layer": False}
            net = LSTMNet(OUT, {"input_size": 2, "hidden_size": 2}, options, trial.device, lstm_backend=trial.backend)
            net(torch.ones(1, 2, FEATURES, device=trial.device))
            last = [name for name, _ in net.mlp.named_parameters()][-1]
            if not last.endswith("weight"):
                raise LawBroken(f"with {options} the MLP's last parameter is {last}")


@law(T=(1,), B=(1,), L=(1,), P=(0,), H=(2,), profiles=("quick", "full"))
def each_layer_of_a_net_has_its_own_norm(trial: Trial) -> None:
    """The MLP of an LSTMNet has a separate normalisation, with its own weights, after each hidden layer."""
    trial.lstm(replace(trial.case, I=2, H=2, dtype="f32"))  # raises Declined for a rejected case
    mlp = {"in_features": 3, "out_features": 2, "depth": 3, "num_cells": 4, "norm_class": torch.nn.LayerNorm}
    lstm = {"input_size": 2, "hidden_size": 2}
    net = LSTMNet(OUT, lstm, mlp | {"norm_kwargs": {"normalized_shape": 4}}, trial.device, lstm_backend=trial.backend)
    norms = {id(part) for part in net.mlp.modules() if isinstance(part, torch.nn.LayerNorm)}
    if len(norms) != 3:
        raise LawBroken(f"an MLP with three hidden layers and a norm_class has {len(norms)} norms")
