"""Dropout where there must be none, none where there must be, or of the wrong kind."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, State
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from ..planting import Patch, in_core, made
from ..right import right
from .options import Stack, _as


@in_core("no_dropout_after_the_last_layer")
def after_the_last_layer() -> list[Patch]:
    """The last layer's output is dropped too."""
    return _as(Stack(top=lambda x, p: drop(x, p, True) if p else x))


@in_core("no_dropout_after_the_last_layer")
def on_the_input() -> list[Patch]:
    """The input is dropped too."""
    return _as(Stack(below=lambda x, p: drop(x, p, True) if p else x))


@in_core("no_dropout_in_evaluation")
def in_evaluation() -> list[Patch]:
    """Dropout does not look at the training flag."""
    original = LSTM.sequences

    def sequences(self: LSTM, *args: Any, **options: Any) -> Any:
        was, self.training = self.training, True
        try:
            return original(self, *args, **options)
        finally:
            self.training = was

    return [Patch(LSTM, "sequences", sequences)]


@in_core("dropout_follows_the_seed")
def never_dropped() -> list[Patch]:
    """Nothing is dropped in training."""
    return _as(Stack(between=lambda out, p: out.h))


@in_core("dropout_follows_the_seed")
def the_same_mask_always() -> list[Patch]:
    """The mask is the same at every call, whatever the seed."""

    def masked(out: State, p: float) -> Tensor:
        drawn = torch.rand(out.h.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(drawn.to(out.h.device) < p, 0, out.h / (1 - p)) if p else out.h

    return _as(Stack(between=masked))


@in_core("dropout_follows_the_seed")
def a_generator_of_its_own() -> list[Patch]:
    """The mask comes from a generator of its own, which manual_seed does not reach."""
    own = torch.Generator().manual_seed(5)

    def masked(out: State, p: float) -> Tensor:
        drawn = torch.rand(out.h.shape, generator=own)
        return torch.where(drawn.to(out.h.device) < p, 0, out.h / (1 - p)) if p else out.h

    return _as(Stack(between=masked))


@in_core("dropout_of_everything_leaves_the_biases")
def a_tenth_is_kept() -> list[Patch]:
    """The probability is capped at nine tenths."""
    return _as(Stack(between=lambda out, p: drop(out.h, min(p, 0.9), True) if p else out.h))


def _masked(mask: Any) -> list[Patch]:
    """Dropout of ``mask(h, p)``, true where something is dropped."""
    return _as(Stack(between=lambda out, p: torch.where(mask(out.h, p), 0, out.h / (1 - p)) if 0 < p < 1 else out.h))


@in_core("dropout_is_torchs_between_layers")
def not_scaled() -> list[Patch]:
    """What is kept is not scaled by 1 / (1 - p)."""
    return _as(Stack(between=lambda out, p: drop(out.h, p, True) * (1 - p) if p else out.h))


@in_core("dropout_is_torchs_between_layers")
def kept_for_dropped() -> list[Patch]:
    """The probability is that of keeping: p and 1 - p are swapped."""
    return _as(Stack(between=lambda out, p: drop(out.h, 0.9 * (1 - p), True) if p else out.h))


@in_core("every_step_and_row_has_a_mask_of_its_own")
def one_mask_for_all_steps() -> list[Patch]:
    """One mask is drawn for all steps of a row, as variational dropout has it."""
    return _masked(lambda h, p: (torch.rand_like(h[0]) < p).expand_as(h))


@in_core("every_step_and_row_has_a_mask_of_its_own")
def one_mask_for_all_rows() -> list[Patch]:
    """One mask is drawn for all rows of the batch."""
    return _masked(lambda h, p: (torch.rand_like(h[:, :1]) < p).expand_as(h))


class _AnotherMask(torch.autograd.Function):
    """Dropout whose backward pass draws a mask of its own."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, p: float) -> Tensor:
        ctx.p = p
        return drop(h, p, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return drop(grads[0], ctx.p, True), None


@in_core("dropout_goes_backward_through_the_same_mask")
def another_mask_going_backward() -> list[Patch]:
    """The backward pass draws another mask."""
    return _as(Stack(between=lambda out, p: _AnotherMask.apply(out.h, p) if p else out.h))


@in_core("dropout_goes_backward_through_the_same_mask")
def no_mask_going_backward() -> list[Patch]:
    """The backward pass has no mask: what was dropped gets a gradient too."""

    def between(out: State, p: float) -> Tensor:
        return out.h + (drop(out.h, p, True) - out.h).detach() if p else out.h

    return _as(Stack(between=between))


def _in_a_step(wrong: Any) -> list[Patch]:
    original = LSTM.step_stored

    def step(self: LSTM, *args: Any, **options: Any) -> Any:
        with mock.patch.object(nn.functional, "dropout", wrong):
            return original(self, *args, **options)

    return [Patch(LSTM, "step_stored", step)]


@in_core("dropout_of_a_step_is_torchs")
def no_dropout_in_a_step() -> list[Patch]:
    """A step in training drops nothing."""
    return _in_a_step(lambda x, p, training: x)


@in_core("dropout_of_a_step_is_torchs")
def a_step_drops_unscaled() -> list[Patch]:
    """A step in training does not scale what it keeps."""
    return _in_a_step(lambda x, p, training: drop(x, p, training) * (1 - p if training else 1))


@in_core("training_and_evaluation_follow_the_module")
def the_first_mode_stays() -> list[Patch]:
    """Whether it is in training is read at the first call and kept."""
    original, kept = LSTM.sequences, dict[int, tuple[LSTM, bool]]()

    def sequences(self: LSTM, *args: Any, **options: Any) -> Any:
        was = self.training
        self.training = kept.setdefault(id(self), (self, was))[1]
        try:
            return original(self, *args, **options)
        finally:
            self.training = was

    return [Patch(LSTM, "sequences", sequences)]


@in_core("training_and_evaluation_follow_the_module")
def evaluation_draws_a_mask() -> list[Patch]:
    """In evaluation a mask is drawn and not used."""
    original = LSTM.sequences

    def sequences(self: LSTM, x: Tensor, *args: Any, **options: Any) -> Any:
        if not self.training:
            torch.rand(1)
        return original(self, x, *args, **options)

    return [Patch(LSTM, "sequences", sequences)]


@made("global_state_is_left_alone")
def draws_without_dropout() -> LayerFunction:
    """Random numbers are drawn though nothing is dropped."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        torch.rand(1)
        return right(w, x, entry, starts)

    return run
