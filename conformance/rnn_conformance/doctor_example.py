"""The default policy and environment of ``rnn-backends doctor``, as an example of correct ones."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTMModule
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn


def make_policy() -> TensorDictSequential:
    """An LSTM and a linear layer that choose CartPole's action."""
    memory = LSTMModule(4, 32, in_key="observation", out_key="features")
    scores = TensorDictModule(nn.Linear(32, 2), ["features"], ["scores"])
    choose = TensorDictModule(lambda s: nn.functional.one_hot(s.argmax(-1), 2), ["scores"], ["action"])
    return TensorDictSequential(memory, scores, choose)


def make_env(policy: TensorDictSequential) -> Any:
    """CartPole with the two transforms that a recurrent policy needs."""
    from torchrl.envs import Compose, GymEnv, InitTracker, TransformedEnv

    env = TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), policy[0].make_tensordict_primer()))
    env.set_seed(torch.randint(1 << 30, ()).item())
    return env
