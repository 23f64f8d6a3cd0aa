"""Poisoned memory: while a backend runs, ``torch.empty`` and similar functions return memory filled with NaN.

Otherwise they return the memory's old contents, most often zeros: a kernel that reads uninitialised memory then
works in every test and fails in production.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_EMPTY = frozenset(
    {
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
        torch.ops.aten.empty_permuted.default,
    }
)


class poisoned_memory(TorchDispatchMode):
    """Context manager: fill new floating-point memory with NaN, integers with their maximum.

    Works below autograd, so memory that C++ allocates through the dispatcher is filled too.

    Attributes:
        filled: how many tensors were filled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filled = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _EMPTY and isinstance(result, Tensor):
            self.filled += 1
            _poison(result)
        return result


def _poison(value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex():
        value.fill_(float("nan"))
    elif value.dtype == torch.bool:
        value.fill_(True)
    else:
        value.fill_(torch.iinfo(value.dtype).max)
