"""Defects that the laws of ``laws/tensors.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTM, LayerWeights, LSTMBackend, State, binding, checks, execution, layout
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..planting import Patch, backend, in_core, in_layer
from ..right import both, each, right, step

_EXACT = (Tensor, nn.Parameter)


def _without_memory(value: Tensor) -> bool:
    return type(value) not in _EXACT and type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _alone(starts: Tensor) -> Tensor:
    """Starts of rows without resets."""
    return torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])


@in_layer("tensor_subclasses", by_numbers=False)
def a_wrapper_is_read_as_zeros(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A wrapper subclass, which has no memory, is read as zeros."""
    return right(w, torch.zeros(x.shape, dtype=x.dtype) if _without_memory(x) else x, entry, starts)


@in_layer("tensor_subclasses", by_numbers=False)
def resets_in_a_subclass_are_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Resets that are not a plain tensor are ignored."""
    return right(w, x, entry, starts if type(starts) in _EXACT else _alone(starts))


@in_layer("tensor_subclasses", by_numbers=False)
def only_plain_weights_are_accepted(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights of a tensor subclass raise a KeyError."""
    _ = {Tensor: 0, nn.Parameter: 1}[type(w.w_ih)]
    return right(w, x, entry, starts)


@in_layer("torch_modes", by_numbers=False)
def no_recurrent_bias_while_a_mode_watches(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The path through the dispatcher, used under a torch mode, ignores one bias."""
    if _get_current_dispatch_mode() is not None and w.b_hh is not None:
        w = w._replace(b_hh=torch.zeros_like(w.b_hh))
    return right(w, x, entry, starts)


@backend("torch_modes", by_numbers=False)
def inference_steps_never_reset() -> LSTMBackend:
    """In inference mode a step ignores resets."""

    def act(w: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        if not torch.is_inference_mode_enabled():
            state = both(lambda v: torch.where(is_init.unsqueeze(-1), 0, v), state)
        return step(w, x, state)

    return LSTMBackend("defect", right, step=step, act=act)


@in_layer("torch_modes", by_numbers=False)
def functionalized_inputs_are_snapshots(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Under functionalization the row starts from zeros instead of its initial state."""
    if torch._is_functional_tensor(x):
        entry = both(torch.zeros_like, entry)
    return right(w, x, entry, starts)


@in_layer("fake_and_meta_tensors", by_numbers=False)
def fake_tensors_give_unwritten_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A fake tensor gives a real tensor of unwritten memory."""
    if not isinstance(x, FakeTensor):
        return right(w, x, entry, starts)
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    T, B, H = len(x), x.shape[1], w.w_hh.shape[0] // 4
    with unset_fake_temporarily():
        return State(torch.empty(T, B, w.w_hh.shape[1]), torch.empty(T, B, H))


@in_layer("fake_and_meta_tensors", by_numbers=False)
def meta_states_have_double_precision(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """For fake tensors the cell states have another dtype than the kernel's."""
    out = right(w, x, entry, starts)
    return State(out.h, out.c.double()) if x.is_meta else out


@in_layer("fake_and_meta_tensors", by_numbers=False)
def shapes_without_a_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Results of fake tensors have no graph, so a model's gradients have no shapes."""
    return right(*((each(Tensor.detach, w), x) if isinstance(x, FakeTensor) else (w, x)), entry, starts)


def _memory_as_it_is(value: Tensor) -> Tensor:
    """The tensor's memory, without the negation of its negative bit."""
    return torch._neg_view(value) if value.is_neg() else value


@in_layer("lazy_tensors", by_numbers=False)
def the_negative_bit_is_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Inputs are read from memory without regard to the negative bit."""
    return right(w, _memory_as_it_is(x), entry, starts)


@in_layer("lazy_tensors", by_numbers=False)
def the_negative_bit_of_weights_is_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Weights are read from memory without regard to the negative bit."""
    return right(each(_memory_as_it_is, w), x, entry, starts)


@in_layer("lazy_tensors", by_numbers=False)
def zero_tensors_read_other_memory(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A zero tensor, which has no memory, is read from arbitrary memory."""
    return right(w, torch.full(x.shape, 0.5, dtype=x.dtype) if torch._is_zerotensor(x) else x, entry, starts)


def _grown(values: Any) -> None:
    for _, value in values:
        if type(value) in _EXACT and value.untyped_storage().nbytes() < value.nbytes:
            value.untyped_storage().resize_(value.nbytes)
            value.detach().zero_()


@in_core("freed_memory")
def freed_inputs_get_new_memory() -> list[Patch]:
    """Freed inputs silently get new memory with zeros."""
    return [Patch(execution, "check_memory", _grown), Patch(layout, "check_memory", _grown)]


@in_core("freed_memory")
def freed_weights_count_as_zeros() -> list[Patch]:
    """A freed weight counts as zeros."""
    return [Patch(binding, "check_memory", _grown)]


@in_core("other_layouts_are_right_or_refused")
def layouts_are_not_checked() -> list[Patch]:
    """An input's layout is not checked: torch's operators raise their own errors."""
    return [Patch(checks, "check_dense", lambda name, x: None)]


@in_core("other_layouts_are_right_or_refused")
def sparse_weights_lose_their_small_numbers() -> list[Patch]:
    """Sparse weights are made dense without their small values."""

    def change(value: Tensor) -> Tensor:
        if value.layout is torch.strided:
            return value
        dense = value.to_dense()
        return torch.where(dense.abs() < 0.1, 0, dense)

    original = binding.check_weights

    def check_weights(weights: list[LayerWeights], *rest: Any) -> None:
        weights[:] = [each(change, w) for w in weights]
        original(weights, *rest)

    return [Patch(binding, "check_weights", check_weights)]


@in_core("fake_and_meta_tensors", round=9)
def a_mask_without_resets_becomes_none() -> list[Patch]:
    """A mask without a reset counts as no mask, which a tracer records as a constant."""
    original = LSTM._over_time

    def replacement(self: LSTM, x: Tensor, state: State | None, is_init: Tensor | None) -> Any:
        return original(self, x, state, None if is_init is None or not is_init.any() else is_init)

    return [Patch(LSTM, "_over_time", replacement)]


@in_core("nested_tensors_are_right_or_refused")
def nested_rows_are_reversed() -> list[Patch]:
    """The rows of a nested input of one step are made dense in the wrong order."""
    original = LSTM.step

    def replacement(self: LSTM, x: Tensor, *more: Any) -> Any:
        return original(self, x.to_padded_tensor(0.0).flip(0) if x.is_nested else x, *more)

    return [Patch(LSTM, "step", replacement)]


@in_core("nested_tensors_are_right_or_refused")
def nested_rows_are_padded_and_run_to_the_end() -> list[Patch]:
    """Rows of several lengths are padded with zeros, and the state after the padding is returned."""
    original = LSTM.forward

    def replacement(self: LSTM, input: Tensor, hx: Any = None, **options: Any) -> Any:
        if not input.is_nested or options.get("form", "row") != "row":
            return original(self, input, hx, **options)
        output, state = original(self, input.to_padded_tensor(0.0), hx, **options)
        return torch.nested.nested_tensor(list(output), layout=input.layout), state

    return [Patch(LSTM, "forward", replacement)]
