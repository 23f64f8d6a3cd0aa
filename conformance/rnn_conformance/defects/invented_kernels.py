"""The second round, kernels: twenty defects by somebody who had read neither the laws nor the planted defects.

Bugs as authors of kernels make them: in backward passes written by hand, in what is kept between calls, by sizes and
memory. A law is named where one was written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, State
from torch import Tensor

from .hand_written import Kernel, values
from .planting import in_layer, made
from .right import both, each, finish, gates_of, layer, restart, right, step

# Hand-written backward passes


@in_layer()
def bias_gradient_gated_by_its_weight(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A bias gets no gradient where the weight beside it is frozen: one guard is around both."""

    class Gated(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            dx, deh, dec, dw_ih, dw_hh, db_ih, db_hh, dw_hr = super().backward(ctx, gh, gc)
            need_ih, need_hh = ctx.needs_input_grad[5:7]
            return dx, deh, dec, dw_ih, dw_hh, db_ih if need_ih else None, db_hh if need_hh else None, dw_hr

    return Gated()(w, x, entry, starts)


@in_layer()
def backward_inverts_the_cell(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """To save memory the backward pass recovers the previous cell state by dividing by the forget gate."""

    class Inverting(Kernel):
        def cell_before(self, before: Tensor, acts: Tensor, c: Tensor) -> Tensor:
            i, f, g, _ = acts.chunk(4, -1)
            return (c - i * g) / f

    return Inverting()(w, x, entry, starts)


@in_layer("results_may_be_written_over_before_the_backward_pass")
def output_kept_outside_saved_tensors(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The output is kept for the backward pass as an attribute: changed in place, it gives a wrong gradient."""

    class Outside(Kernel):
        def keep(self, ctx: Any, *rest: Any) -> None:
            x, eh, ec, starts, w, pre, acts, h, c = rest
            ctx.h = h.detach()
            super().keep(ctx, x, eh, ec, starts, w, pre, acts, h.new_empty(0), c)

        def kept(self, ctx: Any) -> Any:
            x, eh, ec, starts, w, pre, acts, _, c = super().kept(ctx)
            return x, eh, ec, starts, w, pre, acts, ctx.h, c

    return Outside()(w, x, entry, starts)


@in_layer()
def backward_overwrites_its_gates(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass writes the gates' gradients over the gates, so a second one (retain_graph) reads those."""

    class Overwriting(Kernel):
        def keep(self, ctx: Any, *rest: Any) -> None:
            x, eh, ec, starts, w, pre, acts, h, c = rest
            ctx.acts = acts
            super().keep(ctx, x, eh, ec, starts, w, pre, acts.new_empty(0), h, c)

        def kept(self, ctx: Any) -> Any:
            x, eh, ec, starts, w, pre, _, h, c = super().kept(ctx)
            return x, eh, ec, starts, w, pre, ctx.acts, h, c

        def after(self, acts: Tensor, da: Tensor) -> None:
            acts.copy_(da)

    return Overwriting()(w, x, entry, starts)


@in_layer("gradients_handed_in_are_not_written")
def backward_adds_into_incoming_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass accumulates over time in the gradient that it was handed, which is not its own."""

    class Adding(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            return super().backward(ctx, gh.contiguous(), gc)

        def incoming(self, grad: Tensor, later: Tensor) -> Tensor:
            return grad.add_(later)

    return Adding()(w, x, entry, starts)


@in_layer()
def bias_gradients_share_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradients of both biases are views of one buffer: what is added to one in place is added to the other."""

    class Sharing(Kernel):
        def biases(self, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
            buffer = da.sum((0, 1))
            return buffer.view(-1), buffer.view(-1)

    return Sharing()(w, x, entry, starts)


@in_layer()
def saturated_gate_slope_is_nan(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass takes a gate's slope as exp(-a) / (1 + exp(-a))^2, which is NaN where a gate is shut hard."""

    class Exponential(Kernel):
        def slopes(self, pre: Tensor, acts: Tensor) -> Tensor:
            i, f, _, o = (v.neg().exp() for v in pre.chunk(4, -1))
            tanh = acts.chunk(4, -1)[2]
            return torch.cat([i / (1 + i) ** 2, f / (1 + f) ** 2, 1 - tanh * tanh, o / (1 + o) ** 2], -1)

    return Exponential()(w, x, entry, starts)


@in_layer()
def recomputed_chunk_forgets_its_reset(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass recomputes chunks of eight steps from the state before them, though a sequence starts there."""

    class Chunked(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            x, eh, ec, starts, w, *_ = self.kept(ctx)
            read = starts.clone()
            read[8::8] = False
            return self.run_back(ctx, x, eh, ec, starts, read, w, *values(x, eh, ec, read, w), gh, gc)

    return Chunked()(w, x, entry, starts)


@in_layer("gradients_of_many_rows")
def split_sum_drops_its_remainder(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weight gradients are summed in parts of 64 of the T*B rows: beyond 64 the last, partial one is lost."""

    class Split(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            whole = len(da) // 64 * 64 or len(da)
            return da[:whole].T @ v[:whole]

    return Split()(w, x, entry, starts)


@in_layer("gradients_asked_for_leave_grad_alone")
def gradient_fused_into_existing_grad(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where a weight has a .grad already its gradient is added there by the kernel, and autograd is given zeros."""

    class Fused(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            found = da.T @ v
            if weight.is_leaf and weight.grad is not None:
                weight.grad.add_(found)
                return torch.zeros_like(found)
            return found

    return Fused()(w, x, entry, starts)


# Kept between calls


@made()
def weight_gradient_in_reused_workspace() -> LayerFunction:
    """A weight's gradient is a view of a workspace that the layer's next backward pass writes over."""
    spaces: dict[Any, Tensor] = {}

    class Reusing(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            found = da.T @ v
            key = (weight.data_ptr(), weight.shape, weight.dtype)
            space = spaces.setdefault(key, torch.empty_like(found).flatten())
            return space.copy_(found.flatten()).view(found.shape)

    return Reusing()


@made()
def stale_rows_in_bias_gradient() -> LayerFunction:
    """The bias gradient sums all rows of a buffer that only grows: after a larger batch its old rows are counted."""
    buffers: dict[Any, Tensor] = {}

    class Growing(Kernel):
        def biases(self, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
            rows, key = da.sum(0), (da.shape[-1], da.dtype)
            if key not in buffers or len(buffers[key]) < len(rows):
                buffers[key] = torch.zeros_like(rows)
            buffers[key][: len(rows)] = rows
            return buffers[key].sum(0), buffers[key].sum(0)

    return Growing()


@made()
def tuning_draws_from_the_global_generator() -> LayerFunction:
    """When a shape is seen the second time candidates are timed on random data from torch's global generator."""
    seen: dict[Any, int] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = (x.shape, w.w_hh.shape, x.dtype)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 2:
            right(w, torch.rand(x.shape, dtype=x.dtype, device=x.device), both(torch.zeros_like, entry), starts)
        return right(w, x, entry, starts)

    return run


@made("edited_weights_are_seen_while_acting")
def packed_until_the_next_training_call() -> LayerFunction:
    """Weights packed for acting are kept until a call with gradients: a target network edited in place is stale."""
    packs: dict[Any, tuple[Any, LayerWeights]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = tuple(None if v is None else (v.data_ptr(), v.shape, v.dtype) for v in w)
        if torch.is_grad_enabled():
            packs.pop(key, None)
            return right(w, x, entry, starts)
        if key not in packs:
            packs[key] = (each(Tensor.detach, w), each(lambda v: v.detach().clone(), w))
        return right(packs[key][1], x, entry, starts)

    return run


@made("one_module_acts_in_two_threads")
def cell_scratch_shared_between_threads() -> LayerFunction:
    """Without gradients the running cell state is in a scratch buffer for its shape that all threads share."""
    scratch: dict[Any, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch.is_grad_enabled():
            return right(w, x, entry, starts)
        c = scratch.setdefault((entry.c.shape[1:], x.dtype, x.device), torch.empty_like(entry.c[0]))
        h, hs, cs = entry.h[0], [], []
        c.copy_(entry.c[0])
        for t in range(len(x)):
            before = restart(State(h, c), entry, starts, t)
            c.copy_(before.c)
            i, f, g, o = gates_of(w, x[t], before.h)
            c.mul_(f.sigmoid()).add_(i.sigmoid() * g.tanh())
            h = o.sigmoid() * c.tanh()
            h = h if w.w_hr is None else h @ w.w_hr.T
            hs.append(h)
            cs.append(c.clone())
        return State(torch.stack(hs), torch.stack(cs))

    return run


# Sizes, memory layout, precision


@in_layer()
def leading_dimension_of_a_single_row(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Contiguous input is read with stride(1) between rows, which means nothing where the batch is one row."""
    x, (steps, batch, size) = x.contiguous(), x.shape
    lead = x.stride(1)
    if batch == 1 and lead != size and x.numel():
        rows = torch.arange(steps, device=x.device).unsqueeze(-1) * lead + torch.arange(size, device=x.device)
        x = x.reshape(-1)[rows % x.numel()].unsqueeze(1)  # a kernel would read beyond the end
    return right(w, x, entry, starts)


@in_layer("weights_may_lie_in_any_way")
def transposed_recurrent_weight_read_raw(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A recurrent weight that lies transposed in memory is read as if it were contiguous."""
    raw = w.w_hh
    if not raw.is_contiguous() and raw.T.is_contiguous():
        raw = raw.T.reshape(raw.shape)
    return right(w._replace(w_hh=raw), x, entry, starts)


@in_layer()
def wide_input_loses_its_tail(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Input features are read in tiles of 16: a remainder after a whole tile is left out."""
    size = x.shape[-1]
    whole = size // 16 * 16 or size
    return right(w._replace(w_ih=w.w_ih[:, :whole]), x[..., :whole], entry, starts)


@in_layer()
def short_floats_where_sizes_are_aligned(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32, with sizes that are multiples of eight, the products' factors are cut to ten bits (tf32)."""
    if x.dtype != torch.float32 or any(v % 8 for v in (*w.w_ih.shape, *w.w_hh.shape)):
        return right(w, x, entry, starts)

    def cut(v: Tensor) -> Tensor:
        bits = v.detach().contiguous().view(torch.int32)
        short = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return v + (short - v).detach()

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return finish(w, gates_of(w, cut(x), cut(state.h)), state.c)

    return layer(one)(w._replace(w_ih=cut(w.w_ih), w_hh=cut(w.w_hh)), x, entry, starts)


@in_layer()
def all_starts_read_the_first_entry(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where every step is a start all are run as one large batch, from the first step's entry repeated."""
    if len(x) > 1 and x.shape[1] and bool(starts.all()):
        many = step(w, x.flatten(0, 1), both(lambda v: v[:1].expand_as(v).flatten(0, 1), entry))
        return both(lambda v: v.unflatten(0, x.shape[:2]), many)
    return right(w, x, entry, starts)
