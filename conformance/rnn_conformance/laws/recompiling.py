"""Recompiling: after warm-up, other sizes compile nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import Trait, set_recurrent_mode
from tensordict import TensorDict
from torch import Tensor

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken
from ._shared import COMPILED

SMALL: dict[str, Any] = COMPILED | {"T": (2,)}
WARM = ((2, 2), (3, 4))
"""Steps and rows for the warm-up: two of each, as torch.compile treats a size as fixed until it changes."""


def _compilations() -> int:
    """The number of graphs that torch's compiler has compiled in this process, from any caller."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"] + counters["aot_autograd"]["total"])


def _sized(trial: Trial, T: int, B: int) -> tuple[Tensor, Tensor]:
    """Input and resets of these sizes."""
    x = trial.noise(torch.empty(T, B, trial.case.I), T * 7 + B).to(trial.device)
    return x, x[..., 0] > 0


def _compiles_nothing(call: Callable[[int, int], Tensor], sizes: tuple[tuple[int, int], ...]) -> None:
    """Run the warm-up, then raise LawBroken at the first size that compiles again."""
    for T, B in WARM:
        call(T, B).sum().backward()
    for T, B in sizes:
        before = _compilations()
        call(T, B).sum().backward()
        if _compilations() != before:
            raise LawBroken(f"warmed up with T, B = {WARM}, a call with T={T}, B={B} compiles again")


@law(**SMALL)
def other_sizes_compile_nothing_more(trial: Trial) -> None:
    """Called eagerly, a backend that compiles does so once: after two calls another T or B compiles nothing more."""
    lstm = trial.lstm()

    def call(T: int, B: int) -> Tensor:
        x, is_init = _sized(trial, T, B)
        return lstm(x, is_init=is_init)[0]

    _compiles_nothing(call, ((5, 4), (3, 7), (6, 5), (9, 2)))


@law(trait=Trait.FULLGRAPH, tries_unclaimed=False, **SMALL)
def a_compiled_function_takes_any_batch(trial: Trial) -> None:
    """In a user's torch.compile(fullgraph=True), after three batch sizes any other B compiles nothing more."""
    lstm = trial.lstm()
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def run(x: Tensor, is_init: Tensor) -> Tensor:
        return lstm(x, is_init=is_init)[0]

    def call(T: int, B: int) -> Tensor:
        return run(*_sized(trial, 3, B))

    call(3, 3)  # T does not change: a loop over time may be traced step by step
    _compiles_nothing(call, ((3, 5), (3, 7), (3, 6)))


@law(trait=Trait.FULLGRAPH, tries_unclaimed=False, **SMALL)
def a_compiled_function_follows_sizes_resets_and_mode(trial: Trial) -> None:
    """In a user's torch.compile(fullgraph=True), T, B, resets and mode may change from call to call."""
    module = trial.module()
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def run(td: TensorDict) -> Tensor:
        features: Tensor = module(td)["features"]
        return features

    for T, B in ((2, 2), (5, 3), (3, 2), (4, 3), (2, 4)):  # longer and shorter than the first
        x, is_init = _sized(trial, T, B)
        for resets in (is_init, ~is_init):
            td, expected = _entries(trial, x, resets)
            with set_recurrent_mode(True):
                whole = run(td.clone())
            trial.agree(f"features of T={T}, B={B}", whole.transpose(0, 1), expected)
        step = run(td[:, 0].clone())
        trial.agree(f"features of a step of B={B}", step, _first_step(trial, x, td, resets), 0, "b unit")


def _entries(trial: Trial, x: Tensor, is_init: Tensor) -> tuple[TensorDict, Tensor]:
    """A TensorDict ``[B, T]`` with states stored at every step, and the reference's features over time."""
    T, B = is_init.shape
    rows, spec = trial.case.spec.num_states, trial.case.spec
    h = trial.noise(torch.empty(rows, T, B, spec.output_size), T)
    c = trial.noise(torch.empty(rows, T, B, spec.hidden_size), T + 1)
    starts = is_init.clone()
    starts[0] = True
    entries = {
        "observation": x.transpose(0, 1),
        "is_init": is_init.T.unsqueeze(-1),
        "recurrent_state_h": h.permute(2, 1, 0, 3),
        "recurrent_state_c": c.permute(2, 1, 0, 3),
    }
    expected = trial.reference(Inputs(x, h, c, starts, trial.inputs.weights)).output
    return TensorDict(entries, [B, T], device=trial.device), expected


def _first_step(trial: Trial, x: Tensor, td: TensorDict, is_init: Tensor) -> Tensor:
    """The reference's features of the first step in sequential mode, in which a sequence starts from zeros."""
    carried = (td[f"recurrent_state_{name}"][:, :1].permute(2, 1, 0, 3) for name in "hc")
    h, c = (torch.where(is_init[:1].unsqueeze(-1), 0, state) for state in carried)
    return trial.reference(Inputs(x[:1], h, c, torch.ones_like(is_init[:1]), trial.inputs.weights)).output[0]
