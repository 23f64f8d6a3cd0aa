"""The multi-layer perceptron in front of :class:`LSTMNet`, with TorchRL's ``MLP`` options and layer order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .errors import InputError


def mlp(
    in_features: int | None = None,
    out_features: int | None = None,
    depth: int | None = None,
    num_cells: Sequence[int] | int | None = None,
    activation_class: Callable[..., nn.Module] = nn.Tanh,
    activation_kwargs: dict[str, Any] | None = None,
    norm_class: Callable[..., nn.Module] | None = None,
    norm_kwargs: dict[str, Any] | None = None,
    dropout: float | None = None,
    bias_last_layer: bool = True,
    layer_class: Callable[..., nn.Module] = nn.Linear,
    layer_kwargs: dict[str, Any] | None = None,
    activate_last_layer: bool = False,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """A multi-layer perceptron; the same options, and the same modules in the same order, as TorchRL's ``MLP``.

    Args:
        in_features: features of the input; ``None`` to infer them at the first call.
        out_features: features of the output.
        depth: number of hidden layers; 0, the default without ``num_cells``, is a single linear layer.
        num_cells: size of each hidden layer, or of all of them (then with ``depth``). Default 32.
        activation_class: called with ``activation_kwargs`` after each hidden layer.
        activation_kwargs: see above.
        norm_class: called with ``norm_kwargs`` after each hidden layer, before the activation.
        norm_kwargs: see above.
        dropout: probability of dropout after each hidden layer.
        bias_last_layer: whether the last layer has a bias.
        layer_class: called with in and out features.
        layer_kwargs: for each layer.
        activate_last_layer: whether normalisation, activation and dropout follow the last layer too.
        device: of the parameters.

    Raises:
        InputError: ``out_features`` is missing, or ``depth`` and ``num_cells`` contradict each other.
    """
    if out_features is None:
        raise InputError("mlp_kwargs must have out_features")
    hidden = _hidden_sizes(depth, num_cells)
    layers: list[nn.Module] = []
    for k, size in enumerate([*hidden, out_features]):
        last = k == len(hidden)
        kwargs = {"device": device, **(layer_kwargs or {}), "bias": bias_last_layer if last else True}
        if in_features is None:
            layers.append(nn.LazyLinear(size, bias=kwargs["bias"], device=device))
        else:
            layers.append(layer_class(in_features, size, **kwargs))
        in_features = size
        if not last or activate_last_layer:
            if dropout is not None:
                layers.append(nn.Dropout(p=dropout))
            if norm_class is not None:
                layers.append(norm_class(**(norm_kwargs or {})))
            layers.append(activation_class(**(activation_kwargs or {})))
    return nn.Sequential(*layers)


def _hidden_sizes(depth: int | None, num_cells: Sequence[int] | int | None) -> list[int]:
    if num_cells is None:
        return [32] * (depth or 0)
    if isinstance(num_cells, int):
        if depth is None:
            raise InputError("num_cells is a number: give depth too, or a list of sizes")
        return [num_cells] * depth
    if depth not in (None, len(num_cells)):
        raise InputError(f"depth={depth} contradicts the {len(num_cells)} sizes of num_cells")
    return list(num_cells)
