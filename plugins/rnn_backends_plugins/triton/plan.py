"""How a layer is cut for a GPU: a formula over its sizes and the card, nothing is tuned while it runs.

No Triton here: ``explain`` and the tests ask it on machines without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True)
class Card:
    """What of a GPU the plan depends on.

    Attributes:
        sms: streaming multiprocessors.
        shared: bytes of shared memory that one program can have.
        capability: the compute capability, 90 for 9.0.
    """

    sms: int
    shared: int
    capability: int


CARDS = {
    "A100": Card(108, 163 * 1024, 80),
    "RTX 3090": Card(82, 99 * 1024, 86),
    "L4": Card(58, 99 * 1024, 89),
    "H100": Card(132, 227 * 1024, 90),
    "B200": Card(148, 227 * 1024, 100),
}
"""One card of each compute capability that the compile lane tries."""


@dataclass(frozen=True)
class Plan:
    """How one layer is cut.

    Attributes:
        units: ``U``, hidden units of a program.
        slices: ``G``, programs that share a tile of rows.
        rows: ``BB``, rows of a tile.
        padded: ``KP``, H up to the next power of two.
        piece: ``BK``, how many of ``KP`` columns one matrix product takes.
        warps: of a program.
        resident: whether the weights stay on the chip for all steps.
    """

    units: int
    slices: int
    rows: int
    padded: int
    piece: int
    warps: int
    resident: bool = True

    def programs(self, tiles: int, card: Card) -> int:
        """``P``: how many tiles run side by side, with all their programs on the GPU at once; 0: not even one."""
        return min(tiles, card.sms // self.slices)


MOST_UNITS = 1024
"""H beyond which there is no plan."""

MOST_WEIGHTS = 128 * 1024
"""Bytes of weights that one program keeps at most: a GPU with more shared memory has none left for the operands."""


SPLIT = 8
"""Bytes of a number in float32 without TF32: the compiler keeps the two halves of every weight."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is not less than ``n``."""
    return 1 << max(n - 1, 0).bit_length()


Batch = Literal["few", "many", "large"]
"""Rows of a batch: ``few`` where tiles of 16 rows in slices of 32 units run all at once, ``many`` where they do in
slices of 64, ``large`` beyond. So another batch compiles at most three times."""


def batch_of(H: int, B: int, itemsize: int, card: Card) -> Batch:
    """Which batch ``B`` rows are."""
    tiles = -(-B // 16)
    names: tuple[Batch, Batch] = ("few", "many")
    for name in names:
        if tiles * plan(H, itemsize, name, card).slices <= card.sms:
            return name
    return "few" if tiles == 1 else "large"


@lru_cache(maxsize=256)
def plan(H: int, itemsize: int, batch: Batch, card: Card, backward: bool = False) -> Plan:
    """The plan of a layer.

    Matrix instructions give a warp at least 16 rows and 8 units, four cells a thread: with a warp for each 8 units no
    thread has more. Few rows take slices of at most 32 units, so that more multiprocessors read their weights side by
    side; many take 64, so that more tiles run side by side. Then as few slices as fit. The limits are those below which
    Triton's compiler uses no stack (``docs/generated/triton_resources.md``):

    - 16 rows, whose products take pieces of 256 bytes a row: operands of more fill the registers.
    - For large batches on Hopper 64 rows and 8 warps, whose instructions (``wgmma``) multiply from shared memory;
      where the rows that enter, or in the backward pass the products, are too wide for it, 16 rows there too.

    Args:
        H: hidden size, 1 to 1024.
        itemsize: bytes of a number; :data:`SPLIT` where each of float32 is multiplied as two of TF32.
        batch: how many rows there are, as :func:`batch_of` says.
        card: the GPU.
        backward: of the backward pass.
    """
    padded = max(16, power_of_two(H))
    hopper = card.capability // 10 == 9
    wide = batch == "large" and hopper and itemsize <= 4 and 64 <= padded <= (256 if backward or itemsize == 4 else 512)
    most = 32 if batch == "few" or itemsize == SPLIT else 64
    for rows in (64, 16) if wide else (16,):
        for units in (64, 32, 16):
            if units <= min(padded, most) and _fits(units, rows, padded, itemsize, card):
                if rows == 16:
                    return Plan(units, -(-H // units), 16, padded, min(padded, 256 // itemsize), max(4, units // 8))
                return Plan(units, -(-H // units), rows, padded, padded, 8)
    return Plan(16, -(-H // 16), 16, padded, min(padded, 256 // max(itemsize, 4)), 4, resident=False)


def _fits(units: int, rows: int, padded: int, itemsize: int, card: Card) -> bool:
    """Whether the weights and the rows that enter fit into shared memory, and the accumulators into the registers."""
    weights, entering = 4 * units * padded * itemsize, rows * padded * itemsize
    if rows == 16:
        return weights <= MOST_WEIGHTS and weights + 12 * 1024 <= card.shared
    most = MOST_WEIGHTS // 2 if units > 16 else MOST_WEIGHTS
    return weights <= most and weights + entering <= card.shared and units * itemsize <= (128 if padded <= 128 else 64)
