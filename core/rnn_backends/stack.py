"""Layers, directions and the dropout between them, in one place for all backends.

No ``from __future__ import annotations`` here: ``torch.jit.script`` reads the annotations.
"""

from collections.abc import Callable
from typing import List, Tuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from .contract import LayerFunction, LayerWeights, State
from .resets import ends_of, first_steps, mirrored, take_steps

RunLayers = Callable[[List[LayerWeights], Tensor, List[State], Tensor, bool, float, bool], Tuple[Tensor, List[State]]]


def layers_with(forward_layer: LayerFunction, reverse_layer: LayerFunction) -> RunLayers:
    """Make the function that runs a whole LSTM from a backend's layer function.

    It is a closure, because TorchScript has no function-valued arguments: the same code runs eagerly and scripted.

    Args:
        forward_layer: runs the forward direction; ``LSTMBackend.layer_last`` if only the row's last states are read.
        reverse_layer: runs the reverse direction; always ``LSTMBackend.layer``, because the row's last sequence is the
            first in reversed time.
    """

    def run_layers(
        weights: List[LayerWeights],
        x: Tensor,
        entry: List[State],
        starts: Tensor,
        bidirectional: bool,
        dropout: float,
        every_end: bool,
    ) -> Tuple[Tensor, List[State]]:
        """Run all layers.

        Args:
            weights: ``L*D`` entries in torch.nn.LSTM's order.
            x: ``[T, B, I]``.
            entry: ``L*D`` times ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
            starts: ``[T, B]`` bool, true at ``t = 0``.
            bidirectional: whether every second entry runs in reverse.
            dropout: probability between layers; 0 in evaluation.
            every_end: whether to return the states at every sequence's end, or only at the row's end.

        Returns:
            ``output [T, B, D*P]`` and ``L*D`` states: ``[T, B, .]``, valid where a sequence ends, or (without
            ``every_end``) ``[B, .]``, those of the last sequence.
        """
        directions = 2 if bidirectional else 1
        states: List[State] = []
        for k in range(0, len(weights), directions):
            if k > 0 and dropout > 0.0:
                # the elements that a seed drops depend on the memory layout, so it must be the same for all backends
                x = drop(x.contiguous(), dropout, True)
            out = forward_layer(weights[k], x, entry[k], starts)
            output = out.h
            states.append(out if every_end else State(out.h[-1], out.c[-1]))
            if bidirectional:
                first = first_steps(starts)
                out = reverse_layer(weights[k + 1], x.flip(0), mirrored(entry[k + 1], starts), ends_of(starts).flip(0))
                h, c = out.h.flip(0), out.c.flip(0)
                output = torch.cat([output, h], -1)
                at = first if every_end else first[-1:]  # in reverse a sequence ends at its first step
                h, c = take_steps(h, at), take_steps(c, at)
                states.append(State(h, c) if every_end else State(h[0], c[0]))
            x = output
        return x, states

    return run_layers
