"""Recompiling: once warm, other sizes are answered by what is compiled already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import Trait
from torch import Tensor

from ..law import LawBroken, law
from ..trial import Trial

LANE: dict[str, Any] = {
    "lane": 300.0, "profiles": ("full",), "dtype": ("f32",), "T": (2,), "B": (2,), "I": (3,), "H": (4,), "L": (1,),
    "P": (0,), "bidirectional": (False,), "layout": ("contiguous",),
}  # fmt: skip
WARM = ((2, 2), (3, 4))
"""Steps and rows to warm up with: two of each, as torch.compile takes a size for fixed until it has seen another."""


def _compilations() -> int:
    """How many graphs torch's compiler has taken in this process, from whichever side."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"] + counters["aot_autograd"]["total"])


def _sized(trial: Trial, T: int, B: int) -> tuple[Tensor, Tensor]:
    """Input and resets of these sizes."""
    x = trial.noise(torch.empty(T, B, trial.case.I), T * 7 + B).to(trial.device)
    return x, x[..., 0] > 0


def _compiles_nothing(call: Callable[[int, int], Tensor], sizes: tuple[tuple[int, int], ...]) -> None:
    """Warm up, then break the law at the first of the sizes that compiles."""
    for T, B in WARM:
        call(T, B).sum().backward()
    for T, B in sizes:
        before = _compilations()
        call(T, B).sum().backward()
        if _compilations() != before:
            raise LawBroken(f"warmed up with T, B = {WARM}, a call with T={T}, B={B} compiles anew")


@law(**LANE)
def other_sizes_compile_nothing_more(trial: Trial) -> None:
    """Called as it is, a backend that compiles does so once: after two calls another T or B compiles nothing more."""
    lstm = trial.lstm()

    def call(T: int, B: int) -> Tensor:
        x, is_init = _sized(trial, T, B)
        return lstm(x, is_init=is_init)[0]

    _compiles_nothing(call, ((5, 4), (3, 7), (6, 5), (9, 2)))


@law(trait=Trait.FULLGRAPH, tries_unclaimed=False, **LANE)
def a_compiled_function_takes_any_batch(trial: Trial) -> None:
    """In a user's torch.compile(fullgraph=True), after three batch sizes any other B compiles nothing more."""
    lstm = trial.lstm()
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def run(x: Tensor, is_init: Tensor) -> Tensor:
        return lstm(x, is_init=is_init)[0]

    def call(T: int, B: int) -> Tensor:
        return run(*_sized(trial, 3, B))

    call(3, 3)  # T stays as it is: a loop over time may be traced step by step
    _compiles_nothing(call, ((3, 5), (3, 7), (3, 6)))
