"""Modes: which mode applies, within contexts and copies."""

from __future__ import annotations

from typing import Any

from rnn_backends import LSTMModule, set_recurrent_mode

from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken

SMALL: dict[str, Any] = {"T": (2,), "B": (2,), "L": (1,)}


class _Stop(Exception):
    """Raised and caught by the law itself."""


def _runs_in(module: LSTMModule, expected: bool, where: str) -> None:
    if module.recurrent_mode != expected:
        raise LawBroken(f"{where} recurrent_mode is {module.recurrent_mode}, expected {expected}")


@law(**SMALL)
def contexts_of_a_mode_nest(trial: Trial) -> None:
    """The innermost context decides, ``None`` restores each module's own mode, and errors leave no mode behind."""
    for own in (False, True):
        module = trial.module().set_recurrent_mode(own)
        with set_recurrent_mode(not own):
            _runs_in(module, not own, "within a context")
            with set_recurrent_mode(None):
                _runs_in(module, own, "within None in a context")
                with set_recurrent_mode(not own):
                    _runs_in(module, not own, "within a context in None")
            try:
                with set_recurrent_mode(own):
                    _runs_in(module, own, "within a context in a context")
                    raise _Stop
            except _Stop:
                _runs_in(module, not own, "after an error in an inner context")
        _runs_in(module, own, "after all contexts")


@law(**SMALL)
def a_context_may_be_entered_within_itself(trial: Trial) -> None:
    """One ``set_recurrent_mode`` object can be re-entered, as by a recursive decorated function."""
    module, mode = trial.module(), set_recurrent_mode(True)

    @mode
    def recursive(depth: int) -> None:
        _runs_in(module, True, "within a decorated function")
        if depth:
            recursive(depth - 1)
        _runs_in(module, True, "after a decorated function called itself")

    recursive(2)
    _runs_in(module, False, "after a recursive decorated function")
    with set_recurrent_mode(False), mode, mode:
        _runs_in(module, True, "within one context twice")
    _runs_in(module, False, "after one context twice")


@law(**SMALL)
def a_copy_has_its_mode_wherever_it_is_made(trial: Trial) -> None:
    """``module.set_recurrent_mode(mode)`` returns a module of that mode, whatever the context of the call."""
    for mode in (True, False):
        module = trial.module().set_recurrent_mode(not mode)
        for context in (True, False, None):
            with set_recurrent_mode(context):
                twin = module.set_recurrent_mode(mode)
            _runs_in(twin, mode, f"of a copy made by set_recurrent_mode({mode}) within a context of {context},")
