"""The device rules for a tensor, and the only place where the host reads a device's numbers. The tests replace these
functions by a stand-in for cuDNN, and so run the CUDA path on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _torch


def on_cuda(value: Tensor) -> bool:
    """Whether cuDNN's rules hold, and reading a number waits for the device."""
    return value.is_cuda


def serves(x: Tensor) -> bool:
    """Whether ``torch.lstm`` uses cuDNN: not if it is switched off, and not for an empty batch."""
    return on_cuda(x) and torch.backends.cudnn.enabled and x.numel() > 0


def read(value: Tensor) -> np.ndarray:
    """The numbers, on the host: on a GPU the only place that waits for it."""
    if not _torch.in_transform():
        return value.cpu().numpy()
    value = _torch.unwrapped(value)
    with _torch.outside_transforms():  # otherwise every call would wrap its result again
        return value.cpu().numpy()


def send(value: Tensor, device: torch.device) -> Tensor:
    """A host's tensor, on the device, without a wait for the GPU."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def constant(value: Tensor, device: torch.device) -> Tensor:
    """A host's tensor, on the device, complete for every stream: for the few numbers that are sent once and kept."""
    found = value.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return found
