"""A cache of facts about the weights of a step, because their inspection takes as long as a small step's kernel.

The key of an entry is the identity of the first weight. An entry has a fingerprint, which every change of the weights
changes: other tensors, memory, shapes, dtypes or layouts, or a lazy negation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract import LayerWeights, State
from .errors import InputError
from .plain import EXACT, available, check_kinds, check_memory, have_memory, is_plain_eager, plain_keys, spanned
from .resets import zero_at


class WeightInfo(NamedTuple):
    """Facts about a layer's weights. All are plain and contiguous, have memory, and fit together in their sizes.

    Attributes:
        fingerprint: equal as long as none of the weights has changed.
        sizes: I, H, P.
        dtype: the dtype of all weights.
        device: the device of all weights.
        pointers: the addresses of their memory; 0 for an absent weight.
        capacities: the number of elements in memory from each address on.
        shapes: their shapes; ``None`` for an absent weight.
    """

    fingerprint: list[Any]
    sizes: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    pointers: tuple[int, ...]
    capacities: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]


MAX_LAYERS = 4096
"""The capacity of the cache in layers; a full cache is cleared. An entry holds no tensor, and no weak reference to one,
because torch could not swap such a parameter."""

_cache: dict[int, WeightInfo] = {}
_in_use: tuple[Sequence[LayerWeights], Sequence[WeightInfo]] | None = None
"""The weights of :class:`weights_in_use`."""


def weight_info(w: LayerWeights) -> WeightInfo | None:
    """The facts about a layer's weights, from the cache if they have not changed.

    Call it in plain eager mode only (:func:`is_plain_eager`).

    Returns:
        ``None`` if a weight is no plain tensor with contiguous memory, its memory was freed, or sizes do not fit.
    """
    current = _in_use
    if current is not None:
        for known, info_in_use in zip(*current, strict=True):
            if known is w:
                return info_in_use
    info = _cache.get(id(w[0]))
    if info is None or not _have_fingerprint(w, info.fingerprint):
        if not have_memory(w, plain_keys("cpu", "cuda")) or not _fit(w):
            return None
        if len(_cache) >= MAX_LAYERS:
            _cache.clear()
        _cache[id(w[0])] = info = _inspect(w)
    return info


class weights_in_use:  # a context manager, named like torch.no_grad
    """Within it :func:`weight_info` returns these for these weights without a check: a call checks its weights once.

    Only one call's are held: another thread, or a call within this one, may replace them, and the weights are then
    checked again.

    Args:
        weights: of all layers.
        infos: of each layer.
    """

    __slots__ = ("_known",)

    def __init__(self, weights: Sequence[LayerWeights], infos: Sequence[WeightInfo]) -> None:
        self._known = (weights, infos)

    def __enter__(self) -> None:
        global _in_use
        _in_use = self._known

    def __exit__(self, *_: object) -> None:
        global _in_use
        _in_use = None  # the weights may change from now on


def _have_fingerprint(w: LayerWeights, fingerprint: list[Any]) -> bool:
    try:
        return _fingerprint(w) == fingerprint
    except (RuntimeError, AttributeError):  # another object with this id, without a storage
        return False


def _fingerprint(w: LayerWeights) -> list[Any]:
    """Identities, addresses, sizes of memory, shapes, dtypes, layouts and lazy negations.

    The address changes when memory is freed, resized or replaced (``p.data = ...``). The others are needed because a
    lazy negation or another dtype of the same width can use the same memory, and a smaller allocation can get the
    address of a freed one.
    """
    return [
        v
        if v is None
        else (id(v), v.data_ptr(), v.untyped_storage().nbytes(), v.shape, v.dtype, v.is_contiguous(), v.is_neg())
        for v in w
    ]


def _fit(w: LayerWeights) -> bool:
    """Whether plain tensors fit as weights of one layer: shapes, one dtype and device, contiguous allocated memory."""
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


def _inspect(w: LayerWeights) -> WeightInfo:
    w_ih, w_hh = w[:2]
    sizes = w_ih.shape[1], w_ih.shape[0] // 4, w_hh.shape[1]
    pointers = tuple(0 if v is None else v.data_ptr() for v in w)
    capacities = tuple(0 if v is None else available(v) for v in w)
    shapes = tuple(None if v is None else tuple(v.shape) for v in w)
    return WeightInfo(_fingerprint(w), sizes, w_ih.dtype, w_ih.device, pointers, capacities, shapes)


def check_call(backend: str, weights: LayerWeights, x: Tensor, state: State, starts: Tensor | None = None) -> bool:
    """For backends made of torch's own operators: the checks without which torch accesses memory out of bounds.

    Returns:
        Whether all tensors are known to be :class:`torch.Tensor` or a parameter, with memory: no subclass, no zero
        tensor. Their values may then be read.

    Raises:
        UnsupportedError: the backend does not support this kind of tensor.
        InputError: memory was freed, or the sizes of weights and state do not fit together.
    """
    if torch.compiler.is_compiling():
        return False
    if is_plain_eager():
        info = weight_info(weights)
        if info is not None and _are_usual(info, x, state, starts):
            return True
    check_kinds(backend, (x, *weights, *state, starts), distributed=backend != "cudnn")
    names = ("input", "the reset mask", *weights._fields, "the hidden state", "the cell state")
    check_memory(zip(names, (x, starts, *weights, *state), strict=True))
    _check_weight_sizes(weights, state)
    return False


def reset(state: State, is_init: Tensor, usual: bool) -> State:
    """:func:`zero_at` for a step. If no row resets, it returns the state itself, in a quarter of the time.

    Args:
        state: ``State([B, P], [B, H])``.
        is_init: ``[B]`` bool.
        usual: the result of :func:`check_call` for this call: whether the values may be read.
    """
    if usual and is_init.device.type == "cpu" and not is_init.any():
        return state
    return zero_at(state, is_init)


def _are_usual(info: WeightInfo, x: Tensor, state: State, starts: Tensor | None) -> bool:
    """Whether these are dense tensors with memory next to the weights, of the state's sizes.

    It leaves out the checks of torch's operators, and so takes less time than :func:`have_memory`.
    """
    h, c = state
    device = info.device
    try:
        for v in (x, h, None if c is h else c, starts):
            if v is None:
                continue
            if type(v) not in EXACT or v.layout is not torch.strided or v.is_nested or v.is_quantized:
                return False
            if v.device != device:
                return False
            storage = v.untyped_storage()  # a zero tensor and its slices have the address 0
            needed = v.nbytes if v.is_contiguous() else spanned(v) * v.itemsize
            if not storage.data_ptr() or needed > storage.nbytes() - v.storage_offset() * v.itemsize:
                return False
    except RuntimeError:  # a wrapper without a storage
        return False
    return h.shape[-1:] == info.sizes[2:] and c.shape[-1:] == info.sizes[1:2]


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
