"""Batch: rows are independent of one another."""

from __future__ import annotations

import torch

from ..suite.compare import check_shape, identical
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Trial


def _rows(inputs: Inputs, rows: torch.Tensor) -> Inputs:
    """The inputs of the given rows of the batch."""
    x, h, c, starts, weights = inputs
    return Inputs(x[:, rows], h[:, :, rows], c[:, :, rows], starts[:, rows], weights)


@law(B=(2, 3, 4))
def permuting_rows_permutes_the_answer(trial: Trial) -> None:
    """Permuting the rows of the batch permutes the results and changes nothing else."""
    lstm = trial.lstm()
    order = torch.arange(trial.case.B, device=trial.device).roll(1)
    ran, other = trial.run(lstm), trial.run(lstm, _rows(trial.inputs, order))
    trial.agree("output", other.output, ran.output[:, order], scale=2)
    trial.agree_states_of(order, other, ran)


@law(B=(2, 3, 4))
def a_batch_is_its_rows_alone(trial: Trial) -> None:
    """Every row, with its own resets, gives the same results in a batch as alone."""
    lstm = trial.lstm()
    ran = trial.run(lstm)
    for b in range(trial.case.B):
        row = torch.tensor([b], device=trial.device)
        alone = trial.run(lstm, _rows(trial.inputs, row))
        trial.agree(f"output of row {b}", ran.output[:, row], alone.output, scale=2)
        trial.agree_states_of(row, alone, ran)


@law(B=(2, 3, 4), dtype=("f64", "f32"))
def nan_stays_in_its_row(trial: Trial) -> None:
    """NaN in one row of the batch reaches the results of no other row."""
    inputs = trial.fresh()
    inputs.x[:, -1], inputs.h[:, :, -1], inputs.c[:, :, -1] = float("nan"), float("nan"), float("nan")
    ran = trial.run(trial.lstm(), inputs)
    trial.agree("output of the other rows", ran.output[:, :-1], trial.expected.output[:, :-1])


@law(B=(1,))
def one_row(trial: Trial) -> None:
    """With a batch of one row, output and states equal the reference's."""
    ran = trial.run(trial.lstm())
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(B=(0,), resets=("none",))
def no_rows(trial: Trial) -> None:
    """An empty batch gives output and states of the right shapes with no rows, and gradients of exactly zero."""
    case, lstm = trial.case, trial.lstm()
    output, (h, c) = lstm(trial.inputs.x, is_init=trial.inputs.starts)
    P, D = case.spec.output_size, case.spec.directions
    check_shape("output", output, torch.empty(case.T, 0, D * P))
    check_shape("h_n", h, torch.empty(case.L * D, 0, P))
    check_shape("c_n", c, torch.empty(case.L * D, 0, case.H))
    for name, gradient in trial.gradients(trial.loss, lstm).items():
        identical(f"the gradient of {name}", gradient, torch.zeros_like(gradient), "")
