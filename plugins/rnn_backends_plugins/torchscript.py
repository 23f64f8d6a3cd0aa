"""``torchscript``: the unroll scripted once, for deployment without Python.

``torch.jit.script(lstm)`` of an LSTM on this backend can be saved and loaded in a process that does not import this
project. TorchScript is deprecated since torch 2.13: docs/deployment.md shows the ``torch.export`` path.
"""

import torch
from rnn_backends import LSTMBackend, Trait, hookimpl
from rnn_backends.authoring import unroll

contract_version = 1


@hookimpl
def lstm_backend() -> LSTMBackend:
    """Script the unroll; this is where TorchScript's compiler runs."""
    traits = {Trait.SCRIPT, Trait.CELL_STATES, Trait.DOUBLE_BACKWARD}
    return LSTMBackend("torchscript", torch.jit.script(unroll), traits=frozenset(traits))
