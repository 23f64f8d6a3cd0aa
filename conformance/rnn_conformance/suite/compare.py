"""Comparisons of two tensors: the first difference, its actual and expected value, and the error ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from .tolerances import worst_row
from .verdict import LawBroken


def judge(
    what: str,
    actual: Tensor,
    expected: Tensor,
    tolerance: float,
    dim: int | None,
    axes: str,
    floor: float,
    origin: str = "",
) -> float:
    """The error over the tolerance; raises :class:`LawBroken` above one.

    Args:
        what: names the tensor in the message.
        actual: the backend's result.
        expected: the expected result, of the same shape.
        tolerance: the largest allowed row error.
        dim: the dimension that counts rows, ``None`` for one row.
        axes: names of the dimensions, for the message.
        floor: see :func:`~rnn_conformance.suite.tolerances.worst_row`.
        origin: the origin of the tolerance, for the message.
    """
    check_shape(what, actual, expected)
    error_ratio = worst_row(actual, expected.double(), dim, floor) / tolerance
    if error_ratio > 1:
        error = (actual.detach().double() - expected.double()).abs()
        error = error.nan_to_num(float("inf"))
        limit = tolerance * max(expected.detach().abs().max().item(), floor)
        at = first(error > min(limit, error.max().item() / 2))
        raise LawBroken(
            f"{what} differs first at {_place(axes, at)}: actual {_number(actual, at)}, "
            f"expected {_number(expected, at)}; "
            f"the worst row's error is {error_ratio:.3g} times its tolerance of {tolerance:g}{origin}",
            error_ratio,
        )
    return error_ratio


def identical(what: str, actual: Tensor, expected: Tensor, axes: str) -> None:
    """Raise :class:`LawBroken` unless both are equal bit for bit (two NaNs are equal)."""
    check_shape(what, actual, expected)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if not bool(same.all()):
        at = first(~same)
        raise LawBroken(
            f"{what} differs first at {_place(axes, at)}: actual {_number(actual, at)}, expected exactly "
            f"{_number(expected, at)}"
        )


def demand(what: str, holds: Tensor, actual: Tensor, expected: str, axes: str) -> None:
    """Raise :class:`LawBroken` at the first place where ``holds`` is false."""
    if not bool(holds.all()):
        at = first(~holds)
        raise LawBroken(f"{what} at {_place(axes, at)}: actual {_number(actual, at)}, expected {expected}")


def check_shape(what: str, actual: Tensor, expected: Tensor) -> None:
    """Raise :class:`LawBroken` if the shapes differ."""
    if actual.shape != expected.shape:
        raise LawBroken(f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")


def first(differs: Tensor) -> tuple[int, ...]:
    """Index of the first true element, the first dimension slowest."""
    places = torch.nonzero(differs)
    return tuple(places[0].tolist()) if len(places) else ()


def _place(axes: str, at: tuple[int, ...]) -> str:
    named = [f"{axis}={i}" for axis, i in zip(axes.split(), at, strict=False)]
    return f"[{', '.join(named) or ', '.join(map(str, at))}]"


def _number(x: Tensor, at: tuple[int, ...]) -> str:
    return f"{x.detach()[at].item():.9g}"
