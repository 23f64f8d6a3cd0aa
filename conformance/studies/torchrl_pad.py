"""``torchrl_pad``: TorchRL's default. Sequences are split off, padded, packed and given to torch.nn.LSTM."""

from rnn_backends import LayerWeights, LSTMBackend, State, hookimpl
from torch import Tensor
from torchrl_module import run

contract_version = 1


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """x [T, B, I], entry State([T, B, P], [T, B, H]), starts [T, B] bool -> State([T, B, P], [T, B, H])."""
    return run(weights, x, entry, starts, recurrent_backend="pad")


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The hook."""
    return LSTMBackend("torchrl_pad", layer)
