"""The products that need no recurrence: torch's where they are as exact as the recurrent kernels, else ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from rnn_backends.authoring import Arguments
from torch import Tensor
from torch.nn.functional import linear

from . import product_kernels
from .device import INTERPRETED, batch_for, card_of, operand_of, precision_of, torch_multiplies_alike
from .launch import Compilation, Launcher
from .plan import Batch, Card

ALIGNMENT = 8
"""Numbers: a row that begins at a multiple of them is read 16 bytes at a time, in every dtype."""


@dataclass(frozen=True)
class Tile:
    """How much of a product one program computes.

    Attributes:
        rows: of the result.
        columns: of the result.
        depth: bytes that it reads at a time of each row and column.
        warps: of the program.
        stages: how many such pieces are on their way at once.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def blocks(self, rows: int, *columns: int) -> int:
        """How many tiles cover a result with these rows and groups of columns."""
        return -(-rows // self.rows) * sum(-(-n // self.columns) for n in columns)


LARGE = Tile(128, 128, 128, 8, 3)
SMALL = Tile(64, 64, 128, 4, 3)
ROOM_OF_LARGE = 160 * 1024
"""Bytes of shared memory that ``LARGE`` needs at most."""


def tile_of(batch: Batch, columns: int, dtype: torch.dtype, card: Card) -> Tile:
    """Large tiles read their operands fewer times; small ones are more programs, for few rows.

    Args:
        batch: which batch it is: so another number of steps takes the same tile, and compiles nothing.
        columns: of the result; with few of them a large tile would be empty to the half.
        dtype: of the operands; float32 without TF32 keeps two halves of each, too many registers for large tiles.
        card: the GPU.
    """
    large = batch != "few" and columns > SMALL.columns and precision_of(dtype) == "tf32"
    return LARGE if large and card.shared >= ROOM_OF_LARGE else SMALL


def splits_of(rows: int, blocks: int, depth: int, card: Card, most: int) -> tuple[int, int]:
    """How many programs share the rows that a product adds up, for two programs a multiprocessor; rows of each."""
    wanted = max(1, min(2 * card.sms // blocks, rows // (4 * depth), most))
    each = -(-rows // (wanted * depth)) * depth
    return -(-rows // each), each


def most_splits(T: int, B: int, I: int, H: int, itemsize: int) -> int:  # noqa: E741
    """As many as take no more memory than the inputs' gradient, which follows, and a 64th of what the layer keeps."""
    room = T * B * itemsize * (I + 6 * H // 64)
    return max(1, room // (4 * 4 * H * (I + H + 1)))


def of_inputs(x: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """The inputs' part of the pre-activations, ``x @ w_ih.T + bias``.

    Args:
        x: ``[T, B, I]``.
        w_ih: ``[4H, I]``.
        bias: ``[4H]``.

    Returns:
        ``[T * B, 4H]``.
    """
    if torch_multiplies_alike(x.dtype):
        return linear(x.reshape(x.shape[0] * x.shape[1], x.shape[2]), w_ih, bias)
    return _product(x, w_ih, bias)


def of_grad_gates(grad_gates: Tensor, w_ih: Tensor) -> Tensor:
    """The inputs' gradient ``grad_gates @ w_ih``: ``[T, B, 4H], [4H, I] -> [T, B, I]``."""
    T, B, _ = grad_gates.shape
    if torch_multiplies_alike(w_ih.dtype):
        found = grad_gates.view(T * B, -1).mm(w_ih)
    else:
        found = _product(grad_gates, w_ih, None, transposed=True)
    return found.view(T, B, -1)


def of_weights(given: Arguments, h: Tensor, grad_gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights' gradients; those of float16 and bfloat16 are added up in float32.

    Args:
        given: the layer's arguments.
        h: ``[T, B, H]``, its outputs.
        grad_gates: ``[T, B, 4, H]``.

    Returns:
        Those of ``w_ih``, ``w_hh`` and the bias, in one chunk of memory.
    """
    (T, B, H, _), I, x, dtype = given.sizes, given.x.shape[2], unit_stride(given.x), given.x.dtype  # noqa: E741
    entry_h, starts = unit_stride(given.entry_h), given.starts.view(torch.uint8)
    launch, tile = launcher_of_weights(given, _aligned(x, H) and not h.data_ptr() % 16)
    splits, rows = splits_of(
        *(T * B, tile.blocks(4 * H, I + 1, H), tile.depth // x.itemsize, card_of(x.device)),
        most_splits(T, B, I, H, x.itemsize),
    )
    groups = tile.blocks(1, I + 1, H)
    parts = x.new_empty(splits, 4 * H * (I + H + 1), dtype=torch.float32)
    launch(
        (-(-4 * H // tile.rows), groups * splits),
        (grad_gates, x, h, starts, entry_h, parts),
        (T, B, rows, splits, *x.stride()[:2], *starts.stride(), *entry_h.stride()[:2]),
    )
    flat = (parts.sum(0) if splits > 1 else parts[0]).to(dtype)
    w_ih, w_hh, bias = flat.split_with_sizes((4 * H * I, 4 * H * H, 4 * H))
    return w_ih.view(4 * H, I), w_hh.view(4 * H, H), bias


def launcher_of_weights(given: Arguments, aligned: bool) -> tuple[Launcher, Tile]:
    """The kernel of the weights' gradients; ``aligned``: as :func:`_aligned` says of ``x``."""
    (_, B, H, _), I, x = given.sizes, given.x.shape[2], given.x  # noqa: E741
    tile = tile_of(batch_for(H, B, x.dtype, x.device), H, x.dtype, card_of(x.device))
    kernel = product_kernels.weight_gradients_kernel
    return _launcher(kernel, tile, x.dtype, precision_of(x.dtype), I=I, H=H, ALIGNED=aligned), tile


def compilations(given: Arguments, backward: bool) -> list[Compilation]:
    """What the products of a usual call need compiled.

    Args:
        given: the layer's arguments.
        backward: of the backward pass, else of the forward pass.
    """
    (_, B, H, _), x, dtype = given.sizes, given.x, given.x.dtype
    found: list[Compilation] = []
    if backward:
        launch, _ = launcher_of_weights(given, _aligned(x, H))
        found.append((launch, dtype, {"starts": torch.uint8, "parts": torch.float32}))
    if (x.requires_grad if backward else True) and not torch_multiplies_alike(dtype) and x.shape[2]:
        N, K = (x.shape[2], 4 * H) if backward else (4 * H, x.shape[2])
        aligned = 4 * H % ALIGNMENT == 0 if backward else _aligned(unit_stride(x))
        has_bias = not backward and given.bias is not None
        launch, _ = _launcher_of_product(N, K, B, dtype, x.device, aligned, backward, has_bias)
        found.append((launch, dtype, {}))
    return found


def _launcher_of_product(
    N: int, K: int, B: int, dtype: torch.dtype, device: torch.device, aligned: bool, transposed: bool, bias: bool
) -> tuple[Launcher, Tile]:
    """The kernel of a product of ``[T * B, K]`` and ``[K, N]``; ``N`` or ``K`` is 4H."""
    H = (K if transposed else N) // 4
    tile = tile_of(batch_for(H, B, dtype, device), N, dtype, card_of(device))
    flags = {"N": N, "K": K, "ALIGNED": aligned, "TRANSPOSED": transposed, "HAS_BIAS": bias}
    return _launcher(product_kernels.product_kernel, tile, dtype, precision_of(dtype), **flags), tile


def _product(a: Tensor, b: Tensor, bias: Tensor | None, transposed: bool = False) -> Tensor:
    """``a [T, B, K] @ b.T + bias`` with ``b [N, K]``, or ``transposed``, with ``b [K, N]``: to ``[T * B, N]``."""
    a, b = unit_stride(a), b.contiguous()
    (T, B, K), N = a.shape, b.shape[int(transposed)]
    out = a.new_empty(T * B, N)
    if not N:
        return out
    launch, tile = _launcher_of_product(N, K, B, a.dtype, a.device, _aligned(a), transposed, bias is not None)
    tensors = (a, b, b if bias is None else bias.contiguous(), out)
    launch((tile.blocks(T * B, N), 1), tensors, (T * B, B, *a.stride()[:2]))
    return out


@lru_cache(maxsize=1024)
def _launcher(kernel: Any, tile: Tile, dtype: torch.dtype, precision: str, **constants: int) -> Launcher:
    """A kernel with its compile-time arguments and the layer's sizes."""
    known: dict[str, Any] = {
        **constants,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth // dtype.itemsize,
        "STAGES": tile.stages,
        "PRECISION": precision,
        "OPERAND": operand_of(dtype),
        "num_warps": tile.warps,
        **({} if INTERPRETED else {"enable_fp_fusion": True}),
    }
    return Launcher(kernel, known)


def _aligned(value: Tensor, H: int = 0) -> bool:
    """Whether every row of ``[T, B, n]`` begins at a multiple of 16 bytes, and those of a tensor with rows of H do."""
    of_t, of_b, _ = value.stride()
    return not (of_t | of_b | H) % ALIGNMENT and not value.data_ptr() % 16  # ALIGNMENT is a power of two


def unit_stride(value: Tensor) -> Tensor:
    """With the numbers of the last dimension side by side."""
    return value if value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()
