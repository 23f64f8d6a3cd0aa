"""Stateful: after any events in any order, a module computes the same as the reference."""

from __future__ import annotations

from ..suite.law import law
from ..suite.state_machine import play
from ..suite.state_model import PLAIN
from ..suite.trial import Trial
from ._shared import registered


@law(costly=True, once=True, B=(2,), T=(1,), bidirectional=(False,), profiles=("quick", "full"))
def any_program_agrees_with_the_model(trial: Trial) -> None:
    """After steps, resets, modes, copies, edits, dtypes and other backends in any order, results equal the model's."""
    trial.lstm()  # raises Declined for a rejected case
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=25, steps=12)


@law(costly=True, B=(2,), T=(1,), L=(2,), bidirectional=(False,), dropout=(100,), profiles=("full",))
def any_program_drops_in_training_only(trial: Trial) -> None:
    """The same with dropout 1 between two layers, whose mask is known: all zeros in training, no mask otherwise."""
    trial.lstm()
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=25, steps=25)  # a failure needs three events in order


@law(costly=True, B=(3,), T=(1,), bidirectional=(False,), profiles=("full",))
def any_long_program_agrees_with_the_model(trial: Trial) -> None:
    """The same over programs of forty events each."""
    trial.lstm()
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=20, steps=40)
