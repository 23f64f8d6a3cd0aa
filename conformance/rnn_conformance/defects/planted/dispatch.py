"""Defects that the laws of ``laws/dispatch.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, LSTMModule, State, Trait, binding, get_backend
from torch import Tensor

from ..planting import Patch, backend, in_core
from ..right import right
from ..right_stack import Stack


@backend("only_the_named_backend_works", by_numbers=False)
def hands_over_to_another() -> LSTMBackend:
    """The work is silently done by another backend."""
    return LSTMBackend("defect", lambda *args: get_backend("vmap").layer(*args))


@in_core("the_backend_runs_every_layer_and_step")
def acting_bypasses_the_backend() -> list[Patch]:
    """A step is computed by core itself instead of the backend."""

    def replacement(self: LSTM, w: LayerWeights, x: Tensor, state: State) -> State:
        begin = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        out = right(w, x[None], State(state.h[None], state.c[None]), begin)
        return State(out.h[0], out.c[0])

    return [Patch(LSTM, "_layer_as_step", replacement)]


@in_core("the_backend_runs_every_layer_and_step")
def every_layer_runs_twice() -> list[Patch]:
    """Each layer runs twice, and the first result is discarded."""

    class Twice(Stack):
        def __call__(self, ahead: LayerFunction, back: LayerFunction) -> Any:
            def twice(*args: Any) -> State:
                ahead(*args)
                return ahead(*args)

            return super().__call__(twice, back)

    return [Patch(binding, "layers_with", Twice())]


@in_core("the_module_names_its_backend")
def the_module_names_auto() -> list[Patch]:
    """The module names its backend "auto", whichever backend runs."""
    return [Patch(LSTM, "lstm_backend", property(lambda self: "auto"))]


@in_core("the_module_names_its_backend", on=LSTMBackend("defect", right, traits=frozenset({Trait.CELL_STATES})))
def all_states_are_left_to_auto() -> list[Patch]:
    """With hidden_output="all" a module around an LSTM chooses among all backends, whichever the LSTM has."""
    original = LSTMModule._check_hidden_output
    return [Patch(LSTMModule, "_check_hidden_output", lambda self, request: original(self, "auto"))]
