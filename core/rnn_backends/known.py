"""Weights that are known from an earlier call: a step has no time to look at five tensors anew.

A look at tensors takes as long as a small step's kernel. What was found is kept by the first weight's identity, with
marks by which any change shows: another tensor, other memory, another shape, dtype, layout or a lazy negation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract import LayerWeights, State
from .errors import InputError
from .plain import EXACT, available, check_kinds, check_memory, have_memory, nothing_at_work, plain_keys
from .resets import zero_at


class KnownWeights(NamedTuple):
    """What there is to know of a layer's weights, all plain, contiguous, with memory, of sizes that fit together.

    Attributes:
        marks: by which they are known again.
        sizes: I, H, P.
        dtype: of all of them.
        device: of all of them.
        pointers: to their memory; 0 where there is no tensor.
        rooms: how many elements there are from each pointer on.
        shapes: of each; ``None`` where there is no tensor.
    """

    marks: list[Any]
    sizes: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    pointers: tuple[int, ...]
    rooms: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]


MOST = 4096
"""So many layers are remembered; then all are forgotten. They hold no tensor, nor a weak reference to one: with such a
reference torch cannot swap parameters."""

_known: dict[int, KnownWeights] = {}
_of_this_step: tuple[LayerWeights, KnownWeights] | None = None


def known_weights(w: LayerWeights) -> KnownWeights | None:
    """What a step has to know of its weights; ``None`` where they have to be looked at in another way.

    That is: they are no plain tensors with contiguous memory, that memory is gone, or their sizes do not fit together.
    To be called where nothing is at work.
    """
    current = _of_this_step
    if current is not None and current[0] is w:
        return current[1]
    known = _known.get(id(w[0]))
    if known is None or not _are_marked(w, known.marks):
        if not have_memory(w, plain_keys("cpu", "cuda")) or not _fit(w):
            return None
        if len(_known) >= MOST:
            _known.clear()
        _known[id(w[0])] = known = _look_at(w)
    return known


def step_knows(w: LayerWeights, known: KnownWeights) -> None:
    """Until :func:`step_is_over`, what is known of these very weights: they are looked at once a step.

    Another thread or a step within this one may take its place: then they are looked at again.
    """
    global _of_this_step
    _of_this_step = (w, known)


def step_is_over() -> None:
    """Weights may change from now on."""
    global _of_this_step
    _of_this_step = None


def _are_marked(w: LayerWeights, marks: list[Any]) -> bool:
    try:
        return _marks(w) == marks
    except (RuntimeError, AttributeError):  # another object of that identity, which shows no memory
        return False


def _marks(w: LayerWeights) -> list[Any]:
    """Which tensors, and where: memory that is freed, resized or replaced (``p.data = ...``) is elsewhere then.

    A lazy negation and another dtype of the same width can take over the same memory, so they are marks of their own;
    and memory that was freed and taken again, less of it, can be at the same address.
    """
    return [None if v is None else _mark(v) for v in w]


def _mark(v: Tensor) -> tuple[Any, ...]:
    held = v.untyped_storage().nbytes()
    return id(v), v.data_ptr(), held, v.shape, v.dtype, v.is_contiguous(), v.is_neg()


def _fit(w: LayerWeights) -> bool:
    """Whether plain tensors are weights of one layer, of one dtype and device, contiguous in memory that is there."""
    w_ih, w_hh, *_, w_hr = w
    if w_ih.ndim != 2 or w_hh.ndim != 2:
        return False
    H, P = w_ih.shape[0] // 4, w_hh.shape[1]
    shapes = ((4 * H, w_ih.shape[1]), (4 * H, P), (4 * H,), (4 * H,), (P, H))
    return (w_hr is not None or P == H) and all(
        v is None
        or (
            (v.shape, v.dtype, v.device) == (shape, w_ih.dtype, w_ih.device)
            and v.is_contiguous()
            and available(v) >= v.numel()
        )
        for v, shape in zip(w, shapes, strict=True)
    )


def _look_at(w: LayerWeights) -> KnownWeights:
    w_ih, w_hh = w[:2]
    sizes = w_ih.shape[1], w_ih.shape[0] // 4, w_hh.shape[1]
    pointers = tuple(0 if v is None else v.data_ptr() for v in w)
    rooms = tuple(0 if v is None else available(v) for v in w)
    shapes = tuple(None if v is None else tuple(v.shape) for v in w)
    return KnownWeights(_marks(w), sizes, w_ih.dtype, w_ih.device, pointers, rooms, shapes)


def check_call(backend: str, weights: LayerWeights, x: Tensor, state: State, starts: Tensor | None = None) -> bool:
    """For backends of torch's own operators: what torch does not look at, and then reads or writes beyond a tensor.

    Returns:
        Whether all of them are known to be exactly :class:`torch.Tensor` or a parameter, with memory: no subclass, no
        zero tensor.

    Raises:
        UnsupportedError: a kind of tensor for which there is no rule.
        InputError: memory that is not there, or weights whose sizes do not fit the state's.
    """
    if torch.compiler.is_compiling():
        return False
    if nothing_at_work():
        known = known_weights(weights)
        if known is not None and _are_usual(known, x, state, starts):
            return True
    check_kinds(backend, (x, *weights, *state, starts), distributed=backend != "cudnn")
    names = ("input", "the reset mask", *weights._fields, "the hidden state", "the cell state")
    check_memory(zip(names, (x, starts, *weights, *state), strict=True))
    _check_weight_sizes(weights, state)
    return False


def reset(state: State, is_init: Tensor, usual: bool) -> State:
    """:func:`zero_at`, for a step: where nothing starts the state is given back, in a quarter of the time.

    Args:
        state: ``State([B, P], [B, H])``.
        is_init: ``[B]`` bool.
        usual: what :func:`check_call` said of these: whether their numbers may be looked at.
    """
    if usual and is_init.device.type == "cpu" and not is_init.any():
        return state
    return zero_at(state, is_init)


def _are_usual(known: KnownWeights, x: Tensor, state: State, starts: Tensor | None) -> bool:
    """Whether these are dense tensors with contiguous memory next to the weights, of the state's sizes.

    It asks what torch's operators do not look at, in less time than :func:`have_memory` takes to know all of a kind.
    """
    h, c = state
    device = known.device
    try:
        for v in (x, h, c) if starts is None else (x, h, c, starts):
            if type(v) not in EXACT or v.layout is not torch.strided or v.is_nested or v.is_quantized:
                return False
            if v.device != device or not v.is_contiguous():
                return False
            storage = v.untyped_storage()  # that of a zero tensor is nowhere, and of a slice of one too
            if not storage.data_ptr() or v.nbytes > storage.nbytes() - v.storage_offset() * v.itemsize:
                return False
    except RuntimeError:  # it shows no memory: a wrapper
        return False
    return h.shape[-1:] == known.sizes[2:] and c.shape[-1:] == known.sizes[1:2]


def _check_weight_sizes(weights: LayerWeights, state: State) -> None:
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    P, H = state.h.shape[-1], state.c.shape[-1]
    if (
        w_ih.ndim == 2
        and (w_ih.shape[0], w_hh.shape) == (4 * H, (4 * H, P))
        and (b_ih is None or b_ih.shape == (4 * H,))
        and (b_hh is None or b_hh.shape == (4 * H,))
        and (P == H if w_hr is None else w_hr.shape == (P, H))
    ):
        return
    sizes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in weights._asdict().items() if v is not None)
    raise InputError(f"weights and state do not fit together: {sizes}, h [..., {P}], c [..., {H}]")
