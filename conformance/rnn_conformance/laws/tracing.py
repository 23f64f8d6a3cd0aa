"""Tracing: graphs that torch's tracers record follow inputs, resets and lengths, or raise an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from rnn_backends import LSTM, State
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken
from ._kinds import IN_FULL, KINDS, attempt, of_stream

Traced = Callable[[Tensor, Tensor], Tensor]


class _Whole(torch.nn.Module):
    """``(x [T, B, I], is_init [T, B]) -> output [T, B, D*P]``."""

    def __init__(self, lstm: LSTM, state: State) -> None:
        super().__init__()
        self.lstm, self.state = lstm, state

    def forward(self, x: Tensor, is_init: Tensor) -> Tensor:
        output: Tensor = self.lstm(x, self.state, is_init=is_init)[0]
        return output


class _Dense(_Whole):
    """The same, without resets."""

    def forward(self, x: Tensor, is_init: Tensor) -> Tensor:
        output: Tensor = self.lstm(x, self.state)[0]
        return output


class _Acting(_Whole):
    """The same, for the first step alone."""

    def forward(self, x: Tensor, is_init: Tensor) -> Tensor:
        return self.lstm.step(x[0], self.state, is_init[0])[0].unsqueeze(0)


def _jit(module: torch.nn.Module, x: Tensor, is_init: Tensor) -> Traced:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives a TracerWarning for each check of a shape
        traced: Traced = torch.jit.trace(module, (x, is_init), check_trace=False)
        return traced


def _functionalized(module: torch.nn.Module, x: Tensor, is_init: Tensor) -> Traced:
    return torch.func.functionalize(module)


def _symbolic(module: torch.nn.Module, x: Tensor, is_init: Tensor) -> Traced:
    return make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, is_init)


_TRACERS: dict[str, Callable[..., Traced]] = {
    "torch.jit.trace": _jit,
    "make_fx": lambda module, *example: make_fx(module)(*example),
    "make_fx before dispatch": lambda module, *example: make_fx(module, pre_dispatch=True)(*example),
    "make_fx with symbolic sizes": _symbolic,
    "functionalize": _functionalized,
}


@law(**KINDS)
def traces_follow_inputs_and_resets(trial: Trial) -> None:
    """Graphs of make_fx, jit.trace and functionalize follow changed inputs and resets, or are rejected."""
    _each(trial, lambda traced, what, kind: _follows(trial, traced, what, kind, trial.case.T))


@law(**KINDS | IN_FULL)
def traces_follow_lengths(trial: Trial) -> None:
    """A graph recorded over one length is right over others, or raises: the example's length is never built in."""
    _each(trial, lambda traced, what, kind: _follows_lengths(trial, traced, what, kind))


def _each(trial: Trial, check: Callable[[Traced, str, type[_Whole]], None]) -> None:
    """Trace each form of a call with each tracer, from an example without resets, and check the graph."""
    inputs = trial.inputs
    state = State(inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    for tracer, trace in _TRACERS.items():
        for kind, form in ((_Whole, "with resets"), (_Dense, "without resets"), (_Acting, "one step with resets")):
            module = kind(trial.lstm().requires_grad_(False), state)
            none = torch.zeros_like(trial.is_init)
            what = f"{tracer}, {form}"
            traced = attempt(tracer, form, partial(trace, module, inputs.x, none))
            if traced is not None:
                check(traced, what, kind)


def _follows(trial: Trial, traced: Traced, what: str, kind: type[_Whole], steps: int) -> None:
    x = trial.noise(trial.inputs.x, 31).to(trial.inputs.x)[:1].repeat(steps, 1, 1) * torch.arange(1, steps + 1).view(
        -1, 1, 1
    )
    for name, resets in _patterns(steps, trial.case.B).items():
        found = attempt(what, f"{steps} steps, {name}", partial(traced, x, resets))
        if found is None:
            continue
        if kind is _Acting:
            right = of_stream(trial, x[:1], resets[:1])[0]
        else:
            right = of_stream(trial, x, resets if kind is _Whole else torch.zeros_like(resets))[0]
        trial.agree(f"{what}: output of {steps} steps, {name}", found, right)


def _patterns(steps: int, rows: int) -> dict[str, Tensor]:
    """The resets of the calls after the example's."""
    checkered = (torch.arange(steps)[:, None] + torch.arange(rows)) % 2 == 0
    return {
        "resets everywhere": torch.ones(steps, rows, dtype=torch.bool),
        "every second one a reset": checkered,
        "no resets": torch.zeros(steps, rows, dtype=torch.bool),
    }


def _follows_lengths(trial: Trial, traced: Traced, what: str, kind: type[_Whole]) -> None:
    for steps in (trial.case.T + 3, trial.case.T - 2):
        try:
            _follows(trial, traced, what, kind, steps)
        except LawBroken as broken:
            if isinstance(broken.__cause__, (RuntimeError, AssertionError, IndexError)):
                continue  # a graph of fixed length raises an error
            raise
