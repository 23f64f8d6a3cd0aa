"""A right stack of layers and directions, in parts that can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMSpec, State, binding
from rnn_backends.resets import ends_of, first_steps, mirrored, take_steps
from torch import Tensor
from torch.nn.functional import dropout as drop

from .planting import Patch
from .right import both, right


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
        """A replacement for :func:`rnn_backends.stack.layers_with`."""

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


def stacked(stack: Stack) -> list[Patch]:
    """A context manager that replaces core's stack by ``stack``."""
    return [Patch(binding, "layers_with", stack)]


def all_layers(w: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
    """A right :data:`rnn_backends.StackFunction`: all layers at once, of rows without resets."""
    starts = all_first(torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device))
    entry = [State(h.expand(len(x), -1, -1), c.expand(len(x), -1, -1)) for h, c in zip(*state, strict=True)]
    y, ends = binding.layers_with(right, right)(w, x, entry, starts, spec.bidirectional, 0.0, False)
    return y, State(torch.stack([end.h for end in ends]), torch.stack([end.c for end in ends]))


def all_first(starts: Tensor) -> Tensor:
    """Starts ``[T, B]`` of rows without resets: at ``t = 0`` alone."""
    return torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])
