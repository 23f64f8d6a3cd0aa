"""Defects that the laws of ``laws/tracing.py`` kill first."""

from __future__ import annotations

import torch
from rnn_backends import LayerFunction, LayerWeights, State, execution
from rnn_backends.authoring import check_steps
from torch import Tensor

from ..planting import Patch, in_core, in_layer, made
from ..right import both, right


def _alone(starts: Tensor) -> Tensor:
    """Starts of rows without resets."""
    return torch.cat([torch.ones_like(starts[:1]), torch.zeros_like(starts[1:])])


@in_layer("traces_follow_inputs_and_resets", by_numbers=False)
def a_trace_keeps_that_there_was_no_reset(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A Python condition on the resets becomes a constant of the trace."""
    check_steps("defect", x)
    if torch.jit.is_tracing() and not bool(starts[1:].any()):
        starts = _alone(starts)
    return right(w, x, entry, starts)


@in_layer("traces_follow_inputs_and_resets", by_numbers=False)
def a_trace_keeps_the_examples_numbers(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """While torch.jit.trace records, the last input becomes a constant."""
    if torch.jit.is_tracing():
        x = torch.cat([x[:-1], torch.tensor(x[-1:].tolist(), dtype=x.dtype)])
    return right(w, x, entry, starts)


@made("traces_follow_inputs_and_resets", by_numbers=False)
def the_first_resets_stay() -> LayerFunction:
    """The plan of the first call's resets is used for every call of a functionalized function."""
    plans: list[Tensor] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch._is_functional_tensor(x):
            plans.append(torch._from_functional_tensor(starts).clone())
            starts = plans[0] if plans[0].shape == starts.shape else starts
        return right(w, x, entry, starts)

    return run


@in_core("traces_follow_lengths")
def a_loop_is_recorded_for_one_length() -> list[Patch]:
    """The loop over time is recorded for the example's number of steps, and runs that number for any input."""
    return [Patch(execution, "_is_recorded", lambda: False)]


@in_layer(
    "traces_follow_lengths",
    by_numbers=False,
    why_not="core makes a recorded graph raise for another number of steps, so it gives no wrong result",
)
def a_trace_runs_its_steps_and_repeats_the_last(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """While torch.jit.trace records, the number of steps becomes a constant; later steps repeat the last one."""
    check_steps("defect", x)
    out = right(w, x[: int(x.shape[0])], entry, starts)
    if not torch.jit.is_tracing():
        return out
    shape = x[:, :, :1]
    return both(lambda v: torch.cat([v, v[-1:] + 0 * shape])[: len(shape)], out)
