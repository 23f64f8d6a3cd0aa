"""The parameters of an LSTM: its options, their names and shapes, and conversion to the dtype to compute in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .contract import LayerWeights, LSTMSpec
from .errors import InputError


def spec_of(lstm: nn.RNNBase) -> LSTMSpec:
    """The options of torch.nn's LSTM, or of ours."""
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


def weight_shapes(spec: LSTMSpec) -> tuple[tuple[tuple[int, ...] | None, ...], ...]:
    """The shapes of each layer's and direction's :class:`LayerWeights`; ``None`` for those that it has not."""
    H, P, found = spec.hidden_size, spec.output_size, []
    for k in range(spec.num_layers):
        bias, features = (4 * H,) if spec.bias else None, spec.input_size if k == 0 else P * spec.directions
        shapes = ((4 * H, features), (4 * H, P), bias, bias, (P, H) if spec.proj_size else None)
        found += [shapes] * spec.directions
    return tuple(found)


def as_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value.to(dtype)``, which costs a step of acting most of a microsecond where there is nothing to do."""
    if value.dtype == dtype:
        return value
    if not value.is_floating_point():
        raise InputError(f"a tensor to compute with must be floating point, got {value.dtype}")
    return value.to(dtype)


def cast_weights(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """The weights of one layer and direction, each converted to ``dtype``; an absent one stays ``None``."""
    b_ih, b_hh, w_hr = (None if v is None else v.to(dtype) for v in (w.b_ih, w.b_hh, w.w_hr))
    return LayerWeights(w.w_ih.to(dtype), w.w_hh.to(dtype), b_ih, b_hh, w_hr)
