"""One law over one case, as an outcome."""

from __future__ import annotations

import warnings

import torch
from rnn_backends import LSTMBackend, UnsupportedError

from .case import Case
from .device import exact_float32
from .inputs import Rollout
from .law import Law
from .trial import Trial
from .verdict import Declined, LawBroken, Outcome


def outcome_of(law: Law, backend: LSTMBackend, case: Case, device: str, rollout: Rollout | None = None) -> Outcome:
    """Run the law once, in this process. Any exception of the backend becomes part of the outcome.

    Args:
        law: the law.
        backend: the backend under test.
        case: sizes, options, resets and seed.
        device: the device to run on.
        rollout: recorded observations in place of the drawn input.
    """
    claimed = law.trait is None or law.trait in backend.traits
    trial = Trial(backend, case, device, rollout)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), exact_float32(device):
            law.function(trial)
    except Declined as declined:
        return Outcome("declined", str(declined))
    except LawBroken as broken:  # not any AssertionError: torch and backends raise their own, and that is a crash
        return Outcome("failed" if claimed else "silently_wrong", str(broken), broken.error_ratio or trial.error_ratio)
    except UnsupportedError as error:
        if not claimed:
            return Outcome("declined", error.reason)
        return Outcome("failed", f"accepted at construction and declined when called: {error}")
    except Exception as error:  # any exception of a third-party backend is its outcome
        first = next(iter(str(error).strip().splitlines()), "")
        message = f"{type(error).__name__}: {first}"
        return Outcome("crashed", message) if claimed else Outcome("declined", f"fails loudly, {message}")
    return Outcome("passed" if claimed else "under_claimed", error_ratio=trial.error_ratio)
