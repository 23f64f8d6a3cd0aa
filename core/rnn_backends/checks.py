"""Shape, dtype and device checks of the tensor interface, in one place for all backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .contract import LSTMSpec, State
from .errors import InputError
from .plain import MASKED, is_masked


def check_spec(spec: LSTMSpec) -> None:
    """Check the options of an LSTM by torch.nn.LSTM's own rules.

    Raises:
        InputError: the option, its value and the rule.
    """
    if not isinstance(spec, LSTMSpec):
        raise InputError(f"the spec must be an LSTMSpec, got {type(spec).__name__}")
    for name in ("input_size", "hidden_size", "num_layers"):
        _check_count(name, getattr(spec, name), 1)
    _check_count("proj_size", spec.proj_size, 0)
    if spec.proj_size >= spec.hidden_size:
        raise InputError(f"proj_size must be smaller than hidden_size={spec.hidden_size}, got {spec.proj_size}")
    for name in ("bias", "bidirectional"):
        if not isinstance(getattr(spec, name), bool):
            raise InputError(f"{name} must be True or False, got {getattr(spec, name)!r}")
    number = isinstance(spec.dropout, (int, float)) and not isinstance(spec.dropout, bool)
    if not number or not 0 <= spec.dropout <= 1:
        raise InputError(f"dropout must be a probability between 0 and 1, got {spec.dropout!r}")


def as_switch(name: str, value: Any) -> bool:
    """An option that is on or off, as a bool: NumPy's bools and 0 and 1 count too.

    Raises:
        InputError: it is anything else; torch.nn.LSTM takes every object for ``bidirectional``, ``"no"`` as true.
    """
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if str(getattr(value, "dtype", None)) == "bool":  # NumPy's; that of a tensor is torch.bool
        return bool(value)
    raise InputError(f"{name} must be True or False, got {value!r}")


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_input(x: Tensor, spec: LSTMSpec, weight: Tensor, casts: bool, ndims: tuple[int, ...]) -> None:
    """Check an input against the weights.

    Args:
        x: ``[..., I]``.
        spec: the LSTM's options.
        weight: any of its weights, for dtype and device.
        casts: whether autocast is on, so that the dtype may differ.
        ndims: the allowed numbers of dimensions.

    Raises:
        InputError: the message has the expected and the actual value.
    """
    if isinstance(x, PackedSequence):
        raise InputError(
            "a PackedSequence is not supported: pass the padded tensor, and is_init=[B, T] bool, true where a "
            "sequence starts; several sequences can follow one another in a row"
        )
    if not isinstance(x, Tensor):
        hint = ": make the LSTM a leaf (torch.fx.Tracer.is_leaf_module)" if type(x).__name__ == "Proxy" else ""
        raise InputError(f"input must be a Tensor, got {type(x).__name__}{hint}")
    check_dense("input", x)
    if x.ndim not in ndims:
        expected = " or ".join(f"{n}-D" for n in ndims)
        raise InputError(f"input must be {expected} with {spec.input_size} features last, got {_shape(x)}")
    if x.shape[-1] != spec.input_size:
        raise InputError(f"input must have input_size={spec.input_size} features last, got {_shape(x)}")
    check_like("input", x, weight, casts)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Check a dtype for weights, if one is given: torch has no arithmetic in 8 bits."""
    if isinstance(dtype, torch.dtype) and not is_arithmetic(dtype):  # torch itself rejects a value that is no dtype
        raise InputError(f"dtype must be floating point of 16 bits or more, got {dtype}")


def is_arithmetic(dtype: torch.dtype) -> bool:
    """Whether torch computes in it: floating point, of 16 bits or more."""
    return dtype.is_floating_point and dtype.itemsize > 1


def check_dense(name: str, x: Tensor) -> None:
    """Check that ``x`` is neither nested nor masked nor sparse nor of another layout."""
    if x.is_nested:
        raise InputError(f"{name} is a nested tensor: pass the padded tensor, and is_init where sequences start")
    if is_masked(x):
        raise InputError(f"{name} is a MaskedTensor: {MASKED}")
    if x.layout is not torch.strided:
        layout = str(x.layout).removeprefix("torch.")
        raise InputError(f"{name} has the layout {layout}: pass it dense, with to_dense()")


def check_like(name: str, x: Tensor, weight: Tensor, casts: bool) -> None:
    """Check that ``x`` is dense and has the weights' device and, unless autocast is on, their dtype."""
    check_dense(name, x)
    if not x.is_floating_point():
        raise InputError(f"{name} must be floating point like the weights ({weight.dtype}), got {x.dtype}")
    if x.dtype != weight.dtype and not casts:
        raise InputError(f"{name} has dtype {x.dtype}, the weights {weight.dtype}: convert one of them")
    if x.device != weight.device:
        raise InputError(f"{name} is on {x.device}, the weights on {weight.device}: move one of them")


def check_state(hx: State, shape: tuple[int, ...], spec: LSTMSpec, weight: Tensor, casts: bool) -> None:
    """Check ``h [*shape, P]`` and ``c [*shape, H]``."""
    for name, value, size in zip(("h_0", "c_0"), hx, (spec.output_size, spec.hidden_size), strict=True):
        if isinstance(value, Tensor):
            check_dense(name, value)
        if not isinstance(value, Tensor) or value.shape != (*shape, size):
            actual = _shape(value) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{name} must have shape {(*shape, size)}, got {actual}")
        check_like(name, value, weight, casts)


def is_usual(value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a value passes these checks, in a third of their time: a plain dense tensor as the weights need it."""
    return (
        type(value) is Tensor
        and not value.is_nested
        and value.layout is torch.strided
        and value.shape == shape
        and value.dtype is dtype
        and value.device == device
    )


def check_is_init(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Check a reset mask ``[*shape]`` or ``[*shape, 1]`` bool; returns it as ``[*shape]``."""
    if not isinstance(is_init, Tensor) or is_init.dtype != torch.bool:
        actual = is_init.dtype if isinstance(is_init, Tensor) else type(is_init).__name__
        raise InputError(f"is_init must be a bool tensor, got {actual}: use is_init.bool() if 1 means a start")
    check_dense("is_init", is_init)
    if is_init.shape not in (shape, (*shape, 1)):
        raise InputError(f"is_init must have shape {shape} or {(*shape, 1)}, got {_shape(is_init)}")
    if is_init.device != device:
        raise InputError(f"is_init is on {is_init.device}, the weights on {device}: move one of them")
    return is_init if is_init.shape == shape else is_init.reshape(shape)


def _shape(x: Tensor) -> str:
    return f"shape {tuple(x.shape)}"
