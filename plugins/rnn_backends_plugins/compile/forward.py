"""The forward loop over time: a matrix product and one compiled call per step."""

import torch
from torch import Tensor

from .compiler import compiled
from .layer import Layer, by_step
from .products import Product
from .steps import forward_step


def run_forward(layer: Layer, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of a layer.

    Args:
        layer: the layer's inputs.
        keep: whether to return the gates of every step, for the gradient.

    Returns:
        ``h [T, B, P]``, ``c [T, B, H]``, and the activated gates ``[T, B, 4, H]``, or nothing (``[0]``).
    """
    T, B, H, P = layer.sizes
    x, chunks = layer.x, layer.chunks()
    h, c = x.new_empty(T, B, P), x.new_empty(T, B, H)
    gates = x.new_empty(T if keep else 1, B, 4, H)
    bias = x.new_zeros(4 * H) if layer.bias is None else layer.bias
    walk, by_w_ih = _Walk(layer, h, c, gates.unbind(0)), Product(layer.w_ih.t(), chunks[0][1] * B)
    for begin, end in chunks:
        sums = by_w_ih.of(x[begin:end].flatten(0, 1), bias)
        walk.over(sums.view(end - begin, B, 4, H).unbind(0), begin)
    return h, c, gates if keep else x.new_empty(0)


class _Walk:
    """The recurrence: computes ``h``, ``c`` and the gates, chunk by chunk.

    Args:
        layer: the layer's inputs.
        h: ``[T, B, P]``.
        c: ``[T, B, H]``.
        gates: ``[B, 4, H]`` for each step, or one that all steps reuse.
    """

    def __init__(self, layer: Layer, h: Tensor, c: Tensor, gates: tuple[Tensor, ...]) -> None:
        self.run = compiled(forward_step, h.device, h.dtype)
        self.by_w_hh, self.w_hr = Product(layer.w_hh.t(), h.shape[1]), layer.w_hr
        self.h, self.c, self.gates = h.unbind(0), c.unbind(0), gates
        self.starts, self.next_starts = layer.starts.contiguous().unbind(0), layer.next_starts().unbind(0)
        self.entry_h, self.entry_c = by_step(layer.entry_h), by_step(layer.entry_c)
        # Compiled code needs a tensor for each argument: `unused` stands for those that are not needed.
        self.m, self.next_h, self.unused = (torch.zeros_like(c[0]) for _ in range(3))
        self.h_in, self.c_before = self.entry_h[0], torch.zeros_like(c[0])  # at t = 0 every row starts a sequence

    def over(self, sums: tuple[Tensor, ...], begin: int) -> None:
        """Run the steps from ``begin`` on; ``sums [B, 4, H]``: the inputs' part of each step's pre-activations."""
        for t, by_inputs in enumerate(sums, begin):
            by_h = self.by_w_hh.of(self.h_in).view_as(by_inputs)
            entering = self.entry_h[min(t + 1, len(self.h) - 1)]  # not read past the end
            given = by_inputs, by_h, self.c_before, self.starts[t], self.entry_c[t].contiguous(), self.next_starts[t]
            gates, c = self.gates[t % len(self.gates)], self.c[t]
            if self.w_hr is None:
                self.run(*given, entering.contiguous(), gates, self.h[t], c, self.next_h)
                self.h_in = self.next_h
            else:
                self.run(*given, self.unused, gates, self.m, c, self.next_h)
                torch.mm(self.m, self.w_hr.t(), out=self.h[t])
                self.h_in = torch.where(self.next_starts[t].unsqueeze(1), entering, self.h[t])
            self.c_before = c
