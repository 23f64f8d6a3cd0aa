"""A case: one small frozen value that fixes every input of a law, with a short token that replays it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from rnn_backends import LSTMSpec

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LAYOUTS = ("contiguous", "transposed", "strided", "offset")
STORED = ("random", "zeros")

LARGEST = 1 << 27
"""The largest number of elements in a case's tensors: more would take gigabytes."""
SEEDS = 1 << 63
"""Seeds are below this, the limit of torch.Generator."""

_INTEGERS = re.compile(r"([TBIHLPd])([0-9]{1,9})")


@dataclass(frozen=True)
class Case:
    """Sizes, options, resets as bits and a seed for the numbers.

    Attributes:
        T, B, I, H: steps, batch, input features, hidden size.
        L, P: layers and projection size (0 for none).
        bias, bidirectional: as in torch.nn.LSTM.
        dropout: percent, between layers.
        dtype: a key of :data:`DTYPES`.
        resets: bit ``b * T + t`` is set where ``is_init[t, b]``.
        stored: whether the states that sequences start from are random or zeros.
        layout: the memory layout of the inputs.
        seed: the seed of all numbers.
    """

    T: int
    B: int
    I: int  # noqa: E741 - the project's letter
    H: int
    L: int = 1
    P: int = 0
    bias: bool = True
    bidirectional: bool = False
    dropout: int = 0
    dtype: str = "f64"
    resets: int = 0
    stored: str = "random"
    layout: str = "contiguous"
    seed: int = 0

    @cached_property
    def spec(self) -> LSTMSpec:
        """The options as backends get them."""
        return LSTMSpec(self.I, self.H, self.L, self.bias, self.dropout / 100, self.bidirectional, self.P)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and inputs."""
        return DTYPES[self.dtype]

    @property
    def is_init(self) -> torch.Tensor:
        """``[T, B]`` bool: the reset bits, as drawn (``t = 0`` included)."""
        bits = [[bool(self.resets >> (b * self.T + t) & 1) for b in range(self.B)] for t in range(self.T)]
        return torch.tensor(bits, dtype=torch.bool).reshape(self.T, self.B)

    @property
    def token(self) -> str:
        """A short, stable, readable text without fields at their defaults. ``Case.parse`` returns the case."""
        return self._token("TBIH", resets=True)

    @property
    def options_token(self) -> str:
        """The token without ``T``, ``B``, ``I`` and the resets, which a recorded rollout gives."""
        return self._token("H", resets=False)

    def _token(self, letters: str, resets: bool) -> str:
        parts = [f"{letter}{getattr(self, letter)}" for letter in letters]
        parts += [f"L{self.L}"] if self.L != 1 else []
        parts += [f"P{self.P}"] if self.P else []
        parts += ["nobias"] if not self.bias else []
        parts += ["bi"] if self.bidirectional else []
        parts += [f"d{self.dropout}"] if self.dropout else []
        parts += [self.dtype]
        parts += [f"r{self.resets:x}"] if self.resets and resets else []
        parts += [self.stored] if self.stored != STORED[0] else []
        parts += [self.layout] if self.layout != LAYOUTS[0] else []
        return ".".join([*parts, f"s{self.seed}"])

    @classmethod
    def parse(cls, token: str, **known: Any) -> Case:
        """The case of a token.

        Args:
            token: the text of :attr:`token`.
            known: fields that a recorded rollout fixes; the token must not repeat them.

        Raises:
            ValueError: a part is not understood, a field is missing or repeated, or no case has these sizes: a
                backend's error for them would say nothing about the backend.
        """
        found: dict[str, object] = dict(known)
        for part in token.split("."):
            name, value = _read(part, token)
            if name in found:
                which = "is given by the rollout" if name in known else f"repeats {name}"
                raise ValueError(f"{part!r} in the token {token!r} {which}")
            found[name] = value
        missing = [f.name for f in fields(cls) if f.name in "TBIH" and f.name not in found]
        if missing:
            raise ValueError(f"the token {token!r} lacks {', '.join(missing)}")
        case = cls(**found)  # type: ignore[arg-type]
        reason = case.why_impossible()
        if reason is not None:
            raise ValueError(f"the token {token!r} is not a possible case: {reason}")
        return case

    def why_impossible(self) -> str | None:
        """The reason why no inputs exist for this case, or ``None``."""
        for name in "TIHL":  # B may be 0, for a law about no rows
            if getattr(self, name) < 1:
                return f"{name} is {getattr(self, name)}, and must be at least 1"
        if self.P >= self.H:
            return f"P is {self.P}, and must be less than H, which is {self.H}"
        if self.dropout > 100:
            return f"d is {self.dropout}, and must be at most 100 percent"
        if self.resets >> self.T * self.B:
            return f"r names steps beyond its T * B = {self.T * self.B}"
        if self.seed >= SEEDS:
            return f"s must be less than {SEEDS}"
        states = self.L * (1 + self.bidirectional)
        numbers = self.T * self.B * (self.I + 6 * self.H * states) + 4 * self.H * (self.I + 3 * self.H) * states
        if numbers > LARGEST:
            return f"its tensors have about {numbers:.1e} numbers, and may have at most {LARGEST:.1e}"
        return None


def _read(part: str, token: str) -> tuple[str, object]:
    if part == "nobias":
        return "bias", False
    if part == "bi":
        return "bidirectional", True
    for name, known in (("dtype", DTYPES), ("stored", STORED), ("layout", LAYOUTS)):
        if part in known:
            return name, part
    if re.fullmatch(r"r[0-9a-f]{1,100000}", part):
        return "resets", int(part[1:], 16)
    if re.fullmatch(r"s[0-9]{1,40}", part):
        return "seed", int(part[1:])
    match = _INTEGERS.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} in the token {token!r} is not understood")
    return ("dropout" if match[1] == "d" else match[1]), int(match[2])


def pattern(name: str, T: int, B: int) -> int:
    """The reset bits of a pattern: ``none``, ``all``, ``first``, ``last`` or ``consecutive`` steps of every row.

    ``consecutive`` are two steps in the middle, so that a sequence of length one lies between others.
    """
    middle = max(T // 2 - 1, 0)
    steps = {
        "none": (),
        "all": range(T),
        "first": (0,),
        "last": (T - 1,),
        "consecutive": range(middle, min(middle + 2, T)),
    }[name]
    row = sum(1 << t for t in steps)
    return sum(row << b * T for b in range(B))
