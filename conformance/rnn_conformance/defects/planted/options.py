"""Layers, directions and the dropout between them go wrong in core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import rnn_backends.lstm as core
import torch
from rnn_backends import LayerFunction, LayerWeights, State
from rnn_backends.resets import ends_of, first_steps, mirrored, take_steps
from torch import Tensor
from torch.nn.functional import dropout as drop

from ..planting import Patch, in_core
from ..right import both


@dataclass(frozen=True)
class Stack:
    """The stack of layers in parts, each of which may be replaced by a wrong one."""

    between: Callable[[State, float], Tensor] = lambda out, p: drop(out.h, p, True) if p else out.h
    below: Callable[[Tensor, float], Tensor] = lambda x, p: x
    top: Callable[[Tensor, float], Tensor] = lambda x, p: x
    backward_starts: Callable[[Tensor], Tensor] = lambda starts: ends_of(starts).flip(0)
    backward_entry: Callable[[State, Tensor], State] = mirrored
    backward_weights: Callable[[list[LayerWeights], int], LayerWeights] = lambda w, k: w[k + 1]
    upper_starts: Callable[[Tensor], Tensor] = lambda starts: starts
    joined: Callable[[Tensor, Tensor], Tensor] = lambda ahead, back: torch.cat([ahead, back], -1)
    returned: Callable[[Tensor], Tensor] = lambda value: value.flip(0)
    reverse_end: Callable[[Tensor], Tensor] = first_steps

    def __call__(self, ahead: LayerFunction, back: LayerFunction) -> Callable[..., tuple[Tensor, list[State]]]:
        """In place of :func:`rnn_backends.stack.layers_with`."""

        def run(
            w: list[LayerWeights], x: Tensor, entry: list[State], starts: Tensor, two: bool, p: float, every: bool
        ) -> tuple[Tensor, list[State]]:
            states: list[State] = []
            x = self.below(x, p)
            for k in range(0, len(w), 2 if two else 1):
                begin = self.upper_starts(starts) if k else starts
                out = ahead(w[k], x, entry[k], begin)
                states.append(out)
                if two:
                    turned = self._reverse(back, self.backward_weights(w, k), x, entry[k + 1], begin)
                    states.append(both(lambda v: take_steps(v, self.reverse_end(starts)), turned))
                    out = State(self.joined(out.h, turned.h), out.c)
                x = self.between(out, p) if k + (2 if two else 1) < len(w) else self.top(out.h, p)
            return x, states if every else [both(lambda v: v[-1], state) for state in states]

        return run

    def _reverse(self, back: LayerFunction, w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        out = back(w, x.flip(0), self.backward_entry(entry, starts), self.backward_starts(starts))
        return both(self.returned, out)


def _as(stack: Stack) -> list[Patch]:
    return [Patch(core, "layers_with", stack)]


def _all_first(starts: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])


@in_core("layers")
def upper_layers_read_c() -> list[Patch]:
    """Layers above the first read the cell state of the one below."""
    return _as(Stack(between=lambda out, p: out.c if out.c.shape == out.h.shape else out.h))


@in_core("layers")
def upper_layers_never_reset() -> list[Patch]:
    """Only the first layer resets."""
    return _as(Stack(upper_starts=_all_first))


@in_core("layers")
def a_tanh_between_layers() -> list[Patch]:
    """Between layers there is one more tanh."""
    return _as(Stack(between=lambda out, p: out.h.tanh()))


@in_core("bidirectional")
def reverse_output_not_turned_back() -> list[Patch]:
    """The reverse direction's output stays in reversed time."""
    return _as(Stack(returned=lambda value: value))


@in_core("bidirectional")
def halves_swapped() -> list[Patch]:
    """The reverse direction's half of the output comes first."""
    return _as(Stack(joined=lambda ahead, back: torch.cat([back, ahead], -1)))


@in_core("bidirectional")
def directions_added() -> list[Patch]:
    """The reverse direction reads the forward one's features twice: both halves are its sum."""
    return _as(Stack(joined=lambda ahead, back: torch.cat([ahead + back, ahead + back], -1)))


@in_core("bidirectional")
def resets_not_mirrored() -> list[Patch]:
    """The reverse direction resets where sequences start and not where they end."""
    return _as(Stack(backward_starts=lambda starts: starts.flip(0) | _all_first(starts)))


@in_core("bidirectional")
def reverse_runs_across_resets() -> list[Patch]:
    """The reverse direction never resets: it runs over the sequences as if they were one."""
    return _as(Stack(backward_starts=_all_first))


@in_core("bidirectional")
def reverse_reads_other_stored_states() -> list[Patch]:
    """The reverse direction starts from the state stored at a sequence's last step."""
    return _as(Stack(backward_entry=lambda entry, starts: both(lambda v: v.flip(0), entry)))


@in_core("bidirectional")
def reverse_uses_forward_weights() -> list[Patch]:
    """The reverse direction runs with the forward one's weights."""
    return _as(Stack(backward_weights=lambda w, k: w[k]))


@in_core("bidirectional", "last_states_equal_reference")
def reverse_state_of_the_last_step() -> list[Patch]:
    """A sequence's reverse state is taken at its last step, where it has seen one step only."""

    def own(starts: Tensor) -> Tensor:
        return torch.arange(len(starts), device=starts.device).unsqueeze(-1).expand_as(starts)

    return _as(Stack(reverse_end=own))
