"""The time of a backend over a recorded rollout, relative to torch.nn.LSTM's."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from rnn_backends import LSTMBackend, LSTMModule
from tensordict import TensorDict
from torch import Tensor, nn

from ..suite.inputs import Rollout
from ..suite.reference import trajectories

HIDDEN_SIZE = 64
"""``H`` of the timed LSTM."""


def time_ratio(backend: LSTMBackend, rollout: Rollout, device: str = "cpu", rounds: int = 5) -> float:
    """Time of forward and backward over a rollout, over torch.nn.LSTM's, one trajectory at a time; medians.

    The two take turns, so that a busy machine slows both.
    """
    x = rollout.observation.to(device)
    module = LSTMModule(
        x.shape[-1], HIDDEN_SIZE, in_key="observation", out_key="features", lstm_backend=backend, device=device
    ).set_recurrent_mode(True)
    td = TensorDict({"observation": x, "is_init": rollout.is_init.unsqueeze(-1).to(device)}, x.shape[:2])
    lstm = nn.LSTM(x.shape[-1], HIDDEN_SIZE, batch_first=True, device=device)
    pieces = [x[b, first:stop] for b, first, stop in trajectories(rollout.is_init.T)]
    actual: list[float] = []
    torch_lstm: list[float] = []
    for turn in range(rounds + 1):
        times = (
            _seconds(lambda: module(td.clone())["features"], device),
            _seconds(lambda: torch.cat([lstm(piece)[0] for piece in pieces]), device),
        )
        if turn:  # the first turn warms up, and compiles
            actual.append(times[0])
            torch_lstm.append(times[1])
    return median(actual) / median(torch_lstm)


def _seconds(forward: Callable[[], Tensor], device: str) -> float:
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    forward().sum().backward()
    wait()
    return time.perf_counter() - started
