"""What is claimed, declined and refused is not what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, Trait, UnsupportedError
from torch import Tensor, nn

from ..planting import backend
from ..right import both, right


@backend("output_equals_reference")
def accepts_and_then_declines() -> LSTMBackend:
    """Accepted at construction, several layers are declined when called."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if x.shape[1] > 1:
            raise UnsupportedError("defect", "more than one row", "its kernel has one", [])
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@backend("projection")
def accepts_and_ignores_the_projection() -> LSTMBackend:
    """A projection is accepted, and h is cut to its size."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if w.w_hr is None:
            return right(w, x, entry, starts)
        P, H = w.w_hr.shape
        eye = torch.eye(P, H, dtype=x.dtype, device=x.device) + 0 * w.w_hr
        return right(w._replace(w_hr=eye), x, entry, starts)

    return LSTMBackend("defect", run)


@backend("no_bias")
def accepts_and_invents_a_bias() -> LSTMBackend:
    """Without bias the input's mean takes its place."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, x if w.b_ih is not None else x + 0.01, entry, starts)

    return LSTMBackend("defect", run)


def _stacked(change: Callable[[Tensor], Tensor]) -> LSTMBackend:
    """A backend that runs all layers at once by torch.nn.LSTM, its states changed on the way in."""

    def stack(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
        flat = [v for layer in w for v in layer if v is not None]
        lstm = nn.LSTM(*astuple(spec)[:4], False, 0.0, spec.bidirectional, spec.proj_size, dtype=x.dtype)
        named = dict(zip((name for name, _ in lstm.named_parameters()), flat, strict=True))
        output, (h, c) = torch.func.functional_call(lstm, named, (x, tuple(change(v) for v in state)))
        return output, State(h, c)

    return LSTMBackend("defect", right, stack=stack)


@backend("without_resets_is_init_may_be_left_out", "state_dict_is_torchs")
def all_layers_at_once_from_zeros() -> LSTMBackend:
    """The function for all layers at once starts from zeros and not from hx."""
    return _stacked(torch.zeros_like)


@backend("without_resets_is_init_may_be_left_out")
def all_layers_at_once_in_another_row_order() -> LSTMBackend:
    """The function for all layers at once takes the layers' initial states in reverse."""
    return _stacked(lambda v: v.flip(0) if len(v) > 1 else -v)


@backend("output_equals_reference", by_numbers=False)
def output_of_the_wrong_shape() -> LSTMBackend:
    """The output has its batch and its units the wrong way round."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return both(lambda v: v.transpose(1, 2), right(w, x, entry, starts))

    return LSTMBackend("defect", run, traits=frozenset({Trait.CELL_STATES}))
