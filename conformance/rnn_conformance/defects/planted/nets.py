"""Defects that the laws of ``laws/nets.py`` kill first."""

from __future__ import annotations

from typing import Any

from rnn_backends import InputError, LSTMNet, State
from rnn_backends import net as nets
from rnn_backends.mlp import _hidden_sizes
from torch import Tensor, nn

from ..planting import Patch, in_core


@in_core("a_net_over_time_is_its_parts", round=3, survived=3)
def net_returns_the_first_state_everywhere() -> list[Patch]:
    """Over time LSTMNet returns the first step's incoming hidden state at every step."""
    original = LSTMNet._state

    def replacement(self: LSTMNet, x: Tensor, h: Tensor | None, c: Tensor | None) -> State:
        result = original(self, x, h, c)
        if x.ndim < 3 or h is None:
            return result
        return State(result.h[:, :1].expand_as(result.h), result.c[:, :1].expand_as(result.c))

    return [Patch(LSTMNet, "_state", replacement)]


@in_core("a_net_over_one_step_is_its_parts")
def net_of_one_step_starts_from_zeros() -> list[Patch]:
    """Over one step LSTMNet returns the incoming hidden states and starts from zeros."""
    original = LSTMNet.forward

    def replacement(self: LSTMNet, input: Tensor, hidden0_in: Any = None, hidden1_in: Any = None) -> Any:
        if input.ndim == 3 or hidden0_in is None:
            return original(self, input, hidden0_in, hidden1_in)
        y, _, _, h, c = original(self, input)
        return y, hidden0_in, hidden1_in, h, c

    return [Patch(LSTMNet, "forward", replacement)]


@in_core("gradients_flow_through_a_net")
def net_detaches_the_mlp() -> list[Patch]:
    """The MLP in front of the LSTM gets no gradient."""
    original = LSTMNet.forward

    def replacement(self: LSTMNet, input: Tensor, *states: Any) -> Any:
        stop = self.mlp.register_forward_hook(lambda module, given, made: made.detach())
        try:
            return original(self, input, *states)
        finally:
            stop.remove()

    return [Patch(LSTMNet, "forward", replacement)]


@in_core("a_net_leaves_its_options_alone", round=4, survived=4)
def net_writes_into_its_options() -> list[Patch]:
    """LSTMNet writes device and backend into the caller's lstm_kwargs, so the next net inherits them."""
    original = LSTMNet.__init__

    def replacement(
        self: LSTMNet,
        out_features: int,
        lstm_kwargs: Any,
        mlp_kwargs: Any,
        device: Any = None,
        *,
        lstm_backend: Any = None,
    ) -> None:
        if not lstm_kwargs.setdefault("batch_first", True):
            raise InputError("LSTMNet needs batch_first=True: its inputs are [batch, time, features]")
        lstm_kwargs.setdefault("device", device)
        lstm_kwargs.setdefault("lstm_backend", lstm_backend)
        original(self, out_features, lstm_kwargs, mlp_kwargs, device, lstm_backend=lstm_backend)

    return [Patch(LSTMNet, "__init__", replacement)]


@in_core("the_mlp_has_a_bias_if_requested", round=3, survived=3)
def lazy_last_layer_keeps_its_bias() -> list[Patch]:
    """An MLP of one lazy layer has a bias despite bias_last_layer=False."""
    original = nets.mlp

    def replacement(in_features: int | None = None, bias_last_layer: bool = True, **options: Any) -> nn.Sequential:
        lazy = in_features is None and not options.get("depth") and not options.get("num_cells")
        return original(in_features, bias_last_layer=bias_last_layer or lazy, **options)

    return [Patch(nets, "mlp", replacement)]


@in_core("each_layer_of_a_net_has_its_own_norm", round=6, survived=6)
def the_mlp_has_one_norm() -> list[Patch]:
    """All layers of LSTMNet's MLP share one normalisation and activation, with their weights."""

    def mlp(
        in_features: Any = None,
        out_features: Any = None,
        depth: Any = None,
        num_cells: Any = None,
        activation_class: Any = nn.Tanh,
        activation_kwargs: Any = None,
        norm_class: Any = None,
        norm_kwargs: Any = None,
        dropout: Any = None,
        bias_last_layer: Any = True,
        layer_class: Any = nn.Linear,
        layer_kwargs: Any = None,
        activate_last_layer: Any = False,
        device: Any = None,
    ) -> Any:
        if out_features is None:
            raise InputError("mlp_kwargs must have out_features")
        hidden = _hidden_sizes(depth, num_cells)
        between: list[nn.Module] = []
        if dropout is not None:
            between.append(nn.Dropout(p=dropout))
        if norm_class is not None:
            between.append(norm_class(**(norm_kwargs or {})))
        between.append(activation_class(**(activation_kwargs or {})))
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
                layers += between
        return nn.Sequential(*layers)

    return [Patch(nets, "mlp", mlp)]
