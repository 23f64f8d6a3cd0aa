"""Products of ever other rows with one matrix: on a CPU by oneDNN, with the matrix packed once.

In float32 ``torch.mm`` goes to MKL, which on a processor that is not Intel's may run at less than half of oneDNN's
speed: 64 rows by ``[256, 1024]`` take 328 us there and 88 us here (AMD EPYC, two threads).
"""

import torch
from torch import Tensor

LEAST = 4 << 20
"""Multiplications below which ``torch.mm`` is as fast."""

LEAST_SUM = 1 << 19
"""Numbers in a weight's gradient below which it is: there both factors are laid anew each time."""


class Product:
    """``rows @ matrix``, again and again.

    Args:
        matrix: ``[K, N]``.
        rows: how many there will be each time.
    """

    def __init__(self, matrix: Tensor, rows: int) -> None:
        self._matrix = matrix
        self._packed = None
        if rows * matrix.numel() >= LEAST and _onednn_serves(matrix):
            # oneDNN's layers hold their weight as [N, K]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous(), rows)

    def into(self, rows: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """``out = rows @ matrix + bias``."""
        if self._packed is not None:
            out.copy_(self._run(rows, bias))
        elif bias is not None:
            torch.addmm(bias, rows, self._matrix, out=out)
        else:
            torch.mm(rows, self._matrix, out=out)

    def onto(self, rows: Tensor, total: Tensor) -> None:
        """``total += rows @ matrix``."""
        if self._packed is None:
            total.addmm_(rows, self._matrix)
        else:
            total.add_(self._run(rows))

    def _run(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, bias, "none", [], "")
        return made


def add_product(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """``total += rows.T @ values``, the sum in ``total``'s dtype: ``[N, K]``, ``[t * b, N]``, ``[t, b, K]``."""
    columns = values.flatten(0, 1)
    if total.dtype != rows.dtype:
        total += rows.t() @ columns  # float32 over many chunks of bfloat16 or float16
    elif total.numel() >= LEAST_SUM and _onednn_serves(total):
        total += torch.ops.mkldnn._linear_pointwise(rows.t(), columns.t(), None, "none", [], "")
    else:
        total.addmm_(rows.t(), columns)


def _onednn_serves(matrix: Tensor) -> bool:
    """Where it is built in, not switched off, and not what ``torch.mm`` takes already (as it does in 16 bits)."""
    return (
        matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch._C._get_mkldnn_enabled())
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
