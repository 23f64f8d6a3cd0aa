"""Plain tensors: the one place that decides when a kernel may read a tensor's memory without torch's dispatcher.

A tensor may be fake, batched, lazily negated, without memory, or a wrapper around others. torch's dispatcher handles
each of them, and costs tens of microseconds for an operator that is written in Python. Only a tensor that is none of
these may bypass it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import _torch
from .errors import InputError, RNNBackendsError, UnsupportedError

EXACT = (Tensor, torch.nn.Parameter)
is_plain_eager = _torch.is_plain_eager
OTHERS = ["vmap"]
"""Backends made of torch's own operators: the alternatives that a kernel's error about a kind of tensor names."""

MASKED = "pass what get_data() gives, and is_init where sequences start"


def is_plain(values: Iterable[Tensor | None], devices: Iterable[str] = ("cpu",)) -> bool:
    """Whether all of these are plain tensors and torch is in plain eager mode. ``None`` values are skipped.

    A plain tensor is exactly a :class:`torch.Tensor` or :class:`torch.nn.Parameter`, strided, on one of ``devices``,
    without lazy negation or conjugation, no zero tensor, and not wrapped by ``torch.func`` or ``functionalize``. In
    plain eager mode no dispatch mode, function mode, transform, tracer or compiler is active.

    Where torch does not tell, the result is ``False``: the operators are right for every tensor, only slower.
    """
    return _torch.is_plain_eager() and have_memory(values, plain_keys(*devices))


def have_memory(values: Iterable[Tensor | None], keys: frozenset[int]) -> bool:
    """:func:`is_plain` in plain eager mode; ``keys`` is the result of :func:`plain_keys` for the devices."""
    keys_of = _torch.dispatch_keys
    for value in values:
        if value is not None and (type(value) not in EXACT or keys_of(value).raw_repr() not in keys):
            return False
    return True


@lru_cache(maxsize=8)
def plain_keys(*devices: str) -> frozenset[int]:
    """The dispatch keys of plain tensors, read from samples that are made in inference mode and outside it.

    Call it in plain eager mode only.
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
    """The number of elements of memory from a tensor's first to its last element, by its sizes and strides."""
    return x.numel() if x.is_contiguous() else _spanned_apart(x)


def _spanned_apart(x: Tensor) -> int:
    """:func:`spanned` of a tensor that is not contiguous."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def available(x: Tensor) -> int:
    """The number of elements that a tensor's storage holds from its first one on; none if freed (``resize_(0)``)."""
    return int(x.untyped_storage().nbytes() // x.itemsize - x.storage_offset())


def check_memory(values: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise if a tensor's sizes and strides reach beyond its storage: torch would read there without a check.

    Subclasses are skipped, because they manage their own memory.

    Args:
        values: pairs of a name and a tensor.

    Raises:
        InputError: a tensor is larger than its storage; the message has its name and both sizes.
    """
    if torch.compiler.is_compiling():
        return
    before = None
    for name, x in values:
        if x is before or x is None or type(x) not in EXACT:
            continue
        before = x  # the zero states that a call without any has are one tensor
        try:
            held = x.untyped_storage().nbytes() - x.storage_offset() * x.itemsize
            needed = x.nbytes if x.is_contiguous() else _spanned_apart(x) * x.itemsize
        except (RuntimeError, NotImplementedError):  # without a storage of its own: sparse, or wrapped by a transform
            continue
        if needed > held and needed and not _torch.is_functional_tensor(x):
            raise InputError(
                f"{name} spans {spanned(x)} elements, and its storage holds {max(0, available(x))}: its memory was "
                "freed or resized (untyped_storage().resize_) while it was in use"
            )


def kind_of(value: Tensor, distributed: bool = False) -> str | None:
    """Why a kernel and its operator do not support a tensor, and what to pass instead; ``None`` if they support it."""
    if value.is_nested:
        return "a nested tensor: pass the padded tensor, and is_init where sequences start"
    if value.is_quantized:
        return "a quantized tensor: dequantize() it"
    if value.layout is not torch.strided:
        name = str(value.layout).removeprefix("torch.")
        return f"a tensor of layout {name}: pass it dense, with to_dense()"
    if type(value) in EXACT or distributed:
        return None
    if is_distributed(value):
        return "a DTensor, for which its operator has no rule: pass the result of full_tensor() or to_local()"
    return None


def is_masked(value: Tensor) -> bool:
    """Whether it is a ``MaskedTensor`` of ``torch.masked``, without an import of that package."""
    return type(value) not in EXACT and any(kind.__name__ == "MaskedTensor" for kind in type(value).__mro__)


def explain(error: Exception, weight: Tensor, named: Iterable[tuple[str, Tensor | None]]) -> None:
    """If a call failed because of the kind of one of its tensors, raise an error that says so, from torch's error.

    Only a failed call pays for these checks.

    Args:
        error: torch's error; errors of this project are left alone.
        weight: any weight, for its device.
        named: the call's tensors, by name.

    Raises:
        InputError: the tensor's name, its kind, and what to do.
    """
    if isinstance(error, RNNBackendsError):
        return
    for name, value in named:
        if not isinstance(value, Tensor):
            continue
        if value.device != weight.device:
            raise InputError(
                f"{name} is on {value.device}, the weights on {weight.device}: move one of them"
            ) from error
        if is_masked(value):
            raise InputError(f"{name} is a MaskedTensor: {MASKED}") from error
        if value.is_inference() and "nference tensor" in str(error):
            raise InputError(
                f"{name} was made under torch.inference_mode(), and gradients are to be computed: clone() it outside, "
                "or make it under torch.no_grad()"
            ) from error


def is_distributed(value: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, without an import of ``torch.distributed``."""
    return type(value) not in EXACT and any(kind.__name__ == "DTensor" for kind in type(value).__mro__)


def check_together(weight: Tensor, others: Iterable[Tensor | None]) -> None:
    """Reject DTensors mixed with plain tensors: the errors of torch's operators name only one of them.

    Args:
        weight: any weight.
        others: the other tensors of the call.

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
                "alike (distribute_tensor), or pass the results of full_tensor() or to_local()"
            )


def check_kinds(backend: str, values: Iterable[Tensor | None], distributed: bool = False) -> None:
    """Reject tensors of a kind that the backend does not support.

    Args:
        backend: the backend's name, for the error.
        values: tensors.
        distributed: whether the backend supports DTensors.

    Raises:
        UnsupportedError: a tensor is of such a kind; the message has the kind and what to pass instead.
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
        actual = ", ".join(sorted(map(str, devices)))
        raise UnsupportedError(backend, "tensors on several devices", f"they are on {actual}: move them to one device")


def check_steps(backend: str, x: Tensor) -> None:
    """For backends with a loop over time in Python: reject a recording that is right for one number of steps only.

    ``make_fx`` with symbolic sizes records the loop with its example's number of steps, which its graph then runs on
    every input.

    Args:
        backend: the backend's name, for the error.
        x: ``[T, B, I]``.

    Raises:
        UnsupportedError: ``T`` is symbolic, and the graph would not check it.
    """
    if torch.compiler.is_compiling() or not isinstance(x.shape[0], torch.SymInt) or not _torch.is_proxied():
        return
    reason = "its loop over time would be recorded with the example's number of steps, and run so on every input"
    raise UnsupportedError(backend, "make_fx with a symbolic number of steps", reason, ["cpp", "compile"])


def are_exact(values: Iterable[Tensor | None]) -> bool:
    """Whether no value is a tensor subclass: torch's fused one-step functions give wrong numbers for some of them."""
    return all(value is None or type(value) in EXACT for value in values)


def materialized(value: Tensor) -> Tensor:
    """The tensor, or a copy with memory of a zero tensor, which has none: torch's fused kernels read memory."""
    return value.clone() if _torch.is_zero_tensor(value) else value


def fixed_sizes(value: Tensor) -> str | None:
    """The reason why torch's fused kernel must not be recorded now, or ``None``.

    ``make_fx`` records sizes as constants unless it traces symbolically, and the kernel accesses memory by them without
    a check: called with other sizes, the graph would corrupt memory. ``torch.export`` guards its sizes.
    """
    if torch.compiler.is_compiling() or not _torch.is_proxied(before_dispatch=False):
        return None
    if any(isinstance(size, torch.SymInt) for size in value.shape):
        return None
    return "make_fx records sizes as constants, and its kernel would read out of bounds on inputs of other sizes"


def unreadable(values: Sequence[Tensor | None]) -> str | None:
    """The reason why the values of these tensors must not be read now, or ``None``.

    A backend that plans its work from the data would record the plan of one batch, or would read values that do not
    exist.
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
