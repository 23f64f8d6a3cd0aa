"""Defects that the laws of ``laws/lifecycle.py`` kill first."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from rnn_backends import LSTM, LayerWeights, LSTMBackend, LSTMModule, State, binding, get_backend, names
from torch import Tensor, nn

from ..planting import Patch, backend, in_core, in_place_of_ready
from ..right import each, right, step


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_backend() -> list[Patch]:
    """A pickled LSTM is always loaded with the backend vmap."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"_backend": get_backend("vmap")})

    return [Patch(LSTM, "__setstate__", replacement)]


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_training_flag() -> list[Patch]:
    """A pickled LSTM is loaded in training mode."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"training": True})

    return [Patch(LSTM, "__setstate__", replacement)]


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_dropout() -> list[Patch]:
    """A pickled LSTM is loaded without dropout."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"dropout": 0.0})

    return [Patch(LSTM, "__setstate__", replacement)]


@in_core("a_deepcopy_keeps_backend_and_shares_nothing")
def a_deepcopy_changes_the_backend() -> list[Patch]:
    """A deepcopy holds a copy of the backend instead of the same value."""
    replacement = lambda self, memo: LSTMBackend(self.name, self.layer)  # noqa: E731
    return [Patch(LSTMBackend, "__deepcopy__", replacement)]


@in_core("copies_keep_frozen_parameters", round=3, survived=3)
def copies_unfreeze_weights() -> list[Patch]:
    """Frozen parameters of an LSTM that is deep-copied or pickled are trainable in the copy."""

    def replacement(self: LSTM, state: dict[str, Any]) -> None:
        backend = state["_backend"]
        nn.RNNBase.__setstate__(self, state)
        self._bind(get_backend(backend) if isinstance(backend, str) else backend)
        self.requires_grad_()

    return [Patch(LSTM, "__setstate__", replacement)]


def _ready(change: Any) -> list[Patch]:
    original, cache = LSTM._ready, dict[int, tuple[LSTM, Any]]()

    def replacement(self: LSTM) -> Any:
        return change(cache, self, original(self))

    return in_place_of_ready(replacement)


@in_core("moved_to_another_dtype_and_back")
def packed_weights_stay_when_moved() -> list[Patch]:
    """Weights packed at the first call are cast to each later dtype, so rounding by a move is lost."""

    def replacement(cache: Any, self: LSTM, result: Any) -> Any:
        weights, dtype, context = result
        first = cache.setdefault(id(self), (self, [each(torch.clone, w) for w in weights]))[1]
        return [each(lambda v: v.to(dtype), w) for w in first], dtype, context

    return _ready(replacement)


@in_core("moved_to_another_dtype_and_back")
def computes_on_in_the_first_dtype() -> list[Patch]:
    """After .float() the module still computes, and returns results, in float64."""

    def replacement(cache: Any, self: LSTM, result: Any) -> Any:
        weights, dtype, context = result
        first = cache.setdefault(id(self), (self, dtype))[1]
        return [each(lambda v: v.to(first), w) for w in weights], first, context

    return _ready(replacement)


@in_core("functional_call_uses_the_weights_it_is_given")
def functional_call_sees_the_modules_weights() -> list[Patch]:
    """The weights of the first call are kept, so functional_call's weights are ignored."""
    original, cache = LSTM.layer_weights, dict[int, tuple[LSTM, list[LayerWeights]]]()

    def replacement(self: LSTM) -> list[LayerWeights]:
        return cache.setdefault(id(self), (self, original(self)))[1]

    return [Patch(LSTM, "layer_weights", replacement)]


def _held(now: Any, old: Any) -> Any:
    """The old value with the gradient of the new."""
    return None if now is None else now + (old - now).detach()


@in_core("an_optimizer_step_takes_effect")
def weights_renewed_every_second_step() -> list[Patch]:
    """Packed weights are renewed only after two optimizer steps."""
    original, cache = LSTM.layer_weights, dict[Any, tuple[LSTM, list[LayerWeights]]]()

    def replacement(self: LSTM) -> list[LayerWeights]:
        weights = original(self)
        key = (id(self), weights[0].w_ih._version // 4)
        old = cache.setdefault(key, (self, [each(lambda v: v.detach().clone(), w) for w in weights]))[1]
        return [each(lambda v: v, LayerWeights(*map(_held, w, o))) for w, o in zip(weights, old, strict=True)]

    return [Patch(LSTM, "layer_weights", replacement)]


@in_core("parameters_are_torchs_and_nothing_else")
def a_packed_buffer_is_registered() -> list[Patch]:
    """A flat copy of the weights is registered as a buffer."""
    original = LSTM._bind

    def replacement(self: LSTM, chosen: LSTMBackend) -> None:
        original(self, chosen)
        self.register_buffer("flat", torch.zeros(1), persistent=False)

    return [Patch(LSTM, "_bind", replacement)]


@in_core("parameters_are_torchs_and_nothing_else")
def a_parameter_registered_twice() -> list[Patch]:
    """The first weight is registered under a second name too."""
    original = LSTM._bind

    def replacement(self: LSTM, chosen: LSTMBackend) -> None:
        original(self, chosen)
        self.register_parameter("kernel", self._parameters["weight_ih_l0"])

    return [Patch(LSTM, "_bind", replacement)]


@in_core("copies_in_another_mode_share_the_weights")
def a_copy_in_another_mode_has_its_own_lstm() -> list[Patch]:
    """set_recurrent_mode returns a copy with a new LSTM over the same parameters."""
    original = LSTMModule._copy

    def replacement(self: LSTMModule, **changed: Any) -> LSTMModule:
        new = original(self, **changed)
        new.lstm = self.lstm.with_backend(self.lstm.backend)
        return new

    return [Patch(LSTMModule, "_copy", replacement)]


@in_core("copies_in_another_mode_share_the_weights", round=1)
def mode_of_a_copy_leaks_back() -> list[Patch]:
    """set_recurrent_mode changes the module itself as well as the copy that it returns."""
    original = LSTMModule._copy

    def replacement(self: LSTMModule, **changed: Any) -> LSTMModule:
        result = original(self, **changed)
        self.__dict__.update(changed)
        return result

    return [Patch(LSTMModule, "_copy", replacement)]


@in_core("copies_in_another_mode_share_the_weights", round=1)
def a_mode_copy_has_its_own_weights() -> list[Patch]:
    """set_recurrent_mode copies the parameters: training the copy leaves the original unchanged."""
    original = LSTMModule._copy

    def replacement(self: LSTMModule, **changed: Any) -> LSTMModule:
        result = original(self, **changed)
        twin = LSTM.__new__(LSTM)
        twin.__dict__.update(self.lstm.__dict__)
        twin._parameters = {
            k: nn.Parameter(v.detach().clone()) for k, v in self.lstm._parameters.items() if v is not None
        }
        result.lstm = twin
        return result

    return [Patch(LSTMModule, "_copy", replacement)]


@in_core("from_torch_keeps_the_training_flag", round=4, survived=4)
def from_torch_starts_in_training() -> list[Patch]:
    """from_torch ignores that the wrapped LSTM is in evaluation mode: the wrapper applies dropout."""
    original = LSTM.__dict__["from_torch"].__func__

    def replacement(cls: type[LSTM], lstm: Any, lstm_backend: Any = None) -> LSTM:
        result: LSTM = original(cls, lstm, lstm_backend)
        if not isinstance(lstm, LSTM):
            result.training = True
        return result

    return [Patch(LSTM, "from_torch", classmethod(replacement))]


@in_core("from_torch_keeps_the_training_flag", "any_program_drops_in_training_only", round=3)
def with_backend_starts_in_training() -> list[Patch]:
    """with_backend of an LSTM in evaluation mode returns one in training mode."""
    original = LSTM.with_backend

    def replacement(self: LSTM, lstm_backend: str | LSTMBackend) -> LSTM:
        new = original(self, lstm_backend)
        new.training = True  # as nn.Module.__init__ leaves it
        return new

    return [Patch(LSTM, "with_backend", replacement)]


@in_core("a_copy_keeps_the_backend_value", round=(4, 7), survived=4)
def pickled_by_name_alone() -> list[Patch]:
    """A backend with an installed one's name is pickled by that name: the copy runs the installed one."""
    return [Patch(binding, "is_registered_value", lambda backend: backend.name in names())]


@in_core("from_torch_shares_the_weights")
def from_torch_copies_the_weights() -> list[Patch]:
    """from_torch copies the parameters of the wrapped LSTM."""
    original = LSTM.from_torch.__func__  # type: ignore[attr-defined]

    def replacement(cls: type[LSTM], lstm: nn.RNNBase, lstm_backend: Any = None) -> LSTM:
        new: LSTM = original(cls, lstm, lstm_backend)
        own = {name: nn.Parameter(value.detach().clone()) for name, value in lstm.named_parameters()}
        new.__dict__["_parameters"] = own
        return new

    return [Patch(LSTM, "from_torch", classmethod(replacement))]


@in_core("hooks_stay_with_their_copy", round=6, survived=6)
def a_copy_shares_its_hooks() -> list[Patch]:
    """A copy in another mode shares the dicts of hooks: a hook registered on one runs in the other too."""

    def _copy(self: LSTMModule, **changed: Any) -> LSTMModule:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, _modules=self._modules.copy(), **changed)
        return new

    return [Patch(LSTMModule, "_copy", _copy)]


@in_core("hooks_of_the_inner_lstm_run")
def hooks_of_the_inner_lstm_are_skipped() -> list[Patch]:
    """The module calls its LSTM's forward instead of the LSTM, so its hooks do not run."""
    return [Patch(LSTM, "__call__", LSTM.forward)]


@in_core("hooks_of_the_inner_lstm_run")
def results_of_hooks_are_dropped() -> list[Patch]:
    """Forward hooks of the inner LSTM run, but their results are dropped."""

    def replacement(self: LSTM, *args: Any, **kwargs: Any) -> Any:
        result = self.forward(*args, **kwargs)
        for hook in self._forward_hooks.values():
            hook(self, args, result)
        return result

    return [Patch(LSTM, "__call__", replacement)]


@in_core("every_kind_of_hook_runs_on_the_inner_lstm", round=9, survived=9)
def only_two_kinds_of_hooks_are_checked() -> list[Patch]:
    """An LSTM without forward hooks and pre-hooks is called past all hooks: its backward hooks and global ones too."""
    original = LSTM.__call__

    def replacement(self: LSTM, *args: Any, **options: Any) -> Any:
        if self._forward_hooks or self._forward_pre_hooks:
            return original(self, *args, **options)
        return self.forward(*args, **options)

    return [Patch(LSTM, "__call__", replacement)]


@in_core("every_kind_of_hook_runs_on_the_inner_lstm")
def hooks_on_all_modules_are_skipped() -> list[Patch]:
    """An LSTM without its own hooks is called past those that are registered on all modules."""
    original = LSTM.__call__

    def replacement(self: LSTM, *args: Any, **options: Any) -> Any:
        own = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        return original(self, *args, **options) if any(own) else self.forward(*args, **options)

    return [Patch(LSTM, "__call__", replacement)]


@in_core("every_kind_of_hook_runs_on_the_inner_lstm")
def steps_skip_backward_hooks() -> list[Patch]:
    """A module in sequential mode runs only the forward hooks of its LSTM."""
    original = LSTM.__call__

    def replacement(self: LSTM, *args: Any, **options: Any) -> Any:
        if options.get("form") != "step" or self._forward_hooks or self._forward_pre_hooks:
            return original(self, *args, **options)
        return self.forward(*args, **options)

    return [Patch(LSTM, "__call__", replacement)]


@in_core("copies_keep_frozen_parameters", round=9)
def a_copy_trains_frozen_parameters() -> list[Patch]:
    """In a deep copy or an unpickled LSTM all parameters require gradients, frozen ones too."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: Any) -> None:
        original(self, state)
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(True)

    return [Patch(LSTM, "__setstate__", replacement)]


@backend("a_pickle_keeps_everything", round=10, survived=10, by_numbers=False)
def a_handle_kept_on_the_weight() -> LSTMBackend:
    """The kernel stores a handle on each parameter: after acting the module cannot be pickled."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        if type(w.w_hh) is nn.Parameter:
            w.w_hh._kernel_handle = ctypes.c_void_p(w.w_hh.data_ptr())  # type: ignore[attr-defined]
        return step(w, x, State(*(torch.where(is_init.unsqueeze(-1), 0, v) for v in state)))

    return LSTMBackend("defect", right, step=step, act=act)
