"""Values: every backend computes an LSTM's output and states."""

from __future__ import annotations

import torch
from rnn_backends import Trait

from ..suite.law import law
from ..suite.reference import torch_per_trajectory
from ..suite.trial import Trial
from ..suite.verdict import LawBroken


@law(wide=True, rollouts=True)
def output_equals_reference(trial: Trial) -> None:
    """The output at every step equals the reference's, in float64 or the best dtype that the backend takes."""
    trial.agree("output", trial.run(trial.lstm()).output, trial.expected.output)


@law(wide=True, dtype=("f32",), rollouts=True)
def output_equals_reference_in_float32(trial: Trial) -> None:
    """In float32 the output at every step equals the float64 reference's within float32's rounding."""
    trial.agree("output", trial.run(trial.lstm()).output, trial.expected.output)


@law(wide=True, dtype=("bf16",))
def output_equals_reference_in_bfloat16(trial: Trial) -> None:
    """In bfloat16 output and end states have that dtype and equal the float64 reference's within its rounding."""
    ran = trial.run(trial.lstm())
    for name, value in zip(("output", "h", "c"), ran, strict=True):
        if value.dtype != trial.case.torch_dtype:
            raise LawBroken(f"{name} has dtype {value.dtype} in bfloat16")
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(wide=True, rollouts=True)
def end_states_equal_reference(trial: Trial) -> None:
    """h and c equal the reference's wherever a sequence ends, not only at the last step."""
    trial.agree_states("the end state", trial.run(trial.lstm()), trial.expected.end_h, trial.expected.end_c)


@law(wide=True, dtype=("f32",), profiles=("quick", "full"))
def end_states_equal_reference_in_float32(trial: Trial) -> None:
    """In float32 h and c equal the float64 reference's wherever a sequence ends."""
    trial.agree_states("the end state", trial.run(trial.lstm()), trial.expected.end_h, trial.expected.end_c)


@law(wide=True)
def last_states_equal_reference(trial: Trial) -> None:
    """The end state of the last sequence alone equals the reference's; requested afterwards, all end states do too."""
    lstm, drawn = trial.lstm(), trial.inputs
    for inputs in (drawn, drawn._replace(h=torch.zeros_like(drawn.h), c=torch.zeros_like(drawn.c))):
        expected = trial.reference(inputs)
        output, states = lstm.sequences(inputs.x, inputs.entry, inputs.starts, every_end=False)
        trial.agree("output", output, expected.output)
        for k, state in enumerate(states):
            trial.agree(f"last h of row {k}", state.h, expected.end_h[k, -1], 0, "b unit")
            trial.agree(f"last c of row {k}", state.c, expected.end_c[k, -1], 0, "b unit")
        trial.agree_states("the end state", trial.run(lstm, inputs), expected.end_h, expected.end_c)


@law(rollouts=True)
def equals_torch_per_trajectory(trial: Trial) -> None:
    """Output and end states equal torch.nn.LSTM's, run on one trajectory at a time."""
    x, h, c, starts, weights = trial.inputs
    witness = torch_per_trajectory(weights, x, h, c, starts, trial.case.L, trial.case.bidirectional)
    ran = trial.run(trial.lstm())
    trial.agree("output", ran.output, witness.output)
    trial.agree_states("the end state", ran, witness.end_h, witness.end_c)


@law(trait=Trait.CELL_STATES, tries_unclaimed=False, bidirectional=(False,))
def cell_states_are_right_at_every_step(trial: Trial) -> None:
    """A backend that claims CELL_STATES gives the right h and c at every step, not only where sequences end."""
    ran = trial.run(trial.lstm())
    trial.agree("h", ran.h, trial.expected.h, 2, "layer t b unit")
    trial.agree("c", ran.c, trial.expected.c, 2, "layer t b unit")
