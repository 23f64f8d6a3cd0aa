"""A module is copied, pickled, moved, trained, and something is left behind; or it should refuse, and does not."""

from __future__ import annotations

from typing import Any

import rnn_backends.lstm as core
import torch
from rnn_backends import LSTM, InputError, LayerWeights, LSTMBackend, LSTMModule, LSTMSpec, State, get_backend, layout
from torch import Tensor, nn

from ..planting import Patch, backend, in_core
from ..right import each, right


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_backend() -> list[Patch]:
    """A pickled LSTM comes back on the backend that auto chooses."""
    original = LSTM.__setstate__

    def wrong(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"_backend": get_backend("vmap")})

    return [Patch(LSTM, "__setstate__", wrong)]


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_training_flag() -> list[Patch]:
    """A pickled LSTM comes back in training."""
    original = LSTM.__setstate__

    def wrong(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"training": True})

    return [Patch(LSTM, "__setstate__", wrong)]


@in_core("a_pickle_keeps_everything")
def a_pickle_forgets_the_dropout() -> list[Patch]:
    """A pickled LSTM comes back without dropout."""
    original = LSTM.__setstate__

    def wrong(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state | {"dropout": 0.0})

    return [Patch(LSTM, "__setstate__", wrong)]


@in_core("a_deepcopy_keeps_backend_and_shares_nothing")
def a_deepcopy_changes_the_backend() -> list[Patch]:
    """A deepcopy has a copy of the backend, which is another one."""
    wrong = lambda self, memo: LSTMBackend(self.name, self.layer)  # noqa: E731
    return [Patch(LSTMBackend, "__deepcopy__", wrong)]


def _ready(change: Any) -> list[Patch]:
    original, kept = LSTM._ready, dict[int, tuple[LSTM, Any]]()

    def wrong(self: LSTM) -> Any:
        return change(kept, self, original(self))

    return [Patch(LSTM, "_ready", wrong)]


@in_core("moved_to_another_dtype_and_back")
def packed_weights_stay_when_moved() -> list[Patch]:
    """Weights that were packed once are cast from their first dtype, and an edit by rounding is not seen."""

    def wrong(kept: Any, self: LSTM, found: Any) -> Any:
        weights, dtype, context = found
        first = kept.setdefault(id(self), (self, [each(torch.clone, w) for w in weights]))[1]
        return [each(lambda v: v.to(dtype), w) for w in first], dtype, context

    return _ready(wrong)


@in_core("moved_to_another_dtype_and_back")
def computes_on_in_the_first_dtype() -> list[Patch]:
    """After .float() the module goes on computing, and answering, in float64."""

    def wrong(kept: Any, self: LSTM, found: Any) -> Any:
        weights, dtype, context = found
        first = kept.setdefault(id(self), (self, dtype))[1]
        return [each(lambda v: v.to(first), w) for w in weights], first, context

    return _ready(wrong)


@in_core("functional_call_uses_the_weights_it_is_given")
def functional_call_sees_the_modules_weights() -> list[Patch]:
    """The weights are held where functional_call does not put its own."""
    original, kept = LSTM.layer_weights, dict[int, tuple[LSTM, list[LayerWeights]]]()

    def wrong(self: LSTM) -> list[LayerWeights]:
        return kept.setdefault(id(self), (self, original(self)))[1]

    return [Patch(LSTM, "layer_weights", wrong)]


@in_core("a_training_step_counts")
def weights_renewed_every_second_step() -> list[Patch]:
    """Weights are packed anew only after two changes of their version."""
    original, kept = LSTM.layer_weights, dict[Any, tuple[LSTM, list[LayerWeights]]]()

    def wrong(self: LSTM) -> list[LayerWeights]:
        weights = original(self)
        key = (id(self), weights[0].w_ih._version // 4)
        old = kept.setdefault(key, (self, [each(lambda v: v.detach().clone(), w) for w in weights]))[1]
        return [each(lambda v: v, LayerWeights(*map(_held, w, o))) for w, o in zip(weights, old, strict=True)]

    return [Patch(LSTM, "layer_weights", wrong)]


def _held(now: Any, old: Any) -> Any:
    """The old value with the gradient of the new."""
    return None if now is None else now + (old - now).detach()


@in_core("parameters_are_torchs_and_nothing_else")
def a_packed_buffer_is_registered() -> list[Patch]:
    """A flat copy of the weights is registered as a buffer."""
    original = LSTM._bind

    def wrong(self: LSTM, chosen: LSTMBackend) -> None:
        original(self, chosen)
        self.register_buffer("flat", torch.zeros(1), persistent=False)

    return [Patch(LSTM, "_bind", wrong)]


@in_core("parameters_are_torchs_and_nothing_else")
def a_parameter_registered_twice() -> list[Patch]:
    """The first weights are registered under a second name too."""
    original = LSTM._bind

    def wrong(self: LSTM, chosen: LSTMBackend) -> None:
        original(self, chosen)
        self.register_parameter("kernel", self._parameters["weight_ih_l0"])

    return [Patch(LSTM, "_bind", wrong)]


@in_core("copies_in_another_mode_share_the_weights")
def a_copy_in_another_mode_has_its_own_lstm() -> list[Patch]:
    """set_recurrent_mode gives a copy with an LSTM of its own over the same parameters."""
    original = LSTMModule._copy

    def wrong(self: LSTMModule, **changed: Any) -> LSTMModule:
        new = original(self, **changed)
        new.lstm = self.lstm.with_backend(self.lstm.backend)
        return new

    return [Patch(LSTMModule, "_copy", wrong)]


@in_core("from_torch_shares_the_weights")
def from_torch_copies_the_weights() -> list[Patch]:
    """An LSTM that is wrapped is copied."""
    original = LSTM.from_torch.__func__  # type: ignore[attr-defined]

    def wrong(cls: type[LSTM], lstm: nn.RNNBase, lstm_backend: Any = None) -> LSTM:
        new: LSTM = original(cls, lstm, lstm_backend)
        own = {name: nn.Parameter(value.detach().clone()) for name, value in lstm.named_parameters()}
        new.__dict__["_parameters"] = own
        return new

    return [Patch(LSTM, "from_torch", classmethod(wrong))]


def _picky(answer: str) -> LSTMBackend:
    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return answer if dtype == torch.float16 else None

    return LSTMBackend("defect", right, rejects=rejects)


@backend("what_is_rejected_is_refused_at_construction", by_numbers=False)
def rejected_without_words() -> LSTMBackend:
    """float16 is rejected, and the reason is blank."""
    return _picky(" ")


@in_core("what_is_rejected_is_refused_at_construction", on=_picky("no float16 here"))
def rejections_are_not_asked_for() -> list[Patch]:
    """What a backend rejects is built all the same."""
    return [Patch(core, "resolve", lambda request, *rest: request)]


@backend("rejects_has_no_moods", by_numbers=False)
def rejects_every_second_time() -> LSTMBackend:
    """rejects() says yes and no in turn."""
    calls = [0]

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        calls[0] += 1
        return "not now" if spec.num_layers == 2 and calls[0] % 2 else None

    return LSTMBackend("defect", right, rejects=rejects)


@in_core("a_refusal_comes_before_anything_is_done")
def a_new_dtype_is_not_asked_about() -> list[Patch]:
    """A module that is moved to another dtype computes there without asking its backend."""
    return [Patch(core, "demand", lambda *args: None)]


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def reset_masks_of_any_dtype() -> list[Patch]:
    """A reset mask of numbers or bytes is taken, and cast."""
    original = layout.read

    def wrong(td: Any, keys: Any, *rest: Any) -> Any:
        mask = td.get(keys[3], None)
        given = td if mask is None else td.copy().set(keys[3], mask.bool())
        return original(given, keys, *rest)

    return [Patch(layout, "read", wrong)]


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def one_hidden_state_is_enough() -> list[Patch]:
    """h without c is taken, and both are read as absent."""
    original = layout.read

    def wrong(td: Any, keys: Any, *rest: Any) -> Any:
        there = [td.get(key, None) is not None for key in keys[1:3]]
        return original(td if all(there) else td.exclude(*keys[1:3]), keys, *rest)

    return [Patch(layout, "read", wrong)]


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def too_many_features_are_cut() -> list[Patch]:
    """An input with too many features is cut to the right number."""
    original = layout.read

    def wrong(td: Any, keys: Any, lstm: LSTM) -> Any:
        x = td.get(keys[0], None)
        given = td if x is None else td.copy().set(keys[0], x[..., : lstm.input_size])
        return original(given, keys, lstm)

    return [Patch(layout, "read", wrong)]


@in_core("wrong_tensors_are_refused")
def hx_for_one_row_is_expanded() -> list[Patch]:
    """A state for one row is taken for all of them."""
    original = core.check_state

    def wrong(hx: State, shape: tuple[int, ...], *rest: Any) -> None:
        if hx.h.shape[1:2] != (1,):
            original(hx, shape, *rest)

    def expanded(h0: Tensor, T: int, is_init: Any) -> Tensor:
        return entry_from_hx(h0 if is_init is None else h0.expand(is_init.shape[1], -1), T, is_init)

    entry_from_hx = core.entry_from_hx
    return [Patch(core, "check_state", wrong), Patch(core, "entry_from_hx", expanded)]


@in_core("wrong_tensors_are_refused")
def errors_without_numbers() -> list[Patch]:
    """A wrong input is refused without a word on what came."""

    def wrong(*args: Any) -> None:
        try:
            original(*args)
        except InputError:
            raise InputError("bad input") from None

    original = core.check_input
    return [Patch(core, "check_input", wrong)]


@in_core("an_unknown_name_is_an_error")
def an_unknown_name_means_auto() -> list[Patch]:
    """An unknown name is taken as auto."""
    original = core.resolve

    def wrong(request: Any, *rest: Any) -> LSTMBackend:
        try:
            return original(request, *rest)
        except ValueError:
            return original("auto", *rest)

    return [Patch(core, "resolve", wrong)]


@in_core("loaded_elsewhere_it_is_asked_again")
def loading_asks_nobody() -> list[Patch]:
    """Loaded onto another device, an LSTM takes where it is now for where its backend accepted it."""
    original = LSTM.__setstate__

    def wrong(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state)
        self._placed = (self.weight_ih_l0.device, self.weight_ih_l0.dtype)

    return [Patch(LSTM, "__setstate__", wrong)]
