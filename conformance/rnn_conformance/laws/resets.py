"""Resets: a sequence starts at each reset, from the state stored there, and nothing crosses a reset."""

from __future__ import annotations

import torch

from ..suite.compare import demand
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reference import trajectories
from ..suite.trial import Trial
from ._shared import agrees_with_reference


@law(resets=("none",))
def no_reset(trial: Trial) -> None:
    """Without resets a row is one sequence from its stored state."""
    agrees_with_reference(trial)


@law(resets=("first",))
def reset_at_the_first_step(trial: Trial) -> None:
    """A reset at the first step starts from the state stored there, like every row."""
    agrees_with_reference(trial)


@law(wide=True, resets=("last",), T=(2, 1, 3, 5))
def reset_at_the_last_step(trial: Trial) -> None:
    """A reset at the last step starts a sequence of length one."""
    agrees_with_reference(trial)


@law(wide=True, resets=("consecutive",), T=(3, 4, 5, 8))
def consecutive_resets(trial: Trial) -> None:
    """Resets at consecutive steps make sequences of length one, each with its own end."""
    agrees_with_reference(trial)


@law(resets=("all",))
def reset_at_every_step_is_independent_steps(trial: Trial) -> None:
    """With a reset at every step, T by B steps are T * B independent LSTMs of one step."""
    lstm, (x, h, c, starts, weights) = trial.lstm(), trial.inputs
    ran = trial.run(lstm)
    flat = Inputs(
        x.reshape(1, -1, x.shape[-1]), h.flatten(1, 2).unsqueeze(1), c.flatten(1, 2).unsqueeze(1),
        starts.reshape(1, -1), weights,
    )  # fmt: skip
    alone = trial.run(lstm, flat)
    trial.agree("output", ran.output, alone.output.reshape(ran.output.shape), scale=2)
    trial.agree("h", ran.h, alone.h.reshape(ran.h.shape), 2, "layer t b unit", scale=2)
    trial.agree("c", ran.c, alone.c.reshape(ran.c.shape), 2, "layer t b unit", scale=2)


def _poisoned(trial: Trial, value: float) -> None:
    """Put ``value`` into one trajectory at a time; the results of all others must not change."""
    lstm, clean = trial.lstm(), trial.inputs
    for b, begin, end in trajectories(clean.starts.cpu())[:4]:
        inputs = trial.fresh()
        inputs.x[begin:end, b], inputs.h[:, begin, b], inputs.c[:, begin, b] = value, value, value
        ran = trial.run(lstm, inputs)
        other = torch.ones_like(clean.starts)
        other[begin:end, b] = False
        right, kept = trial.expected, other.unsqueeze(-1)
        # not zeros in place of the poisoned sequence: whole rows are what torch's own error on a device is measured on
        trial.agree("output of the other sequences", _where(kept, ran.output, right.output), right.output)
        clean_of_it = ran._replace(h=_where(kept, ran.h, right.end_h), c=_where(kept, ran.c, right.end_c))
        trial.agree_states("of the other sequences", clean_of_it, right.end_h, right.end_c)


def _where(kept: torch.Tensor, value: torch.Tensor, other: torch.Tensor | int = 0) -> torch.Tensor:
    kept, other = kept.to(value.device), other.to(value) if isinstance(other, torch.Tensor) else other
    return torch.where(kept, value, other)


@law(wide=True, B=(1, 2, 3), T=(2, 3, 4, 6), dtype=("f64", "f32"))
def nan_stays_in_its_sequence(trial: Trial) -> None:
    """NaN in one sequence's input and stored state reaches no other sequence, before or after it."""
    _poisoned(trial, float("nan"))


@law(B=(1, 2), T=(2, 3, 4, 6), dtype=("f64", "f32"), profiles=("quick", "full"))
def infinity_stays_in_its_sequence(trial: Trial) -> None:
    """Infinity in one sequence's input and stored state reaches no other sequence."""
    _poisoned(trial, float("inf"))


@law(wide=True, dtype=("f64", "f32"))
def nan_in_unread_stored_states_stays_there(trial: Trial) -> None:
    """NaN stored at steps where no sequence starts is never read: output and end states do not change."""
    inputs, unread = trial.fresh(), ~trial.inputs.starts
    inputs.h[:, unread], inputs.c[:, unread] = float("nan"), float("nan")
    ran = trial.run(trial.lstm(), inputs)
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(wide=True, bidirectional=(False,), dtype=("f64", "f32"))
def nan_is_not_hidden(trial: Trial) -> None:
    """NaN that a step reads appears in its output: NaN is not replaced silently."""
    inputs = trial.fresh()
    inputs.x[trial.case.T // 2, 0] = float("nan")
    output = trial.run(trial.lstm(), inputs).output[trial.case.T // 2, 0]
    demand("output of the step that read NaN", output.isnan(), output, "NaN", "unit")


@law(wide=True, stored=("random",))
def a_stream_restarts_from_zero(trial: Trial) -> None:
    """In ``lstm(x, hx, is_init=)`` a reset starts from zeros, at the first step too; other rows start from hx."""
    inputs, is_init = trial.fresh(), trial.is_init
    hx = inputs.h[:, 0].clone(), inputs.c[:, 0].clone()
    ran = trial.stream(trial.lstm(), inputs.x, hx, is_init)
    first = torch.zeros_like(inputs.starts)
    first[0] = ~is_init[0]
    stored = inputs._replace(h=_where(first.unsqueeze(-1), inputs.h), c=_where(first.unsqueeze(-1), inputs.c))
    expected = trial.reference(stored)
    trial.agree("output", ran.output, expected.output)
    trial.agree("h_n", ran.h, expected.end_h[:, -1], 1, "layer b unit")
    trial.agree("c_n", ran.c, expected.end_c[:, -1], 1, "layer b unit")


@law(wide=True, T=(4,), B=(4,), profiles=("quick", "full"))
def a_square_mask_keeps_its_axes(trial: Trial) -> None:
    """With as many rows as steps, resets are read along time as for other sizes, in a call and in recurrent mode."""
    lstm, module, td = trial.lstm(), trial.module(), trial.tensordict()
    is_init = torch.ones(3, dtype=torch.bool, device=trial.device).diag(-1)  # row b resets at step b + 1
    starts = is_init.clone()
    starts[0] = True
    inputs = trial.inputs._replace(starts=starts)
    stored = trial.reference(inputs).output
    trial.agree("output", trial.run(lstm, inputs).output, stored)
    td["is_init"] = is_init.T.unsqueeze(-1)
    trial.agree("features", module.set_recurrent_mode(True)(td)["features"].transpose(0, 1), stored)
    streamed = trial.reference(inputs._replace(h=torch.zeros_like(inputs.h), c=torch.zeros_like(inputs.c))).output
    for mask in (is_init, is_init.unsqueeze(-1)):
        trial.agree("output of a call", trial.stream(lstm, inputs.x, None, mask).output, streamed)
    first = trial.stream(module.lstm, inputs.x.transpose(0, 1), None, is_init.T).output
    trial.agree("output of a call with batch_first", first.transpose(0, 1), streamed)
