"""Defects that the laws of ``laws/stateful.py`` kill first."""

from __future__ import annotations

from typing import Any

from rnn_backends import LSTM
from torch import nn

from ..planting import Patch, in_core


@in_core("any_program_agrees_with_the_model")
def another_backend_gets_a_copy() -> list[Patch]:
    """with_backend copies the weights: an edit of the copy does not change the original."""
    original = LSTM.with_backend

    def replacement(self: LSTM, lstm_backend: Any) -> LSTM:
        new = original(self, lstm_backend)
        own = {name: nn.Parameter(value.detach().clone()) for name, value in self.named_parameters()}
        new.__dict__["_parameters"] = own
        return new

    return [Patch(LSTM, "with_backend", replacement)]
