"""``torchrl_python``: TorchRL's LSTM in Python, for ``vmap``."""

from rnn_backends import LayerWeights, LSTMBackend, State, hookimpl
from torch import Tensor
from torchrl_module import run

contract_version = 1


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """x [T, B, I], entry State([T, B, P], [T, B, H]), starts [T, B] bool -> State([T, B, P], [T, B, H])."""
    return run(weights, x, entry, starts, python_based=True)


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The hook."""
    return LSTMBackend("torchrl_python", layer)
