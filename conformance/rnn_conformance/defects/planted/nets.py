"""LSTMNet: what stands around the LSTM."""

from __future__ import annotations

from typing import Any

from rnn_backends import LSTMNet
from torch import Tensor

from ..planting import Patch, in_core


@in_core("a_net_over_one_step_is_its_parts")
def net_of_one_step_starts_from_zeros() -> list[Patch]:
    """Over one step LSTMNet gives the hidden states back and starts from zeros."""
    original = LSTMNet.forward

    def wrong(self: LSTMNet, input: Tensor, hidden0_in: Any = None, hidden1_in: Any = None) -> Any:
        if input.ndim == 3 or hidden0_in is None:
            return original(self, input, hidden0_in, hidden1_in)
        y, _, _, h, c = original(self, input)
        return y, hidden0_in, hidden1_in, h, c

    return [Patch(LSTMNet, "forward", wrong)]


@in_core("gradients_flow_through_a_net")
def net_detaches_what_the_mlp_gives() -> list[Patch]:
    """The MLP in front of LSTMNet gets no gradient."""
    original = LSTMNet.forward

    def wrong(self: LSTMNet, input: Tensor, *states: Any) -> Any:
        stop = self.mlp.register_forward_hook(lambda module, given, made: made.detach())
        try:
            return original(self, input, *states)
        finally:
            stop.remove()

    return [Patch(LSTMNet, "forward", wrong)]
