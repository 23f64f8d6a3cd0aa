"""Conversion between a TensorDict's layout and the time-major one: keys and shapes, no mathematics.

A TensorDict of batch size ``[*batch, T]`` (``[*batch]`` in sequential mode) becomes time-major ``[T, B, .]`` with
``B`` the product of ``batch``, and back. Nothing is written before everything is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase, is_tensor_collection, is_tensorclass
from tensordict.utils import NestedKey
from torch import Tensor

from .checks import check_dense, check_like, is_usual
from .contract import LSTMSpec, State
from .errors import InputError, MissingKeyError
from .lstm import LSTM
from .plain import check_memory


class Inputs(NamedTuple):
    """The entries: ``x [*batch, I]``, ``is_init [*batch]``, and the states ``h [*batch, L*D, P]``, ``c`` if present."""

    x: Tensor
    is_init: Tensor
    stored: State | None


def read(td: TensorDictBase, keys: Sequence[NestedKey], lstm: LSTM) -> Inputs:
    """Read and check the four entries.

    Args:
        td: batch size ``[*batch]``.
        keys: the keys of the value, ``h``, ``c`` and the reset mask.
        lstm: the LSTM; the entries have to fit its options, dtype and device.

    Raises:
        MissingKeyError: the value or the reset mask is missing.
        InputError: a shape, dtype or device does not fit, or only one of the two hidden states is present.
    """
    try:
        x, h, c, is_init = [td.get(key, None) for key in keys]
    except RuntimeError as error:
        raise InputError(
            f"the entries {', '.join(map(repr, keys))} cannot be read ({str(error).splitlines()[0]}): where rows of "
            "different lengths are stacked lazily, pad them to one length"
        ) from error
    spec, weight = lstm.spec, lstm.like_weights()
    batch = tuple(td.batch_size)
    if _are_usual(x, h, c, is_init, batch, spec, weight):
        return Inputs(x, is_init.squeeze(-1), State(h, c))
    if x is None:
        raise MissingKeyError(f"the input key {keys[0]!r} is not in the TensorDict, which has {_keys(td)}")
    if is_init is None:
        raise MissingKeyError(
            f"the reset key {keys[3]!r} is not in the TensorDict, which has {_keys(td)}: append TorchRL's "
            "InitTracker() to the environment, or set a bool tensor [*batch, 1], true where a sequence starts"
        )
    return _checked(td, keys, (x, h, c, is_init), lstm)


def _checked(td: TensorDictBase, keys: Sequence[NestedKey], entries: Sequence[Any], lstm: LSTM) -> Inputs:
    x, h, c, is_init = entries
    spec, weight, batch = lstm.spec, lstm.like_weights(), tuple(td.batch_size)
    _check_shape(keys[0], x, (*batch, spec.input_size), "[*batch, input_size]")
    _check_like(keys[0], x, weight, lstm)
    if not isinstance(is_init, Tensor):
        raise InputError(f"{keys[3]!r} must be a bool tensor, got {type(is_init).__name__}")
    _check_dense(keys[3], is_init)
    if is_init.dtype != torch.bool:
        raise InputError(f"{keys[3]!r} must be bool, got {is_init.dtype}: use .bool() if 1 means a start")
    if is_init.device != weight.device:
        raise InputError(f"{keys[3]!r} is on {is_init.device}, the weights on {weight.device}: move one of them")
    if is_init.shape not in (batch, (*batch, 1)):
        actual = tuple(is_init.shape)
        raise InputError(f"{keys[3]!r} must have the batch shape {batch} or {(*batch, 1)}, got {actual}")
    if (h is None) != (c is None):
        there, gone = (keys[2], keys[1]) if h is None else (keys[1], keys[2])
        raise InputError(f"{there!r} is in the TensorDict and {gone!r} is not: give both hidden states or none")
    stored = None if h is None else State(h, c)
    if stored is not None:
        for key, value, size in zip(keys[1:3], stored, (spec.output_size, spec.hidden_size), strict=True):
            _check_shape(key, value, (*batch, spec.num_states, size), "[*batch, layers * directions, size]")
            _check_like(key, value, weight, lstm)
    return Inputs(x, is_init.reshape(batch), stored)


def check_time(td: TensorDictBase) -> None:
    """Raise :class:`InputError` if the last batch dimension is missing, or if another one is named ``"time"``."""
    if not td.ndim:
        raise InputError("recurrent mode needs a time dimension, the last of the batch size; got a 0-d TensorDict")
    names = td.names
    if TIME in names and names[-1] != TIME:
        raise InputError(f"recurrent mode needs time as the last batch dimension, got the names {names}: transpose it")


TIME = "time"
"""TorchRL's name for the dimension of time: its rollouts have it, and its value estimators look for it."""


def check_writable(td: TensorDictBase, keys: Sequence[NestedKey]) -> None:
    """Raise :class:`InputError`, before any computation, if the results cannot be written."""
    if td.is_locked and any(td.get(key, None) is None for key in keys):
        raise InputError(f"the TensorDict is locked and lacks some of {list(keys)}: unlock it, or pass tensordict_out=")
    before: tuple[str, ...] = ()
    for key in keys:
        parent = key[:-1] if isinstance(key, tuple) else ()
        if parent != before:
            _check_nests(td, parent)
            before = parent


def _check_nests(td: TensorDictBase, place: tuple[str, ...]) -> None:
    """Raise if results cannot be nested at this place: one of its keys has a tensor."""
    for length in range(1, len(place) + 1):
        there = td.get(place[:length], None)
        if there is None:
            return
        if not is_tensor_collection(there):
            raise InputError(
                f"{place[:length]} is a tensor in the TensorDict, and results are to be written into it: rename it"
            )


def write(td: TensorDictBase, values: dict[NestedKey, Tensor]) -> TensorDictBase:
    """Set the results, in place if the TensorDict is locked."""
    if not td.is_locked:
        if is_tensorclass(td):
            _check_fields(td, values)
        for key, value in values.items():
            td.set(key, value)
        return td
    for key, value in values.items():
        there = td.get(key)
        if there.shape != value.shape or there.dtype != value.dtype:
            actual, expected = (f"{tuple(v.shape)} {v.dtype}" for v in (there, value))
            raise InputError(f"the TensorDict is locked, and its {key!r} is {actual} where the result is {expected}")
    for key, value in values.items():
        td.set_(key, value)
    return td


def _check_fields(td: TensorDictBase, values: dict[NestedKey, Tensor]) -> None:
    """Raise if a tensorclass cannot hold a result (a field is missing or ``None``), by a try on a shallow copy."""
    trial = td.clone(recurse=False)
    for key, value in values.items():
        try:
            trial.set(key, value)
        except Exception as error:  # tensordict raises AttributeError, TypeError or KeyError
            raise InputError(
                f"the result {key!r} cannot be written into {type(td).__name__} ({error}): give it this field, and a "
                "TensorDict in each field that results are nested in, or pass tensordict_out="
            ) from error


def fold_time(inputs: Inputs) -> tuple[Tensor, Tensor, State | None]:
    """``[*batch, T, .]`` -> ``x [T, B, I]``, ``is_init [T, B]``, stored states ``[L*D, T, B, .]``."""
    *batch, T, _ = inputs.x.shape
    x, is_init, stored = inputs
    if len(batch) != 1:
        _check_memory(inputs)
        B = prod(batch)
        x, is_init = x.reshape(B, T, x.shape[-1]), is_init.reshape(B, T)
        stored = stored and State(*(s.reshape(B, T, *s.shape[-2:]) for s in stored))
    state = stored and State(*(s.permute(2, 1, 0, 3) for s in stored))
    return x.transpose(0, 1), is_init.transpose(0, 1), state


def unfold_time(value: Tensor, batch: Sequence[int]) -> Tensor:
    """``[T, B, N]`` -> ``[*batch, T, N]``; hidden states ``[L*D, T, B, N]`` -> ``[*batch, T, L*D, N]``."""
    value = value.transpose(0, 1) if value.ndim == 3 else value.permute(2, 1, 0, 3)
    return value if len(batch) == 1 else value.reshape(*batch, *value.shape[1:])


def fold_step(inputs: Inputs) -> tuple[Tensor, Tensor, State | None]:
    """``[*batch, .]`` -> ``x [B, I]``, ``is_init [B]``, stored states ``[B, L*D, .]``."""
    x, is_init, stored = inputs
    if is_init.ndim == 1:  # one batch dimension, the usual case when acting, needs no reshape
        return inputs
    _check_memory(inputs)
    B = is_init.numel()
    return (
        x.reshape(B, x.shape[-1]),
        is_init.reshape(B),
        stored and State(*(s.reshape(B, *s.shape[-2:]) for s in stored)),
    )


def unfold_step(value: Tensor, batch: Sequence[int]) -> Tensor:
    """``[B, ...]`` -> ``[*batch, ...]``."""
    return value if len(batch) == 1 else value.reshape(*batch, *value.shape[1:])


def _are_usual(x: Any, h: Any, c: Any, is_init: Any, batch: tuple[int, ...], spec: LSTMSpec, weight: Tensor) -> bool:
    """Whether all entries are present and fit: a shorter check for the usual case, in a third of the time."""
    dtype, device, K = weight.dtype, weight.device, spec.num_states
    return (
        is_usual(x, (*batch, spec.input_size), dtype, device)
        and is_usual(h, (*batch, K, spec.output_size), dtype, device)
        and is_usual(c, (*batch, K, spec.hidden_size), dtype, device)
        and is_usual(is_init, (*batch, 1), torch.bool, device)
    )


def _check_like(key: NestedKey, value: Tensor, weight: Tensor, lstm: LSTM) -> None:
    if value.dtype != weight.dtype or value.device != weight.device:  # formats the key only for an error
        check_like(repr(key), value, weight, lstm.autocast_dtype() is not None)


def _check_memory(inputs: Inputs) -> None:
    """Check the memory before a reshape, which may copy: torch does not check it. The LSTM checks its own arguments."""
    h, c = (None, None) if inputs.stored is None else inputs.stored
    check_memory((("input", inputs.x), ("is_init", inputs.is_init), ("hidden state", h), ("cell state", c)))


def _check_dense(key: NestedKey, value: Tensor) -> None:
    if type(value) is not Tensor or value.is_nested or value.layout is not torch.strided:
        check_dense(repr(key), value)  # formats the key only for an error


def _check_shape(key: NestedKey, value: Tensor, shape: tuple[int, ...], words: str) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{key!r} must be a tensor, got {type(value).__name__}")
    _check_dense(key, value)
    if value.shape != shape:
        raise InputError(f"{key!r} must have shape {words} = {shape}, got {tuple(value.shape)}")


def _keys(td: TensorDictBase) -> str:
    return ", ".join(sorted(map(repr, td.keys(include_nested=True, leaves_only=True)))) or "no entries"
