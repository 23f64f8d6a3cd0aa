"""The parameters of an LSTM: its options, their names and shapes, their checks, and conversion to another dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .contract import LayerWeights, LSTMSpec
from .errors import InputError

Shapes = tuple[tuple[int, ...] | None, ...]
"""The shapes of a :class:`LayerWeights`; ``None`` for an absent weight."""


def spec_of(lstm: nn.RNNBase) -> LSTMSpec:
    """The options of a torch.nn.LSTM or an rnn_backends.LSTM."""
    return LSTMSpec(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        lstm.bias,
        lstm.dropout,
        lstm.bidirectional,
        lstm.proj_size,
    )


def weight_names(spec: LSTMSpec) -> tuple[tuple[str, ...], ...]:
    """The parameters' names in torch.nn.LSTM's order, for each layer and direction: ``weight_ih_l0`` and so on."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if spec.bias else [])]
    kinds += ["weight_hr"] if spec.proj_size else []
    suffixes = ["", "_reverse"][: spec.directions]
    return tuple(tuple(f"{kind}_l{k}{suffix}" for kind in kinds) for k in range(spec.num_layers) for suffix in suffixes)


def weight_shapes(spec: LSTMSpec) -> tuple[Shapes, ...]:
    """The shapes of the weights of each layer and direction."""
    H, P, found = spec.hidden_size, spec.output_size, []
    for k in range(spec.num_layers):
        bias, features = (4 * H,) if spec.bias else None, spec.input_size if k == 0 else P * spec.directions
        shapes = ((4 * H, features), (4 * H, P), bias, bias, (P, H) if spec.proj_size else None)
        found += [shapes] * spec.directions
    return tuple(found)


def as_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value.to(dtype)``, without its cost of most of a microsecond if the dtype is the same."""
    if value.dtype == dtype:
        return value
    if not value.is_floating_point():
        raise InputError(f"a tensor to compute with must be floating point, got {value.dtype}")
    return value.to(dtype)


def cast_weights(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """The weights of one layer and direction, each converted to ``dtype``; an absent one stays ``None``."""
    b_ih, b_hh, w_hr = (None if v is None else v.to(dtype) for v in (w.b_ih, w.b_hh, w.w_hr))
    return LayerWeights(w.w_ih.to(dtype), w.w_hh.to(dtype), b_ih, b_hh, w_hr)


def check_weights(
    weights: list[LayerWeights], names: Sequence[Sequence[str]], shapes: Sequence[Shapes], casts: bool
) -> None:
    """Check that all weights are dense, on one device, of one dtype (under autocast: any), and of the options' shapes.

    ``functional_call``, parametrizations and assignment accept any weights, and a kernel that reads memory by its
    address cannot detect a wrong one.
    """
    first = weights[0].w_ih
    if not isinstance(first, Tensor):
        raise _wrong_weight(weights, names, shapes, casts)
    device, dtype = first.device, first.dtype
    for layer, expected in zip(weights, shapes, strict=True):
        for value, shape in zip(layer, expected, strict=True):
            if value is None and shape is None:
                continue
            if (
                value is None
                or value.is_nested  # its shape may not be available
                or value.layout is not torch.strided
                or value.is_quantized
                or value.shape != shape
                or value.device != device
                or (value.dtype is not dtype and not casts)
            ):
                raise _wrong_weight(weights, names, shapes, casts)


def _wrong_weight(
    weights: list[LayerWeights], names: Sequence[Sequence[str]], shapes: Sequence[Shapes], casts: bool
) -> InputError:
    """The error about the first weight that does not fit."""
    first = weights[0].w_ih
    for called, layer, expected in zip(names, weights, shapes, strict=True):
        fields = [(value, shape) for value, shape in zip(layer, expected, strict=True) if shape is not None]
        for name, (value, shape) in zip(called, fields, strict=True):
            if not isinstance(value, Tensor):
                return InputError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}")
            if value.is_nested:
                return InputError(f"{name} is a nested tensor: it must be dense, of shape {shape}")
            if value.layout is not torch.strided:
                layout = str(value.layout).removeprefix("torch.")
                return InputError(f"{name} has the layout {layout}: it must be dense, as to_dense() gives it")
            if value.is_quantized:
                return InputError(f"{name} is a quantized tensor: dequantize() it")
            if tuple(value.shape) != shape:
                return InputError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
            if value.device != first.device:
                difference = f"{name} is on {value.device}, weight_ih_l0 on {first.device}"
                return InputError(f"{difference}: all must be on one device (functional_call must be given all)")
            if value.dtype != first.dtype and not casts:
                difference = f"{name} has dtype {value.dtype}, weight_ih_l0 {first.dtype}"
                return InputError(f"{difference}: convert one of them")
    return InputError("the weights do not fit together")
