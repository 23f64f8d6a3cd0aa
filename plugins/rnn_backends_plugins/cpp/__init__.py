"""``cpp``: an LSTM layer in C++, compiled on first use for the processor it runs on.

Forward, backward and one step, written for what reinforcement learning does on a CPU: a reset is a pointer to another
state, so it costs nothing wherever it stands, and where there are rows enough each goes through all of time on one
core, so nobody waits. ``lstm.cpp`` is where to begin to read.
"""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, Trait, hookimpl
from rnn_backends.authoring import (
    check_kinds,
    have_memory,
    known_weights,
    make_layer,
    nothing_at_work,
    plain_keys,
    torch_step,
    wants_gradient,
    zero_at,
)
from torch import Tensor

from . import kernel
from .build import unable, why_not

contract_version = 1

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

WIDE = (torch.float32, torch.float64)
"""What the kernel computes in."""

wide_layer = make_layer("cpp", kernel.forward, kernel.backward, kernel.gates_of, ("cpu",), looks_at_memory=True)


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A :data:`rnn_backends.LayerFunction`; in 16 bits it computes in float32."""
    if x.dtype.itemsize > 2:
        return wide_layer(weights, x, entry, starts)
    others = (None if v is None else v.float() for v in weights[2:])
    wide = LayerWeights(weights.w_ih.float(), weights.w_hh.float(), *others)
    h, c = wide_layer(wide, x.float(), State(entry.h.float(), entry.c.float()), starts)
    return State(h.to(x.dtype), c.to(x.dtype))


def step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step: a :data:`rnn_backends.StepFunction`."""
    done = act_on_memory(weights, x, state)
    if done is not None:
        return done
    if torch.compiler.is_compiling():
        return torch_step(weights, x, state)
    check_kinds("cpp", (x, *state))
    starts = x.new_ones(1, x.shape[0], dtype=torch.bool)
    out = layer(weights, x.unsqueeze(0), State(state.h.unsqueeze(0), state.c.unsqueeze(0)), starts)
    return State(out.h.squeeze(0), out.c.squeeze(0))


def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    """One step with resets: a :data:`rnn_backends.ActFunction`."""
    done = act_on_memory(weights, x, state, is_init)
    return step(weights, x, zero_at(state, is_init)) if done is None else done


def act_on_memory(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor | None = None) -> State | None:
    """One step past the dispatcher, or ``None`` where it is not for it: no plain tensors, gradients, 16 bits."""
    h, c = state
    if not nothing_at_work() or x.dtype not in WIDE or not have_memory((x, h, c, is_init), plain_keys("cpu")):
        return None
    if torch.is_grad_enabled() and wants_gradient((x, h, c, *weights)):
        return None
    known = known_weights(weights)
    if known is None or known.device != x.device:
        return None
    return kernel.step(known, x, state, is_init)


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot serve here, as far as can be seen without compiling."""
    if dtype not in DTYPES:
        return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
    if device.type != "cpu":
        return f"it is made for cpu, not for {device.type}"
    return unable()


def prepare(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """Load the kernel, and compile it where that was not done before; the reason why that failed, or ``None``."""
    return why_not()


@hookimpl
def lstm_backend() -> LSTMBackend:
    """Nothing is compiled here."""
    traits = {Trait.VMAP, Trait.FULLGRAPH, Trait.EXPORT, Trait.CELL_STATES}
    return LSTMBackend("cpp", layer, rejects, frozenset(traits), step=step, act=act, prepare=prepare)
