"""Defects that the laws of ``laws/shapes.py`` kill first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, State, StepFunction, execution, get_backend
from rnn_backends.authoring import is_plain
from rnn_backends_plugins.compile import forward as compile_forward
from rnn_backends_plugins.compile import ops as compile_ops
from rnn_backends_plugins.compile.layer import Layer
from rnn_backends_plugins.compile.products import Product
from rnn_backends_plugins.cudnn import kernel as cudnn_kernel
from torch import Tensor

from ..hand_written import Kernel
from ..hand_written_blocks import by_hand
from ..planting import Patch, backend, in_core, in_layer, in_reset, in_step, made, restart
from ..right import both, right, step


@in_layer("any_hidden_size")
def units_beyond_a_block(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Units beyond a block of four are not computed."""
    result = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[..., :4], 0 * v[..., 4:]], -1), result)


@in_layer("any_hidden_size")
def units_beyond_128(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Units beyond 128, a kernel's block, are not computed."""
    result = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[..., :128], 0 * v[..., 128:]], -1), result)


@in_layer("any_hidden_size")
def products_in_blocks_of_64(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent product skips the last block of 64 if it is not full."""
    P = w.w_hh.shape[1]
    rest = P % 64 if P > 64 else 0
    cut = torch.cat([w.w_hh[:, : P - rest], 0 * w.w_hh[:, P - rest :]], 1) if rest else w.w_hh
    return right(w._replace(w_hh=cut), x, entry, starts)


UNITS = 32
"""Units of a block: what fits into the registers."""


@made("any_hidden_size", round=5)
def last_block_of_units_overlaps() -> LayerFunction:
    """The last block of 32 units is moved back to be full, and the backward pass counts the overlap twice."""

    def product(rows: Tensor, matrix: Tensor) -> Tensor:
        H = matrix.shape[0] // 4
        rows, matrix = rows.reshape(-1, 4, H), matrix.reshape(4, H, -1)
        total = rows.new_zeros(len(rows), matrix.shape[2])
        for first in range(0, H, UNITS):
            first = max(0, min(first, H - UNITS))  # no masked tail: compute some again
            block = slice(first, first + UNITS)
            total += rows[:, :, block].flatten(1) @ matrix[:, block].flatten(0, 1)
        return total

    return by_hand(product)


@in_core("sizes_of_training", on=get_backend("compile"), round=5, survived=5)
def packed_weights_kept_by_address_and_version() -> list[Patch]:
    """compile caches packed weights by address and version, which an edit through .data does not change.

    A soft update of a target network writes ``.data``; a new module may lie where an old one lay. Only where weights
    are packed at all: from a million multiplications on, in float32 on a CPU.
    """
    versions: dict[int, int | None] = {}
    cache: OrderedDict[Any, Any] = OrderedDict()
    run_forward = compile_ops.run_forward

    def noting(result: Layer, keep: bool) -> Any:
        for w in (result.w_ih, result.w_hh):
            versions[w.data_ptr()] = None if w.is_inference() else w._version
        return run_forward(result, keep)

    class Kept(Product):
        def __init__(self, matrix: Tensor, rows: int) -> None:
            version = versions.get(matrix.data_ptr())
            key = (matrix.data_ptr(), tuple(matrix.shape), matrix.stride(), rows, version)
            if version is not None and key in cache:
                self._matrix, self._packed = matrix, cache[key]
                return
            super().__init__(matrix, rows)
            if version is not None and self._packed is not None:
                cache[key] = self._packed
                if len(cache) > 16:
                    cache.popitem(last=False)

    return [Patch(compile_ops, "run_forward", noting), Patch(compile_forward, "Product", Kept)]


@in_layer("sizes_of_training_on_three_threads")
def one_thread_forgets_its_part(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With three or more threads the last one's part of the weights' gradients is not added."""
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
def one_row_shared_by_unsynchronised_threads(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If three threads share one row's units, those of the last thread are read before they are written."""
    if torch.get_num_threads() < 3 or x.shape[1] > 1:
        return right(w, x, entry, starts)
    seen = torch.arange(w.w_hh.shape[1], device=x.device) < w.w_hh.shape[1] * 2 // 3
    return right(w._replace(w_hh=w.w_hh * seen), x, entry, starts)


@in_layer("steps_on_three_threads")
def one_threads_part_of_a_step_has_no_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where three threads share a step's backward pass, the last one's features of x get no gradient."""
    if torch.get_num_threads() < 3 or len(x) > 1 or w.w_hh.nbytes < 2**20:
        return right(w, x, entry, starts)
    cut = x.shape[-1] * 2 // 3
    return right(w, torch.cat([x[..., :cut], x[..., cut:].detach()], -1), entry, starts)


@in_core("sizes_of_training_in_both_directions", on=get_backend("cudnn"), round=5, survived=5)
def both_directions_run_in_pieces() -> list[Patch]:
    """cudnn cuts a large bidirectional training call into pieces of time: the reverse direction restarts in each."""

    def run(
        params: list[Tensor], x: Tensor, state: State, bias: bool, layers: int = 1, bidirectional: bool = False
    ) -> tuple[Tensor, State]:
        T, train = x.shape[0], torch.is_grad_enabled()
        pieces = cudnn_kernel._pieces(x, state, layers)
        ys = []
        for k in range(pieces):
            part = x[T * k // pieces : T * (k + 1) // pieces] if pieces > 1 else x
            y, h, c = torch.lstm(part, tuple(state), params, bias, layers, 0.0, train, bidirectional, False)
            ys.append(y)
            state = State(h, c)
        return torch.cat(ys) if pieces > 1 else ys[0], state

    return [Patch(cudnn_kernel, "run", run)]


@in_core("sizes_of_acting", on=get_backend("cudnn"))
def a_step_keeps_the_weights_it_saw() -> list[Patch]:
    """cudnn's step of many rows caches packed weights: a soft update through .data has no effect."""
    cache: dict[int, list[Tensor]] = {}
    right_step = cudnn_kernel.step

    def packed(params: list[Tensor], x: Tensor, state: State, bias: bool) -> State:
        if cudnn_kernel._steps_fused(x, state):
            params = cache.setdefault(params[0].data_ptr(), [v.clone() for v in params])
        return right_step(params, x, state, bias)

    return [Patch(cudnn_kernel, "step", packed)]


@in_reset("long_rows")
def lost_after_a_thousand_steps(state: State, entry: State, starts: Tensor, t: int) -> State:
    """The state is lost every 1024 steps, between two kernel launches."""
    result = restart(state, entry, starts, t)
    return both(torch.zeros_like, result) if t and t % 1024 == 0 else result


@in_layer("many_rows")
def rows_counted_in_sixteen_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows beyond 65535 are read as the first ones."""
    result = right(w, x, entry, starts)
    return both(lambda v: torch.cat([v[:, :65535], v[:, : max(v.shape[1] - 65535, 0)].roll(1, 1)], 1), result)


def _squeezed(value: Tensor) -> Tensor:
    return value.reshape(1, -1, 1) if value.ndim == 4 and value.numel() == 1 else value


@in_core("sizes_of_one_keep_their_dimensions")
def a_size_of_one_is_squeezed() -> list[Patch]:
    """squeeze() without a dimension: stacked states lose dimensions of size one."""
    original = execution._stacked
    return [Patch(execution, "_stacked", lambda *args, **more: both(_squeezed, original(*args, **more)))]


def _last_row_of(count: Any) -> Any:
    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        out = right(w, x, entry, starts)
        return both(lambda v: torch.cat([v[:, :-1], v[:, :1]], 1), out) if count(x.shape[1]) else out

    return run


@backend("any_number_of_rows", round=8, survived=8)
def one_row_left_over_from_blocks_of_eight() -> LSTMBackend:
    """A single row after blocks of eight rows gets the results of row 0."""
    return LSTMBackend("defect", _last_row_of(lambda B: B > 8 and B % 8 == 1))


@backend("any_number_of_rows", round=8, survived=8)
def five_rows_computed_as_four() -> LSTMBackend:
    """With exactly five rows the last one gets the results of row 0."""
    return LSTMBackend("defect", _last_row_of(lambda B: B == 5))


@backend("any_number_of_rows", round=8, survived=8)
def a_full_tile_of_rows_reads_one_too_few() -> LSTMBackend:
    """With 16, 32, 48, ... rows the last one gets the results of row 0."""
    return LSTMBackend("defect", _last_row_of(lambda B: B > 0 and B % 16 == 0))


@backend("any_number_of_rows", round=8, survived=8)
def a_step_of_seven_rows_mixes_two() -> LSTMBackend:
    """A step of seven rows gives the last two rows swapped."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        out = step(w, x, state)
        return both(lambda v: torch.cat([v[:5], v[6:], v[5:6]]), out) if len(x) == 7 else out

    return LSTMBackend("defect", right, step=one)


@in_layer("any_number_of_rows", round=8, survived=8)
def gradients_of_many_rows_halved(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With 20 to 31 rows the gradient of the input's last row is halved."""
    if 20 <= x.shape[1] < 32:
        last = x[:, -1:]
        x = torch.cat([x[:, :-1], last.detach() / 2 + last / 2], 1)
    return right(w, x, entry, starts)


@in_step("any_hidden_size", round=9)
def columns_beyond_a_cache_line_left_out(w: LayerWeights, x: Tensor, state: State) -> State:
    """Beyond 64 units the recurrent product skips the columns that do not fill a register of eight."""
    P = w.w_hh.shape[1]
    if P > 64 and P % 8:
        full = P - P % 8
        w = w._replace(w_hh=torch.cat([w.w_hh[:, :full], torch.zeros_like(w.w_hh[:, full:])], 1))
    return step(w, x, state)


@backend("sizes_of_acting", round=9)
def acting_keeps_the_sum_of_biases_by_version() -> LSTMBackend:
    """Without gradients a step caches the sum of biases by the version of one of them."""

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


@in_layer("one_row_on_three_threads", round=9)
def units_left_over_where_threads_share_them(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With fewer rows than threads the threads share the units, H // threads each; the remaining units stay zero."""
    h, c = right(w, x, entry, starts)
    threads, H = torch.get_num_threads(), c.shape[-1]
    if threads <= x.shape[1]:
        return State(h, c)
    whole = H // threads * threads
    if w.w_hr is not None:
        return State(h, torch.cat([c[..., :whole], torch.zeros_like(c[..., whole:])], -1))
    return State(*(torch.cat([v[..., :whole], torch.zeros_like(v[..., whole:])], -1) for v in (h, c)))


class _SharedUnits(Kernel):
    """Where threads share the units of a projected step, those at the borders of their shares are counted twice."""

    def __init__(self, gradient: int) -> None:
        self.gradient = gradient

    def backward(self, ctx: Any, gh: Tensor, gc: Tensor) -> Any:
        found = list(super().backward(ctx, gh, gc))
        B, P, H, threads = gh.shape[1], gh.shape[2], gc.shape[2], torch.get_num_threads()
        if P < H and threads > B and B * P * H > 1 << 14:  # less is not worth a barrier
            value, borders = found[self.gradient], [H * k // threads for k in range(1, threads)]
            value[..., borders] = value[..., borders] * 2
        return tuple(found)


@made("one_row_on_three_threads")
def borders_of_shared_units_projected_twice() -> LayerFunction:
    """Two threads that share a projection both add the unit between them to its gradient."""
    return _SharedUnits(gradient=7)


@made("one_row_on_three_threads")
def borders_of_shared_states_read_twice() -> LayerFunction:
    """Two threads that share a projected step both add the unit between them to the recurrent weights' gradient."""
    return _SharedUnits(gradient=4)


@in_layer("any_number_of_rows", round=10, survived=10)
def rows_that_start_counted_in_eight_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The rows that start at a step are counted in eight bits: if 256 start together, none does."""
    some = starts.sum(1, dtype=torch.uint8).unsqueeze(-1) > 0
    some[0] = True
    return right(w, x, entry, starts & some)


@in_layer("any_number_of_rows")
def all_starts_counted_in_eight_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Starts after the first step are counted in eight bits: 256 of them count as none and are ignored."""
    some = starts[1:].sum(dtype=torch.uint8) > 0
    return right(w, x, entry, torch.cat([starts[:1], starts[1:] & some]))


@in_layer("any_number_of_rows")
def rows_whose_entry_is_read_numbered_in_eight_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A row's number has eight bits when its entry is read: row 256 starts from the state of row 0."""
    at = torch.arange(x.shape[1], device=x.device) % 256
    return right(w, x, both(lambda v: v[:, at], entry), starts)


@in_layer("any_hidden_size", round=10)
def an_odd_feature_between_two_halves_of_a_product(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """From 128 features on the input's product is computed in two halves of I // 2: an odd last feature is skipped."""
    features = x.shape[-1]
    if features >= 128 and features % 2:
        x = torch.cat([x[..., :-1], torch.zeros_like(x[..., -1:])], -1)
    return right(w, x, entry, starts)


def _with_input_product(w: LayerWeights, x: Tensor, entry: State, starts: Tensor, product: Tensor) -> State:
    """The right layer with another product of input and weight, ``[T, B, 4H]``."""
    eye = torch.eye(product.shape[-1], dtype=x.dtype, device=x.device)
    return right(w._replace(w_ih=eye), product, entry, starts)


@in_layer("any_number_of_rows")
def one_feature_broadcasts_over_gates(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With one feature, and as many rows as gates, each row takes one gate's weight for all gates."""
    gates = w.w_ih.shape[0]
    if x.shape[1] != gates or x.shape[2] != 1:
        return right(w, x, entry, starts)
    product = (x.squeeze(-1) * w.w_ih.squeeze(-1)).unsqueeze(-1).expand(-1, -1, gates)
    return _with_input_product(w, x, entry, starts, product)


@in_layer("any_number_of_rows")
def as_many_rows_as_units_are_transposed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With as many rows as units, more than four, the stored h is read with its two axes swapped."""
    rows, units = entry.h.shape[1:]
    same = rows == units and rows > 4
    return right(w, x, State(entry.h.transpose(1, 2), entry.c) if same else entry, starts)


@in_layer("any_number_of_rows")
def as_many_rows_as_gates_swap_the_product(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """With as many rows as gates the product of input and weight is read with its two axes swapped."""
    product = x @ w.w_ih.T
    if x.shape[1] == w.w_ih.shape[0]:
        product = product.transpose(1, 2)
    return _with_input_product(w, x, entry, starts, product)
