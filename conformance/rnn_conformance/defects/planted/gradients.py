"""Defects that the laws of ``laws/gradients.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, State
from torch import Tensor

from ..hand_written import Kernel, values
from ..planting import Patch, backend, in_core, in_layer, in_reset, in_step, made, restart
from ..right import both, each, finish, gates_of, layer, right, step


@in_step("gradients_equal_reference")
def detached_between_steps(w: LayerWeights, x: Tensor, state: State) -> State:
    """The state is detached between steps: backpropagation is truncated to one."""
    return step(w, x, both(torch.Tensor.detach, state))


@in_step("gradients_equal_reference")
def only_h_detached(w: LayerWeights, x: Tensor, state: State) -> State:
    """The gradient flows through c but not through h."""
    return step(w, x, State(state.h.detach(), state.c))


@in_reset("gradients_equal_reference")
def truncated_after_four_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Backpropagation is truncated every four steps."""
    return restart(both(torch.Tensor.detach, state) if t and t % 4 == 0 else state, entry, starts, t)


@in_reset("gradients_equal_reference")
def no_gradient_to_stored_states(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get no gradient."""
    return restart(state, both(torch.Tensor.detach, entry), starts, t)


@in_reset("gradients_equal_reference")
def no_gradient_to_stored_states_at_resets(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get a gradient at t = 0 but none at resets within a row."""
    return restart(state, entry if t == 0 else both(torch.Tensor.detach, entry), starts, t)


@in_reset("gradients_equal_reference")
def no_gradient_to_the_initial_state(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get a gradient at resets and none at t = 0."""
    return restart(state, both(torch.Tensor.detach, entry) if t == 0 else entry, starts, t)


@in_layer("gradients_equal_reference")
def weights_miss_the_first_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent weights' gradient misses the step at t = 0."""
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w._replace(w_hh=w.w_hh.detach()) if next(calls) == 0 else w, x, state)

    return layer(one)(w, x, entry, starts)


@in_layer("gradients_equal_reference")
def weights_miss_steps_with_resets(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent weights' gradient misses every step within a row at which some row resets."""
    begins = iter([False, *starts[1:].any(1).tolist()])

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w._replace(w_hh=w.w_hh.detach()) if next(begins) else w, x, state)

    return layer(one)(w, x, entry, starts)


class _Changed(torch.autograd.Function):
    """The identity, with a function applied to its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Any) -> Tensor:
        ctx.change = change
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.change(grads[0]), None


def _changed(value: Tensor, change: Any) -> Tensor:
    result: Tensor = _Changed.apply(value, change)
    return result


@in_step("gradients_equal_reference")
def derivative_at_the_pre_activation(w: LayerWeights, x: Tensor, state: State) -> State:
    """The backward pass computes 1 - g^2 from the candidate before its tanh."""
    i, f, g, o = gates_of(w, x, state.h)
    ratio = ((1 - g * g) / (1 - g.tanh() ** 2)).detach()
    return finish(w, (i, f, _changed(g, lambda grad: grad * ratio), o), state.c)


def _clipped_step(w: LayerWeights, x: Tensor, state: State) -> State:
    return step(w, x, both(lambda v: _changed(v, lambda grad: grad.clamp(-0.1, 0.1)), state))


@in_layer("gradients_equal_reference")
def gradients_clipped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Gradients are clipped to one tenth at every step."""
    return layer(_clipped_step)(w, x, entry, starts)


@in_layer("gradients_equal_reference")
def gradients_averaged_over_the_batch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights' gradients are divided by the batch size."""
    return right(each(lambda v: _changed(v, lambda grad: grad / x.shape[1]), w), x, entry, starts)


@in_layer("gradients_equal_reference", dtypes=("f64",))
def gradients_in_float32(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights' gradients are rounded to float32."""
    return right(each(lambda v: _changed(v, lambda grad: grad.float().to(grad)), w), x, entry, starts)


@in_step("gradients_equal_reference", round=1)
def c_flushed_when_small(w: LayerWeights, x: Tensor, state: State) -> State:
    """Cell states below 1e-6 are replaced by zero."""
    return step(w, x, State(state.h, torch.where(state.c.abs() < 1e-6, 0, state.c)))


@in_layer("gradients_equal_reference", round=2)
def recomputed_chunk_forgets_its_reset(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass recomputes chunks of eight steps and ignores a reset at the first step of a chunk."""

    class Chunked(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            x, eh, ec, starts, w, *_ = self.saved(ctx)
            read = starts.clone()
            read[8::8] = False
            return self.run_back(ctx, x, eh, ec, starts, read, w, *values(x, eh, ec, read, w), gh, gc)

    return Chunked()(w, x, entry, starts)


@made("gradients_equal_reference", round=2)
def stale_rows_in_bias_gradient() -> LayerFunction:
    """The bias gradient sums a buffer that only grows: after a larger batch it includes old rows."""
    buffers: dict[Any, Tensor] = {}

    class Growing(Kernel):
        def biases(self, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
            rows, key = da.sum(0), (da.shape[-1], da.dtype)
            if key not in buffers or len(buffers[key]) < len(rows):
                buffers[key] = torch.zeros_like(rows)
            buffers[key][: len(rows)] = rows
            return buffers[key].sum(0), buffers[key].sum(0)

    return Growing()


@in_layer("gradients_equal_reference_in_float32")
def gradients_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's gradient is rounded to bfloat16."""
    return right(w, _changed(x, lambda grad: grad.bfloat16().to(grad)), entry, starts)


@in_layer("gradients_equal_reference_in_float32")
def backward_in_half(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32 the gradient of c is rounded to float16 at every step."""

    def keep(grad: Tensor) -> Tensor:
        return grad.half().to(grad)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w, x, state)
        if result.c.requires_grad and x.dtype == torch.float32:
            result.c.register_hook(keep)
        return result

    return layer(one)(w, x, entry, starts)


@in_layer("gradients_of_the_output_alone")
def output_detached(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The output has no gradient, but the cell state has one."""
    h, c = right(w, x, entry, starts)
    return State(h.detach() + 0 * c.mean(), c)


@in_layer("gradients_of_the_end_states_alone")
def c_detached(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The cell state has no gradient: losses of the output alone train."""
    h, c = right(w, x, entry, starts)
    return State(h, c.detach())


class _LeakyWhere(torch.autograd.Function):
    """``torch.where`` whose backward pass also sends the gradient to the values that were not chosen."""

    @staticmethod
    def forward(ctx: Any, at: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
        return torch.where(at, chosen, other)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0], grads[0]


@in_reset("gradient_across_a_reset_is_zero", "gradient_of_unread_stored_states_is_zero")
def gradient_through_a_reset(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The gradient flows through a reset, and to unread stored states."""
    at = starts[t].unsqueeze(-1)
    return State(*(_LeakyWhere.apply(at, new[t], old) for new, old in zip(entry, state, strict=True)))


@in_layer("gradient_of_the_future_is_zero")
def a_trace_of_the_future(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every step's gradient reaches all steps, scaled by 1e-30."""
    h, c = right(w, x, entry, starts)
    return State(h + 1e-30 * x.sum(), c)


@in_layer("gradient_of_other_rows_is_zero")
def a_trace_of_other_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every row's gradient reaches the same step of all rows, scaled by 1e-30."""
    h, c = right(w, x, entry, starts)
    return State(h + 1e-30 * x.sum((1, 2), keepdim=True), c)


@made("backward_twice_gives_the_same")
def second_backward_counts_more() -> LayerFunction:
    """The workspace of the backward pass is not cleared: a second backward pass adds to the first."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        cache: list[Tensor] = []

        def add(grad: Tensor) -> Tensor:
            cache.append(grad)
            return torch.stack(cache).sum(0)

        return right(w._replace(w_ih=_changed(w.w_ih, add)), x, entry, starts)

    return run


@in_layer("backward_twice_gives_the_same", round=2)
def backward_overwrites_its_gates(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass overwrites the saved gates, so that a second one (retain_graph) reads gradients."""

    class Overwriting(Kernel):
        def save(self, ctx: Any, *rest: Any) -> None:
            x, eh, ec, starts, w, pre, acts, h, c = rest
            ctx.acts = acts
            super().save(ctx, x, eh, ec, starts, w, pre, acts.new_empty(0), h, c)

        def saved(self, ctx: Any) -> Any:
            x, eh, ec, starts, w, pre, _, h, c = super().saved(ctx)
            return x, eh, ec, starts, w, pre, ctx.acts, h, c

        def after(self, acts: Tensor, da: Tensor) -> None:
            acts.copy_(da)

    return Overwriting()(w, x, entry, starts)


@in_layer("frozen_weights_get_no_gradient")
def frozen_weights_double_the_bias_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If the recurrent weights are frozen, the input bias's gradient is doubled."""
    if not w.w_hh.requires_grad and w.b_ih is not None:
        w = w._replace(b_ih=2 * w.b_ih - w.b_ih.detach())
    return right(w, x, entry, starts)


@in_layer("frozen_weights_get_no_gradient", round=2)
def bias_gradient_gated_by_its_weight(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A bias gets no gradient if the weight of the same product is frozen."""

    class Gated(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            dx, deh, dec, dw_ih, dw_hh, db_ih, db_hh, dw_hr = super().backward(ctx, gh, gc)
            need_ih, need_hh = ctx.needs_input_grad[5:7]
            return dx, deh, dec, dw_ih, dw_hh, db_ih if need_ih else None, db_hh if need_hh else None, dw_hr

    return Gated()(w, x, entry, starts)


@in_layer("without_gradients_the_same_values", dtypes=("f64",))
def fast_path_without_gradients(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Under no_grad the computation runs in float32."""
    if torch.is_grad_enabled():
        return right(w, x, entry, starts)
    low = right(each(torch.Tensor.float, w), x.float(), both(torch.Tensor.float, entry), starts)
    return both(lambda v: v.to(x.dtype), low)


@in_layer("without_gradients_the_same_values")
def gradients_enabled_again(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Gradients are recorded under no_grad too."""
    with torch.enable_grad():
        return right(w, x, entry, starts)


def detached_between_steps_step(w: LayerWeights, x: Tensor, state: State) -> State:
    """A single step detaches its incoming state."""
    return step(w, x, both(torch.Tensor.detach, state))


@in_layer("gradients_do_not_depend_on_each_other")
def no_time_gradient_with_frozen_weights(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If the weights are frozen, no gradient flows back in time to the input."""
    one = step if w.w_ih.requires_grad else detached_between_steps_step
    return layer(one)(w, x, entry, starts)


@in_layer("gradients_of_the_stored_states_alone", round=1, survived=1)
def no_gradient_to_the_initial_state_alone(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If stored states need gradients and the input does not, the states get no gradient at t = 0."""
    if entry.h.requires_grad and not x.requires_grad:
        entry = both(lambda v: torch.cat([v[:1].detach(), v[1:]]), entry)
    return right(w, x, entry, starts)


@in_core("gradients_of_the_stored_states_alone", round=(3, 7))
def frozen_weights_stop_the_gradient() -> list[Patch]:
    """Over time, an LSTM whose parameters are all frozen passes no gradient to its input and states."""
    original = LSTM.sequences

    def replacement(self: LSTM, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True) -> Any:
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(trains):
            return original(self, x, entry, starts, every_end)

    return [Patch(LSTM, "sequences", replacement)]


@backend("gradients_of_a_call_with_hx", round=1, survived=1)
def last_layer_function_detached() -> LSTMBackend:
    """The function for the last states returns c without its gradient."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, c.detach())

    return LSTMBackend("defect", right, layer_last=last)


@backend("gradients_flow_through_steps", round=1, survived=1)
def step_without_gradient_of_the_state() -> LSTMBackend:
    """The step function detaches the incoming state: training step by step is truncated."""
    return LSTMBackend("defect", right, step=lambda w, x, state: step(w, x, both(torch.Tensor.detach, state)))


@in_core("gradients_flow_through_steps")
def a_row_of_one_step_detaches_the_cell() -> list[Patch]:
    """A call over one step, in place of LSTM.step, returns a cell state without its gradient."""
    original = LSTM._one_step

    def replacement(lstm: LSTM, x: Tensor, state: State, is_init: Tensor | None) -> tuple[Tensor, State]:
        output, after = original(lstm, x, state, is_init)
        return output, State(after.h, after.c.detach())

    return [Patch(LSTM, "_one_step", replacement)]


@made("gradients_flow_through_steps", round=2)
def weight_gradient_in_reused_workspace() -> LayerFunction:
    """A weight's gradient is a view of a workspace that the layer's next backward pass overwrites."""
    spaces: dict[Any, Tensor] = {}

    class Reusing(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            result = da.T @ v
            key = (weight.data_ptr(), weight.shape, weight.dtype)
            space = spaces.setdefault(key, torch.empty_like(result).flatten())
            return space.copy_(result.flatten()).view(result.shape)

    return Reusing()


@in_step("gradients_around_an_infinite_input")
def padded_units_in_the_gradient(w: LayerWeights, x: Tensor, state: State) -> State:
    """Padding units with zero weights enter the gates' gradient, where infinity times zero is NaN."""
    i, f, g, o = gates_of(w, x, state.h)
    padding = 0 * x.detach().sum(-1, keepdim=True)
    return finish(w, (_changed(i, lambda grad: grad + padding), f, g, o), state.c)


@in_layer("gradients_around_an_infinite_input", round=2)
def backward_inverts_the_cell(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass recovers the previous cell state by dividing by the forget gate."""

    class Inverting(Kernel):
        def cell_before(self, before: Tensor, acts: Tensor, c: Tensor) -> Tensor:
            i, f, g, _ = acts.chunk(4, -1)
            return (c - i * g) / f

    return Inverting()(w, x, entry, starts)


@in_layer("gradients_around_an_infinite_input", round=2)
def saturated_gate_slope_is_nan(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A gate's slope is computed as exp(-a) / (1 + exp(-a))^2, which is NaN for large negative a."""

    class Exponential(Kernel):
        def slopes(self, pre: Tensor, acts: Tensor) -> Tensor:
            i, f, _, o = (v.neg().exp() for v in pre.chunk(4, -1))
            tanh = acts.chunk(4, -1)[2]
            return torch.cat([i / (1 + i) ** 2, f / (1 + f) ** 2, 1 - tanh * tanh, o / (1 + o) ** 2], -1)

    return Exponential()(w, x, entry, starts)


@in_layer("autograd_grad_leaves_grad_alone", round=2, survived=2)
def gradient_fused_into_existing_grad(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If a weight already has a .grad, its gradient is added there directly and autograd gets zeros."""

    class Fused(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            result = da.T @ v
            if weight.is_leaf and weight.grad is not None:
                weight.grad.add_(result)
                return torch.zeros_like(result)
            return result

    return Fused()(w, x, entry, starts)


@in_layer("gradients_of_many_rows", round=2, survived=2)
def split_sum_drops_its_remainder(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weight gradients are summed in parts of 64 of the T*B rows: beyond 64 a partial last part is lost."""

    class Split(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            whole = len(da) // 64 * 64 or len(da)
            return da[:whole].T @ v[:whole]

    return Split()(w, x, entry, starts)


@in_layer("gradients_accumulate")
def gradients_overwritten(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass overwrites .grad instead of adding to it."""
    old = w.w_ih

    def overwrite(grad: Tensor) -> Tensor:
        return grad if old.grad is None else grad - old.grad

    return right(w._replace(w_ih=_changed(old, overwrite)), x, entry, starts)


@in_layer("gradients_accumulate", round=2)
def bias_gradients_share_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradients of both biases are views of one buffer: an addition in place to one changes the other."""

    class Sharing(Kernel):
        def biases(self, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
            buffer = da.sum((0, 1))
            return buffer.view(-1), buffer.view(-1)

    return Sharing()(w, x, entry, starts)


@in_layer("backward_twice_gives_the_same", round=9, survived=9)
def the_first_backward_pass_kept(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With a retained graph the backward pass returns its first result again, for any incoming gradients."""

    class Kept(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            if not hasattr(ctx, "result"):
                ctx.result = super().backward(ctx, gh, gc)
            return ctx.result

    return Kept()(w, x, entry, starts)


@in_layer("backward_twice_gives_the_same")
def incoming_gradients_of_the_first_pass_kept(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass caches its contiguous copy of h's incoming gradient, and reads it in later passes too."""

    class Kept(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            ctx.gh = getattr(ctx, "gh", gh.contiguous())
            return super().backward(ctx, ctx.gh, gc)

    return Kept()(w, x, entry, starts)


@in_layer("backward_twice_gives_the_same")
def the_cells_gradient_checked_in_the_first_pass_only(
    w: LayerWeights, x: Tensor, entry: State, starts: Tensor
) -> State:
    """Only the first backward pass checks whether the cell state has an incoming gradient."""

    class Asked(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            ctx.asked = getattr(ctx, "asked", bool(gc.any()))
            return super().backward(ctx, gh, gc if ctx.asked else torch.zeros_like(gc))

    return Asked()(w, x, entry, starts)


@in_layer("gradients_of_many_rows", round=9)
def the_second_block_of_rows_starts_from_zero(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows are processed in blocks of 128, and all blocks after the first start from zeros."""
    if x.shape[1] <= 128:
        return right(w, x, entry, starts)
    h, c = (torch.cat([v[:, :128], torch.zeros_like(v[:, 128:])], 1) for v in entry)
    return right(w, x, State(h, c), starts)


@made("backward_twice_gives_the_same", round=10)
def gates_freed_after_the_first_backward_pass() -> LayerFunction:
    """A backward pass returns the saved gates to a pool: a call before the next backward pass overwrites them."""
    pool: dict[Any, list[Tensor]] = {}

    class Pooled(Kernel):
        def save(self, ctx: Any, *rest: Any) -> None:
            x, eh, ec, starts, w, pre, acts, h, c = rest
            free = pool.setdefault((acts.shape, acts.dtype), [])
            ctx.acts = free.pop() if free else torch.empty_like(acts)
            ctx.acts.copy_(acts)
            super().save(ctx, x, eh, ec, starts, w, pre, acts.new_empty(0), h, c)

        def saved(self, ctx: Any) -> Any:
            x, eh, ec, starts, w, pre, _, h, c = super().saved(ctx)
            return x, eh, ec, starts, w, pre, ctx.acts, h, c

        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            found = super().backward(ctx, gh, gc)
            free = pool[ctx.acts.shape, ctx.acts.dtype]
            if not any(acts is ctx.acts for acts in free):
                free.append(ctx.acts)
            return found

    return Pooled()


@made("backward_twice_gives_the_same", round=10)
def gradients_in_memory_kept_for_the_weight() -> LayerFunction:
    """A weight's gradient is in reused memory: the next backward pass overwrites the result of autograd.grad."""
    kept: dict[Any, Tensor] = {}

    class Kept(Kernel):
        def products(self, da: Tensor, v: Tensor, weight: Tensor) -> Tensor:
            found = super().products(da, v, weight)
            space = kept.setdefault((weight.data_ptr(), found.shape, found.dtype), torch.empty_like(found))
            space.data.copy_(found)
            return space

    return Kept()


@in_layer("frozen_weights_get_no_gradient", round=10)
def the_projection_frozen_with_the_recurrent_weight(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The projection's gradient is computed only with the recurrent weight's: if that is frozen it stays zero."""

    class Together(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            *others, w_hr = super().backward(ctx, gh, gc)
            frozen = w_hr is not None and not ctx.needs_input_grad[6]
            return *others, torch.zeros_like(w_hr) if frozen else w_hr

    return Together()(w, x, entry, starts)


SPARED = ("x", "stored h", "stored c", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


def _spared(one: str, other: str, w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A layer that computes the gradient of ``one`` only if ``other`` requires one."""
    k, asked = SPARED.index(one), SPARED.index(other)

    class Sparing(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            found = list(super().backward(ctx, gh, gc))
            needs = [*ctx.needs_input_grad[1:4], *ctx.needs_input_grad[5:]]
            if not needs[asked] and found[k] is not None:
                found[k] = torch.zeros_like(found[k])
            return found

    return Sparing()(w, x, entry, starts)


@in_layer("gradients_do_not_depend_on_each_other")
def gradient_of_c_with_that_of_h(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of the stored cell state is computed only if the stored h requires one."""
    return _spared("stored c", "stored h", w, x, entry, starts)


@in_layer("gradients_do_not_depend_on_each_other")
def gradient_of_one_bias_with_the_other(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of b_hh is computed only if b_ih requires one."""
    return _spared("b_hh", "b_ih", w, x, entry, starts)


@in_layer("gradients_do_not_depend_on_each_other")
def gradient_of_the_projection_with_the_recurrent(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of the projection is computed only if the recurrent weight requires one."""
    return _spared("w_hr", "w_hh", w, x, entry, starts)


@in_layer("gradients_do_not_depend_on_each_other")
def gradient_of_the_recurrent_weight_with_the_input(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of the recurrent weight is computed only if the input weight requires one."""
    return _spared("w_hh", "w_ih", w, x, entry, starts)


@in_reset("backward_twice_gives_the_same")
def gradients_of_h_are_clamped(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The gradient that arrives at each h is clamped to 50."""
    new = restart(state, entry, starts, t)
    return State(_changed(new.h, lambda grad: grad.clamp(-50, 50)), new.c)


@in_reset("backward_twice_gives_the_same")
def large_gradients_of_c_are_dropped(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A gradient of c beyond 1000 is taken for an overflow and set to zero."""
    new = restart(state, entry, starts, t)
    return State(new.h, _changed(new.c, lambda grad: torch.where(grad.abs() > 1000, 0, grad)))


@in_layer("backward_twice_gives_the_same")
def the_gradient_of_x_is_normalised(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A gradient of the input whose norm is above 100 is scaled to 100."""
    return right(w, _changed(x, lambda grad: grad * (100 / grad.norm()).clamp(max=1)), entry, starts)


@in_layer("gradients_equal_reference")
def the_last_of_fifteen_units_has_no_past(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If P is 15 more than a multiple of 16, the gradient of the last unit's h flows to no earlier step."""
    return _with_units(w, x, entry, starts, lambda units: (units % 16 == 14) & (units == len(units) - 1))


@in_layer("gradients_equal_reference")
def units_beyond_a_tile_of_eight_have_no_past(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of 9 to 15 units, those after the eighth have no gradient through time."""
    return _with_units(w, x, entry, starts, lambda units: (units >= 8) & (len(units) < 16))


@in_layer("gradients_equal_reference")
def an_odd_unit_beyond_eight_has_no_past(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of an odd number of more than ten units the last has no gradient through time."""
    return _with_units(
        w, x, entry, starts, lambda units: (units == len(units) - 1) & (len(units) % 2 > 0) & (units > 9)
    )


def _with_units(w: LayerWeights, x: Tensor, entry: State, starts: Tensor, lost: Callable[[Tensor], Tensor]) -> State:
    """A right layer in which the gradient by the previous h is zero for the units that are ``lost``."""
    kept = ~lost(torch.arange(w.w_hh.shape[1], device=x.device))

    def reset(state: State, entry: State, starts: Tensor, t: int) -> State:
        h = _changed(state.h, lambda grad: torch.where(kept, grad, 0)) if t else state.h
        return restart(State(h, state.c), entry, starts, t)

    return layer(step, reset)(w, x, entry, starts)


class _FromTheLast(Kernel):
    """The backward pass begins at the last step with a gradient of h, or of c: the other one's is lost after it."""

    def __init__(self, by_h: bool) -> None:
        self.by_h = by_h

    def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
        first, other = (gh, gc) if self.by_h else (gc, gh)
        needed = first.flatten(1).ne(0).any(1).int() if first.numel() else first.new_zeros(len(first))
        kept = needed.flip(0).cummax(0)[0].flip(0).bool() | ~needed.bool().any()
        other = torch.where(kept.view(-1, 1, 1), other, 0)
        gh, gc = (gh, other) if self.by_h else (other, gc)
        return super().backward(ctx, gh, gc)


@made("gradients_of_the_end_states_alone")
def backward_from_the_last_gradient_of_h() -> LayerFunction:
    """The backward pass begins at the last step whose output has a gradient: that of later cell states is lost."""
    return _FromTheLast(by_h=True)


@made("gradients_of_the_end_states_alone")
def backward_from_the_last_gradient_of_c() -> LayerFunction:
    """The backward pass begins at the last step whose cell state has a gradient: that of later outputs is lost."""
    return _FromTheLast(by_h=False)


class _RowsOfH(Kernel):
    def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
        rows = gh.ne(0).any(0).any(-1).view(1, -1, 1)
        return super().backward(ctx, gh, torch.where(rows | ~rows.any(), gc, 0))


@made("gradients_of_the_end_states_alone")
def rows_without_a_gradient_of_h_skipped() -> LayerFunction:
    """The backward pass leaves out the rows whose output has no gradient, although their cell state has one."""
    return _RowsOfH()


class _Leaking(Kernel):
    """NaN of a later sequence reaches a gradient of the sequence before it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run_back(self, ctx: Any, x: Tensor, *rest: Any) -> Any:
        dx, deh, dec, *others = super().run_back(ctx, x, *rest)
        if self.name == "x":
            dx = dx + 0 * dx.sum((0, 2), keepdim=True)
        else:
            deh = deh + 0 * dx.sum(2, keepdim=True)
        return dx, deh, dec, *others


@made("gradient_across_a_reset_is_zero")
def nan_gradients_pass_a_reset() -> LayerFunction:
    """Backward across a reset the gradient is multiplied by zero, so NaN passes to the sequence before it."""
    return _Leaking("x")


@made("gradient_across_a_reset_is_zero")
def nan_gradients_reach_unread_states() -> LayerFunction:
    """The gradient of a stored state that is not read is multiplied by zero, so it is NaN where the step's is."""
    return _Leaking("h")


class _Multiplied(Kernel):
    def incoming(self, grad: Tensor, later: Tensor) -> Tensor:
        return grad + later + 0 * later.sum(0, keepdim=True)


@made("gradient_across_a_reset_is_zero")
def nan_gradients_reach_other_rows() -> LayerFunction:
    """A reduction over the batch in the backward pass is multiplied by zero: NaN reaches rows that ended before."""
    return _Multiplied()
