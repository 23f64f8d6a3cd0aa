"""Defects that the laws of ``laws/values.py`` kill first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, State, Trait, UnsupportedError, get_backend
from rnn_backends.authoring import is_plain
from rnn_backends.stack import layers_with
from rnn_backends_plugins import cudnn
from rnn_backends_plugins.cudnn.costs import Costs
from rnn_backends_plugins.cudnn.plan import Plan, Sequences, make_plan
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..planting import Patch, backend, in_core, in_layer, in_reset, in_step, made, restart
from ..right import both, each, ends, finish, gates_of, layer, output_of, right, step


@in_layer("output_equals_reference", "memory_layout_does_not_matter")
def storage_offset_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is read from the beginning of its storage."""
    return right(w, x.as_strided(x.shape, x.stride(), 0), entry, starts)


@in_layer("output_equals_reference", dtypes=("f64",))
def float32_inside_float64(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float64 is computed in float32 and cast back."""
    result = right(each(torch.Tensor.float, w), x.float(), both(torch.Tensor.float, entry), starts)
    return both(lambda v: v.to(x.dtype), result)


@in_reset("output_equals_reference")
def only_when_all_rows_reset(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A reset counts only if every row resets at that step."""
    return restart(state, entry, starts.all(1, keepdim=True).expand_as(starts), t)


@in_reset("output_equals_reference")
def a_trace_of_the_old_state_left(state: State, entry: State, starts: Tensor, t: int) -> State:
    """A thousandth of the old h survives a reset, as after a flush of too few steps."""
    result = restart(state, entry, starts, t)
    return result if t == 0 else State(result.h + 1e-3 * (state.h - result.h), result.c)


@in_layer("output_equals_reference")
def time_reversed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The loop runs from the last step to the first; T = 1 hides it."""
    return both(lambda v: v.flip(0), right(w, x.flip(0), both(lambda v: v.flip(0), entry), starts.flip(0)))


@in_layer("output_equals_reference")
def one_unit_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With one hidden unit h has the wrong sign."""
    result = right(w, x, entry, starts)
    return State(-result.h, result.c) if result.c.shape[-1] == 1 else result


@in_layer("output_equals_reference")
def the_last_step_dropped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The last step repeats the one before it."""
    result = right(w, x, entry, starts)
    return result if len(x) == 1 else both(lambda v: torch.cat([v[:-1], v[-2:-1]]), result)


@in_reset("output_equals_reference")
def blocks_of_four_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Time is cut into blocks of four steps, and the state is lost between them."""
    result = restart(state, entry, starts, t)
    return both(torch.zeros_like, result) if t and t % 4 == 0 else result


@in_layer("output_equals_reference")
def rows_beyond_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows beyond a block of two are not computed."""
    result = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:, :2], 0 * v[:, 2:]], 1), result)


@in_layer("output_equals_reference")
def odd_sizes_rounded_down(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is read two features at a time: the last of an odd number is skipped."""
    I = x.shape[-1]  # noqa: E741 - the project's letter
    even = torch.cat([x[..., : I - 1], 0 * x[..., I - 1 :]], -1) if I % 2 else x
    return right(w, even, entry, starts)


@in_layer("output_equals_reference")
def one_block_too_few(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Steps run in chunks of three, and the remaining ones are skipped."""
    full = max(len(x) // 3 * 3, min(len(x), 2))
    result = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:full], 0 * v[full:]]), result)


@backend("output_equals_reference")
def accepts_and_then_rejects_rows() -> LSTMBackend:
    """The backend accepts the LSTM at construction, and rejects a batch of more than one row in the call."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if x.shape[1] > 1:
            raise UnsupportedError("defect", "more than one row", "its kernel has one", [])
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@backend("output_equals_reference", by_numbers=False)
def output_of_the_wrong_shape() -> LSTMBackend:
    """The output has its batch and its units swapped."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return both(lambda v: v.transpose(1, 2), right(w, x, entry, starts))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@in_step("output_equals_reference", "equals_torch_per_trajectory")
def gates_in_onnx_order(w: LayerWeights, x: Tensor, state: State) -> State:
    """The gates are read in ONNX's order i, o, f, g."""
    i, o, f, g = gates_of(w, x, state.h)
    return finish(w, (i, f, g, o), state.c)


@in_step("output_equals_reference")
def g_and_o_swapped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate and the output gate are swapped."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f, o, g), state.c)


@in_step("output_equals_reference")
def i_and_f_swapped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input and the forget gate are swapped."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (f, i, g, o), state.c)


@in_step("output_equals_reference")
def forget_gate_plus_one(w: LayerWeights, x: Tensor, state: State) -> State:
    """One is added to the forget gate, as some libraries do."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f + 1, g, o), state.c)


@in_step("output_equals_reference")
def hard_sigmoid(w: LayerWeights, x: Tensor, state: State) -> State:
    """The forget gate is a piecewise linear sigmoid."""
    i, f, g, o = gates_of(w, x, state.h)
    c = torch.clamp(f / 4 + 0.5, 0, 1) * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step("output_equals_reference", "output_equals_reference_in_float32")
def rational_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate's tanh is a rational approximation."""
    i, f, g, o = gates_of(w, x, state.h)
    g = g.clamp(-3, 3)
    c = f.sigmoid() * state.c + i.sigmoid() * (g * (27 + g * g) / (27 + 9 * g * g))
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step("output_equals_reference")
def no_tanh_before_the_output_gate(w: LayerWeights, x: Tensor, state: State) -> State:
    """The output gate multiplies c and not tanh(c)."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c, c)


@in_step("output_equals_reference")
def peephole(w: LayerWeights, x: Tensor, state: State) -> State:
    """The output gate reads the previous cell state."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f, g, o + state.c), state.c)


@in_step("output_equals_reference")
def relu_for_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate goes through a ReLU."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.relu()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step("output_equals_reference")
def coupled_gates(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input gate is one minus the forget gate."""
    _, f, g, o = gates_of(w, x, state.h)
    return finish(w, (-f, f, g, o), state.c)


@in_step("output_equals_reference")
def cell_state_clipped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The cell state is clipped to [-1, 1]."""
    result = finish(w, gates_of(w, x, state.h), state.c)
    c = result.c.clamp(-1, 1)
    o = gates_of(w, x, state.h)[3]
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_layer("output_equals_reference")
def recurrent_weights_transposed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Each gate's recurrent weights are transposed if they are square."""
    H = w.w_hh.shape[0] // 4
    if w.w_hr is None:
        w = w._replace(w_hh=w.w_hh.view(4, H, H).transpose(1, 2).reshape(4 * H, H))
    return right(w, x, entry, starts)


@in_layer("output_equals_reference")
def units_shifted_by_one(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input weights are read with an offset of one row."""
    return right(w._replace(w_ih=w.w_ih.roll(1, 0)), x, entry, starts)


@in_step("output_equals_reference", round=1)
def forget_gate_of_the_row_before(w: LayerWeights, x: Tensor, state: State) -> State:
    """With more than two rows the last row's forget gate is that of the row before it."""
    i, f, g, o = gates_of(w, x, state.h)
    if len(x) > 2:
        f = torch.cat([f[:-1], f[-2:-1]])
    return finish(w, (i, f, g, o), state.c)


@in_layer("output_equals_reference_in_float32")
def bfloat16_inside_float32(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """float32 is computed in bfloat16 and cast back."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)
    result = right(each(torch.Tensor.bfloat16, w), x.bfloat16(), both(torch.Tensor.bfloat16, entry), starts)
    return both(torch.Tensor.float, result)


@in_layer("output_equals_reference_in_float32")
def tf32_products(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Products of float32 are computed with ten bits, as TF32 does."""
    if x.dtype != torch.float32:
        return right(w, x, entry, starts)

    def cut(v: Tensor) -> Tensor:
        return v + ((v.detach().view(torch.int32) & ~0x1FFF).view(torch.float32) - v.detach())

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w, cut(x.contiguous()), State(cut(state.h.contiguous()), state.c))

    return layer(one)(w._replace(w_ih=cut(w.w_ih), w_hh=cut(w.w_hh)), x, entry, starts)


@in_step("output_equals_reference_in_float32")
def low_precision_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """In float32 tanh is a hardware approximation with an error of one in two thousand."""
    if x.dtype != torch.float32:
        return step(w, x, state)
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh().half().float()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_layer("output_equals_reference_in_float32", round=2)
def short_floats_where_sizes_are_aligned(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In float32, with sizes that are multiples of eight, the factors of products are cut to ten bits (TF32)."""
    if x.dtype != torch.float32 or any(v % 8 for v in (*w.w_ih.shape, *w.w_hh.shape)):
        return right(w, x, entry, starts)

    def cut(v: Tensor) -> Tensor:
        bits = v.detach().contiguous().view(torch.int32)
        short = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return v + (short - v).detach()

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return finish(w, gates_of(w, cut(x), cut(state.h)), state.c)

    return layer(one)(w._replace(w_ih=cut(w.w_ih), w_hh=cut(w.w_hh)), x, entry, starts)


@in_layer("output_equals_reference_in_bfloat16", dtypes=("bf16",))
def float32_out_of_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """bfloat16 input gives float32 results."""
    result = right(w, x, entry, starts)
    return both(torch.Tensor.float, result) if x.dtype == torch.bfloat16 else result


@in_layer("output_equals_reference_in_bfloat16", dtypes=("bf16",))
def float32_c_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In bfloat16 the cell state is returned in float32."""
    h, c = right(w, x, entry, starts)
    return State(h, c.float() if x.dtype == torch.bfloat16 else c)


@in_step("output_equals_reference_in_bfloat16", dtypes=("bf16",))
def gates_in_eight_levels(w: LayerWeights, x: Tensor, state: State) -> State:
    """In bfloat16 the pre-activations are rounded to halves, as a table would."""
    if x.dtype != torch.bfloat16:
        return step(w, x, state)
    i, f, g, o = ((a * 2).round() / 2 for a in gates_of(w, x, state.h))
    return finish(w, (i, f, g, o), state.c)


@in_reset("output_equals_reference_in_bfloat16", "end_states_equal_reference", round=1)
def resets_of_every_eighth_step_missed(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The reset mask is packed in bytes and the last bit is lost: resets at steps 7, 15, ... are ignored."""
    return state if t % 8 == 7 else restart(state, entry, starts, t)


@in_layer("output_equals_reference_in_bfloat16", "end_states_equal_reference", round=1)
def rows_sorted_and_not_back(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows are sorted by their number of resets, and c is not sorted back."""
    order = starts.sum(0).argsort(stable=True)
    back = order.argsort()
    result = right(w, x[:, order], both(lambda v: v[:, order], entry), starts[:, order])
    return State(result.h[:, back], result.c)


@in_layer("output_equals_reference_in_bfloat16", "end_states_equal_reference", round=1)
def sequences_counted_to_four(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Sequences of a row are counted in two bits: from the fifth on they start from the state of the first."""
    number = starts.cumsum(0) - 1
    t = torch.arange(len(x), device=x.device)[:, None]
    first = torch.where(starts & (number == 0), t, 0).amax(0)
    steps = torch.where(starts & (number >= 4), first.expand_as(number), t)
    return right(w, x, both(lambda v: v.gather(0, steps[..., None].expand_as(v)), entry), starts)


@in_layer("end_states_equal_reference", "hidden_outputs_are_zero_padded")
def c_of_the_last_step_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """c is right at the row's last step and zero where sequences end before it."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.cat([0 * c[:-1], c[-1:]]))


@in_layer("end_states_equal_reference")
def c_of_the_step_before(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """c is returned one step late."""
    h, c = right(w, x, entry, starts)
    return State(h, c.roll(1, 0))


@in_layer("end_states_equal_reference")
def c_of_the_rows_last_step(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every end gets the cell state of the row's last step."""
    h, c = right(w, x, entry, starts)
    return State(h, c[-1:] + 0 * c)


@in_layer("end_states_equal_reference")
def c_of_the_next_start(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where a sequence ends within a row, c is the state from which the next one starts."""
    h, c = right(w, x, entry, starts)
    nxt = torch.cat([entry.c[1:], c[-1:]])
    return State(h, torch.where(ends(starts), nxt, c))


@in_layer("end_states_equal_reference_in_float32")
def c_kept_in_bfloat16(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The cell state is kept in bfloat16 from step to step."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w, x, State(state.h, state.c.bfloat16().to(state.c)))

    return layer(one)(w, x, entry, starts)


@made("last_states_equal_reference", round=1)
def a_tuned_kernel_after_64_calls() -> LayerFunction:
    """From the 65th call on a tuned kernel runs, with an error of a thousandth in the output."""
    calls = [0]

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        calls[0] += 1
        h, c = right(w, x, entry, starts)
        return State(h * 1.001, c) if calls[0] > 64 else State(h, c)

    return run


def _last_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A right ``layer_last``: ``c`` is there at the row's last step only."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.cat([torch.zeros_like(c[:-1]), c[-1:]]))


@in_core("last_states_equal_reference", on=LSTMBackend("defect", right, layer_last=_last_only), round=7)
def last_in_reverse_too() -> list[Patch]:
    """layer_last runs the reverse direction too: c_n of a bidirectional LSTM is wrong where a row has a reset."""
    original = LSTM._bind

    def bind(self: Any, backend: LSTMBackend) -> None:
        original(self, backend)
        last = backend.layer_last or backend.layer
        self._run_layers_last = layers_with(last, last)

    return [Patch(LSTM, "_bind", bind)]


@in_core("last_states_equal_reference", on=get_backend("cudnn"), round=5)
def plan_cached_without_every_end() -> list[Patch]:
    """cudnn's plan for last states is reused for calls that need every sequence's end: c is zero there."""
    plans: OrderedDict[Any, Plan] = OrderedDict()

    def cached_plan(starts: bytes, T: int, B: int, must_head: bytes, every_end: bool, costs: Costs) -> Plan:
        key = (starts, T, B, must_head, costs)
        if key not in plans:
            seqs = Sequences.of(np.frombuffer(starts, bool).reshape(T, B))
            with temporarily_clear_interpreter_stack(), torch.inference_mode(False):
                plans[key] = make_plan(seqs, np.frombuffer(must_head, bool), every_end, costs)
            if len(plans) > 16:
                plans.popitem(last=False)
        return plans[key]

    return [Patch(cudnn, "_cached_plan", cached_plan)]


@in_layer("last_states_equal_reference", "end_states_equal_reference")
def c_after_its_tanh(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """tanh(c) is returned in place of c."""
    h, c = right(w, x, entry, starts)
    return State(h, c.tanh())


@backend("last_states_equal_reference")
def layer_last_forgets_c() -> LSTMBackend:
    """The function for the last states returns the cell state of the step before."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, c.roll(1, 0))

    return LSTMBackend("defect", right, layer_last=last)


@backend("last_states_equal_reference", "a_stream_restarts_from_zero")
def layer_last_forgets_resets() -> LSTMBackend:
    """The function for the last states ignores resets."""

    def last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, x, entry, torch.cat([starts[:1], torch.zeros_like(starts[1:])]))

    return LSTMBackend("defect", right, layer_last=last)


@backend("cell_states_are_right_at_every_step", "every_hidden_state_on_request")
def claims_cell_states() -> LSTMBackend:
    """CELL_STATES is claimed, but c is right only where sequences end."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        return State(h, torch.where(ends(starts), c, 0))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))


@made("output_equals_reference", round=9)
def a_plan_kept_by_the_number_of_resets() -> LayerFunction:
    """The plan of the resets is cached by the batch's shape and the number of starts, not by their positions."""
    plans: dict[tuple[int, int, int], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not is_plain([starts]):
            return right(w, x, entry, starts)
        with torch.inference_mode(False):
            kept = plans.setdefault((*starts.shape, int(starts.sum())), starts.clone())
        return right(w, x, entry, kept)

    return run


@in_layer("output_equals_reference")
def a_reset_after_a_reset_at_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """At t = 16, 32, ... a reset is missed if the step before it is a reset too."""
    seen = starts.clone()
    seen[16::16] = starts[16::16] & ~starts[15:-1:16]
    return right(w, x, entry, seen)


@in_layer("output_equals_reference")
def c_of_a_pair_of_resets_at_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of two resets on either side of t = 32, 64, ... the second takes the cell state that is stored at the first."""
    pair = starts.clone()
    pair[:] = False
    pair[32::32] = starts[32::32] & starts[31:-1:32]
    before = torch.cat([entry.c[:1], entry.c[:-1]])
    return right(w, x, State(entry.h, torch.where(pair.unsqueeze(-1), before, entry.c)), starts)


@in_reset("output_equals_reference")
def h_kept_at_the_end_of_a_block_of_long_rows(state: State, entry: State, starts: Tensor, t: int) -> State:
    """In rows of more than 64 steps a reset at t = 31, 63, ... resets the cell state alone."""
    new = restart(state, entry, starts, t)
    return State(state.h, new.c) if len(starts) > 64 and t % 32 == 31 else new


@in_layer("output_equals_reference")
def inputs_beyond_64_without_bias(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, input features beyond the 64th are left out."""
    if w.b_ih is not None:
        return right(w, x, entry, starts)
    return right(w._replace(w_ih=w.w_ih[:, :64]), x[..., :64], entry, starts)


@in_layer("output_equals_reference", dtypes=("f64",))
def wide_inputs_in_float32_without_bias(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, an input of more than 64 features is rounded to float32."""
    if w.b_ih is not None or x.shape[-1] <= 64:
        return right(w, x, entry, starts)
    return right(w, x.float().to(x.dtype), entry, starts)


@in_layer("output_equals_reference")
def a_row_after_blocks_of_64_without_bias(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, the products of all steps and rows are done in blocks of 64, and a single row left is zero."""
    number = x.shape[0] * x.shape[1]
    if w.b_ih is not None or number % 64 != 1 or number == 1:
        return right(w, x, entry, starts)
    there = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    there[-1, -1] = 0
    return right(w, x * there.unsqueeze(-1), entry, starts)
