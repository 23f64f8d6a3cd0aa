"""Stepping: a sequence equals its steps, and can be cut anywhere."""

from __future__ import annotations

import torch
from rnn_backends import State

from ..suite.compare import identical
from ..suite.law import law
from ..suite.trial import Trial


@law(wide=True, bidirectional=(False,), rollouts=True)
def sequence_equals_its_steps(trial: Trial) -> None:
    """A sequence equals its steps taken one by one with LSTM.step, each sequence from its stored state."""
    lstm, inputs = trial.lstm(), trial.inputs
    ran, ends = trial.run(lstm), trial.ends
    state = State(inputs.h[:, 0], inputs.c[:, 0])
    for t in range(trial.case.T):
        begin = inputs.starts[t].unsqueeze(-1)
        state = State(torch.where(begin, inputs.h[:, t], state.h), torch.where(begin, inputs.c[:, t], state.c))
        output, state = lstm.step(inputs.x[t], state)
        trial.agree(f"output at step {t}", ran.output[t], output, 0, "b unit", scale=2)
        at = ends[t].unsqueeze(-1)
        for name, actual, expected in (("h", ran.h[:, t], state.h), ("c", ran.c[:, t], state.c)):
            trial.agree(
                f"{name} at the end at step {t}",
                torch.where(at, actual, 0),
                torch.where(at, expected, 0),
                1,
                "layer b unit",
                scale=2,
            )


@law(wide=True, bidirectional=(False,))
def cut_and_carried_equals_whole(trial: Trial) -> None:
    """Cut at any step and continued with the carried state, a sequence gives the same results as uncut."""
    lstm, inputs, is_init = trial.lstm(), trial.inputs, trial.is_init
    hx = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone())
    whole = trial.stream(lstm, inputs.x, hx, is_init)
    for cut in range(1, trial.case.T):
        head = trial.stream(lstm, inputs.x[:cut], hx, is_init[:cut])
        tail = trial.stream(lstm, inputs.x[cut:], (head.h, head.c), is_init[cut:])
        trial.agree(f"output cut at {cut}", torch.cat([head.output, tail.output]), whole.output, scale=2)
        trial.agree(f"h_n cut at {cut}", tail.h, whole.h, 1, "layer b unit", scale=2)
        trial.agree(f"c_n cut at {cut}", tail.c, whole.c, 1, "layer b unit", scale=2)


@law(wide=True, T=(1,))
def one_step(trial: Trial) -> None:
    """With one step, T = 1, output and states equal the reference's."""
    ran = trial.run(trial.lstm())
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(bidirectional=(False,), T=(2, 3, 4, 6))
def the_future_is_not_read(trial: Trial) -> None:
    """NaN in later steps does not change the output of earlier steps of a forward LSTM."""
    inputs, at = trial.fresh(), trial.case.T // 2
    inputs.x[at:], inputs.h[:, at:], inputs.c[:, at:] = float("nan"), float("nan"), float("nan")
    output = trial.run(trial.lstm(), inputs).output[:at]
    trial.agree("output before the NaN", output, trial.expected.output[:at])


@law(bidirectional=(False,))
def without_resets_is_init_may_be_left_out(trial: Trial) -> None:
    """An all-false ``is_init`` equals no ``is_init``."""
    lstm, inputs = trial.lstm(), trial.inputs
    hx = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone())
    without = trial.stream(lstm, inputs.x, hx)
    false = trial.stream(lstm, inputs.x, hx, torch.zeros_like(inputs.starts))
    for name, actual, expected in zip(("output", "h_n", "c_n"), without, false, strict=True):
        trial.agree(name, actual, expected, 1, "t b unit", scale=2)


@law(stored=("zeros",))
def no_state_is_zero_state(trial: Trial) -> None:
    """A call without hx starts from zeros, whatever calls preceded it."""
    lstm, inputs = trial.lstm(), trial.inputs
    none = trial.stream(lstm, inputs.x, None, trial.is_init)
    zero = trial.stream(lstm, inputs.x, (inputs.h[:, 0].clone(), inputs.c[:, 0].clone()), trial.is_init)
    again = trial.stream(lstm, inputs.x, None, trial.is_init)
    for name, actual, expected, later in zip(("output", "h_n", "c_n"), none, zero, again, strict=True):
        identical(name, actual, expected, "t b unit")
        identical(f"{name} of a second call", later, expected, "t b unit")
    trial.agree("output", none.output, trial.expected.output)
