"""The module that ``torch.jit.script`` compiles in place of an :class:`~rnn_backends.LSTM`, without a registry.

TorchScript is deprecated since torch 2.13; docs/deployment.md shows its successor, ``torch.export``.
No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .contract import LayerWeights, State
from .resets import entry_from_hx, starts_of

if TYPE_CHECKING:
    from .lstm import LSTM


class _Layer(nn.Module):
    """The weights of one layer, in a module over which TorchScript can iterate."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__()
        for name, value in weights._asdict().items():
            self.register_parameter(name, value)

    def forward(self) -> LayerWeights:
        return LayerWeights(self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr)


class ScriptableLSTM(nn.Module):
    """An LSTM that can be scripted and saved, and runs where this project is not installed.

    Args:
        lstm: the LSTM; its parameters are shared, under the names ``layers.0.w_ih`` and so on.
    """

    def __init__(self, lstm: "LSTM") -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(weights) for weights in lstm.layer_weights())
        self.batch_first, self.bidirectional = lstm.batch_first, lstm.bidirectional
        self.dropout, self.num_states = lstm.dropout, lstm.spec.num_states
        self.hidden_size, self.output_size = lstm.hidden_size, lstm.spec.output_size
        self.run_layers = lstm.run_layers
        self.train(lstm.training)

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        is_init: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Like :meth:`rnn_backends.LSTM.forward`, with ``is_init`` also by position."""
        batched = input.dim() == 3
        flip = batched and self.batch_first
        x = input.transpose(0, 1) if flip else input if batched else input.unsqueeze(1)
        T, B = x.shape[0], x.shape[1]
        reset: Tensor | None = None
        if is_init is not None:
            assert is_init.dtype == torch.bool, "is_init must be a bool tensor"
            lead = is_init.reshape(input.shape[:-1])
            reset = lead.transpose(0, 1) if flip else lead if batched else lead.unsqueeze(1)
        if hx is None:
            h0 = torch.zeros(self.num_states, B, self.output_size, dtype=x.dtype, device=x.device)
            c0 = torch.zeros(self.num_states, B, self.hidden_size, dtype=x.dtype, device=x.device)
        else:
            h0, c0 = hx
            if not batched:
                h0, c0 = h0.unsqueeze(1), c0.unsqueeze(1)
        weights: list[LayerWeights] = []
        for layer in self.layers:
            weights.append(layer())
        entry: list[State] = []
        for k in range(self.num_states):
            entry.append(State(entry_from_hx(h0[k], T, reset), entry_from_hx(c0[k], T, reset)))
        starts = starts_of(torch.zeros(T, B, dtype=torch.bool, device=x.device) if reset is None else reset)
        dropout = self.dropout if self.training else 0.0
        y, states = self.run_layers(weights, x, entry, starts, self.bidirectional, dropout, False)
        h = torch.stack([state.h for state in states])
        c = torch.stack([state.c for state in states])
        if not batched:
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return y.transpose(0, 1) if flip else y, (h, c)
