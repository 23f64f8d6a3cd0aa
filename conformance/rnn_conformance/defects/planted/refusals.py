"""Defects that the laws of ``laws/refusals.py`` kill first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from math import prod
from typing import Any
from unittest import mock

import torch
from rnn_backends import (
    LSTM,
    InputError,
    LSTMBackend,
    LSTMModule,
    LSTMSpec,
    State,
    Trait,
    binding,
    execution,
    layout,
    module,
)
from rnn_backends import lstm as core
from rnn_backends.choose import demand
from rnn_backends.transforms import traits_needed
from rnn_backends.unroll import unroll
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from ..planting import Patch, backend, in_core
from ..right import right


@in_core("vmap_that_is_not_claimed_is_refused", round=3, survived=3)
def vmap_around_grad_not_refused() -> list[Patch]:
    """A backend without Trait.VMAP is refused within vmap only if vmap is the innermost transform."""

    def replacement(tensors: Iterable[Tensor | None]) -> set[Trait]:
        needed = traits_needed(tensors)
        if Trait.VMAP in needed and retrieve_current_functorch_interpreter().key() != TransformType.Vmap:
            needed.remove(Trait.VMAP)
        return needed

    return [Patch(binding, "traits_needed", replacement)]


def _picky(answer: str) -> LSTMBackend:
    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return answer if dtype == torch.float16 else None

    return LSTMBackend("defect", right, rejects=rejects)


@backend("rejections_are_errors_at_construction", by_numbers=False)
def rejected_without_a_reason() -> LSTMBackend:
    """float16 is rejected with a blank reason."""
    return _picky(" ")


@in_core("rejections_are_errors_at_construction", on=_picky("no float16 here"))
def rejections_are_ignored() -> list[Patch]:
    """A backend is built for specs that it rejects."""
    return [Patch(core, "resolve", lambda request, *rest: request)]


@backend("rejects_is_deterministic", by_numbers=False)
def rejects_every_second_time() -> LSTMBackend:
    """rejects() accepts and rejects in turn."""
    calls = [0]

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        calls[0] += 1
        return "not now" if spec.num_layers == 2 and calls[0] % 2 else None

    return LSTMBackend("defect", right, rejects=rejects)


def _remembering(known: Callable[[LSTMSpec, torch.device, torch.dtype], Any]) -> LSTMBackend:
    """A backend that declines projections and float16, and keeps its answers, by process, for all with the same key."""
    answers: dict[Any, str | None] = {}

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        reason = "no projections" if spec.proj_size else "no float16" if dtype == torch.float16 else None
        return answers.setdefault((os.getpid(), known(spec, device, dtype)), reason)

    return LSTMBackend("defect", right, rejects=rejects)


@backend("rejects_is_deterministic", by_numbers=False)
def rejects_remembered_without_the_spec() -> LSTMBackend:
    """The answer of rejects() is kept by device and dtype, for every LSTM."""
    return _remembering(lambda spec, device, dtype: (device, dtype))


@backend("rejects_is_deterministic", by_numbers=False)
def rejects_remembered_without_the_dtype() -> LSTMBackend:
    """The answer of rejects() is kept by the LSTM's options and the device, for every dtype."""
    return _remembering(lambda spec, device, dtype: (device, spec))


@backend("rejects_is_deterministic", by_numbers=False)
def rejects_remembered_by_the_sizes() -> LSTMBackend:
    """The answer of rejects() is kept by sizes, layers and dtype, with a projection and without."""
    return _remembering(lambda spec, device, dtype: (spec.input_size, spec.hidden_size, spec.num_layers, dtype))


@in_core("a_refusal_comes_before_anything_is_done")
def a_new_dtype_is_not_checked() -> list[Patch]:
    """A module that is moved to another dtype runs there without asking its backend."""
    return [Patch(binding, "demand", lambda *args: None)]


@in_core("a_refusal_comes_before_anything_is_done", round=(3, 4, 6, 7))
def rejected_once_then_run() -> list[Patch]:
    """After a move that the backend rejects only the first call raises: the second one runs."""
    original = LSTM._ready

    def replacement(self: LSTM, weights: Any = None) -> Any:
        weight = self.weight_ih_l0
        now = (weight.device, weight.dtype)
        if now != self._placed:
            self._placed = now
            demand(self._backend, self.spec, *now)
        return original(self)

    return [Patch(LSTM, "_ready", replacement)]


def no_sixteen_bits(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """A reason to decline, for a backend that accepts everything else."""
    return "it has no 16-bit kernel" if dtype in (torch.bfloat16, torch.float16) else None


PICKY = LSTMBackend("defect", unroll, rejects=no_sixteen_bits)
"""The plain unroll, declining 16 bits: for a defect that shows only if a backend declines."""


NO_HALF = LSTMBackend(
    "defect", right, lambda spec, device, dtype: "no half precision" if dtype == torch.float16 else None
)


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def reset_masks_of_any_dtype() -> list[Patch]:
    """A reset mask of numbers or bytes is accepted and cast to bool."""
    original = layout.read

    def replacement(td: Any, keys: Any, *rest: Any) -> Any:
        mask = td.get(keys[3], None)
        given = td if mask is None else td.copy().set(keys[3], mask.bool())
        return original(given, keys, *rest)

    return [Patch(layout, "read", replacement)]


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def one_hidden_state_is_enough() -> list[Patch]:
    """h without c is accepted, and both are taken as absent."""
    original = layout.read

    def replacement(td: Any, keys: Any, *rest: Any) -> Any:
        there = [td.get(key, None) is not None for key in keys[1:3]]
        return original(td if all(there) else td.exclude(*keys[1:3]), keys, *rest)

    return [Patch(layout, "read", replacement)]


@in_core("wrong_entries_are_refused_and_nothing_is_written")
def too_many_features_are_cut() -> list[Patch]:
    """Input with too many features is accepted and cut."""
    original = layout.read

    def replacement(td: Any, keys: Any, lstm: LSTM) -> Any:
        x = td.get(keys[0], None)
        given = td if x is None else td.copy().set(keys[0], x[..., : lstm.input_size])
        return original(given, keys, lstm)

    return [Patch(layout, "read", replacement)]


@in_core("wrong_tensors_are_refused")
def hx_for_one_row_is_expanded() -> list[Patch]:
    """hx for one row is accepted and expanded to all rows."""
    original = core.check_state

    def replacement(hx: State, shape: tuple[int, ...], *rest: Any) -> None:
        if hx.h.shape[1:2] != (1,):
            original(hx, shape, *rest)

    def expanded(h0: Tensor, T: int, is_init: Any) -> Tensor:
        return entry_from_hx(h0 if is_init is None else h0.expand(is_init.shape[1], -1), T, is_init)

    entry_from_hx = execution.entry_from_hx
    return [Patch(core, "check_state", replacement), Patch(execution, "entry_from_hx", expanded)]


@in_core("wrong_tensors_are_refused")
def errors_without_numbers() -> list[Patch]:
    """Invalid input raises an error that does not name the input."""

    def replacement(*args: Any) -> None:
        try:
            original(*args)
        except InputError:
            raise InputError("bad input") from None

    original = core.check_input
    return [Patch(core, "check_input", replacement)]


@in_core("wrong_tensors_are_refused", round=(4, 6), survived=4)
def reset_mask_judged_by_its_count() -> list[Patch]:
    """An is_init with the right number of elements is accepted and reshaped, even a transposed one."""
    original = core.check_is_init

    def replacement(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if isinstance(is_init, Tensor) and is_init.numel() == prod(shape):
            is_init = is_init.reshape(shape)
        return original(is_init, shape, device)

    return [Patch(core, "check_is_init", replacement)]


@in_core("an_unknown_name_is_an_error")
def an_unknown_name_means_auto() -> list[Patch]:
    """An unknown name is taken as "auto"."""
    original = core.resolve

    def replacement(request: Any, *rest: Any) -> LSTMBackend:
        try:
            return original(request, *rest)
        except ValueError:
            return original("auto", *rest)

    return [Patch(core, "resolve", replacement)]


@in_core("loading_elsewhere_checks_the_backend")
def loading_checks_nothing() -> list[Patch]:
    """An LSTM that is loaded onto another device counts as accepted there by its backend."""
    original = LSTM.__setstate__

    def replacement(self: LSTM, state: dict[str, Any]) -> None:
        original(self, state)
        self._placed = (self.weight_ih_l0.device, self.weight_ih_l0.dtype)

    return [Patch(LSTM, "__setstate__", replacement)]


@in_core("options_that_do_not_fit_are_refused")
def any_value_is_a_hidden_output() -> list[Patch]:
    """Any hidden_output other than "all" means "ends"."""
    original = LSTMModule._check_hidden_output

    def replacement(self: LSTMModule, request: Any) -> None:
        if self.hidden_output == "all":
            original(self, request)

    return [Patch(LSTMModule, "_check_hidden_output", replacement)]


@in_core("options_that_do_not_fit_are_refused")
def keys_may_collide() -> list[Patch]:
    """Nothing checks that keys do not contain each other or that no output replaces the reset mask."""
    return [Patch(module, "check_keys", lambda read, written: None)]


@in_core("results_are_not_written_under_a_tensor")
def tensors_in_the_way_are_replaced() -> list[Patch]:
    """A tensor in the place of a result's TensorDict is replaced by a TensorDict."""
    original = layout.write

    def replacement(td: Any, values: Any) -> Any:
        for key in values:
            parent = key[:-1] if isinstance(key, tuple) else ()
            for length in range(1, len(parent) + 1):
                there = td.get(parent[:length], None)
                if isinstance(there, Tensor):
                    td.del_(parent[:length])
        return original(td, values)

    return [Patch(layout, "check_writable", lambda td, keys: None), Patch(layout, "write", replacement)]


@in_core("results_are_not_written_under_a_tensor")
def only_the_outermost_place_is_checked() -> list[Patch]:
    """Before results are written, "next" is checked to be a TensorDict, but nothing within it."""
    original = layout.check_writable

    def replacement(td: Any, keys: Any) -> None:
        original(td, [key if isinstance(key, str) else key[:2] for key in keys])

    return [Patch(layout, "check_writable", replacement)]


@in_core("wrong_weights_are_refused")
def weights_are_not_checked() -> list[Patch]:
    """The weights' shapes, dtypes and devices are not checked: torch's operators raise their own errors."""
    patches = [Patch(binding, "check_weights", lambda weights, names, shapes, casts: None)]
    return [*patches, Patch(LSTM, "_is_as_placed", lambda self, info, shapes: True)]


@in_core("wrong_weights_are_refused")
def a_step_trusts_its_weights() -> list[Patch]:
    """A step without gradients does not check the weights; a call checks their shapes and dtypes."""
    original = LSTM.step_batch_first

    def replacement(self: LSTM, *args: Any) -> Any:
        with mock.patch.object(binding, "check_weights"):
            return original(self, *args)

    return [Patch(LSTM, "step_batch_first", replacement), Patch(LSTM, "_is_as_placed", lambda self, info, shapes: True)]


def _initial_with(change: Callable[[LSTM, list[Any]], Any]) -> list[Patch]:
    """The state ``[h, c]`` of a call or a step is changed before it is checked."""
    original = LSTM._initial

    def replacement(self: LSTM, hx: Any, *rest: Any) -> Any:
        if isinstance(hx, tuple) and len(hx) == 2 and all(isinstance(value, Tensor) for value in hx):
            hx = tuple(change(self, list(hx)))
        return original(self, hx, *rest)

    return [Patch(LSTM, "_initial", replacement)]


@in_core("wrong_tensors_are_refused")
def a_state_of_another_dtype_is_cast() -> list[Patch]:
    """A state of another dtype is cast silently to that of the weights."""
    return _initial_with(lambda self, hx: [value.to(self.weight_ih_l0.dtype) for value in hx])


@in_core("wrong_tensors_are_refused")
def the_dtype_of_c_is_not_checked() -> list[Patch]:
    """A cell state of another dtype is cast to that of h."""
    return _initial_with(lambda self, hx: [hx[0], hx[1].to(hx[0].dtype)])


@in_core("wrong_tensors_are_refused")
def one_row_of_c_is_broadcast() -> list[Patch]:
    """A cell state of one row is used for all rows of h."""
    return _initial_with(lambda self, hx: [hx[0], hx[1].expand(*hx[0].shape[:-1], -1) if hx[1].ndim > 2 else hx[1]])


@in_core("wrong_tensors_are_refused")
def the_state_of_a_step_is_cast() -> list[Patch]:
    """A step casts a state of another dtype silently to that of the weights."""
    original = LSTM._check_step

    def replacement(self: LSTM, x: Tensor, state: Any, *rest: Any) -> Any:
        state = None if state is None else State(*(value.to(self.weight_ih_l0.dtype) for value in state))
        return original(self, x, state, *rest)

    return [Patch(LSTM, "_check_step", replacement)]
