"""Defects that the laws of ``laws/stateful.py`` kill first."""

from __future__ import annotations

from typing import Any

from rnn_backends import LSTM, LayerWeights, State
from torch import Tensor, nn

from ..planting import Patch, in_core, in_layer
from ..right import both, right


@in_core("any_story_agrees_with_the_model")
def another_backend_gets_a_copy() -> list[Patch]:
    """with_backend copies the weights: what is edited there is not seen here."""
    original = LSTM.with_backend

    def wrong(self: LSTM, lstm_backend: Any) -> LSTM:
        new = original(self, lstm_backend)
        own = {name: nn.Parameter(value.detach().clone()) for name, value in self.named_parameters()}
        new.__dict__["_parameters"] = own
        return new

    return [Patch(LSTM, "with_backend", wrong)]


@in_layer("any_story_agrees_with_the_model")
def every_start_reads_the_rows_first_state(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A sequence in the middle of a row starts from the state stored at the row's first step."""
    return right(w, x, both(lambda v: v[:1].expand_as(v), entry), starts)


@in_core("any_story_drops_in_training_alone")
def another_backend_trains_again() -> list[Patch]:
    """with_backend gives a module in training, whatever the first one was in."""
    original = LSTM.with_backend

    def wrong(self: LSTM, lstm_backend: Any) -> LSTM:
        new = original(self, lstm_backend)
        new.__dict__["training"] = True
        return new

    return [Patch(LSTM, "with_backend", wrong)]
