"""An LSTM's parameters, bound to a backend: the choice, the weights in the backend's form, copies and pickles."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._torch import derivative_in_trace, parametrizations_of, registered_parameters
from .checks import as_switch, check_spec
from .choose import alternatives, demand, resolve
from .contract import LayerWeights, LSTMBackend, LSTMSpec, Trait
from .errors import UnsupportedError
from .options import Option, fix_options
from .plain import check_memory, is_plain_eager
from .registry import get_backend, is_registered_value
from .stack import RunLayers, layers_with
from .torch_tools import ToolsLSTM
from .transforms import traits_needed
from .weight_cache import WeightInfo, weight_info
from .weights import Shapes, cast_weights, check_weights, spec_of, weight_names, weight_shapes

KINDS = "cpu cuda xpu mps xla hpu mtia maia ipu privateuseone meta lazy vulkan ve fpga ideep hip opengl opencl"
NO_AUTOCAST = frozenset(kind for kind in KINDS.split() if not torch.amp.is_autocast_available(kind))
"""Device types without autocast. They are determined once, because torch 2.11's Dynamo cannot trace the query."""
_TRANSFORMS = {
    Trait.FORWARD_AD: ("forward-mode AD", "its kernel has no forward derivative"),
    Trait.VMAP: ("torch.vmap", "its kernel has no batching rule"),
}
"""Transforms that not every kernel supports: the feature's name and the reason for the error, by trait."""
_NOT_EXPORTED = (
    "torch records none through weights there: export the LSTM and differentiate the program, or record the derivative "
    "with torch.fx.experimental.proxy_tensor.make_fx"
)
NO_CONTEXT = nullcontext()
_NOT_ASKED = (torch.device("lazy"), torch.bool)
"""A device and dtype that no weights have, so that the next call checks theirs with the backend."""


class BoundLSTM(ToolsLSTM):
    """The parameters of an LSTM and its backend: the part of :class:`LSTM` that makes no call."""

    weight_ih_l0: Tensor

    def _bind(self, backend: LSTMBackend) -> None:
        weight = self.weight_ih_l0
        self._backend, self._spec = backend, spec_of(self)
        self._weight_names = weight_names(self._spec)
        self._weight_shapes = weight_shapes(self._spec)
        self._run_layers = layers_with(backend.layer, backend.layer)
        self._run_layers_last = layers_with(backend.layer_last or backend.layer, backend.layer)
        self._placed = _NOT_ASKED if weight.device.type == "meta" else (weight.device, weight.dtype)
        self._placed_in_autocast: tuple[torch.device, torch.dtype] | None = None
        self._last_info: list[WeightInfo] | None = None
        self._chosen_on_meta = False
        self._has_stack = backend.stack is not None  # a bool: Dynamo does not guard a function that it may not trace

    def _choose_again(self) -> None:
        """Choose again if ``"auto"`` chose for weights on the meta device, and the weights now have memory."""
        weight = self.weight_ih_l0
        if self._chosen_on_meta and weight.device.type != "meta":
            self._bind(resolve("auto", spec_of(self), weight.device, weight.dtype))

    @property
    def lstm_backend(self) -> str:
        """The name of the backend that runs."""
        if self._chosen_on_meta:
            self._choose_again()
        return self._backend.name

    @property
    def run_layers(self) -> RunLayers:
        """The function that runs all layers on the backend; of the states, only the row's last ones are valid."""
        return self._run_layers_last

    @property
    def backend(self) -> LSTMBackend:
        """The backend that runs."""
        if self._chosen_on_meta:
            self._choose_again()
        return self._backend

    @property
    def spec(self) -> LSTMSpec:
        """The options, in the form that backends get."""
        return self._spec

    def _take_dropout(self, dropout: float) -> float:
        """Check and store an assignment to ``dropout``, which takes effect at the next call.

        Raises:
            InputError: it is not a probability.
            UnsupportedError: the backend does not support it.
        """
        spec = replace(self._spec, dropout=dropout)
        check_spec(spec)
        if self._placed != _NOT_ASKED:
            demand(self._backend, spec, *self._placed)
        self._spec, self._placed_in_autocast = spec, None
        return dropout

    def layer_weights(self) -> list[LayerWeights]:
        """The parameters in the form that backends get: ``L*D`` entries, layer by layer, forward then reverse."""
        weights = []
        parameters = registered_parameters(self)
        for names in self._weight_names:
            found = [getattr(self, name) if (v := parameters.get(name)) is None else v for name in names]
            b_ih, b_hh = found[2:4] if self.bias else (None, None)
            w_hr = found[-1] if self.proj_size else None
            weights.append(LayerWeights(found[0], found[1], b_ih, b_hh, w_hr))
        return weights

    def like_weights(self) -> Tensor:
        """A tensor with the dtype and device of the weights, of any shape; no parametrization is computed for it."""
        found = registered_parameters(self).get("weight_ih_l0")
        return self._like_parametrized() if found is None else found

    def _like_parametrized(self) -> Tensor:
        parametrizations = parametrizations_of(self)
        if parametrizations is not None and "weight_ih_l0" in parametrizations:
            own = parametrizations["weight_ih_l0"]
            original = getattr(own, "original", getattr(own, "original0", None))
            if original is not None and not getattr(own, "unsafe", True):  # torch checked that the dtype stays
                return original  # type: ignore[no-any-return]
        return self.weight_ih_l0

    def _ready(
        self, weights: list[LayerWeights] | None = None
    ) -> tuple[list[LayerWeights], torch.dtype, AbstractContextManager[Any]]:
        """The weights in the dtype to compute in, that dtype, and a context without autocast.

        Args:
            weights: :meth:`layer_weights`, if the call has them: a call computes a parametrized weight once.
        """
        weights = self.layer_weights() if weights is None else weights
        weight = weights[0].w_ih
        if (weight.device, weight.dtype) != self._placed:
            demand(self._backend, self.spec, weight.device, weight.dtype)
            self._placed, self._last_info = (weight.device, weight.dtype), None
        casts = self.autocast_dtype()
        check_weights(weights, self._weight_names, self._weight_shapes, casts is not None)
        for names, layer in zip(self._weight_names, weights, strict=True):
            check_memory(zip(names, [value for value in layer if value is not None], strict=True))
        if casts is None:
            return weights, weight.dtype, nullcontext()
        if (weight.device, casts) != self._placed_in_autocast:
            demand(self._backend, self.spec, weight.device, casts)
            self._placed_in_autocast = (weight.device, casts)
        cast = [cast_weights(layer, casts) for layer in weights]
        return cast, casts, torch.autocast(weight.device.type, enabled=False)

    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype to compute in under autocast, or ``None``. As in torch, float64 is not cast."""
        weight = self.like_weights()
        kind = weight.device.type
        if weight.dtype == torch.float64 or kind in NO_AUTOCAST or not torch.is_autocast_enabled(kind):
            return None
        return torch.get_autocast_dtype(kind)

    def _cached_info(self, weights: list[LayerWeights]) -> list[WeightInfo] | None:
        """The facts about the weights, if :meth:`_ready` would return them unchanged: checked, not cast."""
        if not is_plain_eager():
            return None
        found = [info for w in weights if (info := weight_info(w)) is not None]
        if found != self._last_info:
            if len(found) < len(weights) or not all(map(self._is_as_placed, found, self._weight_shapes)):
                return None
            self._last_info = found
        dtype, kind = self._placed[1], self._placed[0].type
        if dtype != torch.float64 and kind not in NO_AUTOCAST and torch.is_autocast_enabled(kind):
            return None
        return found

    def _is_as_placed(self, info: WeightInfo, shapes: Shapes) -> bool:
        return (info.device, info.dtype) == self._placed and info.shapes == shapes

    def _check_transforms(self, weights: list[LayerWeights], *read: Tensor | None) -> None:
        """Raise :class:`UnsupportedError` for a transform of a tensor of this call, if the backend lacks its trait."""
        if not torch.compiler.is_dynamo_compiling():
            if not _TRANSFORMS.keys() <= self._backend.traits:
                self._check_traits(weights, *read)
        elif Trait.FORWARD_AD not in self._backend.traits:
            self._check_uncompiled(weights, *read)
        if torch.compiler.is_exporting() and derivative_in_trace():
            raise UnsupportedError(self.lstm_backend, "a derivative of torch.func within torch.export", _NOT_EXPORTED)

    def _check_traits(self, weights: list[LayerWeights], *read: Tensor | None) -> None:
        needed = traits_needed([*read, *(v for layer in weights for v in layer)]) - self._backend.traits
        for trait, (feature, reason) in _TRANSFORMS.items():
            if trait in needed:
                self._decline(feature, reason, trait)

    @torch.compiler.disable(reason="the backend has no forward derivative")  # type: ignore[untyped-decorator]
    def _check_uncompiled(self, weights: list[LayerWeights], *read: Tensor | None) -> None:
        """The same for a trace: Dynamo gives an operator without a forward derivative tangents of zero."""
        self._check_traits(weights, *read)

    def _decline(self, feature: str, reason: str, trait: Trait) -> NoReturn:
        weight = self.weight_ih_l0
        others = alternatives(self.spec, weight.device, weight.dtype, self.lstm_backend, frozenset({trait}))
        raise UnsupportedError(self.lstm_backend, feature, reason, others)

    def extra_repr(self) -> str:
        """torch.nn.LSTM's ``extra_repr`` and the backend."""
        return f"{super().extra_repr()}, lstm_backend={self.lstm_backend!r}"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for bound in ("_run_layers", "_run_layers_last", "_spec", "_has_stack", "_weight_names", "_weight_shapes"):
            state.pop(bound, None)
        for found_in_calls in ("_placed_in_autocast", "_last_info"):
            state.pop(found_in_calls, None)
        if is_registered_value(self._backend):
            state["_backend"] = self.lstm_backend  # functions cannot be pickled; the name is enough to find them
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend = state["_backend"]
        super().__setstate__(state)
        self._bind(get_backend(backend) if isinstance(backend, str) else backend)
        self._chosen_on_meta = state.get("_chosen_on_meta", False)
        self._placed = state["_placed"]  # on another device the next call checks with the backend, as after .to()


_DECIDE = ("mode", "input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")
fix_options(BoundLSTM, _DECIDE, "the weights depend on it. Make a new LSTM with it")
BoundLSTM.dropout = Option("dropout", BoundLSTM._take_dropout)  # type: ignore[assignment]
BoundLSTM.batch_first = Option("batch_first", lambda _, value: as_switch("batch_first", value))  # type: ignore[assignment]
