"""Resets: where sequences start and end. No other file of core has rules about them.

A reset means "a sequence starts here". Everything is written with ``torch.where`` and gathers and never depends on the
values, so that it can be traced, scripted and vmapped.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad

from .contract import State


def starts_of(is_init: Tensor) -> Tensor:
    """``[T, B]`` bool -> the same, true everywhere at ``t = 0``: every row starts a sequence there."""
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():
            return _with_step(is_init, torch.ones_like(is_init[0]), 0)
        if not torch.compiler.is_compiling():
            return pad(is_init[1:], [0, 0, 1, 0], value=True)
    return torch.cat([torch.ones_like(is_init[:1]), is_init[1:]])


def ends_of(starts: Tensor) -> Tensor:
    """``[T, B]`` bool: true at each sequence's last step, which is the step before a start, and at ``T - 1``."""
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():
            return _with_step(starts.roll(-1, 0), torch.ones_like(starts[0]), -1)
        if not torch.compiler.is_compiling():
            return pad(starts[1:], [0, 0, 0, 1], value=True)
    return torch.cat([starts[1:], torch.ones_like(starts[:1])])


def first_steps(starts: Tensor) -> Tensor:
    """``[T, B]`` int64: for each step the time at which its sequence starts."""
    t = torch.arange(starts.shape[0], device=starts.device).unsqueeze(-1)
    return torch.where(starts, t, 0).cummax(0)[0]


def at_ends(state: State, starts: Tensor) -> State:
    """Zero padding: ``State([T, B, P], [T, B, H])``, exactly zero except at each sequence's last step."""
    ends = ends_of(starts).unsqueeze(-1)
    return State(torch.where(ends, state.h, 0), torch.where(ends, state.c, 0))


def zero_at(state: State, is_init: Tensor) -> State:
    """Sequential mode's rule: the incoming state ``[B, ...]`` is zero where ``is_init [B]`` is true."""
    reset = is_init.view(-1, *(1,) * (state.h.ndim - 1))
    return State(torch.where(reset, 0, state.h), torch.where(reset, 0, state.c))


def take_steps(values: Tensor, steps: Tensor) -> Tensor:
    """``values[steps[t, b], b]`` for ``values [T, B, N]`` and ``steps [T', B]`` -> ``[T', B, N]``."""
    return torch.gather(values, 0, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def mirrored(entry: State, starts: Tensor) -> State:
    """The entry states of the reverse direction, in reversed time.

    Each sequence runs from its last step to its first, and starts from the state that is stored at its first step.
    """
    first = first_steps(starts)
    return State(take_steps(entry.h, first).flip(0), take_steps(entry.c, first).flip(0))


def entry_from_hx(h0: Tensor, T: int, is_init: Optional[Tensor]) -> Tensor:
    """The entry states of a row with a given state before its first step and resets to zero.

    Args:
        h0: ``[B, N]``, the state before the first step.
        T: the number of steps.
        is_init: ``[T, B]`` bool: true where a sequence starts, from zero, also at ``t = 0``; ``None`` for nowhere.

    Returns:
        ``[T, B, N]``; without resets a view of ``h0`` that takes no memory.
    """
    if is_init is None:
        return h0.expand(T, -1, -1)
    head = torch.where(is_init[0].unsqueeze(-1), 0, h0)
    if T == 1:
        return head.unsqueeze(0)
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():
            return _with_step(head.new_zeros(T, head.shape[0], head.shape[1]), head, 0)
    return torch.cat([head.unsqueeze(0), torch.zeros_like(head).expand(T - 1, -1, -1)])


def _with_step(values: Tensor, value: Tensor, t: int) -> Tensor:
    """``values [T, ...]`` with ``value [...]`` at step ``t``: for ``torch.export``.

    No intermediate tensor has ``T - 1`` steps: torch would specialise on ``T - 1 == 1``, and the exported program would
    reject ``T = 2``.
    """
    return torch.select_scatter(values, value, 0, t)
