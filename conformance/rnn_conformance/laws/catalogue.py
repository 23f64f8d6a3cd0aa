"""All laws, by name, in the order in which they run. The runner, the command line and pytest use this catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from ..suite.law import Law
from ..suite.names import UnknownNameError, matching
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
    nesting,
    nets,
    options,
    plugins,
    precision,
    recompiling,
    recurrent,
    refusals,
    resets,
    rollouts,
    shapes,
    side_effects,
    stateful,
    stepping,
    tensors,
    threads,
    tracing,
    transforms,
    values,
    weights,
)  # fmt: skip

SUBJECTS: tuple[ModuleType, ...] = (
    values, resets, stepping, batch, gradients, options, dropout, precision, shapes, layout, side_effects, memory,
    weights, lifecycle, recurrent, modes, keys, nets, refusals, plugins, threads, stateful, dispatch, tensors,
    transforms, nesting, tracing, compiled, recompiling, distributed, rollouts,
)  # fmt: skip

LAWS: dict[str, Law] = {
    value.name: value for module in SUBJECTS for value in vars(module).values() if isinstance(value, Law)
}


def select(parts: Sequence[str], profile: str) -> dict[str, Law]:
    """The laws of a profile whose names contain one of the parts; without parts all its laws.

    A law with exactly the name of a part is included in every profile.

    Raises:
        UnknownNameError: a part fits no law (the nearest name is suggested), or none of the laws is in the profile.
    """
    chosen = {name for part in parts for name in matching(part, LAWS, "law")} if parts else set(LAWS)
    found = {n: law for n, law in LAWS.items() if n in chosen and (n in parts or law.belongs(profile))}
    if not found:
        raise UnknownNameError(f"none of these laws belongs to the profile {profile!r}")
    return found
