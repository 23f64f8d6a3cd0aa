"""Options as attributes: which of them may be assigned after construction, and the effect of an assignment.

Only assignment and deletion call this code: a module reads an option from its ``__dict__`` like any attribute, at no
cost. Copies, pickles and ``__setstate__`` write into ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import InputError


class Option:
    """A descriptor without ``__get__``: Python then reads the object's own ``__dict__``.

    Args:
        name: the attribute's name.
        accept: ``accept(object, value)`` returns the value to store, or raises. It is not called for the first
            assignment, by the constructor.
    """

    def __init__(self, name: str, accept: Callable[[Any, Any], Any]) -> None:
        self.name, self.accept = name, accept

    def __set__(self, owner: object, value: object) -> None:
        state = vars(owner)
        state[self.name] = self.accept(owner, value) if self.name in state else value

    def __delete__(self, owner: object) -> None:
        raise InputError(f"{self.name} is an option of {type(owner).__name__} and cannot be deleted")


def fix_options(kind: type, names: Sequence[str], reason: str) -> None:
    """Make it an error to assign another value to these attributes after construction.

    Args:
        kind: a class.
        names: the names of its attributes.
        reason: the reason and what to do, for the error.
    """
    for name in names:
        setattr(kind, name, Option(name, _keeper(name, reason)))


def _keeper(name: str, reason: str) -> Callable[[Any, Any], Any]:
    def keep(owner: object, value: object) -> object:
        current = vars(owner)[name]
        if value is current or (type(value) is type(current) and value == current):
            return current
        raise InputError(f"{name} cannot change after construction (from {current!r} to {value!r}): {reason}")

    return keep
