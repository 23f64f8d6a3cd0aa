"""Comparisons that say where two tensors part first, what came, what was expected, and by how much."""

from __future__ import annotations

import torch
from torch import Tensor

from .law import LawBroken
from .tolerances import worst_row


def judge(
    what: str, came: Tensor, expected: Tensor, tolerance: float, dim: int | None, axes: str, floor: float
) -> float:
    """The error over the tolerance; raises :class:`LawBroken` above one.

    Args:
        what: names the tensor in the message.
        came: what the backend gave.
        expected: of the same shape.
        tolerance: worst row error that passes.
        dim: the dimension that counts rows, ``None`` for one row.
        axes: names of the dimensions, for the message.
        floor: see :func:`~rnn_conformance.suite.tolerances.worst_row`.
    """
    check_shape(what, came, expected)
    margin = worst_row(came, expected.double(), dim, floor) / tolerance
    if margin > 1:
        wrong = (came.detach().double() - expected.double()).abs()
        wrong = wrong.nan_to_num(float("inf"))
        limit = tolerance * max(expected.detach().abs().max().item(), floor)
        at = first(wrong > min(limit, wrong.max().item() / 2))
        raise LawBroken(
            f"{what} differs first at {_place(axes, at)}: came {_number(came, at)}, expected {_number(expected, at)}; "
            f"the worst row is {margin:.3g} times its tolerance of {tolerance:g} away",
            margin,
        )
    return margin


def identical(what: str, came: Tensor, expected: Tensor, axes: str) -> None:
    """Raise :class:`LawBroken` unless both are equal bit for bit (two NaNs are equal)."""
    check_shape(what, came, expected)
    same = (came == expected) | (came.isnan() & expected.isnan())
    if not bool(same.all()):
        at = first(~same)
        raise LawBroken(
            f"{what} differs first at {_place(axes, at)}: came {_number(came, at)}, expected exactly "
            f"{_number(expected, at)}"
        )


def demand(what: str, holds: Tensor, came: Tensor, expected: str, axes: str) -> None:
    """Raise :class:`LawBroken` at the first place where ``holds`` is false."""
    if not bool(holds.all()):
        at = first(~holds)
        raise LawBroken(f"{what} at {_place(axes, at)}: came {_number(came, at)}, expected {expected}")


def check_shape(what: str, came: Tensor, expected: Tensor) -> None:
    """Raise :class:`LawBroken` if the shapes differ."""
    if came.shape != expected.shape:
        raise LawBroken(f"{what} has shape {tuple(came.shape)}, expected {tuple(expected.shape)}")


def first(wrong: Tensor) -> tuple[int, ...]:
    """Index of the first true element, the first dimension slowest."""
    found = torch.nonzero(wrong)
    return tuple(found[0].tolist()) if len(found) else ()


def _place(axes: str, at: tuple[int, ...]) -> str:
    named = [f"{axis}={i}" for axis, i in zip(axes.split(), at, strict=False)]
    return f"[{', '.join(named) or ', '.join(map(str, at))}]"


def _number(x: Tensor, at: tuple[int, ...]) -> str:
    return f"{x.detach()[at].item():.9g}"
