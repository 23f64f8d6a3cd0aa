"""Names typed by a person: exact names and parts of names; an error suggests the nearest name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from itertools import combinations


class UnknownNameError(ValueError):
    """The name is unknown; the message suggests the nearest one."""


def exact(name: str, known: Collection[str], kind: str) -> str:
    """The name itself, if it is known.

    Raises:
        UnknownNameError: there is no ``kind`` of this name.
    """
    if name not in known:
        means = {run: whole for whole in known for run in _runs(whole)} | {whole: whole for whole in known}
        raise UnknownNameError(f"there is no {kind} {name!r}.{_hint(name, means)}")
    return name


def matching(part: str, known: Collection[str], kind: str) -> list[str]:
    """The name itself, if it is known, else all names that contain it.

    Raises:
        UnknownNameError: there are none.
    """
    found = [part] if part in known else [name for name in known if part in name]
    if not found:
        means = {run: run for name in known for run in _runs(name)}
        raise UnknownNameError(f"no {kind}'s name is or contains {part!r}.{_hint(part, means)}")
    return found


def _runs(name: str) -> Iterator[str]:
    """The parts of a name that start and end with a word: the name itself, and what a person types of it."""
    words = name.split("_")
    for start, end in combinations(range(len(words) + 1), 2):
        yield "_".join(words[start:end])


def _hint(typed: str, means: Mapping[str, str]) -> str:
    """What the nearest of these means, if one is near: difflib's own limit keeps a hint from being a guess."""
    near = get_close_matches(typed, means, n=1)
    return f" Did you mean {means[near[0]]!r}?" if near else ""
