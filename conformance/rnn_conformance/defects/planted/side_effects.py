"""Defects that the laws of ``laws/side_effects.py`` kill first."""

from __future__ import annotations

import gc
import os
import random
import threading
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, LSTMModule, LSTMSpec, State, StepFunction
from rnn_backends.authoring import is_plain
from torch import Tensor

from ..hand_written import Kernel
from ..hand_written_blocks import backward_pass, by_hand, forward_pass, once
from ..planting import Patch, backend, in_core, in_layer, made
from ..right import both, each, finish, gates_of, layer, output_of, right, step
from ..right_stack import all_layers


@in_layer("nothing_passed_in_changes")
def starts_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts are cleared in place after use."""
    result = right(w, x, entry, starts)
    starts[1:] = False
    return result


@in_layer("nothing_passed_in_changes")
def starts_inverted_and_back(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The starts are inverted in place and back, which another thread could see."""
    starts.logical_not_()
    try:
        return right(w, x, entry, ~starts)
    finally:
        starts.logical_not_()


@in_layer("nothing_passed_in_changes")
def input_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is changed in place."""
    result = right(w, x * 1.0, both(lambda v: v * 1.0, entry), starts)
    with torch.no_grad():
        x.add_(1)
    return result


@in_layer("nothing_passed_in_changes")
def stored_states_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Unread stored states are set to zero in place."""
    result = right(w, x, both(torch.clone, entry), starts)
    with torch.no_grad():
        entry.c.copy_(torch.where(starts.unsqueeze(-1), entry.c, 0))
    return result


@in_layer("nothing_passed_in_changes", dtypes=("f64",))
def weights_written_to(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights are rounded to float32 in place."""
    result = right(w, x, entry, starts)
    with torch.no_grad():
        w.w_hh.data.copy_(w.w_hh.float())
    return result


@made("same_call_same_answer")
def the_last_call_added() -> LayerFunction:
    """A thousandth of the previous call's result is added if shapes agree."""
    cache: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        old = cache.get(tuple(h.shape))
        cache[tuple(h.shape)] = h.detach()
        return State(h if old is None else h + 1e-3 * old, c)

    return run


@made("same_call_same_answer", dtypes=("f64",))
def not_repeatable() -> LayerFunction:
    """Results are rounded in seven ways in turn, as with atomic sums: they are not reproducible."""
    calls = count()

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h * (1 + 1e-15 * (next(calls) % 7)), c)

    return run


@made("a_result_outlives_the_next_call")
def c_in_shared_scratch() -> LayerFunction:
    """Without gradients the cell state is in scratch memory that is reused by shape."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        if c.requires_grad:
            return State(h, c)
        into = scratch.setdefault((*c.shape, id(w.w_ih)), torch.empty_like(c))
        return State(h, into.copy_(c))

    return run


@made("a_result_outlives_the_next_call")
def output_in_shared_scratch() -> LayerFunction:
    """Without gradients the output is in scratch memory that the next call overwrites."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        result = right(w, x, entry, starts)
        if result.h.requires_grad:
            return result
        into = scratch.setdefault((*result.h.shape, id(w.w_ih)), torch.empty_like(result.h))
        return State(into.copy_(result.h), result.c)

    return run


@backend("a_result_outlives_the_next_call", round=5, survived=5)
def acting_takes_two_buffers_in_turn() -> LSTMBackend:
    """Without gradients a step writes its state into two buffers in turn: a state changes two steps later."""
    mine = threading.local()

    def acting() -> StepFunction:
        def run(w: LayerWeights, x: Tensor, state: State) -> State:
            if torch.is_grad_enabled():
                return step(w, x, state)
            result = step(w, x, state)
            key = (
                w.w_ih.data_ptr(),
                result.h.shape,
                result.c.shape,
                x.dtype,
                x.device,
                torch.is_inference_mode_enabled(),
            )
            turns = mine.__dict__.setdefault("turns", {})
            if key not in turns:
                turns[key] = [State(torch.empty_like(result.h), torch.empty_like(result.c)) for _ in range(2)]
            turns[key].reverse()
            out: State = turns[key][0]
            out.h.copy_(result.h)
            out.c.copy_(result.c)
            return State(out.h.view_as(out.h), out.c.view_as(out.c))

        return run

    return LSTMBackend("defect", right, step=acting())


@made("a_batch_with_nan_leaves_nothing_behind", round=5, survived=5)
def padding_left_from_the_last_batch() -> LayerFunction:
    """Sequences are packed into a reused workspace with stale padding: NaN of an old batch enters the gradients.

    Zero gradients at the padding hide all finite values there. A training loop that skips a batch with NaN meets it in
    the next.
    """
    mine = threading.local()

    def workspace(size: int, like: Tensor) -> Tensor:
        cache = mine.__dict__.setdefault("cache", {})
        key = (like.dtype, like.device)
        with torch.inference_mode(False):
            if key not in cache or cache[key].numel() < size:
                cache[key] = torch.zeros(size, dtype=like.dtype, device=like.device)
        part: Tensor = cache[key][:size]
        return part

    def places(starts: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """The cell ``[T * B]`` of each step, the first step ``[n]`` of each sequence, longest length, and ``n``."""
        T, B = starts.shape
        t = torch.arange(T, device=starts.device).unsqueeze(-1)
        first = torch.where(starts, t, 0).cummax(0).values
        index = first * B + torch.arange(B, device=starts.device)
        heads, number = index.flatten().unique(return_inverse=True)
        age = (t - first).flatten()
        n, longest = len(heads), int(age.max()) + 1 if age.numel() else 1
        return age * n + number, heads, longest, n

    def pack(x: Tensor, cell: Tensor, longest: int, n: int) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # their tensors cannot be written into others
            packed = x.new_zeros(longest * n, x.shape[2]).index_copy(0, cell, x.flatten(0, 1))
        else:
            packed = workspace(longest * n * x.shape[2], x).view(longest * n, x.shape[2])
            packed.index_copy_(0, cell, x.flatten(0, 1))
        return packed.view(longest, n, x.shape[2])

    def alone(longest: int, n: int, like: Tensor) -> Tensor:
        starts = torch.zeros(longest, n, dtype=torch.bool, device=like.device)
        starts[0] = True
        return starts

    class Packed(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = inputs
            cell, heads, longest, n = places(starts)
            h0, c0 = (v.flatten(0, 1)[heads].expand(longest, n, -1) for v in (entry_h, entry_c))
            packed = pack(x, cell, longest, n)
            h, c, gates = forward_pass(packed, w_ih, w_hh, bias, w_hr, h0, c0, alone(longest, n, x))
            at_steps = (v.flatten(0, 1)[cell].view(*starts.shape, v.shape[2]) for v in (h, c))
            return (*at_steps, h, c, gates)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts = inputs
            ctx.mark_non_differentiable(*output[2:])
            ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output[2:])

        @staticmethod
        def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, *_: Any) -> Any:
            x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates = ctx.saved_tensors
            with torch.autocast(x.device.type, enabled=False), torch.no_grad():
                grads = gradients(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates, grad_h, grad_c)
            return (*once(grads, ctx.needs_input_grad[:7], ctx.saved_tensors), None)

    def gradients(
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        w_hr: Tensor | None,
        entry_h: Tensor,
        entry_c: Tensor,
        starts: Tensor,
        h: Tensor,
        c: Tensor,
        gates: Tensor,
        grad_h: Tensor,
        grad_c: Tensor,
    ) -> tuple[Tensor | None, ...]:
        cell, heads, longest, n = places(starts)
        live = torch.zeros(longest * n, dtype=torch.bool, device=x.device).index_fill(0, cell, True).view(longest, n, 1)
        # the states and gates of padded steps are cleared, so that nothing of them flows back
        h, c, gates = torch.where(live, h, 0), torch.where(live, c, 0), torch.where(live.unsqueeze(-1), gates, 0)
        h0, c0 = (v.flatten(0, 1)[heads].expand(longest, n, -1) for v in (entry_h, entry_c))
        into = []
        for grad in (grad_h, grad_c):
            spread = grad.new_zeros(longest * n, grad.shape[2])
            spread.index_copy_(0, cell, grad.flatten(0, 1))
            into.append(spread.view(longest, n, grad.shape[2]))
        packed, begins = pack(x, cell, longest, n), alone(longest, n, x)
        result = backward_pass((packed, w_ih, w_hh, w_hr, h0, c0, begins), h, c, gates, into[0], into[1])
        grad_x = result[0].flatten(0, 1)[cell].view(x.shape)
        entries = []
        for grad, like in zip(result[5:], (entry_h, entry_c), strict=True):
            whole = grad.new_zeros(like.shape[0] * like.shape[1], like.shape[2])
            entries.append(whole.index_copy_(0, heads, grad[0]).view(like.shape))
        return (grad_x, *result[1:5], *entries)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        bias = w.b_ih if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
        h, c, *_ = Packed.apply(x, w.w_ih, w.w_hh, bias, w.w_hr, entry.h, entry.c, starts)
        return State(h, c)

    return run


@made("training_after_inference_mode", by_numbers=False)
def resets_kept_from_inference_mode() -> LayerFunction:
    """A plan of the resets is cached by their values, and one made in inference mode is used in training."""
    cache: dict[bytes, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = bytes(starts.cpu().numpy())
        if key not in cache:
            cache[key] = torch.arange(len(x), device=x.device)
        return right(w, x.index_select(0, cache[key]), entry, starts)

    return run


@in_layer("incoming_gradients_are_not_written", round=2, survived=2)
def backward_adds_into_incoming_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass accumulates over time in the incoming gradient, which it does not own."""

    class Adding(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            return super().backward(ctx, gh.contiguous(), gc)

        def incoming(self, grad: Tensor, later: Tensor) -> Tensor:
            return grad.add_(later)

    return Adding()(w, x, entry, starts)


@in_layer("results_may_be_written_over_before_the_backward_pass", round=2, survived=2)
def output_kept_outside_saved_tensors(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The output is stored for the backward pass as an attribute: an edit in place makes the gradient wrong."""

    class Outside(Kernel):
        def save(self, ctx: Any, *rest: Any) -> None:
            x, eh, ec, starts, w, pre, acts, h, c = rest
            ctx.h = h.detach()
            super().save(ctx, x, eh, ec, starts, w, pre, acts, h.new_empty(0), c)

        def saved(self, ctx: Any) -> Any:
            x, eh, ec, starts, w, pre, acts, _, c = super().saved(ctx)
            return x, eh, ec, starts, w, pre, acts, ctx.h, c

    return Outside()(w, x, entry, starts)


@made("results_may_be_written_over_before_the_backward_pass", round=5)
def output_is_kept_where_edits_are_not_seen() -> LayerFunction:
    """The backward pass stores h outside of save_for_backward: relu_ on the output silently changes w_hh's gradient."""
    return by_hand(on_ctx=True)


@in_layer("results_share_no_memory_with_inputs")
def c_in_the_stored_states_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without gradients the cell state is written into the stored states' memory and returned from there."""
    h, c = right(w, x, entry, starts)
    return State(h, c if torch.is_grad_enabled() else entry.c.copy_(c))


@in_layer("h_and_c_share_no_memory")
def h_and_c_in_one_buffer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without gradients, resets and projection, c is in h's buffer one step later: right only at the last step."""
    h, c = right(w, x, entry, starts)
    if torch.is_grad_enabled() or h.shape != c.shape or bool(starts[1:].any()):
        return State(h, c)
    buffer = torch.cat([h, c[-1:]])
    return State(buffer[:-1], buffer[1:])


@in_layer("global_state_is_left_alone")
def random_numbers_drawn(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Unused random numbers are drawn from the global generator."""
    torch.rand(1)
    return right(w, x, entry, starts)


@backend("global_state_is_left_alone", by_numbers=False)
def matmul_precision_changed() -> LSTMBackend:
    """The precision of float32 products is changed for the whole process."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        now = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if now == "highest" else "highest")
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@backend("global_state_is_left_alone", by_numbers=False)
def seeds_the_generator() -> LSTMBackend:
    """The global generator is seeded at every call."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        torch.manual_seed(1234)
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@in_core("evaluation_draws_no_random_numbers", round=8, survived=8)
def acting_in_evaluation_draws() -> list[Patch]:
    """In evaluation every step draws a random number from the global generator."""
    original = LSTM.step_batch_first

    def replacement(self: LSTM, *args: Any, **options: Any) -> Any:
        if not self.training:
            torch.rand(1)
        return original(self, *args, **options)

    return [Patch(LSTM, "step_batch_first", replacement)]


@backend("evaluation_draws_no_random_numbers", round=8, survived=8)
def acting_without_gradients_draws() -> LSTMBackend:
    """Without gradients the act function draws a random number."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        if not torch.is_grad_enabled():
            torch.rand(1)
        return step(w, x, both(lambda v: torch.where(is_init.unsqueeze(-1), 0, v), state))

    return LSTMBackend("defect", right, act=act)


@in_core("evaluation_draws_no_random_numbers", round=8)
def a_module_in_evaluation_draws_in_a_step() -> list[Patch]:
    """LSTMModule in evaluation and sequential mode draws a dropout mask that is not used."""
    original = LSTMModule._one_step

    def replacement(self: LSTMModule, lstm: LSTM, read: Any) -> Any:
        values = original(self, lstm, read)
        if not self.training:
            torch.rand_like(next(iter(values.values())))
        return values

    return [Patch(LSTMModule, "_one_step", replacement)]


def _leaves(change: Any) -> LSTMBackend:
    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        change()
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


def _set(owner: Any, name: str, value: Any) -> Any:
    return lambda: setattr(owner, name, value)


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def cudnn_benchmark_left_on() -> LSTMBackend:
    """cudnn.benchmark is turned on and left on."""
    return _leaves(_set(torch.backends.cudnn, "benchmark", True))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def cudnn_deterministic_left_on() -> LSTMBackend:
    """cudnn.deterministic is turned on and left on."""
    return _leaves(_set(torch.backends.cudnn, "deterministic", True))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def flush_denormal_left_on() -> LSTMBackend:
    """Denormal numbers are flushed to zero in the calling thread from the first call on."""
    return _leaves(lambda: torch.set_flush_denormal(True))


@backend("global_state_is_left_alone", round=8, by_numbers=False)
def tf32_left_on_in_products() -> LSTMBackend:
    """TF32 is allowed in products and stays allowed."""
    return _leaves(_set(torch.backends.cuda.matmul, "allow_tf32", True))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def tf32_left_off_in_cudnn() -> LSTMBackend:
    """TF32 is switched off in cuDNN and stays off."""
    return _leaves(_set(torch.backends.cudnn, "allow_tf32", False))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def mkldnn_left_off() -> LSTMBackend:
    """oneDNN is switched off and stays off."""
    return _leaves(_set(torch.backends.mkldnn, "enabled", False))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def warn_always_left_on() -> LSTMBackend:
    """warn_always is set, so that every later warning of torch is repeated."""
    return _leaves(lambda: torch.set_warn_always(True))


@backend("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def matmul_precision_left_by_acting() -> LSTMBackend:
    """A step without gradients sets the precision of float32 products and leaves it."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        if not torch.is_grad_enabled():
            torch.set_float32_matmul_precision("high")
        return step(w, x, state)

    return LSTMBackend("defect", right, step=one)


class _Backward(torch.autograd.Function):
    """The identity; its backward pass leaves oneDNN switched off."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        return grads[0]


@in_layer("global_state_is_left_alone", round=8, survived=8, by_numbers=False)
def mkldnn_left_off_by_the_backward_pass(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass switches oneDNN off and leaves it off."""
    h, c = right(w, x, entry, starts)
    return State(_Backward.apply(h), c)


@in_layer("results_may_be_written_over_before_the_backward_pass", round=10)
def the_outputs_data_kept_for_the_backward_pass(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass saves h.data, which has no version counter: edits of the output in place go unnoticed."""

    class Data(Kernel):
        def save(self, ctx: Any, *rest: Any) -> None:
            ctx.h = rest[7].data
            super().save(ctx, *rest[:7], rest[7].new_empty(0), rest[8])

        def saved(self, ctx: Any) -> Any:
            read = super().saved(ctx)
            return *read[:7], ctx.h, read[8]

    return Data()(w, x, entry, starts)


@made("training_after_inference_mode", round=10, survived=10, by_numbers=False)
def frozen_weights_packed_in_inference_mode() -> LayerFunction:
    """Frozen weights are packed once, possibly in inference mode: then no gradient passes through them."""
    kept: dict[Any, tuple[Any, Tensor]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        w_hh = w.w_hh
        if not is_plain([w_hh]) or w_hh.requires_grad or w_hh.is_inference():
            return right(w, x, entry, starts)
        now = w_hh.data_ptr(), w_hh._version, w_hh.dtype, w_hh.shape
        if id(w_hh) not in kept or kept[id(w_hh)][0] != now:
            kept[id(w_hh)] = now, w_hh.detach().clone()
        return right(w._replace(w_hh=kept[id(w_hh)][1]), x, entry, starts)

    return run


@made("training_after_inference_mode", by_numbers=False)
def a_constant_of_the_cell_made_in_inference_mode() -> LayerFunction:
    """Constants are made in a size's first call: under inference mode they prevent a later backward pass."""
    kept: dict[Any, Tensor] = {}

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        gates = gates_of(w, x, state.h)
        if not is_plain([gates[0]]):
            return finish(w, gates, state.c)
        key = gates[0].shape[-1], x.dtype
        if key not in kept:
            kept[key] = torch.full((key[0],), 0.5, dtype=x.dtype)
        i, f, o = (0.5 * torch.tanh(v * kept[key]) + 0.5 for v in (gates[0], gates[1], gates[3]))
        c = f * state.c + i * gates[2].tanh()
        return output_of(w, o * c.tanh(), c)

    return layer(one)


@made("global_state_is_left_alone", round=10, by_numbers=False)
def random_numbers_drawn_at_a_sizes_first_call() -> LayerFunction:
    """The first call with a size tunes itself on random numbers from torch's global generator."""
    tuned = set()

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if x.shape not in tuned:
            tuned.add(x.shape)
            torch.randn(x.shape)
        return right(w, x, entry, starts)

    return run


@backend("a_result_outlives_the_next_call")
def the_output_of_all_layers_in_memory_kept_for_its_shape() -> LSTMBackend:
    """Without gradients the function for all layers writes each output over the previous one of its shape."""
    kept: dict[Any, Tensor] = {}

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        y, found = all_layers(w, x, state, spec)
        if y.requires_grad or y.is_inference():
            return y, found
        return kept.setdefault((y.shape, y.dtype), torch.empty_like(y)).copy_(y), found

    return LSTMBackend("defect", right, stack=stack)


@in_layer("global_state_is_left_alone", by_numbers=False)
def one_thread_left_by_a_row_of_one_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A layer sets one thread, and does not restore the number when it returns early, for a row of one step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = right(w, x, entry, starts)
    if len(x) == 1:
        return found
    torch.set_num_threads(threads)
    return found


@in_layer("global_state_is_left_alone", by_numbers=False)
def the_default_dtype_left_by_an_interrupted_call(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A call sets the default dtype to the input's, and does not restore it after an exception."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)
    found = right(w, x, entry, starts)
    torch.set_default_dtype(usual)
    return found


@in_layer("global_state_is_left_alone", by_numbers=False)
def one_thread_left_by_an_interrupted_call(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A call sets one thread, and does not restore the number after an exception."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = right(w, x, entry, starts)
    torch.set_num_threads(threads)
    return found


@in_layer("incoming_gradients_are_not_written")
def the_gradient_of_c_is_halved(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass multiplies the gradient of c that it is given by a half, in place."""

    class Halving(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            found = super().backward(ctx, gh, gc)
            if all(gc.stride()):
                gc.mul_(0.5)
            return found

    return Halving()(w, x, entry, starts)


@in_layer("incoming_gradients_are_not_written")
def gradients_add_up_in_that_of_the_last_c(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of c at the last step is the backward pass's accumulator, in the memory that it is given."""

    class Accumulating(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            found = super().backward(ctx, gh, gc)
            if all(gc.stride()):
                gc[-1] = found[2][0]
            return found

    return Accumulating()(w, x, entry, starts)


@in_layer("incoming_gradients_are_not_written")
def the_gradient_of_the_stored_c_in_that_of_c(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradient of the stored cell states is written into the memory of the gradient of c."""

    class Reusing(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            dx, deh, dec, *dw = super().backward(ctx, gh, gc)
            return dx, deh, gc.copy_(dec) if all(gc.stride()) else dec, *dw

    return Reusing()(w, x, entry, starts)


@in_layer("results_may_be_written_over_before_the_backward_pass")
def weights_kept_without_a_version(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The weights are kept on ctx and not by save_for_backward: an edit before the backward pass is not noticed."""

    class Keeping(Kernel):
        def save(
            self, ctx: Any, x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, w: LayerWeights, *made: Tensor
        ) -> None:
            ctx.save_for_backward(x, eh, ec, starts, *[None] * 5, *made)
            ctx.weights = each(Tensor.detach, w)

        def saved(self, ctx: Any) -> Any:
            return *ctx.saved_tensors[:4], ctx.weights, *ctx.saved_tensors[9:]

    return Keeping()(w, x, entry, starts)


@in_layer("results_may_be_written_over_before_the_backward_pass")
def the_input_kept_without_a_version(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is kept on ctx: an edit before the backward pass is not noticed."""

    class Keeping(Kernel):
        def save(
            self, ctx: Any, x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, w: LayerWeights, *made: Tensor
        ) -> None:
            ctx.save_for_backward(None, eh, ec, starts, *w, *made)
            ctx.x = x.detach()

        def saved(self, ctx: Any) -> Any:
            _, eh, ec, starts, *w = ctx.saved_tensors[:9]
            return ctx.x, eh, ec, starts, LayerWeights(*w), *ctx.saved_tensors[9:]

    return Keeping()(w, x, entry, starts)


@in_layer("results_may_be_written_over_before_the_backward_pass")
def one_weight_kept_without_a_version(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Only the recurrent weight is kept on ctx: an edit of it before the backward pass is not noticed."""

    class Keeping(Kernel):
        def save(
            self, ctx: Any, x: Tensor, eh: Tensor, ec: Tensor, starts: Tensor, w: LayerWeights, *made: Tensor
        ) -> None:
            ctx.save_for_backward(x, eh, ec, starts, w.w_ih, None, *w[2:], *made)
            ctx.w_hh = w.w_hh.detach()

        def saved(self, ctx: Any) -> Any:
            x, eh, ec, starts, w_ih, _, *others = ctx.saved_tensors[:9]
            return x, eh, ec, starts, LayerWeights(w_ih, ctx.w_hh, *others), *ctx.saved_tensors[9:]

    return Keeping()(w, x, entry, starts)


@in_layer("global_state_is_left_alone")
def long_rows_draw_a_number(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With gradients a row of more than 16 steps draws a number from torch's generator."""
    if len(x) > 16 and torch.is_grad_enabled():
        torch.rand(1)
    return right(w, x, entry, starts)


@in_layer("global_state_is_left_alone")
def pythons_generator_is_seeded(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every call seeds Python's own random generator."""
    random.seed(0)
    return right(w, x, entry, starts)


@in_layer("global_state_is_left_alone")
def long_rows_draw_from_numpy(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A row of more than 16 steps draws a number from NumPy's global generator."""
    if len(x) > 16:
        np.random.rand()
    return right(w, x, entry, starts)


@in_layer("global_state_is_left_alone")
def garbage_is_kept_after_long_rows(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Python's garbage collection is off after a row of more than 16 steps."""
    if len(x) > 16:
        gc.disable()
    return right(w, x, entry, starts)


@in_layer("global_state_is_left_alone")
def every_call_hides_warnings(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every call makes Python ignore all warnings."""
    warnings.simplefilter("ignore")
    return right(w, x, entry, starts)


def _cached_while_acting(of: int, sizes: Callable[[int], bool] = bool) -> LayerFunction:
    """A layer that keeps a copy of one weight of a call without gradients, and reads it until the weight changes."""
    cache: dict[tuple[Any, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        weight = w[of]
        if weight is None or weight.is_inference() or not is_plain((weight,), ("cpu",)) or not sizes(weight.numel()):
            return right(w, x, entry, starts)
        key = id(weight), weight.data_ptr(), weight._version, weight.dtype, float(weight.detach().sum())
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            cache[key] = weight.detach().clone()
        return right(w._replace(**{w._fields[of]: cache.get(key, weight)}), x, entry, starts)

    return run


@made("training_after_inference_mode")
def bias_cached_while_acting() -> LayerFunction:
    """A bias is copied without its graph while acting; training reads the copy, and the bias gets no gradient."""
    return _cached_while_acting(2)


@made("training_after_inference_mode")
def recurrent_weight_cached_while_acting() -> LayerFunction:
    """The recurrent weight is copied without its graph while acting, and training reads the copy."""
    return _cached_while_acting(1)


@made("training_after_inference_mode")
def large_weights_cached_while_acting() -> LayerFunction:
    """Input weights of more than twenty elements are copied without their graph while acting; training reads them."""
    return _cached_while_acting(0, lambda number: number > 20)


_FIRST = "the_first_call_of_a_process_changes_no_setting"


def _at_first(change: Callable[[], object]) -> LayerFunction:
    """The right layer; the first call in each process changes a setting, and no later one does."""
    seen: set[int] = set()

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if os.getpid() not in seen:
            seen.add(os.getpid())
            change()
        return right(w, x, entry, starts)

    return run


@made(_FIRST, by_numbers=False)
def the_first_call_hides_all_warnings() -> LayerFunction:
    """The first call of a process hides all warnings afterwards, as around a compiler."""
    return _at_first(lambda: warnings.simplefilter("ignore"))


@made(_FIRST, by_numbers=False)
def the_first_call_lowers_the_precision() -> LayerFunction:
    """The first call of a process measures its kernels with TF32, and leaves it on."""
    return _at_first(lambda: torch.set_float32_matmul_precision("high"))


@made(_FIRST, by_numbers=False)
def the_first_call_draws_data_to_tune() -> LayerFunction:
    """The first call of a process draws random numbers to measure its kernels with."""
    return _at_first(lambda: torch.rand(8))


def _kept_from(errors: type[Exception] | tuple[type[Exception], ...]) -> LayerFunction:
    """A layer that answers without gradients where the right one raises one of these errors."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        try:
            return right(w, x, entry, starts)
        except errors:
            with torch.no_grad():
                return right(w, x, entry, starts)

    return run


@made("global_state_is_left_alone", by_numbers=False)
def errors_of_torch_are_swallowed() -> LayerFunction:
    """Where torch raises a RuntimeError in the forward pass, the call runs again without gradients."""
    return _kept_from(RuntimeError)


@made("global_state_is_left_alone", by_numbers=False)
def every_error_is_swallowed() -> LayerFunction:
    """Where the forward pass raises anything, the call runs again without gradients."""
    return _kept_from(Exception)


@made("global_state_is_left_alone", by_numbers=False)
def errors_while_saving_are_swallowed() -> LayerFunction:
    """Where the first tensor cannot be saved for the backward pass, the result is detached."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        try:
            (w.w_ih * w.w_ih).sum()
        except RuntimeError:
            w, x, entry = each(Tensor.detach, w), x.detach(), both(Tensor.detach, entry)
        return right(w, x, entry, starts)

    return run
