"""The TensorDict keys that a module reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tensordict.utils import NestedKey, unravel_key_list

from .errors import InputError

HIDDEN_IN: tuple[NestedKey, ...] = ("recurrent_state_h", "recurrent_state_c")
HIDDEN_OUT: tuple[NestedKey, ...] = (("next", "recurrent_state_h"), ("next", "recurrent_state_c"))


def read_keys(
    in_key: NestedKey | None, in_keys: Sequence[NestedKey] | None, is_init_key: NestedKey | None
) -> list[NestedKey]:
    """The four keys that a module reads: value, ``h``, ``c`` and the reset mask.

    Args:
        in_key: the value's key; the hidden keys are then TorchRL's defaults.
        in_keys: three keys (value, ``h``, ``c``), or four with the reset mask last.
        is_init_key: the reset mask's key; default ``"is_init"``.

    Raises:
        InputError: both or neither of ``in_key`` and ``in_keys`` are given, or a wrong number of keys.
    """
    keys = _one_of("in", in_key, in_keys, HIDDEN_IN)
    if len(keys) not in (3, 4):
        raise InputError(f"in_keys must be 3 keys (value, h, c), or 4 with the reset mask last, got {keys}")
    given = None if is_init_key is None else _as_keys("is_init_key", [is_init_key])[0]
    if len(keys) == 4 and given not in (None, keys[3]):
        raise InputError(f"in_keys ends with the reset key {keys[3]!r}, is_init_key says {given!r}: give one of them")
    return [*keys[:3], given or (keys[3] if len(keys) == 4 else "is_init")]


def write_keys(out_key: NestedKey | None, out_keys: Sequence[NestedKey] | None) -> list[NestedKey]:
    """The three keys that a module writes: output, ``h`` and ``c``.

    Raises:
        InputError: both or neither of ``out_key`` and ``out_keys`` are given, or a wrong number of keys.
    """
    keys = _one_of("out", out_key, out_keys, HIDDEN_OUT)
    if len(keys) != 3:
        raise InputError(f"out_keys must be 3 keys (output, h, c), got {len(keys)}: {keys}")
    return keys


def check_keys(read: Sequence[NestedKey], written: Sequence[NestedKey]) -> None:
    """Check that a TensorDict can hold all these entries at once, and that no result replaces the reset mask.

    A result may replace the value or a hidden state that was read: ``out_key="x"`` with ``in_key="x"`` is allowed.

    Args:
        read: the keys of the value, ``h``, ``c`` and the reset mask.
        written: the keys of the output, ``h`` and ``c``.

    Raises:
        InputError: two keys collide; the message names both.
    """
    *values, reset = read
    if reset in values:
        raise InputError(f"the reset mask and another input have the same key {reset!r}")
    if reset in written:
        raise InputError(f"an output key is {reset!r}, the reset mask's: the output would replace the mask")
    paths = {key if isinstance(key, tuple) else (key,) for key in (*read, *written)}
    for path in paths:
        for length in range(1, len(path)):
            if path[:length] in paths:
                short = path[0] if length == 1 else path[:length]
                raise InputError(
                    f"the keys {short!r} and {path!r} collide: {short!r} cannot be a tensor and hold another"
                )


def _one_of(
    side: str, key: NestedKey | None, keys: Sequence[NestedKey] | None, hidden: tuple[NestedKey, ...]
) -> list[NestedKey]:
    if (key is None) == (keys is None):
        what = "neither" if key is None else "both"
        raise InputError(f"give either {side}_key or {side}_keys, got {what}")
    if isinstance(keys, str):
        raise InputError(f"{side}_keys is a list of keys, got the string {keys!r}: use {side}_key for one")
    chosen = _as_keys(f"{side}_key", [key, *hidden]) if keys is None else _as_keys(f"{side}_keys", keys)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{side}_keys must differ from each other, got {chosen}")
    return chosen


def _as_keys(option: str, keys: object) -> list[NestedKey]:
    """The keys in tensordict's shortest form, checked: its own function takes ``("next", 3)`` for ``"next"``."""
    if not isinstance(keys, Iterable) or not all(map(_is_key, keys := list(keys))):
        raise InputError(f"{option} takes keys, strings or tuples of strings, got {keys!r}")
    found: list[NestedKey] = unravel_key_list(keys)
    return found


def _is_key(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and bool(value) and all(map(_is_key, value)))
