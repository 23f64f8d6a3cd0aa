"""Another backend does the work, memory is kept or shared, threads meet."""

from __future__ import annotations

import threading
import time
from typing import Any

import rnn_backends.lstm as core
import rnn_backends.mode as core_mode
import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, LSTMBackend, State, get_backend
from torch import Tensor

from ..planting import Patch, backend, in_core, in_layer, made
from ..right import right
from .options import Stack


@backend("only_the_named_backend_works", by_numbers=False)
def hands_over_to_another() -> LSTMBackend:
    """The work is silently done by another backend."""
    return LSTMBackend("defect", lambda *args: get_backend("vmap").layer(*args))


@in_core("every_layer_and_step_is_the_backends")
def acting_goes_around_the_backend() -> list[Patch]:
    """A step is computed by core itself."""

    def wrong(self: LSTM, w: LayerWeights, x: Tensor, state: State) -> State:
        begin = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        out = right(w, x[None], State(state.h[None], state.c[None]), begin)
        return State(out.h[0], out.c[0])

    return [Patch(LSTM, "_layer_as_step", wrong)]


@in_core("every_layer_and_step_is_the_backends")
def every_layer_runs_twice() -> list[Patch]:
    """Each layer is run twice, and one result thrown away."""

    class Twice(Stack):
        def __call__(self, ahead: LayerFunction, back: LayerFunction) -> Any:
            def twice(*args: Any) -> State:
                ahead(*args)
                return ahead(*args)

            return super().__call__(twice, back)

    return [Patch(core, "layers_with", Twice())]


@in_core("the_module_names_its_backend")
def says_auto() -> list[Patch]:
    """The module says auto, whatever runs."""
    return [Patch(LSTM, "lstm_backend", property(lambda self: "auto"))]


@in_layer("scratch_memory_is_written_before_it_is_read", by_numbers=False)
def scratch_read_unwritten(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Memory that was never written is multiplied by zero and added."""
    h, c = right(w, x, entry, starts)
    return State(h + 0 * torch.empty_like(h), c)


@made("a_call_keeps_nothing", by_numbers=False)
def every_output_kept() -> LayerFunction:
    """Outputs are kept in a list, with their graphs: memory grows from call to call."""
    kept: list[Tensor] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        found = right(w, x, entry, starts)
        kept.append(found.h)
        return found

    return run


@made("a_call_keeps_nothing", by_numbers=False)
def the_last_input_kept() -> LayerFunction:
    """The last input is kept until the next call."""
    kept: dict[str, Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        kept["x"] = x
        return right(w, x, entry, starts)

    return run


@in_core("results_share_no_memory_with_each_other")
def h_n_is_a_view_of_the_output() -> list[Patch]:
    """With one layer and one direction h_n lies in the output's memory."""
    original = LSTM._over_time

    def wrong(self: LSTM, x: Tensor, *rest: Any) -> Any:
        output, state = original(self, x, *rest)
        return output, State(output[-1:], state.c) if self.spec.num_states == 1 else state

    return [Patch(LSTM, "_over_time", wrong)]


@made("two_threads_do_not_mix", by_numbers=False)
def scratch_shared_by_threads() -> LayerFunction:
    """The input is copied to scratch memory that all threads share, kept by shape."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        into = scratch.setdefault(tuple(x.shape), torch.zeros_like(x, memory_format=torch.contiguous_format))
        into.copy_(x.detach())
        time.sleep(0.002)  # where a kernel would wait for its stream, and another thread runs
        return right(w, x + (into - x).detach(), entry, starts)

    return run


_local = threading.local()


class _ByThread(torch.autograd.Function):
    """The identity, whose backward pass looks for its workspace in its own thread."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        _local.scale = 1.0
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * getattr(_local, "scale", 0.0)


@in_layer("gradients_may_be_taken_in_another_thread", by_numbers=False)
def workspace_of_one_thread(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The backward pass finds its workspace in the thread of the forward pass only."""
    return right(w._replace(w_ih=_ByThread.apply(w.w_ih)), x, entry, starts)


class _SeenOnce:
    """In place of a ContextVar: what one thread sets, another sees the first time that it looks."""

    def __init__(self) -> None:
        self.value: Any = ()
        self.owner = 0

    def get(self) -> Any:
        if threading.get_ident() == self.owner:
            return self.value
        seen, self.owner = self.value, 0
        self.value = ()
        return seen

    def set(self, value: Any) -> None:
        self.value, self.owner = value, threading.get_ident()


@in_core("the_mode_stays_in_its_thread")
def a_mode_for_all_threads() -> list[Patch]:
    """The mode is a global: what one thread sets, another sees (once, so that the law need not wait for it)."""
    return [Patch(core_mode, "_context", _SeenOnce())]
