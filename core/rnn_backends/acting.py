"""One step: of a hand-written layer, without torch's dispatcher where possible, or of torch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _torch
from .autograd_rule import wants_gradient
from .contract import ActFunction, ActStackFunction, LayerFunction, LayerWeights, State, StepFunction
from .plain import check_kinds, check_memory, have_memory, is_plain, is_plain_eager, plain_keys
from .resets import zero_at
from .unroll import cell, unroll_step
from .weight_cache import WeightInfo, check_call, reset, weight_info

StepOnMemory = Callable[[WeightInfo, LayerWeights, Tensor, State, Tensor | None], State | None]
"""``step(info, weights, x [B, I], State([B, P], [B, H]), is_init [B] bool or None) -> State``, over memory, without a
gradient; ``None`` if it does not support these tensors. It has to check sizes and dtypes itself."""


StackOnMemory = Callable[
    [list[WeightInfo], list[LayerWeights], Tensor, State, Tensor | None], tuple[Tensor, State] | None
]
"""The same for all layers: ``stack(infos, weights, x [B, I], State([B, L, P], [B, L, H]), is_init [B] bool or None)``
-> ``(output [B, P], State)``."""


def torch_step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step made of torch's own operators, which a compiler can trace: a :data:`rnn_backends.StepFunction`."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    # lstm_cell supports neither torch.vmap nor zero tensors; compiled, both ways are the same code
    lstm_cell = None if w_hr is not None or torch.compiler.is_compiling() else _torch.lstm_cell
    if lstm_cell is not None and is_plain((x, *state, *weights), (x.device.type,)):
        return State(*lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh))
    return cell(linear(x, w_ih, b_ih) + linear(state.h, w_hh, b_hh), state.c, w_hr)


def make_steps(
    name: str, layer: LayerFunction, on_memory: StepOnMemory, devices: tuple[str, ...]
) -> tuple[StepFunction, ActFunction]:
    """A backend's two functions for acting, from its layer and a step over memory.

    Args:
        name: the backend's name.
        layer: serves all other calls: tracers, transforms, gradients, other kinds of tensors.
        on_memory: called for plain tensors on one of ``devices``, the weights' device, if no gradient is needed.
        devices: the device types that ``on_memory`` reads.

    Returns:
        ``step`` and ``act`` of :class:`rnn_backends.LSTMBackend`.
    """

    def past_the_dispatcher(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor | None) -> State | None:
        if not _may_read((x, *state, is_init), [weights], devices):
            return None
        info = weight_info(weights)
        if info is None or info.device != x.device:
            return None
        return on_memory(info, weights, x, state, is_init)

    def step(weights: LayerWeights, x: Tensor, state: State) -> State:
        """One step: a :data:`rnn_backends.StepFunction`."""
        done = past_the_dispatcher(weights, x, state, None)
        if done is not None:
            return done
        if torch.compiler.is_compiling():
            return torch_step(weights, x, state)
        check_kinds(name, (x, *state))
        starts = x.new_ones(1, x.shape[0], dtype=torch.bool)
        out = layer(weights, x.unsqueeze(0), State(state.h.unsqueeze(0), state.c.unsqueeze(0)), starts)
        return State(out.h.squeeze(0), out.c.squeeze(0))

    def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        """One step with resets: a :data:`rnn_backends.ActFunction`."""
        done = past_the_dispatcher(weights, x, state, is_init)
        if done is not None:
            return done
        check_memory((("input", x), ("is_init", is_init), ("the hidden state", state.h), ("the cell state", state.c)))
        return step(weights, x, zero_at(state, is_init))

    return step, act


def make_unrolled_steps(name: str) -> tuple[StepFunction, ActFunction]:
    """The two functions for acting of a backend of torch's own operators: one step of the plain unroll.

    Args:
        name: the backend's name.

    Returns:
        ``step`` and ``act`` of :class:`rnn_backends.LSTMBackend`.
    """

    def step(weights: LayerWeights, x: Tensor, state: State) -> State:
        """One step: a :data:`rnn_backends.StepFunction`."""
        check_call(name, weights, x, state)
        return unroll_step(weights, x, state)

    def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
        """One step with resets: a :data:`rnn_backends.ActFunction`."""
        usual = check_call(name, weights, x, state, is_init)
        return unroll_step(weights, x, reset(state, is_init, usual))

    return step, act


def make_act_stack(on_memory: StackOnMemory, devices: tuple[str, ...]) -> ActStackFunction:
    """A backend's :data:`rnn_backends.ActStackFunction`, from a step of all layers over memory.

    Args:
        on_memory: called as that of :func:`make_steps` is.
        devices: the device types that ``on_memory`` reads.
    """

    def act_stack(
        weights: list[LayerWeights], x: Tensor, state: State, is_init: Tensor | None
    ) -> tuple[Tensor, State] | None:
        if not _may_read((x, *state, is_init), weights, devices):
            return None
        infos = [weight_info(w) for w in weights]
        known = [info for info in infos if info is not None and info.device == x.device]
        return on_memory(known, weights, x, state, is_init) if len(known) == len(weights) else None

    return act_stack


def _may_read(values: Sequence[Tensor | None], weights: Sequence[LayerWeights], devices: tuple[str, ...]) -> bool:
    """Whether the memory of ``values`` may be read without torch's dispatcher, and no gradient is needed."""
    if not is_plain_eager() or not have_memory(values, plain_keys(*devices)):
        return False
    return not (torch.is_grad_enabled() and wants_gradient([*values, *(v for layer in weights for v in layer)]))
