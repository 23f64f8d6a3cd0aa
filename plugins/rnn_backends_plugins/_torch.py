"""Every private name of torch that the plugins use, each with what happens where a version of torch lacks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def _true(*_: object) -> bool:
    return True


_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _true)


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
        return value
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


def saved_tensors_are_hooked() -> bool:
    """Whether autograd gives what it saves to hooks (activation checkpointing). Without the private name: yes."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return True if top is None else top(True) is not None


def largest(values: Sequence[Tensor]) -> Tensor:
    """``[len(values)]``: the largest absolute value of each, NaN where there is one; one launch or two on a GPU.

    Without the private name: one after the other.
    """
    norms = getattr(torch, "_foreach_norm", None)
    whole = [value if value.numel() else value.new_zeros(1) for value in values]
    if norms is not None:
        return torch.stack(norms(whole, float("inf")))
    return torch.stack([value.abs().amax() for value in whole])
