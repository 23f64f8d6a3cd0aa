"""Computed, or given, in another dtype."""

from __future__ import annotations

from typing import Any

import rnn_backends.lstm as core
import torch
from rnn_backends import LSTM, LayerWeights, LSTMModule, State
from torch import Tensor

from ..planting import Patch, in_core, in_layer, in_step
from ..right import both, each, finish, gates_of, layer, output_of, right, step

F64, F32 = "output_equals_reference", "output_equals_reference_in_float32"
BF16 = "output_equals_reference_in_bfloat16"


@in_layer(F64)
def float32_inside_float64(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float64 is computed in float32 and cast back."""
    found = right(each(torch.Tensor.float, w), x.float(), both(torch.Tensor.float, entry), starts)
    return both(lambda v: v.to(x.dtype), found)


@in_layer(F32)
def bfloat16_inside_float32(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float32 is computed in bfloat16 and cast back."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)
    found = right(each(torch.Tensor.bfloat16, w), x.bfloat16(), both(torch.Tensor.bfloat16, entry), starts)
    return both(torch.Tensor.float, found)


@in_layer(F32)
def tf32_products(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Products of float32 are taken with ten bits, as TF32 does."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)

    def cut(v: Tensor) -> Tensor:
        return v + ((v.detach().view(torch.int32) & ~0x1FFF).view(torch.float32) - v.detach())

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w, cut(x.contiguous()), State(cut(state.h.contiguous()), state.c))

    return layer(one)(w._replace(w_ih=cut(w.w_ih), w_hh=cut(w.w_hh)), x, entry, starts)


@in_layer("end_states_equal_reference_in_float32")
def c_kept_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The cell state is kept in bfloat16 from step to step."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w, x, State(state.h, state.c.bfloat16().to(state.c)))

    return layer(one)(w, x, entry, starts)


@in_layer(BF16)
def float32_out_of_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """bfloat16 goes in and float32 comes out."""
    found = right(w, x, entry, starts)
    return both(torch.Tensor.float, found) if x.dtype == torch.bfloat16 else found


@in_layer(BF16)
def float32_c_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In bfloat16 the cell state comes out in float32."""
    h, c = right(w, x, entry, starts)
    return State(h, c.float() if x.dtype == torch.bfloat16 else c)


@in_step(BF16)
def gates_in_eight_levels(w: LayerWeights, x: Tensor, state: State) -> State:
    """In bfloat16 the gates are rounded to eighths, as a table would."""
    if x.dtype != torch.bfloat16:
        return step(w, x, state)
    i, f, g, o = ((a * 2).round() / 2 for a in gates_of(w, x, state.h))
    return finish(w, (i, f, g, o), state.c)


@in_step(F32)
def low_precision_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float32 tanh is a hardware approximation, one in two thousand off."""
    if x.dtype != torch.float32:
        return step(w, x, state)
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh().half().float()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_layer("gradients_equal_reference_in_float32")
def backward_in_half(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32 the gates' derivatives are kept in float16 for the backward pass."""

    def keep(grad: Tensor) -> Tensor:
        return grad.half().to(grad)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w, x, state)
        if found.c.requires_grad and x.dtype == torch.float32:
            found.c.register_hook(keep)
        return found

    return layer(one)(w, x, entry, starts)


@in_step("large_input_saturates", "infinite_input_saturates")
def sigmoid_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """The sigmoid is exp(x) / (1 + exp(x)), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    i, f, o = (a.exp() / (1 + a.exp()) for a in (i, f, o))
    c = f * state.c + i * g.tanh()
    return output_of(w, o * c.tanh(), c)


@in_step("nan_is_not_hidden")
def gates_clamped_by_less_than(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float32 the gates are limited by "less, or else the limit", which turns NaN into the limit."""
    if x.dtype != torch.float32:
        return step(w, x, state)
    i, f, g, o = (torch.where(a < 87.0, a, 87.0) for a in gates_of(w, x, state.h))
    return finish(w, (i, f, g, o), state.c)


@in_step("large_input_saturates")
def tanh_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """tanh is (e^2x - 1) / (e^2x + 1), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    wide = (2 * g).exp()
    c = f.sigmoid() * state.c + i.sigmoid() * ((wide - 1) / (wide + 1))
    return output_of(w, o.sigmoid() * c.tanh(), c)


class _ByLog(torch.autograd.Function):
    """The sigmoid, whose derivative is taken by exponentials that overflow."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        wide = ctx.saved_tensors[0].exp()
        return grads[0] * wide / (1 + wide) ** 2


@in_step("gradients_of_large_input_are_finite")
def derivative_by_exp(w: LayerWeights, x: Tensor, state: State) -> State:
    """The sigmoid's derivative is exp(x) / (1 + exp(x))^2, which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    c = _ByLog.apply(f) * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step("large_input_saturates")
def input_clipped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input is clipped to ten: the gates saturate less than they should."""
    return step(w, x.clamp(-10, 10), state)


@in_layer("subnormal_input_is_read")
def input_scaled_by_its_largest(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is divided by its largest entry's reciprocal and back: subnormal numbers overflow on the way."""
    scale = 1 / x.detach().abs().max()
    return right(w, (x * scale) / scale, entry, starts)


@in_layer("the_default_dtype_does_not_matter")
def buffer_of_the_default_dtype(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Results are gathered in a buffer of torch's default dtype."""
    found = right(w, x, entry, starts)
    usual = torch.get_default_dtype()
    return both(lambda v: v.to(usual), found) if x.dtype in (torch.float64, torch.float32) else found


@in_layer("the_default_device_does_not_matter")
def buffer_on_the_default_device(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The bias is summed in a buffer that is made on torch's default device."""
    buffer = torch.zeros(1, dtype=x.dtype)
    return right(w, x + buffer.to(x.dtype), entry, starts)


@in_core("everything_has_the_weights_dtype")
def streamed_output_in_float32() -> list[Patch]:
    """Called on tensors, 16-bit numbers go in and the output comes out in float32."""
    original = LSTM._over_time

    def wrong(self: LSTM, x: Tensor, *rest: Any) -> Any:
        output, state = original(self, x, *rest)
        return output.float() if x.dtype in (torch.bfloat16, torch.float16) else output, state

    return [Patch(LSTM, "_over_time", wrong)]


@in_layer("no_worse_than_torch")
def a_bit_worse_than_torch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32 the gates lose three bits: ten times torch's error, and within most tolerances."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        gates = [a + (a.detach().abs() * 2).exp2() * 1e-6 for a in gates_of(w, x, state.h)]
        return finish(w, (gates[0], gates[1], gates[2], gates[3]), state.c)

    return layer(one)(w, x, entry, starts)


@in_layer("output_equals_reference_in_float16")
def eight_bits_in_float16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float16 is computed in bfloat16."""
    if x.dtype != torch.float16:
        return right(w, x, entry, starts)
    found = right(each(torch.Tensor.bfloat16, w), x.bfloat16(), both(torch.Tensor.bfloat16, entry), starts)
    return both(torch.Tensor.half, found)


@in_core("autocast_keeps_the_states_dtype")
def autocast_changes_the_stored_state() -> list[Patch]:
    """Under autocast the stored states come out in bfloat16, so their dtype changes from step to step."""
    return [Patch(LSTMModule, "_as_stored", lambda self, state: state)]


@in_core("autocast_computes_in_bfloat16")
def autocast_in_eight_levels() -> list[Patch]:
    """Under autocast weights are rounded to four bits."""
    original = core._cast
    return [Patch(core, "_cast", lambda w, dtype: each(lambda v: (v * 8).round() / 8, original(w, dtype)))]


@in_core("autocast_computes_in_bfloat16")
def autocast_detaches_the_weights() -> list[Patch]:
    """Under autocast the recurrent weights are cast once, without gradients."""
    original = core._cast

    def wrong(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        found = original(w, dtype)
        return found._replace(w_hh=found.w_hh.detach())

    return [Patch(core, "_cast", wrong)]


@in_core("autocast_ends_with_its_context")
def autocast_weights_kept() -> list[Patch]:
    """Weights that were cast under autocast are kept, and used after it."""
    original, kept = LSTM._ready, dict[int, Any]()

    def wrong(self: LSTM) -> Any:
        if self.autocast_dtype() is not None:
            kept[id(self)] = (self, [each(lambda v: v.bfloat16().float(), w) for w in self.layer_weights()])
            return original(self)
        weights, dtype, context = original(self)
        return kept[id(self)][1] if id(self) in kept else weights, dtype, context

    return [Patch(LSTM, "_ready", wrong)]
