"""Defects that the laws of ``laws/precision.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rnn_backends import (
    LSTM,
    LayerFunction,
    LayerWeights,
    LSTMBackend,
    State,
    binding,
    get_backend,
    module,
    resets,
    stack,
)
from rnn_backends_plugins.compile import backward as compile_backward
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...suite import device
from ..hand_written_blocks import by_hand
from ..planting import Patch, backend, in_core, in_layer, in_place_of_ready, in_step, made, restart
from ..right import both, each, finish, gates_of, layer, output_of, right, step


@in_core(
    "output_equals_reference_in_tf32",
    on=LSTMBackend("defect", lambda w, x, entry, starts: _kernel(w, x, entry, starts)),
)
def c_kept_over_a_reset_in_tf32() -> list[Patch]:
    """If TF32 is allowed another kernel runs, with resets that leave the cell state unchanged."""
    return [Patch(device, "has_tf32", lambda where: True)]


def _kernel(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    recurrent: Any = torch.backends.cudnn.rnn
    if recurrent.fp32_precision != "tf32" or x.dtype != torch.float32:
        return right(w, x, entry, starts)
    return _kernel_in_tf32(w, x, entry, starts)


def _keep_c(state: State, entry: State, starts: Tensor, t: int) -> State:
    fresh = restart(state, entry, starts, t)
    return fresh if t == 0 else State(fresh.h, state.c)


_kernel_in_tf32 = layer(step, _keep_c)


@in_layer("output_equals_reference_in_float16", dtypes=("f16",))
def eight_bits_in_float16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float16 is computed in bfloat16."""
    if x.dtype != torch.float16:
        return right(w, x, entry, starts)
    result = right(each(torch.Tensor.bfloat16, w), x.bfloat16(), both(torch.Tensor.bfloat16, entry), starts)
    return both(torch.Tensor.half, result)


@in_core("everything_has_the_weights_dtype")
def streamed_output_in_float32() -> list[Patch]:
    """Called on tensors in 16 bits, LSTM returns its output in float32."""
    original = LSTM._over_time

    def replacement(self: LSTM, x: Tensor, *rest: Any) -> Any:
        output, state = original(self, x, *rest)
        return output.float() if x.dtype in (torch.bfloat16, torch.float16) else output, state

    return [Patch(LSTM, "_over_time", replacement)]


@in_layer("the_default_dtype_does_not_matter")
def buffer_of_the_default_dtype(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Results are gathered in a buffer of torch's default dtype."""
    result = right(w, x, entry, starts)
    usual = torch.get_default_dtype()
    return both(lambda v: v.to(usual), result) if x.dtype in (torch.float64, torch.float32) else result


@in_layer("the_default_device_does_not_matter")
def buffer_on_the_default_device(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The bias is summed in a buffer on torch's default device."""
    buffer = torch.zeros(1, dtype=x.dtype)
    return right(w, x + buffer.to(x.dtype), entry, starts)


@in_layer("no_worse_than_torch")
def a_bit_worse_than_torch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32 the gates lose three bits: ten times torch's error, but within most tolerances."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        gates = [a + (a.detach().abs() * 2).exp2() * 1e-6 for a in gates_of(w, x, state.h)]
        return finish(w, (gates[0], gates[1], gates[2], gates[3]), state.c)

    return layer(one)(w, x, entry, starts)


@made("long_rows_in_bfloat16", "long_rows_equal_reference", round=5)
def gradient_of_c_ends_with_its_block_of_time() -> LayerFunction:
    """The backward pass runs in blocks of 128 steps and carries the gradient of h between them, but not that of c."""
    return by_hand(block=128)


@in_layer("long_rows_in_bfloat16", dtypes=("bf16",), round=5, survived=5)
def step_numbers_have_the_datas_dtype(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Starts are found by comparing step numbers in x's dtype: in bfloat16 sequences restart after step 256."""
    t = torch.arange(len(x), device=x.device).to(x.dtype).unsqueeze(-1)
    first = torch.where(starts, t, 0).cummax(0).values
    return right(w, x, entry, first == t)


@in_core("long_rows_in_bfloat16", on=get_backend("compile"), round=5, survived=5)
def half_gradients_are_summed_in_half() -> list[Patch]:
    """compile sums the chunks of a weight's gradient in the weight's own dtype, so bfloat16 loses small parts."""

    class Sums(compile_backward._Sums):
        @property
        def sum_dtype(self) -> torch.dtype:
            return self.run.c.dtype

        @sum_dtype.setter
        def sum_dtype(self, wanted: torch.dtype) -> None:
            pass

    return [Patch(compile_backward, "_Sums", Sums)]


@in_core("autocast_computes_in_bfloat16")
def autocast_in_eight_levels() -> list[Patch]:
    """Under autocast weights are rounded to eighths."""
    original = binding.cast_weights
    return [Patch(binding, "cast_weights", lambda w, dtype: each(lambda v: (v * 8).round() / 8, original(w, dtype)))]


@in_core("autocast_computes_in_bfloat16")
def autocast_detaches_the_weights() -> list[Patch]:
    """Under autocast the recurrent weights are cast once, without gradients."""
    original = binding.cast_weights

    def replacement(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        result = original(w, dtype)
        return result._replace(w_hh=result.w_hh.detach())

    return [Patch(binding, "cast_weights", replacement)]


@in_core("autocast_keeps_the_states_dtype")
def autocast_changes_the_stored_state() -> list[Patch]:
    """Under autocast stored states are returned in bfloat16, so their dtype changes from step to step."""
    return [Patch(module, "_as_stored", lambda lstm, state: state)]


@in_core("autocast_keeps_the_states_dtype", round=1)
def hidden_keys_read_when_all_false() -> list[Patch]:
    """In recurrent mode without any is_init in the batch, t = 0 starts from zeros."""
    original = LSTM.replay

    def replacement(self: LSTM, x: Tensor, is_init: Tensor, stored: State | None, states: Any = "ends") -> Any:
        return original(self, x, is_init, stored if bool(is_init.any()) else None, states)

    return [Patch(LSTM, "replay", replacement)]


@in_core("autocast_keeps_the_states_dtype", round=4)
def hidden_outputs_over_time_in_autocast_dtype() -> list[Patch]:
    """Under autocast recurrent mode returns hidden states in autocast's dtype instead of the weights'."""
    original = module._as_stored

    def replacement(lstm: LSTM, state: State) -> State:
        return state if state.h.ndim == 4 else original(lstm, state)

    return [Patch(module, "_as_stored", replacement)]


@in_core("autocast_ends_with_its_context")
def autocast_weights_kept() -> list[Patch]:
    """Weights cast under autocast are kept and used after it."""
    original, cache = LSTM._ready, dict[int, Any]()

    def replacement(self: LSTM) -> Any:
        if self.autocast_dtype() is not None:
            cache[id(self)] = (self, [each(lambda v: v.bfloat16().float(), w) for w in self.layer_weights()])
            return original(self)
        weights, dtype, context = original(self)
        return cache[id(self)][1] if id(self) in cache else weights, dtype, context

    return in_place_of_ready(replacement)


@in_core("edited_weights_are_seen_under_autocast", round=3, survived=3)
def autocast_casts_kept_while_acting() -> list[Patch]:
    """Under autocast without gradients cast weights are cached: a later optimizer step has no effect."""
    original, cache = binding.cast_weights, WeakIdKeyDictionary()

    def replacement(w: LayerWeights, dtype: torch.dtype) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return original(w, dtype)
        result = cache.get(w.w_ih)
        if result is None or result.w_ih.dtype != dtype:
            result = cache[w.w_ih] = original(w, dtype)
        return result

    return [Patch(binding, "cast_weights", replacement)]


@in_core("edited_weights_are_seen_under_autocast", round=7, survived=7)
def cast_kept_by_version() -> list[Patch]:
    """Without gradients cast weights are cached by version counter, which an edit through .data does not change."""
    original = binding.cast_weights
    cache: Any = WeakIdKeyDictionary()

    def cast(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        result = [v for v in w if v is not None]
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if torch.is_grad_enabled() or traced or any(v.is_inference() for v in result):
            return original(w, dtype)
        key = (dtype, *((id(v), v._version) for v in result))
        if w.w_ih not in cache or cache[w.w_ih][0] != key:
            cache[w.w_ih] = (key, original(w, dtype))
        again: LayerWeights = cache[w.w_ih][1]
        return again

    return [Patch(binding, "cast_weights", cast)]


@in_core("autocast_trains_after_acting", round=4, survived=4)
def cast_weights_kept_without_gradient() -> list[Patch]:
    """Weights cast for autocast are cached until they change: after a call in no_grad, training has no gradient."""
    original, cache = binding.cast_weights, dict[Any, Any]()

    def replacement(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
            return original(w, dtype)
        given = [v for v in w if v is not None]
        now = [v._version for v in given]
        key = (tuple(map(id, given)), dtype)
        result = cache.get(key)
        if result is None or result[0] != now:
            result = cache[key] = (now, original(w, dtype), given)  # holds the weights: no id comes twice
        return result[1]

    return [Patch(binding, "cast_weights", replacement)]


@in_step("large_input_saturates", "infinite_input_saturates")
def sigmoid_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """The sigmoid is exp(x) / (1 + exp(x)), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    i, f, o = (a.exp() / (1 + a.exp()) for a in (i, f, o))
    c = f * state.c + i * g.tanh()
    return output_of(w, o * c.tanh(), c)


@in_step("large_input_saturates")
def tanh_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """tanh is (e^2x - 1) / (e^2x + 1), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    wide = (2 * g).exp()
    c = f.sigmoid() * state.c + i.sigmoid() * ((wide - 1) / (wide + 1))
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step("large_input_saturates")
def input_clipped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input is clipped to ten, so the gates saturate less than they should."""
    return step(w, x.clamp(-10, 10), state)


@in_layer("subnormal_input_is_read")
def input_scaled_by_its_largest(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is scaled by the reciprocal of its largest value and back, which overflows for subnormal numbers."""
    scale = 1 / x.detach().abs().max()
    return right(w, (x * scale) / scale, entry, starts)


class _ByLog(torch.autograd.Function):
    """The sigmoid, whose derivative is taken by exponentials that overflow."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        wide = ctx.saved_tensors[0].exp()
        gradient: Tensor = grads[0] * wide / (1 + wide) ** 2
        return gradient


@in_step("gradients_of_large_input_are_finite")
def derivative_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """The sigmoid's derivative is exp(x) / (1 + exp(x))^2, which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    c = _ByLog.apply(f) * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_core("an_error_leaves_autocast_on", round=6, survived=6)
def an_error_leaves_autocast_off() -> list[Patch]:
    """Autocast is disabled while a layer runs, and stays disabled after an error."""
    ready = LSTM._ready

    @contextmanager
    def without_autocast(kind: str) -> Iterator[None]:
        torch.set_autocast_enabled(kind, False)
        yield
        torch.set_autocast_enabled(kind, True)

    def _ready(self: Any, weights: Any = None) -> Any:
        weights, dtype, no_autocast = ready(self)
        if self.autocast_dtype() is None:
            return weights, dtype, no_autocast
        return weights, dtype, without_autocast(self.weight_ih_l0.device.type)

    return [Patch(LSTM, "_ready", _ready)]


@in_layer("long_rows_equal_reference", round=9, survived=9)
def a_start_between_two_chunks_of_time_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Time is processed in chunks of 64 steps, and a start at the first step of a later chunk is ignored."""
    t = torch.arange(len(x), device=x.device).unsqueeze(-1)
    return right(w, x, entry, starts & ((t == 0) | (t % 64 != 0)))


@in_layer("long_rows_equal_reference")
def a_late_start_reads_an_early_entry(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Entry states are in a ring buffer of 512 steps: from step 512 on a start reads the state 512 steps before."""
    at = torch.arange(len(x), device=x.device) % 512
    return right(w, x, both(lambda v: v[at], entry), starts)


@in_layer("long_rows_equal_reference", dtypes=("f64",))
def the_state_between_chunks_of_time_in_float32(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Time is processed in chunks of 128 steps, and float64 states pass between chunks in float32."""

    def handed_on(state: State, entry: State, starts: Tensor, t: int) -> State:
        state = restart(state, entry, starts, t)
        return both(lambda v: v.float().to(v.dtype), state) if t and t % 128 == 0 else state

    return layer(step, handed_on)(w, x, entry, starts)


@in_core("long_rows_equal_reference", round=9, survived=9)
def first_steps_in_eight_bits() -> list[Patch]:
    """The first step of each sequence is stored in eight bits, which wrap after 256 steps."""
    original = resets.first_steps

    def replacement(starts: Tensor) -> Tensor:
        return original(starts).to(torch.uint8).long()

    return [Patch(resets, "first_steps", replacement), Patch(stack, "first_steps", replacement)]


@in_core("long_rows_equal_reference")
def stored_states_of_late_reverse_sequences_lost() -> list[Patch]:
    """In reverse the stored states of sequences that start after step 512 are taken as zero."""
    original = resets.mirrored

    def replacement(entry: State, starts: Tensor) -> State:
        late = torch.arange(len(starts), device=starts.device).view(-1, 1, 1) > 512
        return original(both(lambda v: torch.where(late, 0, v), entry), starts)

    return [Patch(stack, "mirrored", replacement)]


@in_core("long_rows_equal_reference")
def reverse_ends_searched_in_the_last_steps() -> list[Patch]:
    """In reverse a sequence's first step is searched only in the last 500 steps."""
    original = stack.first_steps

    def replacement(starts: Tensor) -> Tensor:
        t = torch.arange(len(starts), device=starts.device).unsqueeze(-1)
        return torch.maximum(original(starts), t - 500)

    return [Patch(stack, "first_steps", replacement)]


@in_step("large_cell_states_are_carried", round=9, survived=9)
def tanh_of_a_large_cell_is_nan(w: LayerWeights, x: Tensor, state: State) -> State:
    """The tanh of the cell is computed as expm1(2c) / (expm1(2c) + 2), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    e = (2 * (c.float() if c.element_size() == 2 else c)).expm1()
    return output_of(w, o.sigmoid() * (e / (e + 2)).to(c.dtype), c)


@in_step("large_cell_states_are_carried")
def cells_clamped_to_a_hundred(w: LayerWeights, x: Tensor, state: State) -> State:
    """The cell state is clamped to [-100, 100], which does not change its tanh."""
    h, c = step(w, x, state)
    return State(h, c.clamp(-100, 100))


@in_step("large_cell_states_are_carried")
def a_cell_beyond_three_hundred_counts_as_overflow(w: LayerWeights, x: Tensor, state: State) -> State:
    """A guard against overflow sets cells beyond 300 back to zero."""
    return step(w, x, State(state.h, torch.where(state.c.abs() > 300, 0, state.c)))


@in_step("products_may_cancel_in_float16", round=9, survived=9, dtypes=("f16",))
def halves_of_a_sum_overflow_in_float16(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float16 the input's product is the sum of two halves, each rounded to float16 first."""
    if x.dtype != torch.float16:
        return step(w, x, state)
    parts = [x[:, k::2] @ w.w_ih[:, k::2].T for k in (0, 1)]
    eye = torch.eye(w.w_ih.shape[0], dtype=x.dtype, device=x.device)
    return step(w._replace(w_ih=eye), parts[0] + parts[1], state)


@in_step("products_may_cancel_in_float16", dtypes=("f16",))
def features_added_one_by_one_in_float16(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float16 the products of up to eight features are added one by one, each sum rounded to float16."""
    if x.dtype != torch.float16 or x.shape[1] > 8:
        return step(w, x, state)
    total = x[:, :1] * w.w_ih[:, 0]
    for k in range(1, x.shape[1]):
        total = total + x[:, k : k + 1] * w.w_ih[:, k]
    eye = torch.eye(w.w_ih.shape[0], dtype=x.dtype, device=x.device)
    return step(w._replace(w_ih=eye), total, state)


@in_step("products_may_cancel_in_float16", dtypes=("f16",))
def two_chunks_of_features_meet_in_float16(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float16 the sums over each half of the features are rounded before they are added."""
    half = x.shape[1] // 2
    if x.dtype != torch.float16 or not half:
        return step(w, x, state)
    parts = x[:, :half] @ w.w_ih[:, :half].T + x[:, half:] @ w.w_ih[:, half:].T
    eye = torch.eye(w.w_ih.shape[0], dtype=x.dtype, device=x.device)
    return step(w._replace(w_ih=eye), parts, state)


@in_layer("long_rows_equal_reference", round=10)
def steps_since_a_start_in_eight_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The steps since a start are counted in eight bits, and zero means a start: the 257th step reads the entry."""
    t = torch.arange(len(x), device=x.device).unsqueeze(-1)
    first = torch.where(starts, t, 0).cummax(0).values
    return right(w, x, entry, (t - first).to(torch.uint8) == 0)


@made("long_rows_equal_reference", round=10)
def the_gradient_of_c_ends_after_64_steps() -> LayerFunction:
    """Rows run in segments of 64 steps; the backward pass carries the gradient of h between them, but not of c."""
    return by_hand(block=64)


def _with_step(change: Callable[[State, Tensor], State]) -> LSTMBackend:
    """A right layer, and a step whose result is changed."""

    def act(w: LayerWeights, x: Tensor, state: State) -> State:
        return change(step(w, x, state), x)

    return LSTMBackend("defect", right, step=act)


@backend("everything_has_the_weights_dtype", dtypes=("f16", "bf16"))
def c_of_a_step_in_float32() -> LSTMBackend:
    """In 16 bits a step returns the cell state in float32."""
    return _with_step(lambda new, x: State(new.h, new.c.float() if x.itemsize == 2 else new.c))


@backend("everything_has_the_weights_dtype", dtypes=("f16", "bf16"))
def a_step_without_gradients_in_float32() -> LSTMBackend:
    """In 16 bits a step without gradients returns output and states in float32."""
    return _with_step(lambda new, x: new if x.itemsize != 2 or torch.is_grad_enabled() else both(Tensor.float, new))


@backend("everything_has_the_weights_dtype", dtypes=("bf16",))
def h_of_a_step_in_float16() -> LSTMBackend:
    """In bfloat16 a step returns h in float16."""
    return _with_step(lambda new, x: State(new.h.half() if x.dtype == torch.bfloat16 else new.h, new.c))


@in_layer("settings_of_torch_change_no_number")
def deterministic_path_misses_the_last_reset(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Under torch.use_deterministic_algorithms a reset at the last step is missed."""
    if torch.are_deterministic_algorithms_enabled() and len(x) > 1:
        starts = torch.cat([starts[:-1], torch.zeros_like(starts[:1])])
    return right(w, x, entry, starts)


@in_layer("settings_of_torch_change_no_number")
def no_state_gradient_in_anomaly_mode(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In anomaly mode the stored states get no gradient."""
    return right(w, x, both(Tensor.detach, entry) if torch.is_anomaly_enabled() else entry, starts)


@in_step("settings_of_torch_change_no_number")
def one_bias_without_mkldnn(w: LayerWeights, x: Tensor, state: State) -> State:
    """Without mkldnn the recurrent bias is not added."""
    if w.b_hh is not None and not torch.backends.mkldnn.enabled:
        w = w._replace(b_hh=torch.zeros_like(w.b_hh))
    return step(w, x, state)


@backend("the_default_device_does_not_matter")
def mask_of_a_step_on_the_default_device() -> LSTMBackend:
    """A step makes its mask on torch's default device."""

    def act(w: LayerWeights, x: Tensor, state: State) -> State:
        starts = torch.ones(1, len(x), dtype=torch.bool)
        return both(lambda v: v[0], right(w, x[None], both(lambda v: v[None], state), starts))

    return LSTMBackend("defect", right, step=act)


@in_layer("the_default_device_does_not_matter")
def buffer_without_gradients_on_the_default_device(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without gradients the input is copied into a buffer on torch's default device."""
    if torch.is_grad_enabled():
        return right(w, x, entry, starts)
    return right(w, torch.empty(x.shape, dtype=x.dtype).copy_(x), entry, starts)


@in_layer("the_default_device_does_not_matter")
def one_step_on_the_default_device(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A row of one step is written into a buffer on torch's default device."""
    result = right(w, x, entry, starts)
    return result if len(x) > 1 else both(lambda v: torch.zeros(v.shape, dtype=v.dtype) + v, result)
