"""All planted defects, by name, in the order of the laws' subjects."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec

from ..laws.catalogue import SUBJECTS
from .planting import Defect

_FILES = (f"{__package__}.planted.{subject.__name__.rpartition('.')[2]}" for subject in SUBJECTS)
PLANTED = tuple(import_module(name) for name in _FILES if find_spec(name))
"""One file for each subject of the laws; a test fails where one is missing."""

DEFECTS: dict[str, Defect] = {
    value.name: value for module in PLANTED for value in vars(module).values() if isinstance(value, Defect)
}


def select(name: str | None = None, subject: str | None = None) -> dict[str, Defect]:
    """The defects whose name is, or contains, ``name``, of the subjects whose name contains ``subject``.

    Raises:
        ValueError: nothing matches, with the nearest name.
    """
    chosen = {n: d for n, d in DEFECTS.items() if subject is None or subject in d.subject}
    if not chosen:
        raise ValueError(f"there is no subject {subject!r}: there are {', '.join(subjects())}")
    if name is None or name in chosen:
        return chosen if name is None else {name: chosen[name]}
    matching = {n: d for n, d in chosen.items() if name in n}
    if not matching:
        near = get_close_matches(name, chosen, n=1, cutoff=0.3)
        raise ValueError(f"no defect's name is or contains {name!r}" + (f": nearest is {near[0]!r}" if near else ""))
    return matching


def subjects() -> tuple[str, ...]:
    """Names of the subjects."""
    return tuple(dict.fromkeys(defect.subject for defect in DEFECTS.values()))


def killers() -> dict[str, tuple[str, ...]]:
    """For every law that a defect names: the names of those defects."""
    by_law: dict[str, list[str]] = {}
    for defect in DEFECTS.values():
        for law in defect.killed_by:
            by_law.setdefault(law, []).append(defect.name)
    return {law: tuple(names) for law, names in by_law.items()}
