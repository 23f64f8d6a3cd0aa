"""All planted defects, by name, in the order of their families."""

from __future__ import annotations

from difflib import get_close_matches
from types import ModuleType

from . import (
    invented_again,
    invented_core,
    invented_core_blind,
    invented_core_more,
    invented_kernels,
    invented_kernels_again,
    invented_plugins,
    states,
)
from .planted import (
    compiled,
    dispatch,
    dropout,
    gradients,
    keys,
    layout,
    lifecycle,
    nets,
    options,
    plugins,
    precision,
    recompiling,
    recurrent,
    resets,
    shapes,
    side_effects,
    stateful,
    stepping,
    transforms,
    values,
    weights,
)
from .planting import Defect

FAMILIES: tuple[ModuleType, ...] = (
    states,
    values,
    options,
    resets,
    shapes,
    recurrent,
    keys,
    gradients,
    dropout,
    precision,
    layout,
    side_effects,
    weights,
    lifecycle,
    dispatch,
    transforms,
    stepping,
    recompiling,
    compiled,
    plugins,
    stateful,
    nets,
    invented_kernels,
    invented_core,
    invented_again,
    invented_plugins,
    invented_kernels_again,
    invented_core_more,
    invented_core_blind,
)

DEFECTS: dict[str, Defect] = {
    value.name: value
    for family in FAMILIES
    for value in vars(family).values()
    if isinstance(value, Defect) and (value.killed_by or value.why_not)
}


def select(name: str | None = None, family: str | None = None) -> dict[str, Defect]:
    """The defects whose name is, or contains, ``name``, of the families whose name contains ``family``.

    Raises:
        ValueError: nothing fits, with the nearest name.
    """
    found = {n: d for n, d in DEFECTS.items() if family is None or family in d.family}
    if not found:
        raise ValueError(f"there is no family {family!r}: there are {', '.join(families())}")
    if name is None or name in found:
        return found if name is None else {name: found[name]}
    fits = {n: d for n, d in found.items() if name in n}
    if not fits:
        near = get_close_matches(name, found, n=1, cutoff=0.3)
        raise ValueError(f"no defect's name is or contains {name!r}" + (f": nearest is {near[0]!r}" if near else ""))
    return fits


def families() -> tuple[str, ...]:
    """Names of the families."""
    return tuple(dict.fromkeys(defect.family for defect in DEFECTS.values()))


def killers() -> dict[str, tuple[str, ...]]:
    """For every law that a defect names: the names of those defects."""
    found: dict[str, list[str]] = {}
    for defect in DEFECTS.values():
        for law in defect.killed_by:
            found.setdefault(law, []).append(defect.name)
    return {law: tuple(names) for law, names in found.items()}
