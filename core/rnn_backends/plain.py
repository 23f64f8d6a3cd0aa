"""What is plain: the one place that says when a kernel may have a tensor's memory past torch's dispatcher.

A tensor may be anything: fake, a wrapper around others, batched, negated lazily, without memory. torch's dispatcher
knows what to do with each of them, and costs tens of microseconds for an operator that is written in Python. The short
way around it is for tensors about which nothing is left to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import _torch
from .errors import InputError, UnsupportedError

_EXACT = frozenset({Tensor, torch.nn.Parameter})
OTHERS = ["vmap"]
"""Backends made of torch's own operators, to name where a kernel declines a kind of tensor."""


def is_plain(values: Iterable[Tensor | None], devices: Iterable[str] = ("cpu",)) -> bool:
    """Whether these are tensors with memory and nothing else to them, and nobody watches or records.

    That is: exactly :class:`torch.Tensor` or :class:`torch.nn.Parameter`, strided, on one of ``devices``; no lazy
    negation or conjugation, no zero tensor, not wrapped by ``torch.func`` or ``functionalize``; no dispatch mode,
    function mode, transform, tracer or compiler at work. ``None`` among them is passed over.

    Where torch does not tell, the answer is no: the operators are right for every tensor, and slower.
    """
    if not _torch.nothing_at_work():
        return False
    keys = _plain_keys(tuple(devices))
    for value in values:
        if value is not None and (type(value) not in _EXACT or _torch.dispatch_keys(value) not in keys):
            return False
    return True


@lru_cache(maxsize=8)
def _plain_keys(devices: tuple[str, ...]) -> frozenset[int]:
    """The dispatch keys of tensors that are plain, read off some: made in inference mode and outside it."""
    found = set()
    for device in devices:
        if device == "cuda" and not torch.cuda.is_available():
            continue
        for inference in (False, True):
            with torch.inference_mode(inference):
                found.add(_torch.dispatch_keys(torch.empty(0, device=device)))
    return frozenset(key for key in found if key is not None)


def available(value: Tensor) -> int:
    """How many elements its storage holds from its first one on. Freed memory (``resize_(0)``) holds none.

    For plain tensors, and for those that a kernel is given by the dispatcher.
    """
    return int(value.untyped_storage().nbytes() // value.itemsize - value.storage_offset())


def spanned(value: Tensor) -> int:
    """How many elements there are from its first to its last, as its sizes and strides say."""
    if not value.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))


def check_memory(values: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise where a tensor's sizes and strides reach beyond its storage: reading it would end the process.

    Args:
        values: names and tensors; for tensors that are plain.

    Raises:
        InputError: the name of the tensor, and how much of it there is.
    """
    for name, value in values:
        if value is not None and spanned(value) > available(value):
            came = f"{name} needs {spanned(value)} elements, and its storage holds {max(0, available(value))}"
            raise InputError(f"{came}: its memory was freed or resized (untyped_storage().resize_) while it was in use")


def check_plain_memory(values: Iterable[tuple[str, Tensor | None]]) -> None:
    """:func:`check_memory` of those among ``values`` that are plain; what torch makes of the others is its affair."""
    if _torch.nothing_at_work():
        check_memory((name, v) for name, v in values if v is not None and is_plain((v,), (v.device.type,)))


def kind_of(value: Tensor) -> str | None:
    """In words, what a kernel and its operator cannot take about a tensor, and what to do; ``None`` for all others."""
    if value.is_nested:
        return "a nested tensor: pass the padded tensor, and is_init where sequences start"
    if value.is_quantized:
        return "a quantized tensor: dequantize() it"
    if value.layout is not torch.strided:
        name = str(value.layout).removeprefix("torch.")
        return f"a tensor of layout {name}: pass it dense, as to_dense() gives it"
    if any(kind.__name__ == "DTensor" for kind in type(value).__mro__):
        return "a DTensor, for which its operator has no rule: pass what full_tensor() or to_local() gives"
    return None


def check_kinds(backend: str, values: Iterable[Tensor | None]) -> None:
    """Decline tensors for which there is no rule, in words of ours.

    Raises:
        UnsupportedError: what came, and what to do.
    """
    for value in values:
        kind = None if value is None else kind_of(value)
        if kind is not None:
            raise UnsupportedError(backend, "a tensor of this kind", f"it got {kind}", OTHERS)


def unreadable(values: Sequence[Tensor | None]) -> str | None:
    """Why the numbers in these must not be looked at now, or ``None``.

    A backend that plans its work from the data would write one batch's plan into whatever is recorded, or would read
    numbers that are not there.
    """
    if _torch.is_traced():
        return "it plans its work from the resets' positions, and a trace would keep those of the example for good"
    if _torch.is_functionalized(values):
        return "it plans its work from the resets' positions, and functionalize does not show them"
    for value in values:
        if value is None or type(value) in _EXACT:
            continue
        if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            name = type(value).__name__
            return f"it plans its work from the resets' positions, and a {name} does not show its numbers"
    return None
