"""Defects that the laws of ``laws/dropout.py`` kill first."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from rnn_backends import LSTM, LayerWeights, State, binding, execution
from rnn_backends.resets import ends_of, first_steps, mirrored, take_steps, zero_at
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from ..planting import Patch, in_core, in_layer
from ..right import both, right
from ..right_stack import Stack, stacked


@in_core("dropout_is_torchs_between_layers")
def dropout_not_scaled() -> list[Patch]:
    """Values that dropout keeps are not scaled by 1 / (1 - p)."""
    return stacked(Stack(between=lambda out, p: drop(out.h, p, True) * (1 - p) if p else out.h))


@in_core("dropout_is_torchs_between_layers")
def dropout_keeps_with_probability_p() -> list[Patch]:
    """Dropout keeps a value with probability p."""
    return stacked(Stack(between=lambda out, p: drop(out.h, 0.9 * (1 - p), True) if p else out.h))


@in_core("dropout_is_torchs_between_layers", round=4)
def directions_have_separate_masks() -> list[Patch]:
    """Between bidirectional layers dropout draws one mask for each direction instead of one for both."""

    def wrong_layers_with(ahead: Any, back: Any) -> Any:
        def run_layers(
            weights: list[LayerWeights],
            x: Tensor,
            entry: list[State],
            starts: Tensor,
            bidirectional: bool,
            dropout: float,
            every_end: bool,
        ) -> tuple[Tensor, list[State]]:
            directions = 2 if bidirectional else 1
            states: list[State] = []
            for k in range(0, len(weights), directions):
                hands_on = k + directions < len(weights) and dropout > 0
                out = ahead(weights[k], x, entry[k], starts)
                output = drop(out.h.contiguous(), dropout, True) if hands_on else out.h
                states.append(out if every_end else State(out.h[-1], out.c[-1]))
                if bidirectional:
                    first = first_steps(starts)
                    out = back(weights[k + 1], x.flip(0), mirrored(entry[k + 1], starts), ends_of(starts).flip(0))
                    h, c = out.h.flip(0), out.c.flip(0)
                    output = torch.cat([output, drop(h, dropout, True) if hands_on else h], -1)
                    at = first if every_end else first[-1:]
                    h, c = take_steps(h, at), take_steps(c, at)
                    states.append(State(h, c) if every_end else State(h[0], c[0]))
                x = output
            return x, states

        return run_layers

    return [Patch(binding, "layers_with", wrong_layers_with)]


class _AnotherMask(torch.autograd.Function):
    """Dropout with another mask in its backward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, p: float) -> Tensor:
        ctx.p = p
        return drop(h, p, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return drop(grads[0], ctx.p, True), None


@in_core("dropout_goes_backward_through_the_same_mask")
def another_mask_in_the_backward_pass() -> list[Patch]:
    """The backward pass of dropout draws another mask."""
    return stacked(Stack(between=lambda out, p: _AnotherMask.apply(out.h, p) if p else out.h))


@in_core("dropout_goes_backward_through_the_same_mask")
def no_mask_in_the_backward_pass() -> list[Patch]:
    """The backward pass of dropout applies no mask: dropped values get a gradient too."""

    def between(out: State, p: float) -> Tensor:
        return out.h + (drop(out.h, p, True) - out.h).detach() if p else out.h

    return stacked(Stack(between=between))


def _in_a_step(replacement: Any) -> list[Patch]:
    original = LSTM.step_batch_first

    def step(self: LSTM, *args: Any, **options: Any) -> Any:
        with mock.patch.object(nn.functional, "dropout", replacement):
            return original(self, *args, **options)

    return [Patch(LSTM, "step_batch_first", step)]


@in_core("dropout_of_a_step_is_torchs")
def no_dropout_in_a_step() -> list[Patch]:
    """A step in training applies no dropout."""
    return _in_a_step(lambda x, p, training: x)


@in_core("dropout_of_a_step_is_torchs")
def a_step_drops_unscaled() -> list[Patch]:
    """A step in training does not scale the kept values."""
    return _in_a_step(lambda x, p, training: drop(x, p, training) * (1 - p if training else 1))


@in_layer("dropout_of_a_step_is_torchs", round=1)
def equal_rows_computed_once(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """If all rows have the same input, one row is computed for all of them, even if states or resets differ."""
    h, c = right(w, x, entry, starts)
    if x.shape[1] > 1 and bool((x == x[:, :1]).all()):
        return both(lambda v: v[:, :1].expand_as(v).clone(), State(h, c))
    return State(h, c)


@in_core("dropout_of_a_step_is_torchs", round=3, survived=3)
def step_drops_each_direction_separately() -> list[Patch]:
    """In sequential mode a bidirectional LSTM in training draws dropout for each direction separately."""

    def replacement(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        if stored is None:
            stored = State(*(v.transpose(0, 1) for v in self.zero_state((x.shape[0],), x)))
        elif is_init is not None:
            stored = zero_at(stored, is_init)
        run, directions = self._backend.step or self._layer_as_step, self.spec.directions
        states: list[State] = []
        weights, dtype, no_autocast = self._ready()
        if execution.transforms_may_be_open():
            self._check_transforms(weights, x, *stored, is_init)
        with no_autocast:
            x, hs, cs = x.to(dtype), stored.h.to(dtype), stored.c.to(dtype)
            for k, (w, h, c) in enumerate(zip(weights, hs.unbind(1), cs.unbind(1), strict=True)):
                if k and k % directions == 0:
                    below = (s.h for s in states[-directions:])
                    x = torch.cat([nn.functional.dropout(h, self.dropout, self.training) for h in below], -1)
                states.append(run(w, x, State(h, c)))
        output = torch.cat([s.h for s in states[-directions:]], -1)
        return output, execution._stacked(states, dim=1)

    return [Patch(LSTM, "step_batch_first", replacement)]


@in_core("training_and_evaluation_follow_the_module")
def the_first_training_flag_stays() -> list[Patch]:
    """The training flag is read at the first call and kept."""
    original, cache = LSTM.sequences, dict[int, tuple[LSTM, bool]]()

    def sequences(self: LSTM, *args: Any, **options: Any) -> Any:
        was = self.training
        self.training = cache.setdefault(id(self), (self, was))[1]
        try:
            return original(self, *args, **options)
        finally:
            self.training = was

    return [Patch(LSTM, "sequences", sequences)]


@in_core("training_and_evaluation_follow_the_module")
def evaluation_draws_a_mask() -> list[Patch]:
    """In evaluation an unused random number is drawn."""
    original = LSTM.sequences

    def sequences(self: LSTM, x: Tensor, *args: Any, **options: Any) -> Any:
        if not self.training:
            torch.rand(1)
        return original(self, x, *args, **options)

    return [Patch(LSTM, "sequences", sequences)]


def _masked(mask: Any) -> list[Patch]:
    """Dropout of ``mask(h, p)``, true where something is dropped."""
    return stacked(
        Stack(between=lambda out, p: torch.where(mask(out.h, p), 0, out.h / (1 - p)) if 0 < p < 1 else out.h)
    )


@in_core("every_step_and_row_has_its_own_mask")
def one_mask_for_all_steps() -> list[Patch]:
    """One mask is drawn for all steps of a row, as in variational dropout."""
    return _masked(lambda h, p: (torch.rand_like(h[0]) < p).expand_as(h))


@in_core("every_step_and_row_has_its_own_mask")
def one_mask_for_all_rows() -> list[Patch]:
    """One mask is drawn for all rows of the batch."""
    return _masked(lambda h, p: (torch.rand_like(h[:, :1]) < p).expand_as(h))


@in_core("dropout_may_be_set_later", round=(6, 7), survived=(6, 7))
def dropout_set_later_is_ignored() -> list[Patch]:
    """Over time the dropout probability of construction is used: a later assignment to lstm.dropout is ignored."""

    bind = LSTM._bind

    def bind_and_remember(self: Any, backend: Any) -> None:
        bind(self, backend)
        self._first_dropout = self.dropout

    def sequences(self: Any, x: Any, entry: Any, starts: Any, every_end: bool = True) -> Any:
        run = self._run_layers if every_end else self._run_layers_last
        spec = self.spec
        dropout = self._first_dropout if self.training else 0.0
        weights, dtype, no_autocast = self._ready()
        if execution.transforms_may_be_open():
            self._check_transforms(weights, x, starts, *(v for state in entry for v in state))
        with no_autocast:
            entry = [State(s.h.to(dtype), s.c.to(dtype)) for s in entry]
            return run(weights, x.to(dtype), entry, starts, spec.bidirectional, dropout, every_end)

    return [Patch(LSTM, "_bind", bind_and_remember), Patch(LSTM, "sequences", sequences)]


@in_core("dropout_is_torchs_between_layers", round=9, survived=9)
def a_mask_drawn_for_the_top_layer_too() -> list[Patch]:
    """Dropout also draws a mask for the top layer's output and discards it, which changes later draws."""

    def top(h: Tensor, p: float) -> Tensor:
        if p:
            drop(h, p, True)
        return h

    return stacked(Stack(top=top))


@in_core("dropout_is_torchs_between_layers")
def a_mask_drawn_below_the_first_layer_too() -> list[Patch]:
    """Dropout also draws a mask for the input, after the layers' masks, and discards it."""

    def run(original: Any) -> Any:
        def replacement(self: LSTM, x: Tensor, *rest: Any, **options: Any) -> Any:
            result = original(self, x, *rest, **options)
            if self.training and self.dropout and self.num_layers > 1:
                drop(x, self.dropout, True)
            return result

        return replacement

    return [Patch(LSTM, "sequences", run(LSTM.sequences))]


@in_core("dropout_is_torchs_between_layers")
def a_mask_one_step_longer_than_the_row() -> list[Patch]:
    """Dropout draws its mask for one step too many, and ignores the last one."""

    def between(out: State, p: float) -> Tensor:
        if not p:
            return out.h
        longer: Tensor = torch.cat([out.h, out.h[-1:]]).contiguous()
        return drop(longer, p, True)[:-1]

    return stacked(Stack(between=between))
