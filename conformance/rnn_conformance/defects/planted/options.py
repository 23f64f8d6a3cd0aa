"""Defects that the laws of ``laws/options.py`` kill first."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, LSTMSpec, State, binding
from torch import Tensor
from torch.nn.functional import dropout as drop

from ..planting import Patch, backend, in_core, in_layer, made
from ..right import both, layer, right, step
from ..right_stack import Stack, all_first, stacked


@in_core("layers")
def upper_layers_read_c() -> list[Patch]:
    """Layers above the first read the cell state of the one below."""
    return stacked(Stack(between=lambda out, p: out.c if out.c.shape == out.h.shape else out.h))


@in_core("layers")
def upper_layers_never_reset() -> list[Patch]:
    """Only the first layer resets."""
    return stacked(Stack(upper_starts=all_first))


@in_core("layers")
def a_tanh_between_layers() -> list[Patch]:
    """The output of each lower layer passes another tanh."""
    return stacked(Stack(between=lambda out, p: out.h.tanh()))


@in_core("bidirectional")
def reverse_output_stays_reversed() -> list[Patch]:
    """The reverse direction's output stays in reversed time."""
    return stacked(Stack(returned=lambda value: value))


@in_core("bidirectional")
def halves_swapped() -> list[Patch]:
    """The reverse direction's half of the output comes first."""
    return stacked(Stack(joined=lambda ahead, back: torch.cat([back, ahead], -1)))


@in_core("bidirectional")
def directions_added() -> list[Patch]:
    """Both halves of the output are the sum of the two directions."""
    return stacked(Stack(joined=lambda ahead, back: torch.cat([ahead + back, ahead + back], -1)))


@in_core("bidirectional")
def resets_not_mirrored() -> list[Patch]:
    """The reverse direction resets where sequences start instead of where they end."""
    return stacked(Stack(backward_starts=lambda starts: starts.flip(0) | all_first(starts)))


@in_core("bidirectional")
def reverse_runs_across_resets() -> list[Patch]:
    """The reverse direction never resets: it runs over the sequences as if they were one."""
    return stacked(Stack(backward_starts=all_first))


@in_core("bidirectional")
def reverse_reads_other_stored_states() -> list[Patch]:
    """The reverse direction starts from the state stored at a sequence's last step."""
    return stacked(Stack(backward_entry=lambda entry, starts: both(lambda v: v.flip(0), entry)))


@in_core("bidirectional")
def reverse_uses_forward_weights() -> list[Patch]:
    """The reverse direction runs with the forward one's weights."""
    return stacked(Stack(backward_weights=lambda w, k: w[k]))


@in_core("bidirectional", "last_states_equal_reference")
def reverse_state_of_the_last_step() -> list[Patch]:
    """A sequence's reverse state is taken at its last step, after one step only."""

    def own(starts: Tensor) -> Tensor:
        return torch.arange(len(starts), device=starts.device).unsqueeze(-1).expand_as(starts)

    return stacked(Stack(reverse_end=own))


@in_layer("bidirectional", round=2)
def wide_input_loses_its_tail(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Input features are read in tiles of 16: a remainder after a full tile is skipped."""
    size = x.shape[-1]
    whole = size // 16 * 16 or size
    return right(w._replace(w_ih=w.w_ih[:, :whole]), x[..., :whole], entry, starts)


@backend("projection")
def accepts_and_ignores_the_projection() -> LSTMBackend:
    """A projection is accepted and replaced by the identity, cut to its size."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if w.w_hr is None:
            return right(w, x, entry, starts)
        P, H = w.w_hr.shape
        eye = torch.eye(P, H, dtype=x.dtype, device=x.device) + 0 * w.w_hr
        return right(w._replace(w_hr=eye), x, entry, starts)

    return LSTMBackend("defect", run)


@in_layer("projection")
def projection_not_carried(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The projection is applied to the output but not to the carried h."""
    if w.w_hr is None:
        return right(w, x, entry, starts)
    P, H = w.w_hr.shape

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w._replace(w_hr=None), x, state)
        return State(result.h[..., :P], result.c)

    result = layer(one)(w, x, entry, starts)
    return State(torch.nn.functional.pad(result.h, (0, H - P)) @ w.w_hr.T, result.c)


@in_layer("projection")
def projected_before_the_output_gate(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """tanh(c) is projected without the output gate."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w, x, state)
        return result if w.w_hr is None else State(result.c.tanh() @ w.w_hr.T, result.c)

    return layer(one)(w, x, entry, starts)


@in_layer("projection")
def projection_with_a_tanh(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The projected h passes another tanh."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w, x, state)
        return result if w.w_hr is None else State(result.h.tanh(), result.c)

    return layer(one)(w, x, entry, starts)


@backend("no_bias")
def accepts_and_invents_a_bias() -> LSTMBackend:
    """Without bias 0.01 is added to the input."""

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return right(w, x if w.b_ih is not None else x + 0.01, entry, starts)

    return LSTMBackend("defect", run)


@in_layer("no_bias")
def stale_bias_added(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, leftover values of a bias buffer are added."""
    if w.b_ih is None:
        left = torch.full_like(w.w_ih[:, 0].detach(), 0.1)
        w = w._replace(b_ih=left, b_hh=left)
    return right(w, x, entry, starts)


@in_layer("both_biases_count")
def bias_gradient_doubled(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input bias gets twice its gradient."""
    return right(w if w.b_ih is None else w._replace(b_ih=2 * w.b_ih - w.b_ih.detach()), x, entry, starts)


@in_layer("both_biases_count")
def one_bias_gets_the_gradient(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent bias gets no gradient."""
    return right(w if w.b_hh is None else w._replace(b_hh=w.b_hh.detach()), x, entry, starts)


@in_layer("both_biases_count")
def recurrent_bias_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The recurrent bias is taken as zero."""
    return right(w if w.b_hh is None else w._replace(b_hh=0 * w.b_hh), x, entry, starts)


@in_layer("both_biases_count")
def input_bias_ignored(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The input's bias is taken as zero."""
    return right(w if w.b_ih is None else w._replace(b_ih=0 * w.b_ih), x, entry, starts)


@in_layer("both_biases_count")
def bias_at_the_first_step_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The biases are added only at t = 0."""
    if w.b_ih is None:
        return right(w, x, entry, starts)
    calls = iter(range(len(x)))

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        return step(w if next(calls) == 0 else w._replace(b_ih=None, b_hh=None), x, state)

    return layer(one)(w, x, entry, starts)


@in_core("no_dropout_in_evaluation")
def dropout_in_evaluation() -> list[Patch]:
    """Dropout ignores the training flag."""
    original = LSTM.sequences

    def sequences(self: LSTM, *args: Any, **options: Any) -> Any:
        was, self.training = self.training, True
        try:
            return original(self, *args, **options)
        finally:
            self.training = was

    return [Patch(LSTM, "sequences", sequences)]


@in_core("no_dropout_after_the_last_layer")
def dropout_after_the_last_layer() -> list[Patch]:
    """Dropout is applied to the last layer's output too."""
    return stacked(Stack(top=lambda x, p: drop(x, p, True) if p else x))


@in_core("no_dropout_after_the_last_layer")
def dropout_on_the_input() -> list[Patch]:
    """Dropout is applied to the input too."""
    return stacked(Stack(below=lambda x, p: drop(x, p, True) if p else x))


@in_core("dropout_of_everything_leaves_the_biases")
def dropout_probability_capped() -> list[Patch]:
    """The dropout probability is capped at nine tenths."""
    return stacked(Stack(between=lambda out, p: drop(out.h, min(p, 0.9), True) if p else out.h))


@in_layer("dropout_of_everything_leaves_the_biases", round=1)
def zero_inputs_skipped(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Rows with an input of exact zeros are skipped: their state is carried unchanged."""

    def one(w: LayerWeights, x: Tensor, state: State) -> State:
        result = step(w, x, state)
        zero = (x == 0).all(-1, keepdim=True)
        return State(torch.where(zero, state.h, result.h), torch.where(zero, state.c, result.c))

    return layer(one)(w, x, entry, starts)


@in_core("dropout_follows_the_seed")
def never_dropped() -> list[Patch]:
    """No dropout is applied in training."""
    return stacked(Stack(between=lambda out, p: out.h))


@in_core("dropout_follows_the_seed")
def the_same_mask_always() -> list[Patch]:
    """The dropout mask is the same in every call, whatever the seed."""

    def masked(out: State, p: float) -> Tensor:
        drawn = torch.rand(out.h.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(drawn.to(out.h.device) < p, 0, out.h / (1 - p)) if p else out.h

    return stacked(Stack(between=masked))


@in_core("dropout_follows_the_seed")
def a_private_generator() -> list[Patch]:
    """Dropout masks come from a private generator, which torch.manual_seed does not reach."""
    own = torch.Generator().manual_seed(5)

    def masked(out: State, p: float) -> Tensor:
        drawn = torch.rand(out.h.shape, generator=own)
        return torch.where(drawn.to(out.h.device) < p, 0, out.h / (1 - p)) if p else out.h

    return stacked(Stack(between=masked))


@made("dropout_follows_the_seed", round=2)
def tuning_draws_from_the_global_generator() -> LayerFunction:
    """The second call of each shape tunes itself on random data from torch's global generator."""
    seen: dict[Any, int] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = (x.shape, w.w_hh.shape, x.dtype)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 2:
            right(w, torch.rand(x.shape, dtype=x.dtype, device=x.device), both(torch.zeros_like, entry), starts)
        return right(w, x, entry, starts)

    return run


@in_core("twelve_layers", round=9, survived=9)
def layers_in_the_order_of_their_names_as_text() -> list[Patch]:
    """The layers' weights are sorted by name as text: layer 10 comes after layer 1."""
    original = binding.weight_names
    return [Patch(binding, "weight_names", lambda spec: tuple(sorted(original(spec), key=lambda names: names[0])))]


@in_core("twelve_layers")
def a_layers_number_has_one_digit() -> list[Patch]:
    """The weights of layer 10 and later are looked up by the last digit of their number."""
    original = binding.weight_names

    def replacement(spec: LSTMSpec) -> tuple[tuple[str, ...], ...]:
        names = original(spec)
        late = [tuple(re.sub(r"_l1(\d)", r"_l\1", name) for name in own) for own in names[10:]]
        return (*names[:10], *late) if spec.directions == 1 and spec.num_layers > 11 else names

    return [Patch(binding, "weight_names", replacement)]


@in_core("twelve_layers")
def states_have_eight_slots() -> list[Patch]:
    """A step stores the states of eight layers; later layers read those of the first ones."""
    original = LSTM.step_batch_first

    def replacement(self: LSTM, x: Tensor, stored: State | None, *rest: Any) -> Any:
        if stored is not None and stored.h.shape[1] > 8:
            slots = torch.arange(stored.h.shape[1]) % 8
            stored = State(stored.h[:, slots], stored.c[:, slots])
        return original(self, x, stored, *rest)

    return [Patch(LSTM, "step_batch_first", replacement)]


def _restarting(keeps: Callable[[int, int], tuple[bool, bool]]) -> LSTMBackend:
    """Acting in one call for all layers: ``keeps(layer, layers)`` tells whether h and c of a layer are not reset."""

    def act_stack(weights: list[LayerWeights], x: Tensor, state: State, is_init: Tensor | None) -> tuple[Tensor, State]:
        found: list[State] = []
        for k, w in enumerate(weights):
            own = State(state.h[:, k], state.c[:, k])
            if is_init is not None:
                zero = both(lambda v: torch.where(is_init.unsqueeze(-1), 0, v), own)
                own = State(
                    *(mine if kept else z for kept, mine, z in zip(keeps(k, len(weights)), own, zero, strict=True))
                )
            found.append(step(w, x, own))
            x = found[-1].h
        return x.clone(), State(torch.stack([s.h for s in found], 1), torch.stack([s.c for s in found], 1))

    return LSTMBackend("defect", right, act_stack=act_stack)


@backend("twelve_layers")
def acting_resets_two_layers() -> LSTMBackend:
    """A step of all layers in one call resets the first two layers only."""
    return _restarting(lambda k, layers: (k >= 2, k >= 2))


@backend("twelve_layers")
def acting_keeps_c_of_a_ninth_layer() -> LSTMBackend:
    """A step of all layers in one call keeps the cell state of the ninth layer and of those above."""
    return _restarting(lambda k, layers: (False, k >= 8))


@backend("twelve_layers")
def acting_keeps_h_of_the_last_of_many_layers() -> LSTMBackend:
    """A step of all layers in one call keeps h of the last of more than four layers."""
    return _restarting(lambda k, layers: (layers > 4 and k == layers - 1, False))
