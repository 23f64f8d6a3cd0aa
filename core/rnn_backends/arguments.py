"""The arguments of a hand-written kernel: a layer's inputs, its results and the required gradients, with checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError
from .plain import check_memory


class Arguments(NamedTuple):
    """The inputs of a layer: the arguments of :data:`rnn_backends.LayerFunction`, flat, with one summed bias."""

    x: Tensor  # [T, B, I]
    w_ih: Tensor  # [4H, I]
    w_hh: Tensor  # [4H, P]
    bias: Tensor | None  # [4H]
    w_hr: Tensor | None  # [P, H]
    entry_h: Tensor  # [T, B, P]
    entry_c: Tensor  # [T, B, H]
    starts: Tensor  # [T, B] bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, H, P."""
        return self.x.shape[0], self.x.shape[1], self.w_hh.shape[0] // 4, self.w_hh.shape[1]

    def checked(self, memory: bool = True) -> Arguments:
        """Raise :class:`InputError` if a shape, dtype, device or storage does not fit: kernels access memory unchecked.

        Args:
            memory: whether to check the storages too; ``False`` for a kernel that does it itself.
        """
        if not self._fit():
            self._raise_unless_fit()
        if memory:
            check_memory(zip(self._fields, self, strict=True))
        return self

    def _fit(self) -> bool:
        """Whether :meth:`_raise_unless_fit` passes, found in a quarter of its time."""
        x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = self
        if x.ndim != 3 or w_hh.ndim != 2:
            return False
        (T, B, I), (G, P), like = x.shape, w_hh.shape, (x.dtype, x.device)  # noqa: E741
        H = G // 4
        return (
            4 * H == G
            and (w_ih.shape, w_ih.dtype, w_ih.device) == ((G, I), *like)
            and (w_hh.dtype, w_hh.device) == like
            and (entry_h.shape, entry_h.dtype, entry_h.device) == ((T, B, P), *like)
            and (entry_c.shape, entry_c.dtype, entry_c.device) == ((T, B, H), *like)
            and (starts.shape, starts.dtype, starts.device) == ((T, B), torch.bool, x.device)
            and (bias is None or (bias.shape, bias.dtype, bias.device) == ((G,), *like))
            and (P == H if w_hr is None else (w_hr.shape, w_hr.dtype, w_hr.device) == ((P, H), *like))
        )

    def _raise_unless_fit(self) -> None:
        x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts = self
        if x.ndim != 3 or w_hh.ndim != 2:
            raise InputError(f"x must be [T, B, I] and w_hh [4H, P]; got {tuple(x.shape)} and {tuple(w_hh.shape)}")
        T, B, H, P = self.sizes
        I, dtype, device = x.shape[2], x.dtype, x.device  # noqa: E741
        for name, value, shape in (
            ("w_ih", w_ih, (4 * H, I)),
            ("w_hh", w_hh, (4 * H, P)),
            ("bias", bias, (4 * H,)),
            ("w_hr", w_hr, (P, H)),
            ("entry_h", entry_h, (T, B, P)),
            ("entry_c", entry_c, (T, B, H)),
        ):
            if value is not None:
                _check(name, value, shape, dtype, device)
        _check("starts", starts, (T, B), torch.bool, device)
        if w_hr is None and P != H:
            raise InputError(f"without w_hr, w_hh must be [4H, H]; got {tuple(w_hh.shape)}")


def _check(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if value.shape != shape or value.dtype != dtype or value.device != device:
        actual = f"{tuple(value.shape)}, {value.dtype}, {value.device}"
        raise InputError(f"{name} must be {shape}, {dtype}, {device}; got {actual}")


class Run(NamedTuple):
    """The results of the forward pass, and the gradients of its outputs.

    Where ``last``, nothing reads the gates after the backward pass: it may write over them.
    """

    h: Tensor  # [T, B, P]
    c: Tensor  # [T, B, H]
    gates: Tensor  # [T, B, ...], activated; the backend defines the other dimensions
    grad_h: Tensor | None  # [T, B, P]
    grad_c: Tensor | None  # [T, B, H]
    last: bool = False

    def checked(self, given: Arguments, kept: Sequence[int], memory: bool = True) -> Run:
        """Raise :class:`InputError` if one does not fit the arguments; ``kept``: the gates' shape after ``[T, B]``."""
        T, B, H, P = given.sizes
        shapes = ((T, B, P), (T, B, H), (T, B, *kept), (T, B, P), (T, B, H))
        named = dict(zip(self._fields, self[:5], strict=False))
        for (name, value), shape in zip(named.items(), shapes, strict=True):
            if value is not None:
                _check(name, value, shape, given.x.dtype, given.x.device)
        if memory:
            check_memory(named.items())
        return self


class Needs(NamedTuple):
    """The required gradients, in the order of :class:`Arguments`; the others take no memory."""

    x: bool
    w_ih: bool
    w_hh: bool
    bias: bool
    w_hr: bool
    entry_h: bool
    entry_c: bool
