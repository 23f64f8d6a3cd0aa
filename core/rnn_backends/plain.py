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

EXACT = (Tensor, torch.nn.Parameter)
is_plain_eager = _torch.is_plain_eager
OTHERS = ["vmap"]
"""Backends made of torch's own operators, to name where a kernel declines a kind of tensor."""


def is_plain(values: Iterable[Tensor | None], devices: Iterable[str] = ("cpu",)) -> bool:
    """Whether these are tensors with memory and nothing else to them, and nobody watches or records.

    That is: exactly :class:`torch.Tensor` or :class:`torch.nn.Parameter`, strided, on one of ``devices``; no lazy
    negation or conjugation, no zero tensor, not wrapped by ``torch.func`` or ``functionalize``; no dispatch mode,
    function mode, transform, tracer or compiler at work. ``None`` among them is passed over.

    Where torch does not tell, the answer is no: the operators are right for every tensor, and slower.
    """
    return _torch.is_plain_eager() and have_memory(values, plain_keys(*devices))


def have_memory(values: Iterable[Tensor | None], keys: frozenset[int]) -> bool:
    """:func:`is_plain` where nothing is at work, for devices whose :func:`plain_keys` are ``keys``."""
    keys_of = _torch.dispatch_keys
    for value in values:
        if value is not None and (type(value) not in EXACT or keys_of(value).raw_repr() not in keys):
            return False
    return True


@lru_cache(maxsize=8)
def plain_keys(*devices: str) -> frozenset[int]:
    """The dispatch keys of tensors that are plain, read off some: made in inference mode and outside it.

    To be called where nothing is at work.
    """
    found = set()
    for device in devices:
        if device == "cuda" and not torch.cuda.is_available():
            continue
        for inference in (False, True):
            with torch.inference_mode(inference):
                found.add(_torch.dispatch_keys(torch.empty(0, device=device)).raw_repr())
    return frozenset(key for key in found if key is not None)


def spanned(x: Tensor) -> int:
    """How many elements there are from its first to its last, as its sizes and strides say."""
    if x.is_contiguous():
        return x.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def available(x: Tensor) -> int:
    """How many elements its storage holds from its first one on. Freed memory (``resize_(0)``) holds none."""
    return int(x.untyped_storage().nbytes() // x.itemsize - x.storage_offset())


def check_memory(values: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise where a tensor's sizes and strides reach beyond its storage: torch would read there without looking.

    Subclasses are passed over: their memory is their own affair.

    Args:
        values: names and tensors.

    Raises:
        InputError: the name of the tensor, and how much of it there is.
    """
    if torch.compiler.is_compiling():
        return
    for name, x in values:
        if x is None or type(x) not in EXACT:
            continue
        try:
            held = x.untyped_storage().nbytes() - x.storage_offset() * x.itemsize
        except (RuntimeError, NotImplementedError):  # without a storage of its own: sparse, or wrapped by a transform
            continue
        needed = x.nbytes if x.is_contiguous() else spanned(x) * x.itemsize
        if needed > held and needed and not _torch.is_functional_tensor(x):
            raise InputError(
                f"{name} spans {spanned(x)} elements, and its storage holds {max(0, available(x))}: its memory was "
                "freed or resized (untyped_storage().resize_) while it was in use"
            )


def kind_of(value: Tensor, distributed: bool = False) -> str | None:
    """In words, what a kernel and its operator cannot take about a tensor, and what to do; ``None`` for all others."""
    if value.is_nested:
        return "a nested tensor: pass the padded tensor, and is_init where sequences start"
    if value.is_quantized:
        return "a quantized tensor: dequantize() it"
    if value.layout is not torch.strided:
        name = str(value.layout).removeprefix("torch.")
        return f"a tensor of layout {name}: pass it dense, as to_dense() gives it"
    if type(value) in EXACT or distributed:
        return None
    if is_distributed(value):
        return "a DTensor, for which its operator has no rule: pass what full_tensor() or to_local() gives"
    return None


def is_distributed(value: Tensor) -> bool:
    """Whether it is a ``DTensor`` of ``torch.distributed``, which need not be imported for the question."""
    return type(value) not in EXACT and any(kind.__name__ == "DTensor" for kind in type(value).__mro__)


def check_together(weight: Tensor, others: Iterable[Tensor | None]) -> None:
    """Decline DTensors mixed with plain tensors, which torch's operators decline in words about one of them.

    Args:
        weight: any weight.
        others: what a call reads besides.

    Raises:
        InputError: some are distributed and others are not.
    """
    if torch.compiler.is_compiling():
        return
    plain = type(weight) in EXACT
    for value in others:
        if value is None or (plain and type(value) in EXACT):
            continue
        if is_distributed(value) != is_distributed(weight):
            raise InputError(
                "some of the tensors are DTensors and others are not: distribute weights, input, state and is_init "
                "alike (distribute_tensor), or pass what full_tensor() or to_local() gives"
            )


def check_kinds(backend: str, values: Iterable[Tensor | None], distributed: bool = False) -> None:
    """Decline tensors for which there is no rule, in words of ours.

    Args:
        backend: its name.
        values: tensors.
        distributed: whether DTensors are served.

    Raises:
        UnsupportedError: what came, and what to do.
    """
    devices = set()
    for value in values:
        if value is None:
            continue
        devices.add(value.device)
        kind = kind_of(value, distributed)
        if kind is not None:
            raise UnsupportedError(backend, "a tensor of this kind", f"it got {kind}", OTHERS)
    if len(devices) > 1:
        came = ", ".join(sorted(map(str, devices)))
        raise UnsupportedError(backend, "tensors on several devices", f"it got some on each of {came}: move them")


def check_steps(backend: str, x: Tensor) -> None:
    """For backends whose loop over time is written in Python: decline to be recorded for one number of steps.

    ``make_fx`` with symbolic sizes records as many steps as its example has, and its graph runs as many over any input.

    Args:
        backend: its name.
        x: ``[T, B, I]``.

    Raises:
        UnsupportedError: ``T`` is symbolic, and nothing would check it later.
    """
    if torch.compiler.is_compiling() or not isinstance(x.shape[0], torch.SymInt) or not _torch.is_proxied():
        return
    reason = "its loop over time would be recorded for the example's steps, and run as many over any input"
    raise UnsupportedError(backend, "make_fx with a symbolic number of steps", reason, ["cpp", "compile"])


def are_exact(values: Iterable[Tensor | None]) -> bool:
    """Whether none is of a subclass: torch's fused functions for one step give wrong numbers for some."""
    return all(value is None or type(value) in EXACT for value in values)


def materialized(value: Tensor) -> Tensor:
    """A tensor of zeros with memory in place of one without: torch's fused kernels would read it."""
    return value.clone() if _torch.is_zero_tensor(value) else value


def fixed_sizes(value: Tensor) -> str | None:
    """Why torch's fused kernel must not be recorded now, or ``None``.

    ``make_fx`` writes sizes down as constants unless it traces symbolically, and the kernel reads memory by them
    without looking: called with other sizes, the graph would corrupt memory. ``torch.export`` guards its sizes.
    """
    if torch.compiler.is_compiling() or not _torch.is_proxied():
        return None
    if any(isinstance(size, torch.SymInt) for size in value.shape):
        return None
    return "make_fx writes sizes down as constants, by which its kernel would read memory of other sizes later"


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
        if value is None:
            continue
        if value.is_meta:
            return "it plans its work from the resets' positions, and a meta tensor has none"
        if type(value) in EXACT:
            continue
        if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            name = type(value).__name__
            return f"it plans its work from the resets' positions, and a {name} does not show its numbers"
    return None
