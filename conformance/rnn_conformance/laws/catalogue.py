"""All laws, by name, in the order in which they run. The runner, the command line and pytest are fronts over it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType

from ..suite.law import Law
from . import (
    batch,
    compiled,
    dispatch,
    distributed,
    dropout,
    gradients,
    keys,
    layout,
    lifecycle,
    memory,
    modes,
    nets,
    options,
    plugins,
    precision,
    recompiling,
    recurrent,
    refusals,
    resets,
    shapes,
    side_effects,
    stateful,
    stepping,
    threads,
    transforms,
    values,
    weights,
)  # fmt: skip

SUBJECTS: tuple[ModuleType, ...] = (
    values, resets, stepping, batch, gradients, options, dropout, precision, shapes, layout, side_effects, memory,
    weights, lifecycle, recurrent, modes, keys, nets, refusals, plugins, threads, stateful, dispatch, transforms,
    compiled, recompiling, distributed,
)  # fmt: skip

LAWS: dict[str, Law] = {
    value.name: value for module in SUBJECTS for value in vars(module).values() if isinstance(value, Law)
}


def select(names: Sequence[str] | None, profile: str) -> dict[str, Law]:
    """The laws of a profile whose names are, or contain, one of ``names`` (``None``: all).

    Raises:
        ValueError: a name that fits no law, with the nearest.
    """
    chosen = {name: law for name, law in LAWS.items() if law.belongs(profile)}
    if names is None:
        return chosen
    found: set[str] = set()
    for part in names:
        fits = {part} if part in LAWS else {name for name in chosen if part in name}
        if not fits:
            near = get_close_matches(part, LAWS, n=1, cutoff=0.3)
            raise ValueError(f"no law's name is or contains {part!r}" + (f": nearest is {near[0]!r}" if near else ""))
        found |= fits
    return {name: law for name, law in LAWS.items() if name in found}
