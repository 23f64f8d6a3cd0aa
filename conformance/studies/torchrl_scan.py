"""``torchrl_scan``: TorchRL's loop over time as a scan operator, resets inside."""

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, hookimpl
from torch import Tensor
from torchrl_module import run

contract_version = 1


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """x [T, B, I], entry State([T, B, P], [T, B, H]), starts [T, B] bool -> State([T, B, P], [T, B, H])."""
    return run(weights, x, entry, starts, recurrent_backend="scan")


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason for which TorchRL's module rejects a call; it rejects dropout and two directions as well."""
    return "TorchRL: recurrent_backend='scan' does not support proj_size yet" if spec.proj_size else None


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The hook."""
    return LSTMBackend("torchrl_scan", layer, rejects)
