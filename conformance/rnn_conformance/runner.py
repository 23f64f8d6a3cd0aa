"""Run laws over a backend: ``check_backend(name) -> Report``. (Stub: the types are final, the laws arrive next.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rnn_backends import Backend, get_backend
from torch import Tensor

from .verdicts import Header, LawResult, Report

PROFILES = {"smoke": 5, "quick": 25, "full": 200}
"""Examples a law, by profile."""

Progress = Callable[[str, int, int], None]
"""``on_progress(law, done, total)``: called before each law with ``done`` laws finished, and once at the end."""


class Rollout(NamedTuple):
    """Recorded observations of a real environment: ``observation [B, T, I]`` float, ``is_init [B, T]`` bool."""

    name: str
    observation: Tensor
    is_init: Tensor


def check_backend(
    backend: str | Backend,
    *,
    profile: str = "quick",
    device: str = "cpu",
    laws: Sequence[str] | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
    rollouts: Sequence[Rollout] | None = None,
) -> Report:
    """Run the laws over one backend.

    Args:
        backend: an installed backend's name, or a value.
        profile: ``"smoke"``, ``"quick"`` or ``"full"``: how many examples a law.
        device: where to run.
        laws: names or parts of names; ``None`` for all.
        seed: of the generated cases; ``None`` for a fresh one, which the header names.
        on_progress: see :data:`Progress`.
        rollouts: recorded observations that the laws run over too.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        ValueError: an unknown profile, or a part of a name that fits no law.
    """
    value = get_backend(backend) if isinstance(backend, str) else backend
    expected = ("stub",)
    if on_progress:
        on_progress("stub", 0, 1)
        on_progress("", 1, 1)
    header = Header(value.name, device, profile, seed or 0, expected, rollouts=tuple(r.name for r in rollouts or ()))
    return Report(header, [LawResult(value.name, "stub", "passed", cases=1, worst_margin=0.1, seconds=0.01)])
