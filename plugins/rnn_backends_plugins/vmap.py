"""``vmap``: plain Python over time, for ``torch.func``: ensembles, per-sample gradients, double backward, jvp.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait, hookimpl
from rnn_backends.authoring import check_call, check_steps, unroll, zero_at
from torch import Tensor

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
    starts = torch.ones(1, x.shape[0], dtype=torch.bool, device=x.device)
    out = unroll(weights, x.unsqueeze(0), State(state.h.unsqueeze(0), state.c.unsqueeze(0)), starts)
    return State(out.h.squeeze(0), out.c.squeeze(0))


def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    """One step with resets: a :data:`rnn_backends.ActFunction`."""
    check_call("vmap", weights, x, state, is_init)
    return step(weights, x, zero_at(state, is_init))


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The plain unroll."""
    return LSTMBackend("vmap", layer, traits=TRAITS, step=step, act=act)
