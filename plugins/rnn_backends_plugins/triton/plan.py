"""How a layer is cut for a GPU: a formula over its sizes and the card, nothing is tuned while it runs.

No Triton here: ``explain`` and the tests ask it on machines without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        ahead: how many pieces of the entering ``h`` are loaded at once, forward; it divides their number.
    """

    units: int
    slices: int
    rows: int
    padded: int
    piece: int
    warps: int
    resident: bool = True
    ahead: int = 1

    def programs(self, tiles: int, card: Card) -> int:
        """``P``: how many tiles run side by side, with all their programs on the GPU at once; 0: not even one."""
        return min(tiles, card.sms // self.slices)


MOST_UNITS = 1024
"""H beyond which there is no plan."""

MOST_FEATURES = 2**19 - 1
"""I beyond which the kernels' products of 32 bits would overflow: the place of a weight in ``w_ih [4H, I]``."""

MOST_ROWS = 2**29
"""T * B beyond which others would: four times the first step of a launch, 32 times the number of a tile of 16 rows."""

MOST_WEIGHTS = 128 * 1024
"""Bytes of weights that one program keeps at most: a GPU with more shared memory has none left for the operands."""


ROOM = 32 * 1024
"""Bytes of shared memory that a program needs beside its weights."""

OTHER = 8 * 1024
"""The part of it that is not for the entering ``h``."""

MOST_CELLS = 2048
"""Units times rows of a program: with more the registers do not suffice."""

SPLIT = 8
"""Bytes of a number in float32 without TF32: the compiler keeps the two halves of every weight."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is not less than ``n``."""
    return 1 << max(n - 1, 0).bit_length()


Batch = Literal["few", "many", "large"]
"""Rows of a batch: ``few`` where all tiles of 16 rows run at once in slices of 16 units, ``many`` where those of 32
rows do in slices of 32, ``large`` beyond. So another batch compiles at most three times."""


def batch_of(H: int, B: int, itemsize: int, card: Card) -> Batch:
    """Which batch ``B`` rows are."""
    names: tuple[Batch, Batch] = ("few", "many")
    for name in names:
        cut = plan(H, itemsize, name, card)
        if -(-B // cut.rows) * cut.slices <= card.sms:
            return name
    return "large"


@lru_cache(maxsize=256)
def plan(H: int, itemsize: int, batch: Batch, card: Card, backward: bool = False) -> Plan:
    """The plan of a layer.

    A step is short where many programs share its work and each of them has few cells a thread; but what a program
    reads of other programs grows with the number of slices. So few rows take the smallest slices, of 16 units, as
    there are multiprocessors enough; more rows take tiles of 32, then as many units a program as fit. Measured on an
    H100 (``docs/performance.md``; ``python -m rnn_benchmarks.gpu cuts`` measures other cuts against these). Products
    take pieces of 256 bytes a row: operands of more fill the registers.

    Args:
        H: hidden size, 1 to 1024.
        itemsize: bytes of a number; :data:`SPLIT` where each of float32 is multiplied as two of TF32.
        batch: how many rows there are, as :func:`batch_of` says.
        card: the GPU.
        backward: of the backward pass.
    """
    padded = max(16, power_of_two(H))
    piece = min(padded, 256 // min(itemsize, 4))
    fits = [
        units
        for units in (64, 32, 16)
        if units <= padded and 4 * units * padded * itemsize <= min(MOST_WEIGHTS, card.shared - ROOM)
    ]
    if not fits:  # the weights are read again in each step
        return Plan(16, -(-H // 16), 16 if batch == "few" else 64, padded, min(padded, 32), 8, resident=False)
    hopper = card.capability // 10 == 9  # its instructions for 64 rows (wgmma) multiply from shared memory
    rows = {"few": 16, "many": 32, "large": 64 if hopper else 32}[batch]
    units = next((n for n in fits if n <= (64 if batch == "large" and itemsize == 2 else min(rows, 32))), fits[-1])
    twice = itemsize == 2 and backward and hopper
    cells = MOST_CELLS // 2 if itemsize == SPLIT else MOST_CELLS * 2 if twice else MOST_CELLS
    rows = min(rows, cells // units)
    # Eight warps, but where these columns are too few for them.
    narrow = padded <= 32 or (backward and batch == "many" and padded <= 128 and itemsize <= 4)
    cut = Plan(units, -(-H // units), rows, padded, piece, 4 if narrow else 8)
    return cut if backward else replace(cut, ahead=ahead_of(cut, itemsize, card))


def ahead_of(cut: Plan, itemsize: int, card: Card) -> int:
    """As many pieces as 64 registers a thread and the shared memory hold; larger tiles have no such registers left."""
    if cut.rows > 16:
        return 1
    of_a_piece = cut.rows * cut.piece * min(itemsize, 4)
    free = card.shared - OTHER - 4 * cut.units * cut.padded * itemsize
    most = min(cut.padded // cut.piece, 64 * 4 * 32 * cut.warps // of_a_piece, free // of_a_piece)
    return 1 << max(most, 1).bit_length() - 1
