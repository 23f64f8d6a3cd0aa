"""Stories: whatever happens to a module in a rollout, in any order, it goes on computing what the reference does."""

from __future__ import annotations

from ..suite.law import law
from ..suite.state_machine import play
from ..suite.state_model import PLAIN
from ..suite.trial import Trial
from ._shared import registered


@law(costly=True, B=(2,), T=(1,), bidirectional=(False,), profiles=("quick", "full"))
def any_story_agrees_with_the_model(trial: Trial) -> None:
    """Steps, resets, modes, copies, edits, dtypes, other backends, in any order: all equals the plain model."""
    trial.lstm()  # declines here what it does not serve
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=25, steps=12)


@law(costly=True, B=(2,), T=(1,), L=(2,), bidirectional=(False,), dropout=(100,), profiles=("quick", "full"))
def any_story_drops_in_training_alone(trial: Trial) -> None:
    """The same where training drops all between two layers, so that the mask is known, and evaluation nothing."""
    trial.lstm()
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=25, steps=25)  # what it is about takes three events in their order


@law(costly=True, B=(3,), T=(1,), bidirectional=(False,), profiles=("full",))
def any_long_story_agrees_with_the_model(trial: Trial) -> None:
    """The same over forty events at a time, and many more of them."""
    trial.lstm()
    with registered(trial.backend), registered(PLAIN):
        play(trial, programs=20, steps=40)
