"""Defects that the laws of ``laws/nesting.py`` kill first."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait
from torch import Tensor

from ..planting import backend
from ..right import both, each, right, step
from .transforms import _SharedGradient

_VMAP = frozenset({Trait.VMAP})


def _batched(value: Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(value)


@backend("gradients_outside_of_vmap", by_numbers=False)
def requires_grad_is_read_within_vmap() -> LSTMBackend:
    """Within torch.vmap no tensor has requires_grad, so nothing is saved for the backward pass."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        read = [x, *entry, *(v for v in w if v is not None)]
        keep = any(v.requires_grad for v in read)
        if any(map(_batched, read)) and not keep:
            w, x = each(Tensor.detach, w), x.detach()
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run, traits=_VMAP)


@backend("gradients_outside_of_vmap", by_numbers=False)
def recurrent_weights_are_constants_within_vmap() -> LSTMBackend:
    """The batching rule passes the recurrent weights without their gradient, if a backward pass is outside."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w._replace(w_hh=w.w_hh.detach()) if _batched(w.w_hh) else w, x, entry, starts)

    return LSTMBackend("defect", run, traits=_VMAP)


@backend("gradients_within_vmap", by_numbers=False)
def a_vmapped_step_shares_its_gradient() -> LSTMBackend:
    """Under vmap of grad a step gives all samples the first one's gradient of the recurrent weights."""

    def shared(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w._replace(w_hh=_SharedGradient.apply(w.w_hh)), x, state)

    return LSTMBackend("defect", right, traits=_VMAP, step=shared)


@backend("gradients_within_vmap", by_numbers=False)
def gradients_under_func_do_not_go_back_in_time() -> LSTMBackend:
    """Under torch.func.grad a step's incoming state is a constant."""

    def cut(w: LayerWeights, x: Tensor, state: State) -> State:
        tracked = torch._C._functorch.is_gradtrackingtensor(state.h)
        return step(w, x, State(state.h.detach(), state.c) if tracked else state)

    return LSTMBackend("defect", right, traits=_VMAP, step=cut)


class _Halved(torch.autograd.Function):
    """The identity, with a gradient that is halved in a batched backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] / 2 if _batched(grads[0]) else grads[0]


@backend("many_cotangents_at_once", by_numbers=False)
def a_batched_gradient_of_the_input_is_halved() -> LSTMBackend:
    """In a batched backward pass the gradient of the input is halved."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, _Halved.apply(x), entry, starts)

    return LSTMBackend("defect", run, traits=_VMAP, step=lambda w, x, state: step(w, _Halved.apply(x), state))


@backend("many_cotangents_at_once", by_numbers=False)
def every_cotangent_is_the_first() -> LSTMBackend:
    """In a batched backward pass all cotangents get the first one's gradient."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return both(_SharedGradient.apply, right(w, x, entry, starts))

    return LSTMBackend("defect", run, traits=_VMAP)
