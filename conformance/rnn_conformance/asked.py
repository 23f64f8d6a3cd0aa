"""What a person asked for on the command line: names of backends and parts of names of laws."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import click
from rnn_backends import Backend, BrokenBackendError, UnknownBackendError, get_backend

from . import catalogue, rollout_laws


def sentence(law: str) -> str:
    """A law in one sentence."""
    if law in rollout_laws.LAWS:
        return rollout_laws.sentence(law)
    return catalogue.LAWS[law].sentence if law in catalogue.LAWS else ""


def known_backend(name: str) -> tuple[str, Backend | str]:
    """A name and its backend, or the reason why it cannot be loaded.

    Raises:
        click.BadParameter: nothing of this name is installed; the message has the nearest.
    """
    try:
        backend = get_backend(name)
    except UnknownBackendError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    except BrokenBackendError as error:
        return name, str(error)
    return backend.name, backend


def select_laws(parts: Sequence[str], profile: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The suite's laws (``None``: all) and the rollout laws whose names are, or contain, one of the parts.

    Raises:
        click.BadParameter: a part that fits no law, with the nearest.
    """
    if not parts:
        return None, tuple(rollout_laws.LAWS)
    suite: set[str] = set()
    mine: set[str] = set()
    known = {*catalogue.LAWS, *rollout_laws.LAWS}
    for part in parts:
        exact = {part} & known
        fits = exact or {name for name in known if part in name}
        suite |= {name for name in fits & set(catalogue.LAWS) if profile in catalogue.LAWS[name].profiles}
        mine |= fits & set(rollout_laws.LAWS)
        if not fits:
            near = get_close_matches(part, known, n=1, cutoff=0.3)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.BadParameter(f"no law's name is or contains {part!r}.{hint}", param_hint="'-k'")
    if not suite and not mine:
        raise click.BadParameter(f"none of these laws belongs to the profile {profile!r}", param_hint="'-k'")
    return tuple(n for n in catalogue.LAWS if n in suite), tuple(n for n in rollout_laws.LAWS if n in mine)
