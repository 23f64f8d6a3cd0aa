"""The cell's mathematics is wrong."""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, State
from torch import Tensor

from ..planting import in_layer, in_step
from ..right import finish, gates_of, layer, output_of, right, step

VALUES = "output_equals_reference"


@in_step(VALUES, "equals_torch_per_trajectory")
def gates_in_onnx_order(w: LayerWeights, x: Tensor, state: State) -> State:
    """The gates are read in the order i, o, f, g, as ONNX has them."""
    i, o, f, g = gates_of(w, x, state.h)
    return finish(w, (i, f, g, o), state.c)


@in_step(VALUES)
def g_and_o_swapped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate and the output gate are swapped."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f, o, g), state.c)


@in_step(VALUES)
def i_and_f_swapped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input and the forget gate are swapped."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (f, i, g, o), state.c)


@in_layer("both_biases_count")
def recurrent_bias_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent bias is taken as zero, as a converter once did."""
    return right(w if w.b_hh is None else w._replace(b_hh=0 * w.b_hh), x, entry, starts)


@in_layer("both_biases_count")
def input_bias_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's bias is taken as zero."""
    return right(w if w.b_ih is None else w._replace(b_ih=0 * w.b_ih), x, entry, starts)


@in_layer("both_biases_count")
def bias_at_the_first_step_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The biases are added at t = 0 and at no other step."""
    if w.b_ih is None:
        return right(w, x, entry, starts)
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w if next(calls) == 0 else w._replace(b_ih=None, b_hh=None), x, state)

    return layer(one)(w, x, entry, starts)


@in_layer("no_bias")
def bias_left_over(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, what lies in the bias buffer is added all the same."""
    if w.b_ih is None:
        left = torch.full_like(w.w_ih[:, 0].detach(), 0.1)
        w = w._replace(b_ih=left, b_hh=left)
    return right(w, x, entry, starts)


@in_step(VALUES)
def forget_gate_plus_one(w: LayerWeights, x: Tensor, state: State) -> State:
    """One is added to the forget gate, a habit from other libraries."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f + 1, g, o), state.c)


@in_step(VALUES)
def hard_sigmoid(w: LayerWeights, x: Tensor, state: State) -> State:
    """The forget gate is a piecewise linear sigmoid."""
    i, f, g, o = gates_of(w, x, state.h)
    c = torch.clamp(f / 4 + 0.5, 0, 1) * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step(VALUES, "output_equals_reference_in_float32")
def rational_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate's tanh is a rational approximation."""
    i, f, g, o = gates_of(w, x, state.h)
    g = g.clamp(-3, 3)
    c = f.sigmoid() * state.c + i.sigmoid() * (g * (27 + g * g) / (27 + 9 * g * g))
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step(VALUES)
def no_tanh_before_the_output_gate(w: LayerWeights, x: Tensor, state: State) -> State:
    """The output gate multiplies c and not tanh(c)."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    return output_of(w, o.sigmoid() * c, c)


@in_step(VALUES)
def peephole(w: LayerWeights, x: Tensor, state: State) -> State:
    """The output gate sees the cell state before."""
    i, f, g, o = gates_of(w, x, state.h)
    return finish(w, (i, f, g, o + state.c), state.c)


@in_step(VALUES)
def relu_for_tanh(w: LayerWeights, x: Tensor, state: State) -> State:
    """The candidate goes through a ReLU."""
    i, f, g, o = gates_of(w, x, state.h)
    c = f.sigmoid() * state.c + i.sigmoid() * g.relu()
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_step(VALUES)
def coupled_gates(w: LayerWeights, x: Tensor, state: State) -> State:
    """The input gate is one minus the forget gate."""
    _, f, g, o = gates_of(w, x, state.h)
    return finish(w, (-f, f, g, o), state.c)


@in_step(VALUES)
def cell_state_clipped(w: LayerWeights, x: Tensor, state: State) -> State:
    """The cell state is clipped to one."""
    found = finish(w, gates_of(w, x, state.h), state.c)
    c = found.c.clamp(-1, 1)
    o = gates_of(w, x, state.h)[3]
    return output_of(w, o.sigmoid() * c.tanh(), c)


@in_layer(VALUES)
def recurrent_weights_transposed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Each gate's recurrent weights are transposed where they are square."""
    H = w.w_hh.shape[0] // 4
    if w.w_hr is None:
        w = w._replace(w_hh=w.w_hh.view(4, H, H).transpose(1, 2).reshape(4 * H, H))
    return right(w, x, entry, starts)


@in_layer(VALUES)
def units_shifted_by_one(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's weights are read one row off."""
    return right(w._replace(w_ih=w.w_ih.roll(1, 0)), x, entry, starts)


@in_layer("projection")
def projection_not_carried(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The projection is applied to the output and not to the h that is carried."""
    if w.w_hr is None:
        return right(w, x, entry, starts)
    P, H = w.w_hr.shape

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w._replace(w_hr=None), x, state)
        return State(found.h[..., :P], found.c)

    found = layer(one)(w, x, entry, starts)
    return State(torch.nn.functional.pad(found.h, (0, H - P)) @ w.w_hr.T, found.c)


@in_layer("projection")
def projected_before_the_output_gate(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """tanh(c) is projected with the output gate left out."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w, x, state)
        return found if w.w_hr is None else State(found.c.tanh() @ w.w_hr.T, found.c)

    return layer(one)(w, x, entry, starts)


@in_layer("projection")
def projection_with_a_tanh(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The projected h goes through one more tanh."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w, x, state)
        return found if w.w_hr is None else State(found.h.tanh(), found.c)

    return layer(one)(w, x, entry, starts)
