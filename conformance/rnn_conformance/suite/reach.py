"""The cases that a backend accepts: ``rejects`` is called while cases are drawn, and the best dtype is used.

A kernel may accept float32 alone, or only ``H % 16 == 0``, or one shape of layer. Its laws then run over such cases,
instead of being declined case after case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import Any, NamedTuple

import torch
from rnn_backends import LSTMBackend

from .case import Case
from .strategies import CHOICES, possible

FIELDS = ("dtype", "H", "I", "P", "L", "bias", "bidirectional", "dropout")
"""The fields of a case that ``rejects`` sees."""

SIZES = ("dtype", "H", "I", "P")

WIDE: dict[str, tuple[Any, ...]] = {"H": (16, 32, 64, 128), "I": (8, 16, 32, 64), "P": (8, 16, 32)}
"""Values to try if the backend accepts none of the law's; the two smallest accepted ones are used."""

MOST = 20_000
"""Combinations to try before the backend counts as rejecting everything."""


class Best(tuple[str, ...]):
    """Dtypes of a law in the order of preference: it runs in the first one that the backend accepts."""


ANY_DTYPE = Best(("f64", "f32", "f16", "bf16"))
"""For a law that is not about a dtype: finer rounding shows smaller errors."""
CHEAP_DTYPE = Best(("f32", "f64", "f16", "bf16"))
"""For a law that is not about a dtype and runs in float32, as users do or because it is expensive."""


class Allowed(NamedTuple):
    """The constraints of a law for one backend; ``narrowed`` if the backend accepts some of its cases."""

    where: dict[str, Any]
    narrowed: bool


@dataclass(frozen=True)
class Reach:
    """The cases that one backend accepts on one device.

    Args:
        backend: under test.
        device: to run on.
    """

    backend: LSTMBackend
    device: str

    def accepts(self, case: Case) -> bool:
        """Whether the backend accepts the case's options and dtype."""
        try:
            return self.backend.rejects(case.spec, torch.device(self.device), case.torch_dtype) is None
        except Exception:  # another law tests that rejects() does not raise
            return False

    def nothing(self) -> str | None:
        """The backend's reason for the plainest case, if it accepts no case at all on this device; else ``None``."""
        if self.within({}).narrowed:
            return None
        plainest = Case(T=1, B=1, I=1, H=1, dtype="f32")
        try:
            return self.backend.rejects(plainest.spec, torch.device(self.device), plainest.torch_dtype)
        except Exception:  # another law tests that rejects() does not raise
            return None

    def within(self, where: Mapping[str, Any]) -> Allowed:
        """The constraints of a law, with only the values that the backend accepts; unchanged if it accepts none.

        Args:
            where: allowed values by field; a ``dtype`` of type :class:`Best` is a preference.
        """
        preferred = where.get("dtype", ANY_DTYPE)
        usual = {name: tuple(where.get(name, CHOICES[name])) for name in FIELDS} | {"dtype": tuple(preferred)}
        wide = {name: (*values, *self._wider(name, values)) for name, values in usual.items()}
        base = self._first(usual) or self._first(wide)
        if base is None:
            dtypes = usual["dtype"][:1] if isinstance(preferred, Best) else usual["dtype"]
            return Allowed({**where, "dtype": dtypes}, narrowed=False)
        taken = {
            name: self._taken(name, usual[name], base) or self._taken(name, wide[name], base)[:2] for name in FIELDS
        }
        if base["dtype"] not in usual["dtype"] or isinstance(preferred, Best):
            taken["dtype"] = (base["dtype"],)
        for name in FIELDS:  # a field that is not narrowed stays free: rich cases have values outside CHOICES, as H = 9
            if name not in where and taken[name] == usual[name] and name != "dtype":
                del taken[name]
        return Allowed({**where, **taken}, narrowed=True)

    @staticmethod
    def _wider(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "dtype":  # a law with one dtype tests it, a law with several tests none
            return () if len(values) == 1 else tuple(dtype for dtype in ANY_DTYPE if dtype not in values)
        return WIDE.get(name, ()) if values != (0,) else ()

    def _first(self, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any] | None:
        """The first combination that the backend accepts, the dtype varying slowest; sizes vary before options."""
        every = [tuple(dict.fromkeys(choices[name])) for name in FIELDS]
        sizes = [values if name in SIZES else values[:1] for name, values in zip(FIELDS, every, strict=True)]
        for values in chain(product(*sizes), islice(product(*every), MOST)):
            fields = dict(zip(FIELDS, values, strict=True))
            if self._fits(fields):
                return fields
        return None

    def _taken(self, name: str, values: tuple[Any, ...], base: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(value for value in values if self._fits({**base, name: value}))

    def _fits(self, fields: Mapping[str, Any]) -> bool:
        return self.accepts(Case(T=1, B=1, **possible(dict(fields))))
