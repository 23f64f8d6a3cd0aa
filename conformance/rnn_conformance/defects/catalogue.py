"""All planted defects, by name, in the order of the laws' subjects."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ..laws.catalogue import SUBJECTS
from ..suite.names import matching
from .planting import Defect

_FILES = (f"{__package__}.planted.{subject.__name__.rpartition('.')[2]}" for subject in SUBJECTS)
PLANTED = tuple(import_module(name) for name in _FILES if find_spec(name))
"""One file for each subject of the laws; a test fails if one is missing."""

DEFECTS: dict[str, Defect] = {
    value.name: value for module in PLANTED for value in vars(module).values() if isinstance(value, Defect)
}


def select(name: str | None = None, subject: str | None = None) -> dict[str, Defect]:
    """The defects whose name is, or contains, ``name``, of the subjects whose name contains ``subject``.

    Raises:
        UnknownNameError: nothing matches, with the nearest name.
    """
    chosen_subjects = matching(subject, subjects(), "subject") if subject else subjects()
    chosen = {n: d for n, d in DEFECTS.items() if d.subject in chosen_subjects}
    return {n: chosen[n] for n in matching(name, chosen, "defect")} if name else chosen


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
