"""Defects that the laws of ``laws/transforms.py`` kill first.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

from typing import Any

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait
from rnn_backends.unroll import cell, unroll
from torch import Tensor
from torch.nn.functional import linear

from ..planting import backend, in_layer
from ..right import both, right


def _claims(layer: Any, *traits: Trait) -> LSTMBackend:
    return LSTMBackend("defect", layer, traits=frozenset(traits))


class _Identity(torch.autograd.Function):
    """The base of identities with one wrong derivative, or a wrong batching rule."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


class _Sample0(_Identity):
    """The identity, whose batching rule gives every sample the first one's value."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, value: Tensor) -> Any:
        first = value.select(in_dims[0], 0)
        return first.expand(info.batch_size, *first.shape).clone(), 0


def _sample0(value: Tensor) -> Tensor:
    result: Tensor = _Sample0.apply(value)
    return result


@backend("vmap_over_weights", "vmap_over_weights_and_data")
def vmap_takes_the_first_weights() -> LSTMBackend:
    """Under vmap every member gets the first one's weights."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w._replace(w_hh=_sample0(w.w_hh)), x, entry, starts)

    return _claims(run, Trait.VMAP)


@backend("vmap_over_data", "vmap_of_gradients")
def vmap_takes_the_first_input() -> LSTMBackend:
    """Under vmap every sample gets the first one's input."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, _sample0(x), entry, starts)

    return _claims(run, Trait.VMAP)


class _SharedGradient(_Identity):
    """The identity, whose gradient under vmap is the first sample's."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _sample0(grads[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, value: Tensor) -> Any:
        return _SharedGradient.apply(value), in_dims[0]


@backend("vmap_of_gradients")
def vmap_of_one_gradient() -> LSTMBackend:
    """Under vmap of grad every sample gets the first one's gradient of the input weights."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w._replace(w_ih=_SharedGradient.apply(w.w_ih)), x, entry, starts)

    return _claims(run, Trait.VMAP)


@backend("functional_gradients_are_right")
def functional_gradient_without_the_recurrent_weights() -> LSTMBackend:
    """Under torch.func.grad the recurrent weights are constants: their gradient is zero."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        tracked = torch._C._functorch.is_gradtrackingtensor(w.w_hh)
        return right(w._replace(w_hh=w.w_hh.detach()) if tracked else w, x, entry, starts)

    return _claims(run)


class _Once(torch.autograd.Function):
    """The identity, whose gradient has none itself."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].detach()


@backend("double_backward")
def double_backward_partial() -> LSTMBackend:
    """DOUBLE_BACKWARD is claimed, but the second gradient silently misses the path through the input."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, _Once.apply(x), entry, starts)

    return _claims(run, Trait.DOUBLE_BACKWARD)


@backend("double_backward")
def double_backward_unclaimed_and_partial() -> LSTMBackend:
    """DOUBLE_BACKWARD is not claimed, and the second gradient silently misses a part instead of raising an error."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        result = right(w, x, entry, starts)
        return both(_Once.apply, result)

    return _claims(run)


class _NoTangent(_Identity):
    """The identity, with a tangent of zero."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return torch.zeros_like(tangents[0])


@backend("forward_mode")
def no_tangent_of_the_recurrent_weights() -> LSTMBackend:
    """Forward-mode AD misses the recurrent weights."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w._replace(w_hh=_NoTangent.apply(w.w_hh)), x, entry, starts)

    return _claims(run, Trait.FORWARD_AD)


@backend("forward_mode")
def no_tangent_of_the_input() -> LSTMBackend:
    """Forward-mode AD misses the input."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, _NoTangent.apply(x), entry, starts)

    return _claims(run, Trait.FORWARD_AD)


def _scripted(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The wrong layer, for TorchScript; run as Python it takes another path, which is right."""
    if not torch.jit.is_scripting():
        return unroll(weights, x, entry, starts)
    h, c = entry.h[0], entry.c[0]
    hs: list[Tensor] = []
    cs: list[Tensor] = []
    for t in range(x.shape[0]):
        gates = linear(x[t], weights.w_ih, weights.b_ih) + linear(h, weights.w_hh, weights.b_hh)
        h, c = cell(gates, c, weights.w_hr)
        hs.append(h)
        cs.append(c)
    return State(torch.stack(hs), torch.stack(cs))


@backend("scripted_saved_and_loaded")
def scripted_without_resets() -> LSTMBackend:
    """A scripted layer ignores resets."""
    return _claims(_scripted, Trait.SCRIPT)


def _when_traced(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    if torch.compiler.is_compiling():
        starts = torch.cat([starts[:1], torch.zeros_like(starts[1:])])
    return right(w, x, entry, starts)


@backend("compiled_in_one_graph")
def compiled_without_resets() -> LSTMBackend:
    """Compiled code ignores resets."""
    return _claims(_when_traced, Trait.FULLGRAPH)


@backend("compiled_in_one_graph", "inductor_in_one_graph")
def compiled_without_the_recurrent_gradient() -> LSTMBackend:
    """In compiled code the recurrent weights get no gradient."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w._replace(w_hh=w.w_hh.detach()) if torch.compiler.is_compiling() else w, x, entry, starts)

    return _claims(run, Trait.FULLGRAPH)


@backend("exported")
def exported_without_resets() -> LSTMBackend:
    """An exported program ignores resets."""
    return _claims(_when_traced, Trait.EXPORT)


@in_layer("forward_mode", round=9, survived=9, traits=frozenset({Trait.FORWARD_AD}), by_numbers=False)
def the_tangent_of_c_dropped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In forward mode the tangent of the incoming cell state is dropped."""
    return right(w, x, State(entry.h, _NoTangent.apply(entry.c)), starts)


@in_layer("forward_mode", traits=frozenset({Trait.FORWARD_AD}), by_numbers=False)
def the_tangent_of_h_dropped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In forward mode the tangent of the incoming hidden state is dropped."""
    return right(w, x, State(_NoTangent.apply(entry.h), entry.c), starts)


@in_layer("forward_mode", traits=frozenset({Trait.FORWARD_AD}), by_numbers=False)
def the_last_cell_has_no_tangent(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In forward mode the returned cell state has no tangent, but the output has one."""
    h, c = right(w, x, entry, starts)
    return State(h, _NoTangent.apply(c))


class _Folded(torch.autograd.Function):
    """The right layer; ``torch.vmap`` over data folds the new dimension into the batch."""

    @staticmethod
    def forward(*read: Any) -> Any:
        h, c = right(LayerWeights(*read[4:]), read[0], State(*read[1:3]), read[3])
        return h, c

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *read: Any) -> Any:
        N = info.batch_size
        if any(dim is not None for dim in in_dims[4:]):
            raise NotImplementedError("this rule is for data alone")
        data = (
            v.repeat_interleave(N, 1) if dim is None else v.movedim(dim, 1).flatten(1, 2)
            for v, dim in zip(read[:4], in_dims[:4], strict=True)
        )  # fmt: skip
        found = _Folded.apply(*data, *read[4:])
        return tuple(v.unflatten(1, (N, -1)) for v in found), (1, 1)


@backend("vmap_over_data", round=10)
def vmap_folds_shared_rows_in_another_order() -> LSTMBackend:
    """torch.vmap makes one batch of samples and rows, sample by sample, but repeats shared tensors row by row."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not torch._C._functorch.is_batchedtensor(x):
            return right(w, x, entry, starts)
        return State(*_Folded.apply(x, *entry, starts, *w))

    return LSTMBackend("defect", run, traits=frozenset({Trait.VMAP}))
