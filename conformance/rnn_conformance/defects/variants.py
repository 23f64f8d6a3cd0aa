"""Correct variants: other ways to compute the same, as kernels do. No law may fail for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, LSTMSpec, State, UnsupportedError
from rnn_backends.authoring import materialized, unreadable
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .hand_written import Kernel
from .right import both, each, ends, finish, layer, right, shared_by, step


def _layer(result: LayerFunction) -> Callable[[], LSTMBackend]:
    return lambda: LSTMBackend("variant", result)


def biases_fused(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Both biases are one."""
    if w.b_ih is not None and w.b_hh is not None:
        w = w._replace(b_ih=w.b_ih + w.b_hh, b_hh=torch.zeros_like(w.b_hh))
    return right(w, x, entry, starts)


def one_product_of_x_and_h(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Input and state are one vector, the weights one matrix."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        a = torch.cat([x, state.h], -1) @ torch.cat([w.w_ih, w.w_hh], -1).T
        i, f, g, o = (a if w.b_ih is None or w.b_hh is None else a + w.b_ih + w.b_hh).chunk(4, -1)
        return finish(w, (i, f, g, o), state.c)

    return layer(one)(w, x, entry, starts)


def summed_backwards(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Products are summed from the last feature to the first."""
    turned = w._replace(w_ih=w.w_ih.flip(1), w_hh=w.w_hh.flip(1))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w, x, State(state.h.flip(-1), state.c))

    return layer(one)(turned, x.flip(-1), entry, starts)


def float64_inside(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Everything is computed in float64 and cast back."""
    wide = torch.Tensor.double
    return both(lambda v: v.to(x.dtype), right(each(wide, w), wide(x), both(wide, entry), starts))


def float32_c_in_sixteen_bits(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """16-bit numbers are accumulated in float32, as kernels do, and cast back at the end."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        return right(w, x, entry, starts)
    wide = torch.Tensor.float
    return both(lambda v: v.to(x.dtype), right(each(wide, w), wide(x), both(wide, entry), starts))


def weights_transposed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights are copied to the transposed layout first."""
    w = w._replace(w_ih=w.w_ih.T.contiguous().T, w_hh=w.w_hh.T.contiguous().T)
    return right(w, x, entry, starts)


def weights_in_one_buffer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights are packed into one flat buffer at every call, and read from views of it."""
    there = [v for v in w if v is not None]
    flat = torch.cat([v.flatten() for v in there])
    pieces = iter(flat.split([v.numel() for v in there]))
    return right(each(lambda v: next(pieces).view(v.shape), w), x, entry, starts)


def one_row_at_a_time(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every row of the batch runs alone."""
    if x.shape[1] == 0:
        return right(w, x, entry, starts)
    rows = [slice(b, b + 1) for b in range(x.shape[1])]
    result = [right(w, x[:, r], both(lambda v, r=r: v[:, r], entry), starts[:, r]) for r in rows]  # type: ignore[misc]
    return State(torch.cat([s.h for s in result], 1), torch.cat([s.c for s in result], 1))


def one_sequence_at_a_time(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Every sequence is cut out, runs alone, and is put back."""
    _read(starts)
    T, B = starts.shape
    rows = []
    for b in range(B):
        begins = [0, *(t for t in range(1, T) if bool(starts[t, b]))]
        runs = []
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            at, row = slice(begin, end), slice(b, b + 1)
            whole = torch.zeros_like(starts[at, row])
            runs.append(right(w, x[at, row], both(lambda v, at=at, row=row: v[at, row], entry), whole | _head(whole)))  # type: ignore[misc]
        rows.append(State(torch.cat([r.h for r in runs]), torch.cat([r.c for r in runs])))
    if not rows:
        return right(w, x, entry, starts)
    return State(torch.cat([r.h for r in rows], 1), torch.cat([r.c for r in rows], 1))


def _read(starts: Tensor) -> None:
    """Decline unreadable resets, as the variant plans by them: a graph would keep the example's plan."""
    reason = unreadable([starts])
    if reason is not None:
        raise UnsupportedError("variant", "this call", reason)


def _head(starts: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])


def padded_and_packed(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Each sequence is moved to its own row, padded to the longest, run without resets, and moved back."""
    _read(starts)
    T, B = starts.shape
    if B == 0:
        return right(w, x, entry, starts)
    first = torch.where(starts | _head(starts), torch.arange(T, device=x.device)[:, None], 0).cummax(0)[0]
    row = torch.cumsum((starts | _head(starts)).T.reshape(-1), 0).view(B, T).T - 1
    at = torch.arange(T, device=x.device)[:, None] - first
    N = int(row.max()) + 1
    begins = torch.nonzero((starts | _head(starts)).T)
    dense = x.new_zeros(T, N, x.shape[2]).index_put((at, row), x)
    head = both(lambda v: v[begins[:, 1], begins[:, 0]].expand(T, -1, -1), entry)
    out = right(w, dense, head, _head(starts.new_zeros(T, N)))
    return both(lambda v: v[at, row], out)


def in_tiles_of_time(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Time runs in tiles of three steps, and the state passes from tile to tile."""
    tiles: list[State] = []
    state = both(lambda v: v[0], entry)
    shared = shared_by(w, -(-len(x) // 3) if x.element_size() == 2 else 1)
    for begin in range(0, len(x), 3):
        at = slice(begin, begin + 3)
        mine = both(lambda v, at=at: v[at], entry)  # type: ignore[misc]
        carried = State(*(torch.cat([torch.where(starts[begin, :, None], own[0], old)[None], own[1:]])
                          for own, old in zip(mine, state, strict=True)))  # fmt: skip
        out = right(shared[begin // 3 % len(shared)], x[at], carried, starts[at] | _head(starts[at]))
        tiles.append(out)
        state = both(lambda v: v[-1], out)
    return State(torch.cat([t.h for t in tiles]), torch.cat([t.c for t in tiles]))


def in_tiles_of_units(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gates of every two units are computed by a separate product."""
    H = w.w_hh.shape[0] // 4
    tiles = [slice(n, min(n + 2, H)) for n in range(0, H, 2)]

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        gates = []
        for gate in range(4):
            parts = []
            for tile in tiles:
                rows = slice(gate * H + tile.start, gate * H + tile.stop)
                a = x @ w.w_ih[rows].T + state.h @ w.w_hh[rows].T
                parts.append(a if w.b_ih is None or w.b_hh is None else a + w.b_ih[rows] + w.b_hh[rows])
            gates.append(torch.cat(parts, -1))
        return finish(w, (gates[0], gates[1], gates[2], gates[3]), state.c)

    return layer(one)(w, x, entry, starts)


def recomputed_in_the_backward_pass(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Nothing is saved for the backward pass, which computes it again; except in torch.func, where torch cannot do
    that. torch's checkpoint does not notice an edit in between."""
    if torch._C._are_functorch_transforms_active():
        return right(w, x, entry, starts)
    read = [v for v in (*w, x, *entry, starts) if v is not None and not v.is_inference()]
    versions = [v._version for v in read]

    def run(*given: Any) -> State:
        if [v._version for v in read] != versions:
            raise RuntimeError("a tensor of the call has been modified by an inplace operation")
        return right(*given)

    result: Any = checkpoint(run, w, x, entry, starts, use_reentrant=False, preserve_rng_state=False)
    return State(*result)


def results_not_contiguous(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Results lie batch first in memory."""
    return both(lambda v: v.transpose(0, 1).contiguous().transpose(0, 1), right(w, x, entry, starts))


def results_in_a_wider_buffer(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Results are slices of one buffer that holds h and c side by side."""
    h, c = right(w, x, entry, starts)
    wide = torch.cat([h, c], -1)
    return State(wide[..., : h.shape[-1]], wide[..., h.shape[-1] :])


def nan_where_nothing_is_promised(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """c is NaN where no sequence ends: the contract promises nothing there."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.where(ends(starts), c, float("nan")))


def sigmoid_by_tanh(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The sigmoid is (1 + tanh(x / 2)) / 2, exact except for rounding."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        a = x @ w.w_ih.T + state.h @ w.w_hh.T
        a = a if w.b_ih is None or w.b_hh is None else a + w.b_ih + w.b_hh
        i, f, g, o = a.chunk(4, -1)
        i, f, o = ((1 + (v / 2).tanh()) / 2 for v in (i, f, o))
        c = f * state.c + i * g.tanh()
        h = o * c.tanh()
        return State(h if w.w_hr is None else h @ w.w_hr.T, c)

    return layer(one)(w, x, entry, starts)


def packed_and_invalidated() -> LSTMBackend:
    """Without gradients packed weights are cached until their numbers change; ``.data`` has no version."""
    cache: dict[int, tuple[LayerWeights, LayerWeights]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return right(w, x, entry, starts)
        old = cache.get(id(w.w_ih))
        if old is None or not all(map(_same, w, old[1])):
            old = cache[id(w.w_ih)] = (w, each(lambda v: v.detach().clone(), w))
        return right(old[1], x, entry, starts)

    return LSTMBackend("variant", run)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def declines_options() -> LSTMBackend:
    """Only one plain layer is served, everything else declined with a reason: the core of the contract."""

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        more = spec.proj_size or spec.bidirectional or spec.num_layers > 1
        return "one plain layer only" if more or dtype == torch.float16 else None

    return LSTMBackend("variant", right, rejects=rejects)


def prepared_at_the_first_call() -> LSTMBackend:
    """The layer function is made at the first call, as by a compiler."""
    made: list[LayerFunction] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not made:
            made.append(layer())
        return made[0](w, x, entry, starts)

    return LSTMBackend("variant", run)


def a_backward_pass_written_by_hand(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The gradients are written out; a second derivative raises an error."""
    return Kernel()(w, x, entry, starts)


def a_step_of_its_own() -> LSTMBackend:
    """There are separate functions for acting and for the last states."""
    return LSTMBackend("variant", right, step=step, layer_last=nan_where_nothing_is_promised)


def a_step_of_all_layers() -> LSTMBackend:
    """One step of all layers is one call, with gradients too."""

    def act_stack(w: list[LayerWeights], x: Tensor, state: State, is_init: Tensor | None) -> tuple[Tensor, State]:
        if is_init is not None:
            state = both(lambda v: torch.where(is_init.view(-1, 1, 1), 0, v), state)
        found: list[State] = []
        for one, h, c in zip(w, state.h.unbind(1), state.c.unbind(1), strict=True):
            found.append(step(one, found[-1].h if found else x, State(h, c)))
        return found[-1].h, State(torch.stack([s.h for s in found], 1), torch.stack([s.c for s in found], 1))

    return LSTMBackend("variant", right, step=step, act_stack=act_stack)


def all_layers_at_once() -> LSTMBackend:
    """Without resets the function of torch.nn.LSTM runs all layers at once."""

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        flat = [v for one in w for v in one if v is not None]
        hx = (materialized(state.h).contiguous(), materialized(state.c).contiguous())
        x, flat = materialized(x), [materialized(v) for v in flat]
        output, h, c = torch.lstm(x, hx, flat, spec.bias, spec.num_layers, 0.0, False, spec.bidirectional, False)
        return output, State(h, c)

    return LSTMBackend("variant", right, stack=stack)


_LAYERS: tuple[Callable[[LayerWeights, Tensor, State, Tensor], State], ...] = (
    biases_fused, one_product_of_x_and_h, summed_backwards, float64_inside, float32_c_in_sixteen_bits,
    weights_transposed, weights_in_one_buffer, one_row_at_a_time, one_sequence_at_a_time, padded_and_packed,
    in_tiles_of_time, in_tiles_of_units, recomputed_in_the_backward_pass, results_not_contiguous,
    results_in_a_wider_buffer, nan_where_nothing_is_promised, sigmoid_by_tanh, a_backward_pass_written_by_hand,
)  # fmt: skip
_MADE: tuple[Callable[[], LSTMBackend], ...] = (
    packed_and_invalidated, declines_options, prepared_at_the_first_call, a_step_of_its_own, a_step_of_all_layers,
    all_layers_at_once,
)  # fmt: skip


def float32_alone(backend: LSTMBackend) -> LSTMBackend:
    """The backend, restricted to float32, as fused kernels for a GPU are."""
    return replace(backend, rejects=_only((torch.float32,), lambda spec: None))


def bfloat16_with_whole_tiles(backend: LSTMBackend) -> LSTMBackend:
    """The backend, restricted to bfloat16 and to sizes that are multiples of 16."""
    return replace(
        backend, rejects=_only((torch.bfloat16,), lambda spec: "H % 16 must be 0" if spec.hidden_size % 16 else None)
    )


def _only(dtypes: tuple[torch.dtype, ...], reject: Callable[[LSTMSpec], str | None]) -> Any:
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return reject(spec) if dtype in dtypes else f"it computes in {names}"

    return rejects


RESTRICTED: dict[str, Callable[[LSTMBackend], LSTMBackend]] = {
    found.__name__: found for found in (float32_alone, bfloat16_with_whole_tiles)
}
"""Restrictions: each leaves a right backend right and a wrong one wrong."""

VARIANTS: dict[str, Callable[[], LSTMBackend]] = {
    **{result.__name__: _layer(result) for result in _LAYERS},
    **{result.__name__: result for result in _MADE},
    **{name: partial(restrict, LSTMBackend("variant", right)) for name, restrict in RESTRICTED.items()},
}
"""Variants: each function makes a new, right backend."""
