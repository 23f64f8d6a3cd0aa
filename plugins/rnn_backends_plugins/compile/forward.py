"""The forward loop over time: a matrix product and one compiled call per step."""

import torch
from torch import Tensor

from .compiler import compiled
from .layer import Layer
from .products import Product
from .steps import forward_step


def run_forward(layer: Layer, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of a layer.

    Args:
        layer: what it reads.
        keep: whether the gates of every step are kept, for the gradient.

    Returns:
        ``h [T, B, P]``, ``c [T, B, H]``, and the activated gates ``[T, B, 4, H]``, or nothing (``[0]``).
    """
    T, B, H, P = layer.sizes
    x, chunks = layer.x, layer.chunks()
    h, c = x.new_empty(T, B, P), x.new_empty(T, B, H)
    gates = x.new_empty(T if keep else chunks[0][1], B, 4, H)
    bias = x.new_zeros(4 * H) if layer.bias is None else layer.bias
    walk, by_w_ih = _Walk(layer, h, c), Product(layer.w_ih.t(), chunks[0][1] * B)
    for begin, end in chunks:
        mine = gates[begin:end] if keep else gates[: end - begin]
        rows, inputs = mine.view((end - begin) * B, 4 * H), x[begin:end].flatten(0, 1)
        by_w_ih.into(inputs, rows, bias)
        walk.over(mine, begin)
    return h, c, gates if keep else x.new_empty(0)


class _Walk:
    """The recurrence: fills ``h`` and ``c``, one chunk after the other."""

    def __init__(self, layer: Layer, h: Tensor, c: Tensor) -> None:
        self.run = compiled(forward_step, h.device, h.dtype)
        self.by_w_hh, self.w_hr = Product(layer.w_hh.t(), h.shape[1]), layer.w_hr
        self.h, self.c = h.unbind(0), c.unbind(0)
        self.starts, self.next_starts = layer.starts.contiguous().unbind(0), layer.next_starts().unbind(0)
        self.entry_h, self.entry_c = layer.entry_h.unbind(0), layer.entry_c.unbind(0)
        # Compiled code wants as many tensors as it has arguments: where one is of no interest it gets `unused`.
        self.m, self.next_h, self.unused = (torch.zeros_like(c[0]) for _ in range(3))
        self.h_in, self.c_before = self.entry_h[0], torch.zeros_like(c[0])  # at t = 0 every row starts a sequence

    def over(self, gates: Tensor, begin: int) -> None:
        """Run the steps whose pre-activations, of the inputs alone, are ``gates [n, B, 4, H]``."""
        for t, (sums, blocks) in enumerate(zip(gates.flatten(2).unbind(0), gates.unbind(0), strict=True), begin):
            self.by_w_hh.onto(self.h_in, sums)
            entering = self.entry_h[min(t + 1, len(self.h) - 1)]  # past the end it is read by nobody
            entry_c, starts, cut = self.entry_c[t].contiguous(), self.starts[t], self.next_starts[t]
            if self.w_hr is None:
                entering = entering.contiguous()
                self.run(blocks, self.c_before, starts, entry_c, cut, entering, self.h[t], self.c[t], self.next_h)
                self.h_in = self.next_h
            else:
                self.run(blocks, self.c_before, starts, entry_c, cut, self.unused, self.m, self.c[t], self.next_h)
                torch.mm(self.m, self.w_hr.t(), out=self.h[t])
                self.h_in = torch.where(cut.unsqueeze(1), entering, self.h[t])
            self.c_before = self.c[t]
