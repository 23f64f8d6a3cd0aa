"""Which device's rules hold for a tensor, and the one place where the host reads a device's numbers.

The tests put a stand-in for cuDNN here (``plugins/tests/standin``), and so run the CUDA path on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _torch


def on_cuda(value: Tensor) -> bool:
    """Whether cuDNN's rules hold, and to read a number is to wait for the device."""
    return value.is_cuda


def serves(x: Tensor) -> bool:
    """Whether ``torch.lstm`` goes to cuDNN: not where it is switched off, and not for an empty batch."""
    return on_cuda(x) and torch.backends.cudnn.enabled and x.numel() > 0


def read(value: Tensor) -> np.ndarray:
    """The numbers, on the host: on a GPU the one place that waits for it."""
    value = _torch.unwrapped(value)
    with _torch.outside_transforms():  # or every call wraps its result again
        return value.cpu().numpy()


def send(value: Tensor, device: torch.device) -> Tensor:
    """A host's tensor, on the device; nobody waits for a GPU."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
