"""What a person asked for: names of backends and parts of names of laws."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from rnn_backends import BrokenBackendError, LSTMBackend, get_backend

from ..report.model import LawInfo
from ..rollouts import laws as rollout_laws
from . import catalogue


class UnknownLawError(ValueError):
    """No law is called that; the message has the nearest."""


def known_laws() -> tuple[str, ...]:
    """Every law's name: the suite's, then those over rollouts."""
    return (*catalogue.LAWS, *rollout_laws.LAWS)


def about(law: str) -> LawInfo:
    """What a law says, what it is about, and the capability it tries."""
    if law in rollout_laws.LAWS:
        return LawInfo("rollouts", rollout_laws.sentence(law))
    found = catalogue.LAWS[law]
    return LawInfo(found.subject, found.sentence, found.trait.value if found.trait else None)


def known_backend(name: str) -> tuple[str, LSTMBackend | str]:
    """A name and its backend, or the reason why it cannot be loaded.

    Raises:
        UnknownBackendError: nothing of this name is installed; the message has the nearest.
    """
    try:
        backend = get_backend(name)
    except BrokenBackendError as error:
        return name, str(error)
    return backend.name, backend


def exact_law(name: str) -> str:
    """A law's name, as it is.

    Raises:
        UnknownLawError: there is no such law.
    """
    if name not in known_laws():
        near = get_close_matches(name, known_laws(), n=1, cutoff=0.3)
        raise UnknownLawError(f"there is no law {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    return name


def select_laws(parts: Sequence[str], profile: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The profile's laws whose names are, or contain, one of the parts (no parts: all): the suite's, the rollouts'.

    Raises:
        UnknownLawError: a part that fits no law, with the nearest; or laws that are in other profiles only.
    """
    found: set[str] = set() if parts else set(known_laws())
    for part in parts:
        fits = {part} & set(known_laws()) or {name for name in known_laws() if part in name}
        if not fits:
            near = get_close_matches(part, known_laws(), n=1, cutoff=0.3)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownLawError(f"no law's name is or contains {part!r}.{hint}")
        found |= fits
    suite = tuple(name for name, law in catalogue.LAWS.items() if name in found and law.belongs(profile))
    mine = tuple(name for name in rollout_laws.LAWS if name in found)
    if not suite and not mine:
        raise UnknownLawError(f"none of these laws belongs to the profile {profile!r}")
    return suite, mine
