"""Devices: whether one is there, and float32 that is float32 on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .verdict import NO_DEVICE


def absent(device: str) -> str | None:
    """Why nothing can run there: a reason in words, or ``None``."""
    return NO_DEVICE if torch.device(device).type == "cuda" and not torch.cuda.is_available() else None


def is_accelerator(device: str) -> bool:
    """Whether float32 may be less exact there than on a CPU."""
    return torch.device(device).type != "cpu"


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """On CUDA, no TF32: its ten bits would be judged as float32's twenty-three. Elsewhere nothing changes."""
    if torch.device(device).type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
