"""Shapes: sizes that are no power of two, long rows and many rows, chosen so that they cost little."""

from __future__ import annotations

import torch

from ..compare import identical
from ..law import law
from ..trial import Trial, differentiate


@law(
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
    """Hidden sizes beside the powers of two give the reference's values and gradients, weights scaled by 1/sqrt(H)."""
    scale = trial.case.H**-0.5
    weights = {name: value * scale for name, value in trial.inputs.weights.items()}
    inputs, lstm = trial.fresh()._replace(weights=weights), trial.lstm()
    lstm.load_state_dict(weights)
    expected = trial.reference(inputs)
    ran = trial.run(lstm, inputs)
    trial.agree("output", ran.output, expected.output)
    trial.agree_states("the end state", ran, expected.end_h, expected.end_c)
    own = {name: value.detach().cpu().double().requires_grad_() for name, value in weights.items()}
    right = differentiate((trial.reference(inputs._replace(weights=own)).output.sin()).sum(), own)
    trial.agree_gradients(differentiate(ran.output.sin().sum(), dict(lstm.named_parameters())), right)


@law(
    costly=True, T=(2000,), B=(1,), I=(1,), H=(1,), L=(1,), P=(0,), bidirectional=(False,), resets=("consecutive",),
    profiles=("quick", "full"),
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
    trial.agree("the gradient of x", gradient, right, 1, "t b unit", scale=10)


@law(costly=True, T=(3,), B=(3,), I=(2,), H=(1,), L=(1,), P=(0,), dtype=("f32",), profiles=("quick", "full"))
def many_rows(trial: Trial) -> None:
    """Seventy thousand rows, more than a 16-bit index counts, come out as the three that they repeat."""
    inputs, lstm, times = trial.inputs, trial.lstm(), 23_334
    tiled = inputs._replace(
        x=inputs.x.repeat(1, times, 1), h=inputs.h.repeat(1, 1, times, 1), c=inputs.c.repeat(1, 1, times, 1),
        starts=inputs.starts.repeat(1, times),
    )  # fmt: skip
    few, many = trial.run(lstm), trial.run(lstm, tiled)
    trial.agree("output", many.output, few.output.repeat(1, times, 1), scale=2)
    ends = trial.ends.repeat(1, times).unsqueeze(-1)
    for name, came, expected in (("h", many.h, few.h), ("c", many.c, few.c)):
        expected = expected.repeat(1, 1, times, 1)
        trial.agree(f"end {name}", torch.where(ends, came, 0), torch.where(ends, expected, 0), 2, "layer t b unit", 2)


@law(T=(1, 2), B=(1,), I=(1,), H=(1,), L=(1,), P=(0,))
def sizes_of_one_keep_their_dimensions(trial: Trial) -> None:
    """Where every size is one, no dimension is lost, in both modes and in a step."""
    lstm, inputs = trial.lstm(), trial.inputs
    D, T = trial.case.spec.directions, trial.case.T
    ran = trial.stream(lstm, inputs.x, None, trial.is_init)
    module, td = trial.module(), trial.tensordict()
    whole, step = module.set_recurrent_mode(True)(td.clone()), module(td[:, 0].clone())
    H = "recurrent_state_h"
    came = [*ran, whole["features"], whole["next", H], step["features"], step["next", H]]
    shapes = [(T, 1, D), (D, 1, 1), (D, 1, 1), (1, T, D), (1, T, D, 1), (1, D), (1, D, 1)]
    for k, (value, shape) in enumerate(zip(came, shapes, strict=True)):
        identical(f"the shape of result {k}", torch.tensor(value.shape), torch.tensor(shape), "dimension")
