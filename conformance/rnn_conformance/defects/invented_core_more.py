"""The fourth round, core: twelve by somebody who had seen what the laws say and looked for gaps between them.

A law is named where one was written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import rnn_backends.checks
import rnn_backends.choose
import rnn_backends.layout
import rnn_backends.lstm
import rnn_backends.mode
import rnn_backends.net
import rnn_backends.registry
import torch
from rnn_backends import (
    LSTM,
    BrokenBackendError,
    InputError,
    LSTMBackend,
    LSTMModule,
    State,
    UnsupportedError,
    get_backend,
)
from rnn_backends.mlp import _hidden_sizes
from torch import nn

from .planting import Patch, in_core
from .right import right

NO_HALF = LSTMBackend(
    "defect", right, lambda spec, device, dtype: "no half precision" if dtype == torch.float16 else None
)


@in_core("the_mode_stays_in_its_task")
def tasks_of_one_thread_share_a_mode() -> list[Patch]:
    """The mode is read from a thread-local only, so an asyncio task runs in the mode that another one waits in."""
    return [Patch(rnn_backends.mode, "_stack", lambda: rnn_backends.mode._mirror.stack)]


@in_core("hooks_stay_with_their_copy")
def a_copy_shares_its_hooks() -> list[Patch]:
    """A copy in another mode shares the dicts of hooks: a hook that is registered on one runs in the other too."""

    def _copy(self: LSTMModule, **changed: Any) -> LSTMModule:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, _modules=self._modules.copy(), **changed)
        return new

    return [Patch(LSTMModule, "_copy", _copy)]


@in_core("results_in_a_tensordict_outlive_the_next_call")
def results_go_into_the_memory_that_is_there() -> list[Patch]:
    """Results are copied into the tensors that the TensorDict has under their keys, which others may hold or view."""

    def write(td: Any, values: Any) -> Any:
        for key, value in values.items():
            if td.is_locked:
                td.set_(key, value)
            else:
                td.set(key, value, inplace=True)
        return td

    return [Patch(rnn_backends.layout, "write", write)]


@in_core("an_error_leaves_autocast_on")
def an_error_leaves_autocast_off() -> list[Patch]:
    """Autocast, off while a layer runs, is not on again when that raised: the rest of the user's context lacks it."""
    ready = LSTM._ready

    @contextmanager
    def without_autocast(kind: str) -> Iterator[None]:
        torch.set_autocast_enabled(kind, False)
        yield
        torch.set_autocast_enabled(kind, True)

    def _ready(self: Any) -> Any:
        weights, dtype, uncast = ready(self)
        if self.autocast_dtype() is None:
            return weights, dtype, uncast
        return weights, dtype, without_autocast(self.weight_ih_l0.device.type)

    return [Patch(LSTM, "_ready", _ready)]


@in_core("dropout_may_be_set_later")
def dropout_set_later_is_not_seen() -> list[Patch]:
    """Over time the dropout is the one of construction: ``lstm.dropout = p`` changes it in steps, but not there."""

    def sequences(self: Any, x: Any, entry: Any, starts: Any, every_end: bool = True) -> Any:
        run = self._run_layers if every_end else self._run_layers_last
        spec = self.spec
        dropout = spec.dropout if self.training else 0.0
        weights, dtype, uncast = self._ready()
        if rnn_backends.lstm.transforms_may_be_open():
            self._check_transforms(weights, x, starts, *(v for state in entry for v in state))
        with uncast:
            entry = [State(s.h.to(dtype), s.c.to(dtype)) for s in entry]
            return run(weights, x.to(dtype), entry, starts, spec.bidirectional, dropout, every_end)

    return [Patch(LSTM, "sequences", sequences)]


@in_core(on=NO_HALF)
def a_refusal_is_given_once() -> list[Patch]:
    """Where it was moved is noted before the backend is asked: the second call after a refusal is not refused."""

    def _ready(self: Any) -> Any:
        weight = self.weight_ih_l0
        placed, self._placed = self._placed, (weight.device, weight.dtype)
        if placed != self._placed:
            rnn_backends.lstm.demand(self._backend, self.spec, weight.device, weight.dtype)
        casts = self.autocast_dtype()
        weights = self.layer_weights()
        if casts is None:
            return weights, weight.dtype, nullcontext()
        rnn_backends.lstm.demand(self._backend, self.spec, weight.device, casts)
        cast = [rnn_backends.lstm._cast(layer, casts) for layer in weights]
        return cast, casts, torch.autocast(weight.device.type, enabled=False)

    return [Patch(LSTM, "_ready", _ready)]


@in_core("each_weight_may_be_replaced_alone")
def weights_are_known_by_the_first() -> list[Patch]:
    """The list of weights is kept while ``weight_ih_l0`` is the same object: another one that is replaced is missed."""
    kept: Any = WeakKeyDictionary()
    look = LSTM.layer_weights

    def layer_weights(self: Any) -> Any:
        found = kept.get(self)
        if found is None or found[0].w_ih is not self.weight_ih_l0:
            found = kept[self] = look(self)
        return found

    return [Patch(LSTM, "layer_weights", layer_weights)]


@in_core("what_is_needed_is_claimed_or_refused")
def auto_forgets_the_traits() -> list[Patch]:
    """``"auto"`` takes the fastest that accepts, whether or not it has the traits that are needed."""
    choose = rnn_backends.choose

    def _auto(spec: Any, device: Any, dtype: Any, needs: Any) -> Any:
        def able(name: str) -> bool:
            try:
                return choose._refusal(get_backend(name), spec, device, dtype) is None
            except BrokenBackendError:
                return False

        best = choose._ranking(choose.names(), spec, device).first(able)
        if best is not None:
            return get_backend(best)
        said = "; ".join(f"{v.name}: {v.reason}" for v in choose.explain(spec, device, dtype))
        raise UnsupportedError("auto", choose._words(spec, device, dtype), said or "none is installed")

    return [Patch(choose, "_auto", _auto)]


@in_core("each_norm_of_a_net_is_its_own")
def the_mlp_has_one_norm() -> list[Patch]:
    """LSTMNet's MLP makes normalisation and activation once for all layers, so that these share their weights."""

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

    return [Patch(rnn_backends.net, "mlp", mlp)]


@in_core("only_what_is_all_there_is_skipped")
def one_result_is_taken_for_all() -> list[Patch]:
    """With ``set_skip_existing`` the module skips where only its output is there: the next states stay missing."""

    def _has_results(self: Any, td: Any) -> bool:
        written = self.out_keys
        return written[0] in td.keys(True) and not any(key in written for key in self.in_keys)

    return [Patch(LSTMModule, "_has_results", _has_results)]


@in_core()
def a_transposed_mask_is_reshaped() -> list[Patch]:
    """A reset mask with the right number of elements is reshaped: ``[B, T]`` for ``[T, B]`` resets elsewhere."""

    def check_is_init(is_init: Any, shape: Any, device: Any) -> Any:
        if not isinstance(is_init, torch.Tensor) or is_init.dtype != torch.bool:
            came = is_init.dtype if isinstance(is_init, torch.Tensor) else type(is_init).__name__
            raise InputError(f"is_init must be a bool tensor, got {came}: use is_init.bool() if 1 means a start")
        if is_init.numel() != prod(shape):
            raise InputError(f"is_init must have shape {shape} or {(*shape, 1)}, got shape {tuple(is_init.shape)}")
        if is_init.device != device:
            raise InputError(f"is_init is on {is_init.device}, the weights on {device}: move one of them")
        return is_init.reshape(shape)

    return [Patch(rnn_backends.lstm, "check_is_init", check_is_init)]


@in_core("a_refresh_looks_again_and_keeps_what_was_registered")
def a_refresh_remembers_what_was_broken() -> list[Patch]:
    """``refresh()`` reads the entry points but keeps the reasons: a plugin that was repaired stays broken."""

    def _read(self: Any) -> None:
        self._found = rnn_backends.registry._scan()
        self._built = {}
        if not hasattr(self, "_broken"):
            self._broken, self._causes = {}, {}

    return [Patch(rnn_backends.registry.Registry, "_read", _read)]
