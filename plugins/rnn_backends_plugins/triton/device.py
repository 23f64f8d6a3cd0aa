"""What the GPU is, and how exactly torch's switches want products computed."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .._torch import tf32_in_products, tf32_in_recurrent_networks
from .plan import SPLIT, Batch, Card, batch_of

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels (``TRITON_INTERPRET=1``): on a CPU, a step a launch."""


@lru_cache
def card_of(device: torch.device) -> Card:
    """The GPU's figures; under the interpreter those of a card on which a tile takes few rows and units."""
    if device.type == "cpu":
        return Card(132, 227 * 1024, 90)
    found = torch.cuda.get_device_properties(device)
    return Card(
        found.multi_processor_count,
        getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block),
        10 * found.major + found.minor,
    )


def precision_of(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: as torch's switch for cuDNN's recurrent networks allows.

    Without TF32 three TF32 products make up one of float32 (Ootomo & Yokota 2022, "Recovering single precision
    accuracy from Tensor Cores").
    """
    return "tf32" if dtype != torch.float32 or tf32_in_recurrent_networks() else "tf32x3"


def itemsize_of(dtype: torch.dtype) -> int:
    """Bytes of a number as the plan counts them: float32 without TF32 is multiplied in two halves."""
    return SPLIT if precision_of(dtype) == "tf32x3" else dtype.itemsize


def batch_for(H: int, B: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """Which batch ``B`` rows are on this device."""
    return _batch_of(H, B, itemsize_of(dtype), card_of(device))


_batch_of = lru_cache(maxsize=4096)(batch_of)


def torch_multiplies_alike(dtype: torch.dtype) -> bool:
    """Whether torch's matrix products, which have a switch of their own, are as exact as :func:`precision_of` says."""
    return dtype != torch.float32 or tf32_in_products() == tf32_in_recurrent_networks()


def operand_of(dtype: torch.dtype) -> tl.dtype:
    """What ``tl.dot`` multiplies; the interpreter multiplies the bits of bfloat16 numbers, so there float32."""
    if INTERPRETED or dtype == torch.float32:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
