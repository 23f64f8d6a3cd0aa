"""A pool of large memory blocks, kept between calls.

A layer saves its gates for the backward pass: most of its memory, and the same amount in each call of a training
loop. ``malloc`` returns such blocks to the system, so each of their pages costs a page fault and zeroing again: up to
a tenth of a training step (docs/performance.md). Outputs and gradients are allocated by torch; this pool is for tensors
that only the kernel reads.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from math import prod
from threading import Lock

import torch
from torch import Tensor

from .._torch import profiler_runs

SMALLEST = 1 << 20
"""In bytes. A smaller tensor is allocated by torch."""
SPARE = 2
"""A free block is reused only for requests of at least ``1 / SPARE`` of its size."""


class Pool:
    """Blocks that return when the last tensor over them is deleted.

    The pool never holds more, free and used together, than its peak use.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._returned: deque[Tensor] = deque()  # no lock: a tensor may be deleted at any point, within `take` too
        self._free: list[Tensor] = []  # oldest first
        self._used = self._most = 0  # bytes
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = Lock()  # at a fork another thread may hold it, and the child has no such thread

    def take(self, size: int) -> Tensor:
        """``[size]`` uint8, not initialised.

        Raises:
            RuntimeError: torch cannot allocate it, not even after all free blocks are released.
        """
        with self._lock:
            self._collect()
            fits = [block for block in self._free if size <= len(block) <= size * SPARE]
            if fits:
                block = min(fits, key=len)
                self._free = [other for other in self._free if other is not block]
            else:
                most = max(self._most, self._used + size)
                self._shrink(most - self._used - size)
                block = self._allocate(size)
                self._most = most  # only now: a failed allocation is no peak
            self._used += len(block)
        part = block.numpy()[:size]  # torch holds this array, so it is deleted with the last tensor over it
        weakref.finalize(part, self._returned.append, block).atexit = False
        return torch.from_numpy(part)

    def free_bytes(self) -> int:
        """The size of all unused blocks."""
        with self._lock:
            self._collect()
            return sum(map(len, self._free))

    def release(self) -> None:
        """Free all unused blocks."""
        with self._lock:
            self._collect()
            self._shrink(0)
            self._most = self._used

    def _allocate(self, size: int) -> Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu")
        except RuntimeError:
            if not self._free:
                raise
            self._shrink(0)
            return torch.empty(size, dtype=torch.uint8, device="cpu")

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._used -= len(block)
            self._free.append(block)

    def _shrink(self, most: int) -> None:
        while self._free and sum(map(len, self._free)) > most:
            del self._free[0]


pool = Pool()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.empty``, from the pool for a large tensor.

    While torch's profiler runs, torch allocates all tensors, so that the profile of memory is complete.
    """
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST or profiler_runs():
        return torch.empty(shape, dtype=dtype, device="cpu")
    return pool.take(size).view(dtype).view(shape)
