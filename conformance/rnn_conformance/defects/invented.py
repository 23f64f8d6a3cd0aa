"""Round 9: twenty defects as they were invented, before anything was run, each with a prediction.

The author had read core, the plugins, the contract and the page about the suite (so the names of some laws), and none
of the laws. Each moves to the file of the law that kills it once there is one.
"""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import (
    LSTM,
    LayerFunction,
    LayerWeights,
    LSTMBackend,
    LSTMModule,
    State,
    StepFunction,
    Trait,
    layout,
    resets,
    stack,
)
from rnn_backends import lstm as core
from rnn_backends.authoring import is_plain
from torch import Tensor
from torch.nn.functional import dropout as drop

from .hand_written import Kernel
from .planting import Patch, backend, in_core, in_layer, in_step, made
from .right import gates_of, output_of, right, step
from .right_stack import Stack, stacked

PREDICTED = {
    "columns_beyond_a_cache_line_left_out": "lives",
    "the_second_block_of_rows_starts_from_zero": "lives",
    "a_start_between_two_chunks_of_time_ignored": "lives",
    "tanh_of_a_large_cell_is_nan": "dies",
    "half_sums_overflow_on_the_way": "lives",
    "the_first_backward_pass_kept": "dies",
    "the_tangent_of_c_dropped": "lives",
    "a_rows_pitch_taken_from_the_stride_of_one_step": "lives",
    "a_plan_kept_by_the_number_of_resets": "dies",
    "units_left_over_where_threads_share_them": "lives",
    "acting_keeps_the_sum_of_biases_by_version": "dies",
    "layers_in_the_order_of_their_names_as_text": "lives",
    "first_steps_in_eight_bits": "lives",
    "hooks_asked_for_by_two_kinds_alone": "lives",
    "resets_looked_for_before_they_are_used": "dies",
    "a_locked_tensordict_unlocked_to_be_written": "dies",
    "a_copy_trains_what_was_frozen": "lives",
    "a_primer_of_float32_whatever_the_weights": "lives",
    "a_checkpoint_of_another_shape_spread_out": "lives",
    "a_mask_drawn_for_the_top_layer_too": "lives",
}


@in_step(round=9)
def columns_beyond_a_cache_line_left_out(w: LayerWeights, x: Tensor, state: State) -> State:
    """Beyond 64 units the recurrent product leaves out the columns that do not fill a register of eight."""
    P = w.w_hh.shape[1]
    if P > 64 and P % 8:
        full = P - P % 8
        w = w._replace(w_hh=torch.cat([w.w_hh[:, :full], torch.zeros_like(w.w_hh[:, full:])], 1))
    return step(w, x, state)


@in_layer(round=9)
def the_second_block_of_rows_starts_from_zero(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows come in blocks of 128, and the entry states of all blocks but the first are taken as zero."""
    if x.shape[1] <= 128:
        return right(w, x, entry, starts)
    h, c = (torch.cat([v[:, :128], torch.zeros_like(v[:, 128:])], 1) for v in entry)
    return right(w, x, State(h, c), starts)


@in_layer(round=9)
def a_start_between_two_chunks_of_time_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Time comes in chunks of 64 steps, and a start at the first step of a later chunk is not seen."""
    t = torch.arange(len(x), device=x.device).unsqueeze(-1)
    return right(w, x, entry, starts & ((t == 0) | (t % 64 != 0)))


@in_step(round=9)
def tanh_of_a_large_cell_is_nan(w: LayerWeights, x: Tensor, state: State) -> State:
    """The tanh of the cell is computed as expm1(2c) / (expm1(2c) + 2), which overflows."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    e = (2 * (c.float() if c.element_size() == 2 else c)).expm1()
    return output_of(w, o.sigmoid() * (e / (e + 2)).to(c.dtype), c)


@in_step(round=9, dtypes=("f16",))
def half_sums_overflow_on_the_way(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float16 the input's product is the sum of two halves that are rounded to float16 before they meet."""
    if x.dtype != torch.float16:
        return step(w, x, state)
    parts = [x[:, k::2] @ w.w_ih[:, k::2].T for k in (0, 1)]
    eye = torch.eye(w.w_ih.shape[0], dtype=x.dtype, device=x.device)
    return step(w._replace(w_ih=eye), parts[0] + parts[1], state)


@in_layer(round=9)
def the_first_backward_pass_kept(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass keeps its result for a retained graph, and gives it again for other incoming gradients."""

    class Kept(Kernel):
        def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
            if not hasattr(ctx, "result"):
                ctx.result = super().backward(ctx, gh, gc)
            return ctx.result

    return Kept()(w, x, entry, starts)


class _NoTangent(torch.autograd.Function):
    """The identity, but for its tangent, which is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


@in_layer(round=9, traits=frozenset({Trait.FORWARD_AD}), by_numbers=False)
def the_tangent_of_c_dropped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In forward mode the tangent of the cell state that comes in is dropped."""
    return right(w, x, State(entry.h, _NoTangent.apply(entry.c)), starts)


@in_layer(round=9)
def a_rows_pitch_taken_from_the_stride_of_one_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """For a contiguous input the distance of two rows is stride(0) / B, which means nothing where T = 1."""
    T, B, features = x.shape
    if B and x.is_contiguous() and is_plain([x]) and x.stride(0) // B != features:
        storage = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
        at = torch.arange(T * B).unsqueeze(-1) * (x.stride(0) // B) + torch.arange(features) + x.storage_offset()
        read = storage[at.clamp(max=len(storage) - 1)].view(x.shape)
        x = x + (read - x).detach()
    return right(w, x, entry, starts)


@made(round=9)
def a_plan_kept_by_the_number_of_resets() -> LayerFunction:
    """The plan of the resets is kept by the batch's shape and the number of starts, and not by where they are."""
    plans: dict[tuple[int, int, int], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not is_plain([starts]):
            return right(w, x, entry, starts)
        with torch.inference_mode(False):
            kept = plans.setdefault((*starts.shape, int(starts.sum())), starts.clone())
        return right(w, x, entry, kept)

    return run


@in_layer(round=9)
def units_left_over_where_threads_share_them(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With fewer rows than threads these share the units, H // threads each; what is left over stays zero."""
    h, c = right(w, x, entry, starts)
    threads, H = torch.get_num_threads(), c.shape[-1]
    if threads <= x.shape[1]:
        return State(h, c)
    whole = H // threads * threads
    if w.w_hr is not None:
        return State(h, torch.cat([c[..., :whole], torch.zeros_like(c[..., whole:])], -1))
    return State(*(torch.cat([v[..., :whole], torch.zeros_like(v[..., whole:])], -1) for v in (h, c)))


@backend(round=9)
def acting_keeps_the_sum_of_biases_by_version() -> LSTMBackend:
    """Without gradients a step adds the two biases up once, and again when the version of one of them changes."""

    def acting() -> StepFunction:
        sums: dict[tuple[int, int], tuple[tuple[int, int], Tensor]] = {}

        def run(w: LayerWeights, x: Tensor, state: State) -> State:
            b_ih, b_hh = w.b_ih, w.b_hh
            if torch.is_grad_enabled() or b_ih is None or b_hh is None or not is_plain(w):
                return step(w, x, state)
            if b_ih.is_inference() or b_hh.is_inference():
                return step(w, x, state)
            key, now = (id(b_ih), id(b_hh)), (b_ih._version, b_hh._version)
            if key not in sums or sums[key][0] != now or sums[key][1].shape != b_ih.shape:
                sums[key] = now, b_ih.detach() + b_hh.detach()
            return step(w._replace(b_ih=sums[key][1], b_hh=torch.zeros_like(b_hh)), x, state)

        return run

    return LSTMBackend("defect", right, step=acting())


@in_core(round=9)
def layers_in_the_order_of_their_names_as_text() -> list[Patch]:
    """The weights of the layers are in the order of their names as text: layer 10 comes after layer 1."""
    original = core._weight_names
    return [Patch(core, "_weight_names", lambda spec: tuple(sorted(original(spec), key=lambda names: names[0])))]


@in_core(round=9)
def first_steps_in_eight_bits() -> list[Patch]:
    """The first step of each sequence is kept in eight bits, which wrap after 256 steps."""
    original = resets.first_steps

    def replacement(starts: Tensor) -> Tensor:
        return original(starts).to(torch.uint8).long()

    return [Patch(resets, "first_steps", replacement), Patch(stack, "first_steps", replacement)]


@in_core(round=9)
def hooks_asked_for_by_two_kinds_alone() -> list[Patch]:
    """An LSTM without forward hooks and pre-hooks of its own is called past all hooks: backward and global ones too."""
    original = LSTM.__call__

    def replacement(self: LSTM, *args: Any, **options: Any) -> Any:
        if self._forward_hooks or self._forward_pre_hooks:
            return original(self, *args, **options)
        return self.forward(*args, **options)

    return [Patch(LSTM, "__call__", replacement)]


@in_core(round=9)
def resets_looked_for_before_they_are_used() -> list[Patch]:
    """A mask without a reset is taken for no mask, which a tracer writes down for good."""
    original = LSTM._over_time

    def replacement(self: LSTM, x: Tensor, state: State | None, is_init: Tensor | None) -> Any:
        return original(self, x, state, None if is_init is None or not is_init.any() else is_init)

    return [Patch(LSTM, "_over_time", replacement)]


@in_core(round=9)
def a_locked_tensordict_unlocked_to_be_written() -> list[Patch]:
    """A locked TensorDict is unlocked, its tensors are replaced, and it is locked again: other views keep the old."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        if not td.is_locked:
            return original(td, values)
        td.unlock_()
        for key, value in values.items():
            td.set(key, value)
        return td.lock_()

    return [Patch(layout, "write", replacement)]


@in_core(round=9)
def a_copy_trains_what_was_frozen() -> list[Patch]:
    """A deep copy and an unpickled LSTM have parameters that require gradients, frozen ones too."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: Any) -> None:
        original(self, state)
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(True)

    return [Patch(LSTM, "__setstate__", replacement)]


@in_core(round=9)
def a_primer_of_float32_whatever_the_weights() -> list[Patch]:
    """The primer's states are float32, of a module in float64 too."""
    original = LSTMModule.make_tensordict_primer

    def replacement(self: LSTMModule) -> Any:
        from torchrl.data import Unbounded
        from torchrl.envs import TensorDictPrimer

        original(self)
        sizes = (self.lstm.spec.output_size, self.lstm.spec.hidden_size)
        return TensorDictPrimer(
            {
                key: Unbounded(shape=(self.lstm.spec.num_states, size))
                for key, size in zip(self.in_keys[1:3], sizes, strict=True)
            },
            expand_specs=True,
        )

    return [Patch(LSTMModule, "make_tensordict_primer", replacement)]


@in_core(round=9)
def a_checkpoint_of_another_shape_spread_out() -> list[Patch]:
    """A stored weight of another shape is broadcast to the parameter's where that goes."""
    original = LSTM._load_from_state_dict

    def replacement(self: LSTM, state_dict: Any, prefix: str, *args: Any) -> Any:
        for name, parameter in self._parameters.items():
            value = state_dict.get(prefix + name)
            if parameter is None or value is None or value.shape == parameter.shape:
                continue
            try:
                state_dict[prefix + name] = value.expand_as(parameter)
            except RuntimeError:
                continue
        return original(self, state_dict, prefix, *args)

    return [Patch(LSTM, "_load_from_state_dict", replacement)]


@in_core(round=9)
def a_mask_drawn_for_the_top_layer_too() -> list[Patch]:
    """Dropout draws a mask for the top layer's output as well and throws it away, so that later draws are others."""

    def top(h: Tensor, p: float) -> Tensor:
        if p:
            drop(h, p, True)
        return h

    return stacked(Stack(top=top))
