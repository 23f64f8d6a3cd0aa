"""Devices: whether one is present, and exact float32 on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .verdict import NO_DEVICE, Declined


def absent(device: str) -> str | None:
    """The reason why nothing can run on the device, or ``None``."""
    return NO_DEVICE if torch.device(device).type == "cuda" and not torch.cuda.is_available() else None


def is_accelerator(device: str) -> bool:
    """Whether float32 may be less exact on the device than on a CPU."""
    return torch.device(device).type != "cpu"


def has_tf32(device: str) -> bool:
    """Whether products in float32 may be computed in TF32 there."""
    return torch.device(device).type == "cuda"


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """Switch TF32 off on CUDA, because its ten bits exceed float32's tolerance. Elsewhere nothing changes."""
    if not has_tf32(device):
        yield
        return
    with _tf32(False):
        yield


@contextmanager
def tf32_allowed(device: str) -> Iterator[None]:
    """TF32 in cuDNN, as torch has it by default, and in products.

    Raises:
        Declined: the device has no TF32.
    """
    if not has_tf32(device):
        raise Declined("only CUDA has TF32")
    with _tf32(True):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    places: tuple[Any, ...] = (matmul, cudnn)
    name: str = "allow_tf32"
    value: bool | str = allowed
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:  # torch's newer names were used, and the older one cannot tell the two settings of cuDNN apart
        places, name = (matmul, cudnn.rnn, cudnn.conv), "fp32_precision"
        value = "tf32" if allowed else "ieee"
        before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, earlier in zip(places, before, strict=True):
            setattr(place, name, earlier)
