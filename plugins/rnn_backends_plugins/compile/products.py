"""Products of many inputs with one matrix: on a CPU by oneDNN, with the matrix packed once.

In float32 ``torch.mm`` uses MKL, which may have less than half of oneDNN's speed on processors of other makers than
Intel: 64 rows by ``[256, 1024]`` take 328 us with MKL and 88 us with oneDNN (AMD EPYC, two threads).
"""

import torch
from torch import Tensor

from .._torch import onednn_linear, onednn_linear_works, onednn_packed
from ..openmp import lacks_threads

LEAST = 1 << 20
"""The number of multiplications below which ``torch.mm`` is as fast."""


class Product:
    """``rows @ matrix``, for many calls.

    Args:
        matrix: ``[K, N]``.
        rows: the expected number of rows of each call.
    """

    def __init__(self, matrix: Tensor, rows: int) -> None:
        self._matrix = matrix
        self._packed: Tensor | None = None
        if rows * matrix.numel() >= LEAST and _onednn_serves(matrix):
            self._packed = onednn_packed(matrix, rows)

    def of(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """``rows @ matrix + bias``: ``[rows, K]``, ``[N]`` to ``[rows, N]``."""
        if self._packed is not None:
            return onednn_linear(rows, self._packed, bias)
        return rows @ self._matrix if bias is None else torch.addmm(bias, rows, self._matrix)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left.T @ right``, the sum in ``total``'s dtype: ``[K, N]``, ``[rows, K]``, ``[rows, N]``."""
    if total.dtype != left.dtype:
        total += left.t() @ right  # float32 over many chunks of bfloat16 or float16
    elif left.shape[0] * total.numel() >= LEAST and _onednn_serves(total):
        total += onednn_linear(left.t(), right.t())
    else:
        total.addmm_(left.t(), right)


def _onednn_serves(matrix: Tensor) -> bool:
    """Whether oneDNN is built in, enabled, has its threads, and is not used by ``torch.mm`` anyway (as in 16 bits)."""
    return (
        matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and lacks_threads() is None
        and onednn_linear_works()
    )
