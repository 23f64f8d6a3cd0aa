"""Defects that the laws of ``laws/threads.py`` kill first."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from rnn_backends import LayerFunction, LayerWeights, State
from rnn_backends import mode as modes
from torch import Tensor

from ..planting import Patch, in_core, in_layer, made
from ..right import gates_of, restart, right


@made("two_threads_do_not_mix", by_numbers=False)
def scratch_shared_by_threads() -> LayerFunction:
    """The input is copied to scratch memory of its shape that all threads share."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        into = scratch.setdefault(tuple(x.shape), torch.zeros_like(x, memory_format=torch.contiguous_format))
        into.copy_(x.detach())
        time.sleep(0.002)  # where a kernel would wait for its stream, and another thread runs
        return right(w, x + (into - x).detach(), entry, starts)

    return run


@made("one_module_acts_in_two_threads", round=2, survived=2)
def cell_scratch_shared_between_threads() -> LayerFunction:
    """Without gradients the cell state is kept in a scratch buffer of its shape that all threads share."""
    scratch: dict[Any, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch.is_grad_enabled():
            return right(w, x, entry, starts)
        c = scratch.setdefault((entry.c.shape[1:], x.dtype, x.device), torch.empty_like(entry.c[0]))
        h, hs, cs = entry.h[0], [], []
        c.copy_(entry.c[0])
        for t in range(len(x)):
            before = restart(State(h, c), entry, starts, t)
            c.copy_(before.c)
            i, f, g, o = gates_of(w, x[t], before.h)
            c.mul_(f.sigmoid()).add_(i.sigmoid() * g.tanh())
            h = o.sigmoid() * c.tanh()
            h = h if w.w_hr is None else h @ w.w_hr.T
            hs.append(h)
            cs.append(c.clone())
        return State(torch.stack(hs), torch.stack(cs))

    return run


_local = threading.local()


class _ByThread(torch.autograd.Function):
    """The identity, with a backward pass that looks for its workspace in its own thread."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        _local.scale = 1.0
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * getattr(_local, "scale", 0.0)


@in_layer("gradients_may_be_taken_in_another_thread", by_numbers=False)
def workspace_of_one_thread(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass finds its workspace only in the thread of the forward pass."""
    return right(w._replace(w_ih=_ByThread.apply(w.w_ih)), x, entry, starts)


class _SeenOnce:
    """A replacement for a ContextVar: another thread sees a set value at its first read."""

    def __init__(self) -> None:
        self.value: Any = None
        self.owner = 0

    def get(self) -> Any:
        if threading.get_ident() == self.owner:
            return self.value
        seen, self.owner = self.value, 0
        self.value = None
        return seen

    def set(self, value: Any) -> None:
        self.value, self.owner = value, threading.get_ident()


WITHOUT_TORCHRL = [
    Patch(modes, "torchrl_set_recurrent_mode", lambda: None),
    Patch(modes, "torchrl_recurrent_mode", lambda: None),
]
"""TorchRL's mode, if it is loaded, would hide the fault of ours."""


@in_core("the_mode_stays_in_its_thread")
def a_mode_for_all_threads() -> list[Patch]:
    """The mode is global: a mode set in one thread is seen by another (once, so that the law need not wait)."""
    return [Patch(modes, "_context", _SeenOnce()), *WITHOUT_TORCHRL]


@in_core("the_mode_stays_in_its_task", round=6, survived=6)
def tasks_of_one_thread_share_a_mode() -> list[Patch]:
    """The mode is only thread-local, so an asyncio task runs in the mode of another task."""
    return [Patch(modes, "_context", _OfTheThread()), *WITHOUT_TORCHRL]


class _OfTheThread(threading.local):
    """A replacement for a ContextVar: one value per thread."""

    value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value


@made("two_threads_do_not_mix", round=10, survived=10, by_numbers=False)
def a_thread_local_filled_at_import() -> LayerFunction:
    """A threading.local gets its attribute only in the thread that imports the backend."""
    local = threading.local()
    local.depth = 0

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        local.depth += 1
        try:
            return right(w, x, entry, starts)
        finally:
            local.depth -= 1

    return run
