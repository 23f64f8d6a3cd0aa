"""How a layer is cut for a GPU: a formula over its sizes and the card, nothing is tuned while it runs.

No Triton here: ``explain`` and the tests ask it on machines without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


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
        piece: ``BK``, how much of H one matrix product takes; ``padded`` where the weights stay on the chip.
        warps: of a program.
    """

    units: int
    slices: int
    rows: int
    padded: int
    piece: int
    warps: int

    @property
    def resident(self) -> bool:
        """Whether the weights stay on the chip for all steps."""
        return self.piece == self.padded

    def programs(self, tiles: int, card: Card) -> int:
        """``P``: how many tiles run side by side, with all their programs on the GPU at once; 0: not even one."""
        return min(tiles, card.sms // self.slices)


MOST_UNITS = 1024
"""H beyond which there is no plan."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is not less than ``n``."""
    return 1 << max(n - 1, 0).bit_length()


@lru_cache(maxsize=256)
def plan(H: int, itemsize: int, large: bool, card: Card) -> Plan:
    """The plan of a layer.

    The least number of slices that fits: each wait is for fewer programs, and more tiles run side by side. What has
    to fit into shared memory are the slice's weights and the rows that enter a step; the factor is what Triton was
    seen to allocate for both (``docs/generated/triton_resources.md``).

    Args:
        H: hidden size, 1 to 1024.
        itemsize: bytes of a number.
        large: whether the batch has more rows than the GPU takes at once in tiles of 16.
        card: the GPU.
    """
    padded = max(16, power_of_two(H))
    rows = 64 if large and padded >= 64 else 16
    for units in (64, 32, 16):
        if units > padded and units > 16:
            continue
        weights = 4 * units * padded * itemsize
        states = rows * padded * itemsize
        registers = 4 * rows * units * 3 // (32 * 4)  # accumulators, gates and the cell's operands, for four warps
        if (
            weights + states <= card.shared * 7 // 8
            and weights <= 128 * 1024
            and registers <= 96 * (2 if rows > 16 else 1)
        ):
            warps = 8 if rows > 16 or padded > 256 else 4
            return Plan(units, -(-H // units), rows, padded, padded, warps)
    return Plan(16, -(-H // 16), rows, padded, min(padded, 64), 8 if rows > 16 else 4)


def is_large(H: int, B: int, itemsize: int, card: Card) -> bool:
    """Whether tiles of 16 rows would not all run at once."""
    small = plan(H, itemsize, False, card)
    return -(-B // small.rows) > max(1, card.sms // small.slices)
