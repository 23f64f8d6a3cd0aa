"""One law over the one case of a token. There are three kinds of token, and a law's results have the one it needs.

``T2.B1.I1.H1.f64.s0`` is a drawn case; ``CartPole-v1:T64.B8....s0`` the same with a rollout's observations;
``CartPole-v1.H8.s5`` a rollout law's rollout, hidden size and seed.
"""

from __future__ import annotations

import re

from rnn_backends import LSTMBackend, get_backend

from .check import as_inputs, recordings
from .laws.asked import exact_law
from .laws.catalogue import LAWS
from .rollouts import laws as rollout_laws
from .rollouts.recorded import Rollout
from .suite import runner
from .suite.case import Case
from .suite.verdict import LawResult


def replay(backend: str | LSTMBackend, law: str, token: str, device: str = "cpu") -> LawResult:
    """Run one law over the one case of a token, of a result's ``token``.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: the law is unknown, or the token is not understood.
    """
    value = get_backend(backend) if isinstance(backend, str) else backend
    if exact_law(law) in rollout_laws.LAWS:
        return _rollout_law(value, law, token, device)
    name, recorded, case = token.partition(":")
    if recorded:
        found = runner.outcome_of(LAWS[law], value, Case.parse(case), device, as_inputs(_rollout(name)))
        return LawResult(value.name, law, found.verdict, 1, 0, found.margin, found.message, token)
    return runner.replay(value, law, token, device)


def _rollout(name: str) -> Rollout:
    for rollout in recordings():
        if rollout.name == name:
            return rollout
    raise ValueError(f"there is no rollout {name!r}; there are {', '.join(r.name for r in recordings())}")


def _rollout_law(backend: LSTMBackend, law: str, token: str, device: str) -> LawResult:
    name, size, seed = _parts(law, token)
    return rollout_laws.RolloutChecks(backend, [_rollout(name)], "smoke", device, seed, [size]).run(law)


def _parts(law: str, token: str) -> tuple[str, int, int]:
    """Rollout, hidden size and seed."""
    found = re.fullmatch(r"([\w-]+)\.H(\d+)\.s(\d+)", token)
    if found is None:
        raise ValueError(f"the token {token!r} is not one of {law}'s, which look like CartPole-v1.H8.s5")
    return found[1], int(found[2]), int(found[3])


def check_token(law: str, token: str) -> None:
    """Raise ValueError unless the token is one of the law's kind."""
    if law in rollout_laws.LAWS:
        _parts(law, token)
    else:
        Case.parse(token.rpartition(":")[2])
