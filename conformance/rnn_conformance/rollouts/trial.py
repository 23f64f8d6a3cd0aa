"""A rollout through one backend's ``LSTMModule``, and what torch.nn.LSTM says to it, one trajectory at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from rnn_backends import LSTMBackend, LSTMModule
from tensordict import TensorDict
from torch import Tensor, nn

from .recorded import Rollout

HIDDEN = ("recurrent_state_h", "recurrent_state_c")


@dataclass(frozen=True)
class Run:
    """What came out of a run over a rollout, and the gradients of a random weighting of all of it.

    Attributes:
        output: ``[B, T, H]``.
        h: ``[B, T, 1, H]``, the state at each trajectory's end, zero elsewhere.
        c: like ``h``.
        gradients: by name: of the observation, of the stored states and of the weights.
    """

    output: Tensor
    h: Tensor
    c: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A rollout, weights and states stored at every step; nothing here depends on a backend.

    Attributes:
        rollout: what was recorded.
        lstm: its weights, float32.
        stored: ``h`` and ``c`` ``[B, T, 1, H]``: random, and read at each trajectory's first step only.
        cotangents: how output, ``h`` and ``c`` are weighted into the number whose gradient is taken.
        ends: ``[B, T]`` bool, true at each trajectory's last step.
    """

    rollout: Rollout
    lstm: nn.LSTM
    stored: tuple[Tensor, Tensor]
    cotangents: tuple[Tensor, Tensor, Tensor]
    ends: Tensor


@lru_cache(maxsize=32)
def scene(rollout: Rollout, hidden_size: int, seed: int) -> Scene:
    """Draw weights, stored states and cotangents. torch's random state is left as it was."""
    rows, steps, features = rollout.observation.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lstm = nn.LSTM(features, hidden_size, batch_first=True, device="cpu", dtype=torch.float32)
        h, c, *cotangents = (torch.rand(rows, steps, 1, hidden_size) * 2 - 1 for _ in range(5))
    ends = torch.zeros(rows, steps, dtype=torch.bool)
    for row, _, stop in rollout.trajectories():
        ends[row, stop - 1] = True
    return Scene(rollout, lstm, (h, c), (cotangents[0].squeeze(2), cotangents[1], cotangents[2]), ends)


@lru_cache(maxsize=32)
def witness(rollout: Rollout, hidden_size: int, seed: int) -> Run:
    """torch.nn.LSTM in float64, run over each trajectory alone from the state stored at its first step."""
    at = scene(rollout, hidden_size, seed)
    lstm = copy.deepcopy(at.lstm).double()
    x, h0, c0 = (v.double().requires_grad_() for v in (rollout.observation, *at.stored))
    output, (h, c) = per_trajectory(lstm, rollout, x, (h0, c0))
    leaves = {"observation": x, "stored h": h0, "stored c": c0, **dict(lstm.named_parameters())}
    return _differentiated(output, h, c, at.cotangents, leaves)


def per_trajectory(
    lstm: nn.LSTM, rollout: Rollout, x: Tensor, stored: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One call of torch.nn.LSTM a trajectory, put together again; shapes as in :class:`Run`."""
    outputs, hs, cs = [], [], []
    for row, start, stop in rollout.trajectories():
        entry = None if stored is None else (stored[0][row, start], stored[1][row, start])
        y, (h, c) = lstm(x[row, start:stop], entry)
        before = h.new_zeros(stop - start - 1, *h.shape)
        outputs.append(y)
        hs.append(torch.cat([before, h.unsqueeze(0)]))
        cs.append(torch.cat([before, c.unsqueeze(0)]))
    shape = x.shape[:2]
    return torch.cat(outputs).unflatten(0, shape), (
        torch.cat(hs).unflatten(0, shape),
        torch.cat(cs).unflatten(0, shape),
    )


def _differentiated(
    output: Tensor, h: Tensor, c: Tensor, cotangents: tuple[Tensor, Tensor, Tensor], leaves: dict[str, Tensor]
) -> Run:
    weighted = sum((value * w.to(value)).sum() for value, w in zip((output, h, c), cotangents, strict=True))
    assert isinstance(weighted, Tensor)
    gradients = torch.autograd.grad(weighted, list(leaves.values()))
    by_name = {name: gradient.cpu() for name, gradient in zip(leaves, gradients, strict=True)}
    return Run(output.detach().cpu(), h.detach().cpu(), c.detach().cpu(), by_name)  # the witness is on the CPU


class RolloutTrial:
    """One backend's ``LSTMModule`` over one scene: what the rollout laws look at.

    Args:
        backend: to try.
        rollout: recorded.
        hidden_size: ``H``.
        device: where to run.
        seed: of the weights, stored states and cotangents.
    """

    def __init__(
        self, backend: LSTMBackend, rollout: Rollout, hidden_size: int, device: str = "cpu", seed: int = 0
    ) -> None:
        self.scene, self.expected = scene(rollout, hidden_size, seed), witness(rollout, hidden_size, seed)
        self.device = device
        lstm = copy.deepcopy(self.scene.lstm).to(device)
        self.module = LSTMModule(lstm=lstm, in_key="observation", out_key="features", lstm_backend=backend)
        self._came: Run | None = None

    def data(self, stored: bool) -> TensorDict:
        """The rollout as a TensorDict ``[B, T]``, with or without stored states."""
        rollout = self.scene.rollout
        td = TensorDict({"observation": rollout.observation, "is_init": rollout.is_init}, rollout.is_init.shape[:2])
        if stored:
            td.update(dict(zip(HIDDEN, self.scene.stored, strict=True)))
        return td.to(self.device) if self.device != "cpu" else td.clone()

    @property
    def came(self) -> Run:
        """The recurrent mode over the whole rollout from the stored states, with gradients; run once."""
        if self._came is None:
            td = self.data(stored=True)
            leaves = {
                name: td[key].requires_grad_()
                for name, key in (("observation", "observation"), ("stored h", HIDDEN[0]), ("stored c", HIDDEN[1]))
            }
            weights = dict(self.module.lstm.named_parameters())
            self._came = _differentiated(*self.recurrent(td), self.scene.cotangents, leaves | weights)
        return self._came

    def recurrent(self, td: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Output and hidden outputs of the recurrent mode; shapes as in :class:`Run`."""
        out = self.module.set_recurrent_mode(True)(td)
        return out["features"], out["next", HIDDEN[0]], out["next", HIDDEN[1]]

    def stepped(self, td: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Output and states after every step of the sequential mode, as an actor would call it."""
        module = self.module.set_recurrent_mode(False)
        carried: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for now in td.unbind(1):
            now = now.select("observation", "is_init").update(carried)
            out = module(now)
            seen.append((out["features"], out["next", HIDDEN[0]], out["next", HIDDEN[1]]))
            carried = dict(zip(HIDDEN, seen[-1][1:], strict=True))
        output, h, c = (torch.stack(column, 1) for column in zip(*seen, strict=True))
        return output, h, c
