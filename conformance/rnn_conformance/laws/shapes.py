"""Shapes: sizes that are not powers of two, long rows and many rows, chosen to be cheap."""

from __future__ import annotations

from typing import Any

import torch
from rnn_backends import LSTM, State
from torch import Tensor

from ..suite.compare import identical
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reach import CHEAP_DTYPE
from ..suite.trial import Ran, Trial, differentiate
from .gradients import check_gradients_through_steps


@law(
    wide=True,
    H=(1, 3, 5, 127, 129, 257),
    I=(1, 7),
    L=(1, 2),
    T=(2,),
    B=(1, 2),
    P=(0,),
    bidirectional=(False,),
    profiles=("quick", "full"),
)
def any_hidden_size(trial: Trial) -> None:
    """Hidden sizes next to powers of two give the reference's values and gradients, with weights over sqrt(H)."""
    inputs, lstm = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm()
    lstm.load_state_dict(inputs.weights)
    expected = trial.reference(inputs)
    ran = trial.run(lstm, inputs)
    trial.agree("output", ran.output, expected.output)
    trial.agree_states("the end state", ran, expected.end_h, expected.end_c)
    _right_gradients(trial, lstm, inputs, ran)


TRAINING: dict[str, Any] = {"T": (40,), "B": (5,), "I": (32,), "H": (128,), "L": (1,), "P": (0,), "dtype": CHEAP_DTYPE}


@law(costly=True, bidirectional=(False,), profiles=("quick", "full"), **TRAINING)
def sizes_of_training(trial: Trial) -> None:
    """At the sizes of training, values and gradients equal the reference's, after ``.data`` edits too."""
    few, lstm, times = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm(), 26
    lstm.load_state_dict(few.weights)
    many = few.tiled(times)
    for factor in (1.0, 0.5):
        few = few.weighted(factor)
        for name, parameter in lstm.named_parameters():
            parameter.data.copy_(few.weights[name])
        expected = trial.reference(few)
        with torch.no_grad():
            acted = trial.run(lstm, many)
        ran = trial.run(lstm, many)
        for actual in (acted, ran):
            _repeats(trial, actual, expected.output, expected.end_h, expected.end_c, times)
    _right_gradients(trial, lstm, few, ran, times)


@law(costly=True, bidirectional=(False,), profiles=("quick", "full"), **TRAINING)
def sizes_of_training_on_three_threads(trial: Trial) -> None:
    """At the sizes of training on three torch threads, values and gradients equal the reference's, in two runs."""
    _on_three_threads(trial, 26)


@law(
    costly=True,
    bidirectional=(False,),
    profiles=("quick", "full"),
    **{**TRAINING, "B": (1,), "H": (200,), "P": (0, 160)},
)
def one_row_on_three_threads(trial: Trial) -> None:
    """One row, with three torch threads to share it, has the reference's values and gradients, projected or not.

    At sizes for which a step is enough work for three threads, with a projection too.
    """
    _on_three_threads(trial, 1)


def _on_three_threads(trial: Trial, times: int) -> None:
    few, lstm, before = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm(), torch.get_num_threads()
    lstm.load_state_dict(few.weights)
    expected = trial.reference(few)
    torch.set_num_threads(3)
    try:
        for _ in range(2):
            ran = trial.run(lstm, few.tiled(times))
            _repeats(trial, ran, expected.output, expected.end_h, expected.end_c, times)
            _right_gradients(trial, lstm, few, ran, times)
    finally:
        torch.set_num_threads(before)


@law(costly=True, bidirectional=(False,), profiles=("quick", "full"), **{**TRAINING, "T": (3,), "H": (256,)})
def steps_on_three_threads(trial: Trial) -> None:
    """Step by step on three torch threads, with weights over a MiB, gradients equal those over the whole row."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check_gradients_through_steps(trial)
    finally:
        torch.set_num_threads(before)


@law(costly=True, bidirectional=(True,), resets=("none",), stored=("zeros",), profiles=("quick", "full"), **TRAINING)
def sizes_of_training_in_both_directions(trial: Trial) -> None:
    """At the sizes of training, bidirectional rows without resets have the reference's output and gradients."""
    few, lstm, times = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm(), 26
    lstm.load_state_dict(few.weights)
    ran = trial.stream(lstm, few.tiled(times).x)
    trial.agree("output", ran.output, trial.reference(few).output.repeat(1, times, 1))
    _right_gradients(trial, lstm, few, ran, times)


@law(costly=True, bidirectional=(False,), profiles=("quick", "full"), **{**TRAINING, "T": (4,)})
def sizes_of_acting(trial: Trial) -> None:
    """At the batch sizes of acting, steps without gradients equal the reference's, after ``.data`` edits too."""
    few, lstm, times = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm(), 26
    for factor in (1.0, 0.5):
        few = few.weighted(factor)
        for name, parameter in lstm.named_parameters():
            parameter.data.copy_(few.weights[name])
        many, expected = few.tiled(times), trial.reference(few)
        state = State(many.h[:, 0], many.c[:, 0])
        for t in range(trial.case.T):
            begin = many.starts[t].unsqueeze(-1)
            state = State(*(torch.where(begin, at[:, t], now) for at, now in ((many.h, state.h), (many.c, state.c))))
            with torch.no_grad():
                output, state = lstm.step(many.x[t], state)
            trial.agree(f"output at step {t}", output, expected.output[t].repeat(times, 1), 0, "b unit")
            ends = trial.ends[t].repeat(times).unsqueeze(-1)
            for name, actual, right in (("h", state.h, expected.end_h), ("c", state.c, expected.end_c)):
                right = torch.where(ends, right[:, t].repeat(1, times, 1), 0)
                trial.agree(f"{name} at the end at step {t}", torch.where(ends, actual, 0), right, 1, "layer b unit")


def _repeats(trial: Trial, many: Ran, output: Tensor, end_h: Tensor, end_c: Tensor, times: int, scale: int = 1) -> None:
    """Check that the rows of ``many`` are the given ones, repeated."""
    trial.agree("output", many.output, output.repeat(1, times, 1), scale=scale)
    ends = trial.ends.repeat(1, times).unsqueeze(-1)
    for name, actual, expected in (("h", many.h, end_h), ("c", many.c, end_c)):
        expected = torch.where(ends, expected.repeat(1, 1, times, 1), 0)
        trial.agree(f"end {name}", torch.where(ends, actual, 0), expected, 2, "layer t b unit", scale)


def _right_gradients(trial: Trial, lstm: LSTM, inputs: Inputs, ran: Ran, times: int = 1) -> None:
    """Check the weights' gradients of a loss of the output; ``ran`` has the rows of the inputs ``times`` times.

    In sums of 5 000 terms torch's own kernel is up to 0.9 tolerances off in float32, so two are allowed.
    """
    own = {name: value.detach().cpu().double().requires_grad_() for name, value in inputs.weights.items()}
    right = differentiate(times * (trial.reference(inputs._replace(weights=own)).output.sin()).sum(), own)
    trial.agree_gradients(
        differentiate(ran.output.sin().sum(), dict(lstm.named_parameters())), right, 1 if times == 1 else 2
    )


@law(
    costly=True, T=(2000,), B=(1,), I=(1,), H=(1,), L=(1,), P=(0,), bidirectional=(False,), resets=("consecutive",),
    profiles=("full",),
)  # fmt: skip
def long_rows(trial: Trial) -> None:
    """Two thousand steps give the reference's output, end states and gradient of the input."""
    inputs = trial.fresh()
    inputs.x.requires_grad_()
    ran = trial.run(trial.lstm(), inputs)
    trial.agree("output", ran.output, trial.expected.output, scale=10)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)
    (gradient,) = torch.autograd.grad(ran.output.sum(), inputs.x)
    own = trial.fresh()
    x = own.x.detach().cpu().double().requires_grad_()
    (right,) = torch.autograd.grad(trial.reference(own._replace(x=x)).output.sum(), x)
    trial.agree_gradient("the gradient of x", gradient, right, 1, "t b unit", scale=2.5)


@law(costly=True, T=(3,), B=(3,), I=(2,), H=(1,), L=(1,), P=(0,), dtype=CHEAP_DTYPE, profiles=("quick", "full"))
def many_rows(trial: Trial) -> None:
    """Seventy thousand rows, more than a 16-bit index can count, give the results of the three that they repeat."""
    lstm, times = trial.lstm(), 23_334
    few, many = trial.run(lstm), trial.run(lstm, trial.inputs.tiled(times))
    _repeats(trial, many, few.output, few.h, few.c, times, scale=2)


COUNTS = (*range(1, 34), 47, 48, 49, 63, 64, 65, 96, 97, 127, 128, 129, 256, 257)
"""Numbers of rows around the sizes of registers, tiles and blocks."""


@law(costly=True, T=(2,), B=(3,), I=(1,), H=(5,), L=(1,), P=(0,), bidirectional=(False,), profiles=("quick", "full"))
def any_number_of_rows(trial: Trial) -> None:
    """With any number of rows, each has the reference's values and gradients, in a call and in a step.

    Of the resets too there may be any number: all rows restart at once, as environments with one time limit do. With
    one input feature, of which a product with as many rows as gates broadcasts along either axis.

    All rows are judged as one, because the worst of 257 rows is worse on a device than that of the case's few.
    """
    lstm, many = trial.lstm(), _many_rows(trial, max(COUNTS))
    own = many._replace(x=many.x.double().cpu())
    expected, x = trial.reference(own), own.x.clone().requires_grad_()
    together = trial.reference(own._replace(starts=torch.ones_like(own.starts))).output
    (right,) = torch.autograd.grad(trial.reference(own._replace(x=x)).output.sin().sum(), x)
    for rows in COUNTS:
        x = many.x[:, :rows].clone().requires_grad_()
        part = Inputs(x, many.h[:, :, :rows], many.c[:, :, :rows], many.starts[:, :rows], many.weights)
        ran = trial.run(lstm, part)
        trial.agree(f"output of {rows} rows", ran.output, expected.output[:, :rows], None)
        (gradient,) = torch.autograd.grad(ran.output.sin().sum(), x)
        trial.agree_gradient(f"the gradient of x of {rows} rows", gradient, right[:, :rows], None, "t b unit")
        with torch.no_grad():
            stepped, _ = lstm.step(part.x[0], State(part.h[:, 0], part.c[:, 0]))
            restarted = trial.run(lstm, part._replace(starts=torch.ones_like(part.starts))).output
        trial.agree(f"output of a step of {rows} rows", stepped, expected.output[0, :rows], None, "b unit")
        trial.agree(f"output of {rows} rows that restart at every step", restarted, together[:, :rows], None)


def _many_rows(trial: Trial, rows: int) -> Inputs:
    """The trial's weights, with the given number of rows, each different."""
    spec, T = trial.case.spec, trial.case.T
    shapes = ((T, rows, spec.input_size), *((1, T, rows, size) for size in (spec.output_size, spec.hidden_size)))
    x, h, c = (trial.noise(torch.empty(shape), 41 + k).to(trial.device) for k, shape in enumerate(shapes))
    starts = trial.inputs.starts.repeat(1, -(-rows // trial.case.B))[:, :rows]
    return Inputs(x, h, c, starts, trial.inputs.weights)


@law(T=(1, 2), B=(1,), I=(1,), H=(1,), L=(1,), P=(0,))
def sizes_of_one_keep_their_dimensions(trial: Trial) -> None:
    """If every size is one, no dimension is lost, in both modes and in a step."""
    lstm, inputs = trial.lstm(), trial.inputs
    D, T = trial.case.spec.directions, trial.case.T
    ran = trial.stream(lstm, inputs.x, None, trial.is_init)
    module, td = trial.module(), trial.tensordict()
    whole, step = module.set_recurrent_mode(True)(td.clone()), module(td[:, 0].clone())
    h = "recurrent_state_h"
    actual = [*ran, whole["features"], whole["next", h], step["features"], step["next", h]]
    H = trial.case.H  # 1 where the backend takes it
    shapes = [(T, 1, D * H), (D, 1, H), (D, 1, H), (1, T, D * H), (1, T, D, H), (1, D * H), (1, D, H)]
    for k, (value, shape) in enumerate(zip(actual, shapes, strict=True)):
        identical(f"the shape of result {k}", torch.tensor(value.shape), torch.tensor(shape), "dimension")
