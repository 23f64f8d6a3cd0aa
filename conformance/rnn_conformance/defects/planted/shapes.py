"""Time, batch and sizes: right for some shapes only."""

from __future__ import annotations

import rnn_backends.lstm as core
import torch
from rnn_backends import LayerWeights, State, get_backend
from rnn_backends_plugins.cudnn import kernel
from torch import Tensor

from ..planting import Patch, in_core, in_layer, in_reset, restart
from ..right import both, layer, right, step

VALUES = "output_equals_reference"


@in_layer(VALUES)
def time_reversed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The loop runs from the last step to the first; T = 1 hides it."""
    return both(lambda v: v.flip(0), right(w, x.flip(0), both(lambda v: v.flip(0), entry), starts.flip(0)))


@in_layer("one_row")
def one_row_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """squeeze() without a dimension: with one row, time comes out in the wrong order."""
    found = right(w, x, entry, starts)
    return both(lambda v: v.flip(0), found) if x.shape[1] == 1 and len(x) > 1 else found


@in_layer("one_step")
def one_step_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """squeeze() without a dimension: with one step the rows come out in another order, or the units do."""
    found = right(w, x, entry, starts)
    return both(lambda v: v.flip(1) if v.shape[1] > 1 else v.flip(2), found) if len(x) == 1 else found


@in_layer(VALUES)
def one_unit_squeezed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """squeeze() without a dimension: with one hidden unit, h comes out with its sign turned."""
    found = right(w, x, entry, starts)
    return State(-found.h, found.c) if found.c.shape[-1] == 1 else found


@in_layer(VALUES)
def the_last_step_dropped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The last step repeats the one before it."""
    found = right(w, x, entry, starts)
    return found if len(x) == 1 else both(lambda v: torch.cat([v[:-1], v[-2:-1]]), found)


@in_reset(VALUES)
def blocks_of_four_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """Time is cut in blocks of four steps, and the state is lost between them."""
    found = restart(state, entry, starts, t)
    return both(torch.zeros_like, found) if t and t % 4 == 0 else found


@in_layer(VALUES)
def rows_beyond_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows beyond a block of two are not computed."""
    found = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:, :2], 0 * v[:, 2:]], 1), found)


@in_layer("any_hidden_size")
def units_beyond_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Units beyond a block of four are not computed."""
    found = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[..., :4], 0 * v[..., 4:]], -1), found)


@in_layer(VALUES)
def odd_sizes_rounded_down(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is read two features at a time: the last of an odd number is left out."""
    I = x.shape[-1]  # noqa: E741 - the project's letter
    even = torch.cat([x[..., : I - 1], 0 * x[..., I - 1 :]], -1) if I % 2 else x
    return right(w, even, entry, starts)


@in_layer("no_rows")
def no_rows_are_one(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A batch of none comes out as a batch of one."""
    if x.shape[1]:
        return right(w, x, entry, starts)
    return State(*(v.new_zeros(v.shape[0], 1, v.shape[2]) for v in entry))


@in_layer("permuting_rows_permutes_the_answer", "a_batch_is_its_rows_alone", "gradient_of_other_rows_is_zero")
def rows_mixed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A thousandth of the rows' mean is taken from each."""
    weights = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device).view(1, -1, 1)
    return right(w, x - 1e-3 * (x * weights).mean(1, keepdim=True), entry, starts)


@in_layer("nan_stays_in_its_row", "gradient_of_other_rows_is_zero")
def normalised_over_the_batch(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input is centred over the batch and moved back: right but for rounding, and NaN spreads."""
    mean = x.mean(1, keepdim=True)
    return right(w, (x - mean) + mean * (1 + 1e-12), entry, starts)


@in_layer("the_future_is_not_read", "infinity_stays_in_its_sequence")
def all_steps_in_one_sum(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Zero times the sum over all steps is added to each."""
    found = right(w, x, entry, starts)
    return State(found.h + 0 * x.sum(), found.c)


@in_layer("nan_is_not_hidden")
def nan_in_the_input_cleaned_up(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """NaN in the input is replaced by zero behind the user's back."""
    return right(w, x.nan_to_num(), entry, starts)


@in_layer(VALUES)
def one_block_too_few(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Steps are run in chunks of three, the rest left out."""
    full = max(len(x) // 3 * 3, min(len(x), 2))
    found = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:full], 0 * v[full:]]), found)


@in_layer("sequence_equals_its_steps", "one_step")
def one_step_by_another_way(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With one step the recurrent bias is left out: acting and replaying differ."""
    return right(w._replace(b_hh=0 * w.b_hh) if len(x) == 1 and w.b_hh is not None else w, x, entry, starts)


@in_layer("cut_and_carried_equals_whole")
def the_first_step_is_special(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """At the first step of a call the forget gate is one, so a cut shows."""
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        found = step(w, x, state)
        return State(found.h, found.c + 0.1 * state.c) if next(calls) == 0 else found

    return layer(one)(w, x, entry, starts)


@in_layer("any_hidden_size")
def units_beyond_128(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Units beyond 128, a kernel's block, are not computed."""
    found = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[..., :128], 0 * v[..., 128:]], -1), found)


@in_layer("any_hidden_size")
def products_in_blocks_of_64(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent product's last block of 64 is left out where it is not full."""
    P = w.w_hh.shape[1]
    rest = P % 64 if P > 64 else 0
    cut = torch.cat([w.w_hh[:, : P - rest], 0 * w.w_hh[:, P - rest :]], 1) if rest else w.w_hh
    return right(w._replace(w_hh=cut), x, entry, starts)


@in_reset("long_rows")
def lost_after_a_thousand_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The state is lost every 1024 steps, where one launch ends and the next begins."""
    found = restart(state, entry, starts, t)
    return both(torch.zeros_like, found) if t and t % 1024 == 0 else found


@in_layer("many_rows")
def rows_counted_in_sixteen_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows beyond 65535 are read as the first of them."""
    found = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:, :65535], v[:, : max(v.shape[1] - 65535, 0)].roll(1, 1)], 1), found)


@in_core("sizes_of_one_keep_their_dimensions")
def a_size_of_one_is_squeezed() -> list[Patch]:
    """squeeze() without a dimension: where layers, steps and rows are one, the stacked states lose them."""
    original = core._stacked
    return [Patch(core, "_stacked", lambda *args, **more: both(_squeezed, original(*args, **more)))]


def _squeezed(value: Tensor) -> Tensor:
    return value.reshape(1, -1, 1) if value.ndim == 4 and value.numel() == 1 else value


@in_core("sizes_of_acting", on=get_backend("cudnn"))
def a_step_keeps_the_weights_it_saw() -> list[Patch]:
    """cudnn's step of many rows keeps the weights that it packed, and a soft update through .data is not seen."""
    kept: dict[int, list[Tensor]] = {}
    right_step = kernel.step

    def packed(params: list[Tensor], x: Tensor, state: State, bias: bool) -> State:
        if kernel._steps_fused(x, state):
            params = kept.setdefault(params[0].data_ptr(), [v.clone() for v in params])
        return right_step(params, x, state, bias)

    return [Patch(kernel, "step", packed)]


@in_layer("sizes_of_training_on_three_threads")
def one_thread_forgets_its_part(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of more than two threads the last one's part of the weights' gradients is not added."""
    rows = x.shape[1]
    if torch.get_num_threads() < 3 or rows < 3:
        return right(w, x, entry, starts)
    others = (None if v is None else v.detach() for v in w[2:])
    fixed = LayerWeights(w.w_ih.detach(), w.w_hh.detach(), *others)
    cut = rows * 2 // 3
    parts = [right(w, x[:, :cut], both(lambda v: v[:, :cut], entry), starts[:, :cut])]
    parts += [right(fixed, x[:, cut:], both(lambda v: v[:, cut:], entry), starts[:, cut:])]
    return State(torch.cat([one.h for one in parts], 1), torch.cat([one.c for one in parts], 1))


@in_layer("one_row_on_three_threads")
def one_row_shared_by_threads_that_do_not_wait(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Of one row's units, which three threads share, the last one's are read before they are written."""
    if torch.get_num_threads() < 3 or x.shape[1] > 1:
        return right(w, x, entry, starts)
    seen = torch.arange(w.w_hh.shape[1], device=x.device) < w.w_hh.shape[1] * 2 // 3
    return right(w._replace(w_hh=w.w_hh * seen), x, entry, starts)
