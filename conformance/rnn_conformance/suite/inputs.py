"""The tensors of a case. Numbers are drawn in float64 on the CPU, so every dtype and device sees the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rnn_backends import State
from torch import Tensor

from .case import Case


@dataclass(frozen=True, eq=False)
class Rollout:
    """Rows of consecutive trajectories of one real environment.

    Attributes:
        name: the environment's name.
        observation: ``[B, T, I]`` float32.
        is_init: ``[B, T]`` bool, true at a trajectory's first step.
        source: the origin of the data, in words.
    """

    name: str
    observation: Tensor
    is_init: Tensor
    source: str = ""

    @property
    def resets(self) -> int:
        """The number of trajectories that start after a row's first step."""
        return int(self.is_init[:, 1:].sum())

    @property
    def sizes_and_resets(self) -> dict[str, Any]:
        """The fields of a :class:`~.case.Case` that the rollout fixes: ``T``, ``B``, ``I`` and the reset bits."""
        B, T, features = self.observation.shape
        bits = sum(1 << (b * T + t) for b, t in torch.nonzero(self.is_init).tolist())
        return {"T": T, "B": B, "I": features, "resets": bits}


class Inputs(NamedTuple):
    """The inputs of one run of a whole LSTM.

    ``x [T, B, I]``; the states stored at every step ``h [L*D, T, B, P]`` and ``c [L*D, T, B, H]``, read where
    ``starts [T, B]`` is true (and ``starts[0]`` is); ``weights`` by torch.nn.LSTM's names.
    """

    x: Tensor
    h: Tensor
    c: Tensor
    starts: Tensor
    weights: dict[str, Tensor]

    @property
    def entry(self) -> list[State]:
        """``L*D`` times ``State([T, B, P], [T, B, H])``, for :meth:`rnn_backends.LSTM.sequences`."""
        return [State(h, c) for h, c in zip(self.h, self.c, strict=True)]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Every tensor with a gradient, by name."""
        return {"x": self.x, "stored h": self.h, "stored c": self.c, **self.weights}

    def tiled(self, times: int) -> Inputs:
        """The batch's rows repeated ``times`` times: many rows, of which the reference computes only these."""
        return self._replace(
            x=self.x.repeat(1, times, 1), h=self.h.repeat(1, 1, times, 1), c=self.c.repeat(1, 1, times, 1),
            starts=self.starts.repeat(1, times),
        )  # fmt: skip

    def weighted(self, factor: float) -> Inputs:
        """With every weight times ``factor``: unit weights at large H are chaotic, torch draws them by 1/sqrt(H)."""
        return self._replace(weights={name: value * factor for name, value in self.weights.items()})


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torch.nn.LSTM's parameters, in its order."""
    P = case.P or case.H
    D = 2 if case.bidirectional else 1
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(case.L):
        for suffix in (f"l{layer}", f"l{layer}_reverse")[:D]:
            shapes[f"weight_ih_{suffix}"] = (4 * case.H, D * P if layer else case.I)
            shapes[f"weight_hh_{suffix}"] = (4 * case.H, P)
            if case.bias:
                shapes |= {f"bias_ih_{suffix}": (4 * case.H,), f"bias_hh_{suffix}": (4 * case.H,)}
            if case.P:
                shapes[f"weight_hr_{suffix}"] = (P, case.H)
    return shapes


def materialise(case: Case, device: str | torch.device = "cpu", rollout: Rollout | None = None) -> Inputs:
    """Draw a case's inputs, with weights from U(-1, 1), for which logic defects differ most from rounding errors.

    Args:
        case: the case.
        device: the device of the tensors.
        rollout: observations ``[B, T, I]`` that replace the drawn ``x``.
    """
    generator = torch.Generator().manual_seed(case.seed)
    rows, P = case.spec.num_states, case.spec.output_size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1

    weights = {name: uniform(*shape) for name, shape in weight_shapes(case).items()}
    x = 2 * uniform(case.T, case.B, case.I)
    h, c = uniform(rows, case.T, case.B, P), 2 * uniform(rows, case.T, case.B, case.H)
    if case.stored == "zeros":
        h, c = torch.zeros_like(h), torch.zeros_like(c)
    if rollout is not None:
        x = rollout.observation.detach().cpu().double().transpose(0, 1)
    starts = case.is_init
    starts[:1] = True
    place = _layouts[case.layout]
    return Inputs(
        place(x.to(device, case.torch_dtype)),
        place(h.to(device, case.torch_dtype)),
        place(c.to(device, case.torch_dtype)),
        place(starts.to(device)),
        {name: value.to(device, case.torch_dtype) for name, value in weights.items()},
    )


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-2, -1).contiguous().transpose(-2, -1)


def _strided(x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


def _offset(x: Tensor) -> Tensor:
    longer = torch.cat([x[:1], x])
    return longer[1:]


_layouts: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "transposed": _transposed,
    "strided": _strided,
    "offset": _offset,
}
