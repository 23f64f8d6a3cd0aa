"""The backward loop over time: one compiled call and a matrix product per step, the other products by chunks.

Backpropagation through time, written by hand; the formulas of a step are in ``steps.py``.
"""

import torch
from rnn_backends.authoring import Needs, Run
from torch import Tensor

from .compiler import compiled
from .layer import Layer, by_step
from .products import Product, add_product
from .steps import backward_step


def run_backward(layer: Layer, run: Run, needs: Needs) -> tuple[Tensor | None, ...]:
    """The gradients in the order of :class:`Needs`; ``None`` for those not needed."""
    walk, sums = _Walk(layer, run, needs), _Sums(layer, run, needs)
    for begin, end in reversed(layer.chunks()):
        walk.over(begin, end)
        sums.add(begin, end, walk.grad_gates[: end - begin], walk.grad_h[: end - begin])
    elsewhere = ~layer.starts.unsqueeze(-1)
    entry_h = walk.into_h.masked_fill_(elsewhere, 0) if needs.entry_h else None
    entry_c = walk.into_c[:-1].masked_fill_(elsewhere, 0) if needs.entry_c else None
    return sums.x, sums.w_ih, sums.w_hh, sums.bias, sums.w_hr, entry_h, entry_c


class _Walk:
    """The recurrence from the last step to the first: computes the gradients of a chunk's pre-activations."""

    def __init__(self, layer: Layer, run: Run, needs: Needs) -> None:
        (T, B, H, P), c, longest = layer.sizes, run.c, layer.chunks()[0][1]
        self.run, self.needs = compiled(backward_step, c.device, c.dtype), needs
        self.by_w_hh, self.w_hr = Product(layer.w_hh, B), layer.w_hr
        self.gates, self.c, self.before = run.gates.unbind(0), c.unbind(0), c.unbind(0)
        self.entry_c = by_step(layer.entry_c)
        self.starts, self.cuts = layer.starts.contiguous().unbind(0), layer.next_starts().unbind(0)
        zero_h, zero_c = c.new_zeros(1, B, P).expand(T, -1, -1), c.new_zeros(1, B, H).expand(T, -1, -1)
        self.out_h = by_step(zero_h if run.grad_h is None else run.grad_h)
        self.out_c = by_step(zero_c if run.grad_c is None else run.grad_c)
        self.grad_gates = c.new_empty(longest, B, 4, H)
        self.grad_h = c.new_empty(longest if layer.w_hr is not None else 0, B, P)
        # The gradients of the states before a step, stored for every step if the entry states need theirs. The last
        # step has a next one, which it does not read.
        self.into_h = c.new_empty(T if needs.entry_h else 0, B, P)
        self.into_c = c.new_empty(T + 1 if needs.entry_c else 2, B, H)
        self.next_h, self.zeros = c.new_zeros(B, P), c.new_zeros(B, H)

    def over(self, begin: int, end: int) -> None:
        """Run the steps of a chunk."""
        into_c = self.into_c.unbind(0)
        sums, blocks = self.grad_gates.flatten(2).unbind(0), self.grad_gates.unbind(0)
        for t in range(end - 1, begin - 1, -1):
            grad_m, next_h = self.out_h[t].contiguous(), self.next_h
            if self.w_hr is not None:
                behind = torch.where(self.cuts[t].unsqueeze(1), 0, next_h)
                grad_h = torch.add(grad_m, behind, out=self.grad_h[t - begin])
                grad_m, next_h = torch.mm(grad_h, self.w_hr), self.zeros
            self.run(
                self.gates[t],
                self.c[t],
                self.before[t - 1],  # any value at t = 0: every row starts a sequence there
                self.starts[t],
                self.entry_c[t].contiguous(),
                self.cuts[t],
                grad_m,
                next_h,
                self.out_c[t].contiguous(),
                into_c[(t + 1) % len(into_c)],
                blocks[t - begin],
                into_c[t % len(into_c)],
            )
            if t > 0 or self.needs.entry_h:
                self.next_h = self.by_w_hh.of(sums[t - begin])
            if self.needs.entry_h:
                self.into_h[t] = self.next_h


class _Sums:
    """The gradients that are sums over time, and the input's.

    Those of ``w_ih`` and ``w_hh`` are one product, ``[x, h].T @ rows``: of two large factors the smaller is transposed.
    """

    def __init__(self, layer: Layer, run: Run, needs: Needs) -> None:
        self.layer, self.run = layer, run
        (_, B, H, P), longest = layer.sizes, layer.chunks()[0][1]
        self.by_w_ih = Product(layer.w_ih, longest * B) if needs.x else None
        dtype = run.c.dtype
        self.sum_dtype = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        self.x = torch.empty_like(layer.x, memory_format=torch.contiguous_format) if needs.x else None
        self.from_x, self.from_h = layer.x.shape[2] if needs.w_ih else 0, P if needs.w_hh else 0
        self.entering = layer.x.new_empty(longest, B, self.from_x + self.from_h)
        self.weights = self._zeros(self.from_x + self.from_h, 4 * H)
        self.bias = self._zeros(4 * H) if needs.bias else None
        self.w_hr = self._zeros(P, H) if needs.w_hr else None

    def _zeros(self, *shape: int) -> Tensor:
        return self.layer.x.new_zeros(shape, dtype=self.sum_dtype)

    @property
    def w_ih(self) -> Tensor | None:
        """``[4H, I]``."""
        return self.weights[: self.from_x].t().clone(memory_format=torch.contiguous_format) if self.from_x else None

    @property
    def w_hh(self) -> Tensor | None:
        """``[4H, P]``."""
        return self.weights[self.from_x :].t().clone(memory_format=torch.contiguous_format) if self.from_h else None

    def add(self, begin: int, end: int, grad_gates: Tensor, grad_h: Tensor) -> None:
        """Add a chunk's part; ``grad_gates [n, B, 4, H]``, ``grad_h [n, B, P]`` where there is a projection."""
        layer, run, chunk = self.layer, self.run, slice(begin, end)
        rows, entering = grad_gates.flatten(2).flatten(0, 1), self.entering[: end - begin]
        if self.x is not None and self.by_w_ih is not None:
            self.x[chunk] = self.by_w_ih.of(rows).view_as(self.x[chunk])
        if self.bias is not None:
            self.bias += rows.sum(0, dtype=self.sum_dtype)
        if self.from_x:
            entering[..., : self.from_x] = layer.x[chunk]
        if self.from_h:
            before = run.h[begin - 1 : end - 1] if begin else torch.cat([run.h[:1], run.h[: end - 1]])
            starts = layer.starts[chunk].unsqueeze(-1)
            torch.where(starts, layer.entry_h[chunk], before, out=entering[..., self.from_x :])
        if self.from_x or self.from_h:
            add_product(self.weights, entering.flatten(0, 1), rows)
        if self.w_hr is not None:
            m = run.gates[chunk, :, 3] * torch.tanh(run.c[chunk])
            add_product(self.w_hr, grad_h.flatten(0, 1), m.flatten(0, 1))
