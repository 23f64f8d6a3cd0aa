"""``vmap``: plain Python over time, for ``torch.func``: ensembles, per-sample gradients, double backward, jvp.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait, hookimpl
from rnn_backends.authoring import cell, check_call, check_steps, reset, unroll
from torch import Tensor
from torch.nn.functional import linear

contract_version = 1

TRAITS = frozenset(
    {
        Trait.VMAP,
        Trait.FULLGRAPH,
        Trait.SCRIPT,
        Trait.EXPORT,
        Trait.DOUBLE_BACKWARD,
        Trait.FORWARD_AD,
        Trait.CELL_STATES,
    }
)


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The plain unroll as it is: a :data:`rnn_backends.LayerFunction`."""
    if not torch.jit.is_scripting():
        check_call("vmap", weights, x, entry, starts)
        check_steps("vmap", x)
    return unroll(weights, x, entry, starts)


def step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step: a :data:`rnn_backends.StepFunction`."""
    check_call("vmap", weights, x, state)
    return _step(weights, x, state)


def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    """One step with resets: a :data:`rnn_backends.ActFunction`."""
    usual = check_call("vmap", weights, x, state, is_init)
    return _step(weights, x, reset(state, is_init, usual))


def _step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """The unroll's one step, with nothing of its loop."""
    w_ih, w_hh, bias, b_hh, w_hr = weights
    if bias is not None and b_hh is not None:
        bias = bias + b_hh
    return cell(linear(x, w_ih, bias) + linear(state.h, w_hh), state.c, w_hr)


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The plain unroll."""
    return LSTMBackend("vmap", layer, traits=TRAITS, step=step, act=act)
