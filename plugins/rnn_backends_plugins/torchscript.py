"""``torchscript``: the unroll scripted once, for deployment without Python.

``torch.jit.script(lstm)`` of an LSTM on this backend can be saved and loaded in a process that does not import this
project. TorchScript is deprecated since torch 2.13: docs/deployment.md shows the ``torch.export`` path.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

import warnings

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State, Trait, hookimpl
from rnn_backends.authoring import check_call, check_steps, is_plain, make_unrolled_steps, unroll
from torch import Tensor

from . import _torch

contract_version = 1

with warnings.catch_warnings():  # the deprecation is for users to decide on: docs/deployment.md has the successor
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
    scripted = torch.jit.script(unroll)  # TorchScript's compiler runs here


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The unroll, scripted: a :data:`rnn_backends.LayerFunction`."""
    if torch.jit.is_scripting():
        return unroll(weights, x, entry, starts)
    return _called(weights, x, entry, starts)


@torch.jit.unused
def _called(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The layer for calls from Python. Calls that TorchScript's interpreter does not support run in Python.

    These are calls with tracers, modes or subclasses, and with the hooks of activation checkpointing, which end a
    recomputation early by an exception.
    """
    if torch.compiler.is_compiling():
        state: State = scripted(weights, x, entry, starts)
        return state
    check_call("torchscript", weights, x, entry, starts)
    check_steps("torchscript", x)
    plain = is_plain((x, *weights, *entry, starts), ("cpu", "cuda"))
    run: LayerFunction = scripted if plain and not _torch.saved_tensors_are_hooked() else unroll
    return run(weights, x, entry, starts)


step, act = make_unrolled_steps("torchscript")  # without a loop, the interpreter takes twice as long as its operators


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The scripted unroll."""
    traits = {Trait.SCRIPT, Trait.CELL_STATES, Trait.DOUBLE_BACKWARD}
    return LSTMBackend("torchscript", layer, traits=frozenset(traits), step=step, act=act)
