"""Names and checks shared by several files of laws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rnn_backends import ContractError, LSTMBackend, register, unregister
from rnn_backends.registry import is_registered_value
from tensordict import TensorDictBase

from ..suite.reach import CHEAP_DTYPE
from ..suite.trial import Ran, Trial
from ..suite.verdict import Declined

H_KEY, C_KEY = "recurrent_state_h", "recurrent_state_c"
"""LSTMModule's default keys of the hidden states."""

COMPILED: dict[str, Any] = {
    "time_limit": 300.0, "profiles": ("full",), "dtype": CHEAP_DTYPE,
    "B": (2,), "I": (3,), "H": (4,), "L": (1,), "P": (0,), "bidirectional": (False,), "layout": ("contiguous",),
}  # fmt: skip
"""Options of a law that compiles: a process of its own and one small shape."""


def ran_from(td: TensorDictBase) -> Ran:
    """``[B, T, .]`` entries, time major: ``output [T, B, D*P]``, states ``[L*D, T, B, .]``."""
    h, c = td["next", H_KEY], td["next", C_KEY]
    return Ran(td["features"].transpose(0, 1), h.permute(2, 1, 0, 3), c.permute(2, 1, 0, 3))


def agrees_with_reference(trial: Trial, ran: Ran | None = None, gradients: bool = False) -> None:
    """Check output and end states of a run against the reference's, and with ``gradients`` the gradients too.

    Without ``ran``, a new LSTM runs over the case's inputs.
    """
    ran = ran or trial.run(trial.lstm())
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)
    if gradients:
        trial.agree_gradients(trial.gradients(trial.loss), trial.expected_gradients(trial.loss))


@contextmanager
def registered(backend: LSTMBackend) -> Iterator[None]:
    """Context manager: register the backend, so that its name, which pickles store, finds it."""
    if is_registered_value(backend):
        yield
        return
    try:
        register(backend)
    except ContractError as error:
        raise Declined(
            f"a pickle would load the registered backend of its name, which is another one: {error}"
        ) from error
    try:
        yield
    finally:
        unregister(backend.name)
