"""Every private name of torch that the plugins use, each with what happens where a version of torch lacks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def _true(*_: object) -> bool:
    return True


_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _true)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", _true)
_function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", _true)
_function_mode_at: Callable[[int], object] | None = getattr(torch._C, "_get_function_stack_at", None)
_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", _true)
_dispatch_keys: Callable[[Tensor], object] | None = getattr(torch._C, "_dispatch_keys", None)


def outside_transforms() -> AbstractContextManager[object]:
    """A context in which ``torch.func``'s transforms do not wrap results: for what is kept from call to call.

    Without the private name: no context. Then a value that is made and kept inside ``torch.func.grad`` stays wrapped.
    """
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:
        return nullcontext()
    context: AbstractContextManager[object] = temporarily_clear_interpreter_stack()
    return context


def unwrapped(value: Tensor) -> Tensor:
    """The tensor inside ``torch.func.grad``'s wrappers, which have no memory of their own; else the same tensor."""
    functorch = getattr(torch._C, "_functorch", None)
    if functorch is None or not hasattr(functorch, "is_gradtrackingtensor"):
        return value.detach()
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    return value


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is at work. Without the private name: yes, which costs time, not truth."""
    return bool(_transforms_active())


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``targets[k].copy_(sources[k])``, in one launch on a GPU. Without the private name: one after the other."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(list(targets), list(sources))
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def onednn_knows(dtype: torch.dtype) -> bool:
    """Whether this processor has what oneDNN's LSTM wants in 16 bits. Without the private names: no."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    try:
        return bool(getattr(torch.ops.mkldnn, name)())
    except (AttributeError, RuntimeError):
        return False


def flatten_for_cudnn(
    weights: list[Tensor],
    per_layer: int,
    I: int,  # noqa: E741
    H: int,
    P: int,
    layers: int,
    bidirectional: bool,
) -> Tensor | None:
    """Move an LSTM's ``weights``, in place, into one buffer as cuDNN lays them out, and return that buffer.

    What ``torch.nn.LSTM.flatten_parameters`` calls; ``P`` is 0 without a projection. ``None`` where this build of torch
    or this cuDNN cannot: a build without cuDNN, or a dtype that its cuDNN does not know.
    """
    flatten = getattr(torch, "_cudnn_rnn_flatten_weight", None)
    if flatten is None:
        return None
    mode = 2  # CUDNN_LSTM: torch.backends.cudnn.rnn.get_cudnn_mode("LSTM")
    try:
        with torch.cuda.device_of(weights[0]):
            buffer: Tensor = flatten(weights, per_layer, I, mode, H, P, layers, False, bidirectional)
    except RuntimeError:
        return None
    return buffer


def nothing_at_work() -> bool:
    """Whether no dispatch mode, function mode, ``torch.func`` transform or tracer sees what is done now.

    It takes 0.2 us. Without one of the private names: no. ``torch.set_default_device`` is a function mode that changes
    factory functions alone, so it does not count.
    """
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _transforms_active()
        or (_function_modes() and not _only_default_device())
        or _tracing_state() is not None
    )


def _only_default_device() -> bool:
    try:
        from torch.utils._device import DeviceContext
    except ImportError:
        return False
    if _function_mode_at is None:
        return False
    return all(type(_function_mode_at(k)) is DeviceContext for k in range(_function_modes()))


def transform_levels() -> set[str] | None:
    """The kinds of ``torch.func``'s open levels, as ``TransformType`` names them; ``None`` where torch hides them."""
    try:
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

        return {level.key().name for level in retrieve_all_functorch_interpreters()}
    except (ImportError, AttributeError):
        return None


def is_functionalized(values: Iterable[Tensor | None]) -> bool:
    """Whether ``functionalize`` wraps one of these. Without the private name: no; then reading it raises."""
    wrapped = getattr(torch, "_is_functional_tensor", None)
    if "Functionalize" in (transform_levels() or ()) if in_transform() else False:
        return True
    return wrapped is not None and any(v is not None and wrapped(v) for v in values)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` or ``make_fx`` record what is done now. Without the private names: yes."""
    if _tracing_state() is not None:
        return True
    if not _dispatch_modes():
        return False
    try:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode
    except ImportError:
        return True
    return get_proxy_mode() is not None


def dispatch_keys(value: Tensor) -> int | None:
    """The dispatcher's keys of a tensor as bits: its backend and all that wraps it. ``None`` where torch hides them."""
    if _dispatch_keys is None:
        return None
    bits: int = _dispatch_keys(value).raw_repr()  # type: ignore[attr-defined]
    return bits


def _any_requires_grad(*values: Tensor | None) -> bool:
    return any(v is not None and v.requires_grad for v in values)


any_requires_grad: Callable[..., bool] = getattr(torch._C, "_any_requires_grad", _any_requires_grad)
"""Whether one of these tensors wants a gradient; ``None`` among them is passed over. 0.3 us instead of 1."""


def saved_tensors_are_hooked() -> bool:
    """Whether autograd gives what it saves to hooks (activation checkpointing). Without the private name: yes."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return True if top is None else top(True) is not None
