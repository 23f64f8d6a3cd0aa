"""How cases are drawn: structure by Hypothesis, numbers by a seed. The first choice of each is the one to shrink to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from .case import LAYOUTS, STORED, Case, pattern

CHOICES: dict[str, tuple[Any, ...]] = {
    "T": (2, 1, 3, 4, 5, 6, 7, 16),
    "B": (1, 2, 3, 4),
    "I": (1, 2, 3, 5),
    "H": (1, 2, 3, 5, 8),
    "L": (1, 1, 2, 3),
    "P": (0, 0, 1, 2),
    "bias": (True, True, False),
    "bidirectional": (False, False, True),
    "dropout": (0,),
    "dtype": ("f64",),
    "resets": ("bits", "bits", "none", "all", "first", "last", "consecutive"),
    "stored": (STORED[0], *STORED),
    "layout": (LAYOUTS[0], *LAYOUTS),
}
"""The values to draw where a law has no constraint; a repeated value is drawn more often."""

RICH = (
    Case(6, 3, 3, 4, resets=0b000110_101000_010010, seed=1, layout="transposed"),
    Case(5, 2, 2, 5, L=2, P=3, resets=0b01100_10010, seed=2),
    Case(7, 2, 3, 3, L=2, bidirectional=True, resets=0b0010010_0101100, seed=3, layout="strided"),
    Case(5, 4, 3, 9, L=2, resets=0b00100_01010_00000_10001, seed=4),
    Case(16, 2, 8, 8, resets=0b1000100010010000_0010100100101010, seed=5),
    Case(13, 5, 67, 6, bias=False, resets=0b1 << 12 | 0b11 << 16 | 0b10001 << 41, seed=6),
    Case(65, 1, 2, 15, resets=0b11 << 15 | 0b11 << 31 | 0b101 << 46 | 0b11 << 63, seed=7),
)
"""Cases that run first with any seed: all options at once, every size different; then one with many units, and one
with whole blocks: sizes of eight, sixteen steps, resets at the last step of a block, six sequences in a row. The last
two are one step or feature larger than blocks: more than 64 inputs without bias; 65 steps, with pairs of resets around
the borders of blocks of 16."""


@st.composite
def cases(draw: st.DrawFn, where: Mapping[str, Any]) -> Case:
    """Cases whose fields take the values that ``where`` allows."""
    fields = {name: draw(st.sampled_from(where.get(name, usual))) for name, usual in CHOICES.items()}
    size = fields["T"] * fields["B"]
    if fields["resets"] == "bits":
        resets = draw(st.integers(0, 2**size - 1))
    else:
        resets = pattern(fields["resets"], fields["T"], fields["B"])
    seed = draw(st.integers(0, 2**20 - 1))
    return Case(**possible(fields) | {"resets": resets, "seed": seed})


def rich(where: Mapping[str, Any]) -> list[Case]:
    """:data:`RICH`, each made to fit ``where``, without duplicates."""
    found = []
    for case in RICH:
        fields = {name: getattr(case, name) for name in CHOICES}
        for name, allowed in where.items():
            if name != "resets" and fields[name] not in allowed:
                fields[name] = max(allowed) if name in "TBIHLP" else allowed[-1]
        fitted = replace(case, **possible(fields))
        name = where.get("resets", ("bits",))[0]
        bits = case.resets & ((1 << fitted.T * fitted.B) - 1)
        fitted = replace(fitted, resets=bits if name == "bits" else pattern(name, fitted.T, fitted.B))
        if fitted not in found:
            found.append(fitted)
    return found


def possible(fields: dict[str, Any]) -> dict[str, Any]:
    """torch.nn.LSTM projects to fewer features than it has, so a projection needs two."""
    if fields["P"] >= fields["H"]:
        fields = fields | {"P": fields["H"] - 1}
    return fields
