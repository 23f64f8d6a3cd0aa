"""The tolerance of each dtype, with its reason, and the error measure that it limits.

The measure is the worst row: over the rows of the batch, the largest error in the row over the largest expected value
in it. A norm over everything would let one wrong row hide among many right ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """The largest worst-row error that passes, for values and for gradients, with the reason.

    ``floor``: no row's values, which are of the order of one, are judged against less.
    """

    values: float
    gradients: float
    reason: str
    floor: float = 0.05


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(
        1e-11,
        4e-11,
        "float64 rounds at 1e-16; sixteen steps and three layers of unit weights amplify to about 1e-14. "
        "Anything computed in float32 is off by 1e-8 at least.",
    ),
    torch.float32: Tolerance(
        5e-6,
        2e-5,
        "float32 rounds at 6e-8; torch's own kernels come to about 1e-6 on these cases. TF32, float16 "
        "accumulation or an approximated tanh are off by 1e-4 and more.",
    ),
    torch.bfloat16: Tolerance(
        6e-2,
        24e-2,
        "bfloat16 rounds at 4e-3, and a kernel may round after every operation of every step: up to 3e-2 in 1200 "
        "cases, most where a short row nearly cancels, hence the floor. The weakest known defect of logic is 0.11 off.",
        0.25,
    ),
    torch.float16: Tolerance(8e-3, 32e-3, "float16 rounds at 5e-4, eight times finer than bfloat16.", 0.1),
}

TF32 = Tolerance(
    4e-3,
    16e-3,
    "TF32 rounds the factors of products at 1e-3 (ten bits). torch.nn.LSTM with TF32 on was 4e-4 to 9.5e-4 off in its "
    "worst row on an H100, at every H; four times that, as on any device. Rounding all factors to ten bits on a CPU "
    "reached a tenth of what this and the rounding allowance allow (304 cases). It is for errors of logic in kernels "
    "that run with TF32 alone: factors in bfloat16 (2e-3) are within it.",
)
"""Of float32 on CUDA where TF32 is allowed, which is torch's default for cuDNN."""
TF32_UNIT = 2.0**-10

ROUNDING_ALLOWANCE = 6.0
"""In 16 bits an error may be this many times the effect of rounding the inputs alone. Over 4 000 cases of 7 and 16
steps correct kernels reached half of that limit; without it two of them failed, by up to 1.8
tolerances."""

DEVICE_ALLOWANCE = 4.0
"""In float32 on an accelerator an error may be this many times torch.nn.LSTM's there, if that is above the
tolerance."""
DEVICE_SAMPLES, DEVICE_SAMPLE_UNIT = 3, 2.0**-10
"""The number of further cases, with inputs, states and weights changed by up to this share, of which torch.nn.LSTM's
worst error counts where one case's is not enough. Without them 4 of 191 laws failed at the first seed over the stand-in
for cuDNN's rounding, by up to 1.6 tolerances."""

FLOOR = 0.05
"""Rows whose largest expected value is below this share of the whole tensor's are judged by that share: where a row
cancels to almost nothing, rounding noise is all there is."""

GRADIENT_FLOOR = 0.01
"""No row's gradients are judged against less. They are sums of terms of the order of one: a single gradient (``H = 1``,
one step) that cancels to 3e-4 has float32's rounding of those terms, 7e-9, and nothing is wrong with it."""


def worst_row(actual: Tensor, expected: Tensor, dim: int | None, floor: float = 0.0) -> float:
    """The worst row's error: largest error in the row over the row's largest expected value.

    Args:
        actual: the computed tensor.
        expected: float64, the same shape.
        dim: the dimension that counts rows; ``None`` takes the whole tensor as one row.
        floor: no row's scale is taken to be smaller than this.

    Returns:
        A ratio; infinite if an actual value is not a number where a number was expected.
    """
    if expected.numel() == 0:
        return 0.0
    if dim is None:
        actual, expected, dim = actual.reshape(1, -1), expected.reshape(1, -1), 0
    error = (actual.detach().to(expected) - expected.detach()).abs().movedim(dim, 0).flatten(1).amax(1)
    scale = expected.detach().abs().movedim(dim, 0).flatten(1).amax(1)
    scale = scale.clamp_min(max(floor, FLOOR * scale.max().item(), torch.finfo(torch.float64).tiny))
    ratio = (error / scale).max().item()
    return ratio if ratio == ratio else float("inf")
