"""Names typed by a person: exact names and parts of names; an error suggests the nearest name."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


class UnknownNameError(ValueError):
    """The name is unknown; the message suggests the nearest one."""


def exact(name: str, known: Collection[str], kind: str) -> str:
    """The name itself, if it is known.

    Raises:
        UnknownNameError: there is no ``kind`` of this name.
    """
    if name not in known:
        raise UnknownNameError(f"there is no {kind} {name!r}.{_hint(name, known)}")
    return name


def matching(part: str, known: Collection[str], kind: str) -> list[str]:
    """The name itself, if it is known, else all names that contain it.

    Raises:
        UnknownNameError: there are none.
    """
    found = [part] if part in known else [name for name in known if part in name]
    if not found:
        raise UnknownNameError(f"no {kind}'s name is or contains {part!r}.{_hint(part, known)}")
    return found


def _hint(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    return f" Did you mean {near[0]!r}?" if near else ""
