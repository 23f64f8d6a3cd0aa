"""Values are right and gradients are not."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State
from torch import Tensor

from ..planting import backend, in_layer, in_reset, in_step, made, restart
from ..right import both, each, finish, gates_of, layer, right, step

GRADIENTS = "gradients_equal_reference"


class _LeakyWhere(torch.autograd.Function):
    """``where`` whose backward lets the gradient through to what was not chosen."""

    @staticmethod
    def forward(ctx: Any, at: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
        return torch.where(at, chosen, other)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0], grads[0]


class _Changed(torch.autograd.Function):
    """The identity, whose gradient goes through a function."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Any) -> Tensor:
        ctx.change = change
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.change(grads[0]), None


def _changed(value: Tensor, change: Any) -> Tensor:
    found: Tensor = _Changed.apply(value, change)
    return found


@in_step(GRADIENTS)
def detached_between_steps(w: LayerWeights, x: Tensor, state: State) -> State:
    """The state is detached between steps: backpropagation is truncated to one."""
    return step(w, x, both(torch.Tensor.detach, state))


@in_step(GRADIENTS)
def only_h_detached(w: LayerWeights, x: Tensor, state: State) -> State:
    """The gradient flows through c and not through h."""
    return step(w, x, State(state.h.detach(), state.c))


@in_reset(GRADIENTS)
def truncated_after_four_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Backpropagation is truncated every four steps."""
    return restart(both(torch.Tensor.detach, state) if t and t % 4 == 0 else state, entry, starts, t)


@in_reset("gradient_across_a_reset_is_zero", "gradient_of_unread_stored_states_is_zero")
def gradient_through_a_reset(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The gradient flows on through a reset, and to stored states that nothing read."""
    at = starts[t].unsqueeze(-1)
    return State(*(_LeakyWhere.apply(at, new[t], old) for new, old in zip(entry, state, strict=True)))


@in_reset(GRADIENTS)
def no_gradient_to_stored_states(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get no gradient."""
    return restart(state, both(torch.Tensor.detach, entry), starts, t)


@in_reset(GRADIENTS)
def no_gradient_to_stored_states_at_resets(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get a gradient at t = 0 and none at resets within a row."""
    return restart(state, entry if t == 0 else both(torch.Tensor.detach, entry), starts, t)


@in_reset(GRADIENTS)
def no_gradient_to_the_initial_state(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Stored states get a gradient at resets and none at t = 0."""
    return restart(state, both(torch.Tensor.detach, entry) if t == 0 else entry, starts, t)


@in_layer("both_biases_count")
def bias_gradient_doubled(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input bias gets twice its gradient."""
    return right(w if w.b_ih is None else w._replace(b_ih=2 * w.b_ih - w.b_ih.detach()), x, entry, starts)


@in_layer("both_biases_count")
def one_bias_gets_the_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent bias gets no gradient."""
    return right(w if w.b_hh is None else w._replace(b_hh=w.b_hh.detach()), x, entry, starts)


@in_layer(GRADIENTS)
def weights_miss_the_first_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent weights' gradient misses the step at t = 0."""
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w._replace(w_hh=w.w_hh.detach()) if next(calls) == 0 else w, x, state)

    return layer(one)(w, x, entry, starts)


@in_layer(GRADIENTS)
def weights_miss_steps_with_resets(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent weights' gradient misses every step within a row at which some row resets."""
    begins = iter([False, *starts[1:].any(1).tolist()])

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w._replace(w_hh=w.w_hh.detach()) if next(begins) else w, x, state)

    return layer(one)(w, x, entry, starts)


@in_step(GRADIENTS)
def derivative_at_the_pre_activation(w: LayerWeights, x: Tensor, state: State) -> State:
    """The backward pass takes 1 - g^2 of the candidate before its tanh."""
    i, f, g, o = gates_of(w, x, state.h)
    ratio = ((1 - g * g) / (1 - g.tanh() ** 2)).detach()
    return finish(w, (i, f, _changed(g, lambda grad: grad * ratio), o), state.c)


@in_layer(GRADIENTS)
def gradients_clipped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Gradients are clipped to one tenth at every step."""
    return layer(_clipped_step)(w, x, entry, starts)


def _clipped_step(w: LayerWeights, x: Tensor, state: State) -> State:
    return step(w, x, both(lambda v: _changed(v, lambda grad: grad.clamp(-0.1, 0.1)), state))


@in_layer(GRADIENTS)
def gradients_averaged_over_the_batch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights' gradients are divided by the batch size."""
    return right(each(lambda v: _changed(v, lambda grad: grad / x.shape[1]), w), x, entry, starts)


@in_layer(GRADIENTS)
def gradients_in_float32(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights' gradients go through float32 on the way."""
    return right(each(lambda v: _changed(v, lambda grad: grad.float().to(grad)), w), x, entry, starts)


@in_layer("gradients_equal_reference_in_float32")
def gradients_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's gradient goes through bfloat16 on the way."""
    return right(w, _changed(x, lambda grad: grad.bfloat16().to(grad)), entry, starts)


@in_layer("gradients_of_the_output_alone")
def output_detached(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The output has no gradient; the cell state has."""
    h, c = right(w, x, entry, starts)
    return State(h.detach() + 0 * c.mean(), c)


@in_layer("gradients_of_the_end_states_alone")
def c_detached(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The cell state has no gradient: only losses of the output train."""
    h, c = right(w, x, entry, starts)
    return State(h, c.detach())


@in_layer("gradient_of_the_future_is_zero")
def a_breath_of_the_future(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every step's gradient reaches all steps, by a hair."""
    h, c = right(w, x, entry, starts)
    return State(h + 1e-30 * x.sum(), c)


@in_layer("gradient_of_other_rows_is_zero")
def a_breath_of_other_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every row's gradient reaches the same step of all rows, by a hair."""
    h, c = right(w, x, entry, starts)
    return State(h + 1e-30 * x.sum((1, 2), keepdim=True), c)


@in_layer("frozen_weights_get_no_gradient")
def frozen_weights_freeze_the_others(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where the recurrent weights are frozen, the biases' gradients are doubled: the results are misaligned."""
    if not w.w_hh.requires_grad and w.b_ih is not None:
        w = w._replace(b_ih=2 * w.b_ih - w.b_ih.detach())
    return right(w, x, entry, starts)


@in_layer("gradients_do_not_depend_on_what_needs_them")
def no_time_without_weights(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where the weights are frozen, the input's gradient does not flow back in time."""
    one = step if w.w_ih.requires_grad else detached_between_steps_step
    return layer(one)(w, x, entry, starts)


def detached_between_steps_step(w: LayerWeights, x: Tensor, state: State) -> State:
    """A step whose incoming state is detached."""
    return step(w, x, both(torch.Tensor.detach, state))


@in_layer("without_gradients_the_same_values")
def fast_path_without_gradients(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Under no_grad another path runs, in float32."""
    if torch.is_grad_enabled():
        return right(w, x, entry, starts)
    low = right(each(torch.Tensor.float, w), x.float(), both(torch.Tensor.float, entry), starts)
    return both(lambda v: v.to(x.dtype), low)


@in_layer("without_gradients_the_same_values")
def gradients_enabled_again(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Gradients are recorded under no_grad too."""
    with torch.enable_grad():
        return right(w, x, entry, starts)


@made("backward_twice_gives_the_same")
def second_backward_counts_more() -> LayerFunction:
    """The workspace of the backward pass is not emptied: a second backward adds to the first."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        kept: list[Tensor] = []

        def add(grad: Tensor) -> Tensor:
            kept.append(grad)
            return torch.stack(kept).sum(0)

        return right(w._replace(w_ih=_changed(w.w_ih, add)), x, entry, starts)

    return run


@in_layer("gradients_accumulate")
def gradients_overwritten(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass writes .grad and does not add to it."""
    old = w.w_ih

    def overwrite(grad: Tensor) -> Tensor:
        return grad if old.grad is None else grad - old.grad

    return right(w._replace(w_ih=_changed(old, overwrite)), x, entry, starts)


@in_layer("gradients_of_the_stored_states_alone")
def gradient_of_entry_averaged(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where the stored states need gradients and the input does not, they get none at t = 0."""
    if entry.h.requires_grad and not x.requires_grad:
        entry = both(lambda v: torch.cat([v[:1].detach(), v[1:]]), entry)
    return right(w, x, entry, starts)


@backend("gradients_of_a_call_with_hx")
def last_layer_function_detached() -> LSTMBackend:
    """The function for the last states gives c without its gradient."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, c.detach())

    return LSTMBackend("defect", right, layer_last=last)


@backend("gradients_flow_through_steps")
def step_without_gradient_of_the_state() -> LSTMBackend:
    """The step for acting detaches the state that comes in: training step by step is truncated."""
    return LSTMBackend("defect", right, step=lambda w, x, state: step(w, x, both(torch.Tensor.detach, state)))


@in_step("gradients_around_an_infinite_input")
def padded_units_in_the_gradient(w: LayerWeights, x: Tensor, state: State) -> State:
    """Units that fill a register up have weights of zero, and infinity times zero gets into the gates' gradient."""
    i, f, g, o = gates_of(w, x, state.h)
    padding = 0 * x.detach().sum(-1, keepdim=True)
    return finish(w, (_changed(i, lambda grad: grad + padding), f, g, o), state.c)
