"""The Triton kernels' exchange between programs, in all orders, and every access to memory: without a GPU, in seconds.

    TRITON_INTERPRET=1 python plugins/tests/triton_exchange.py

Prints a line for each launch and ends with status 1 where something is wrong. ``triton_recorded.py`` writes down what
the kernels do, ``triton_protocol.py`` goes through all orders of it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import triton_recorded
from rnn_backends_plugins.triton.plan import Plan
from rnn_backends_plugins.triton.products import Tile
from triton_recorded import Launch, record, record_products

GROUPS = (
    ((3, 3, 4), Plan(2, 2, 2, 4, 4, 4), 1),
    ((2, 3, 3), Plan(2, 2, 2, 4, 2, 4, resident=False), 2),
    ((3, 3, 3), Plan(1, 3, 4, 4, 4, 4), 1),
    ((3, 3, 3), Plan(4, 1, 2, 4, 4, 4), 1),
)
"""Sizes T, B, H, plans, and how many tiles run side by side: two and three slices, pieces, two tiles, one program."""
LARGER = (((4, 5, 4), Plan(2, 2, 2, 4, 4, 4), 1), ((3, 2, 4), Plan(1, 4, 2, 4, 2, 4, resident=False), 1))
"""Three tiles, four slices: not tried with every planted defect."""
FAR = (
    {"sizes": (1 << 24, 64, 16), "window": ((1 << 24) - 2, 1 << 24)},
    {"sizes": (1 << 24, 64, 16), "window": (-1, 1)},
    {"sizes": (1 << 28, 16, 1), "window": ((1 << 28) - 2, 1 << 28)},
    {"sizes": (2, (3 << 24) + 3, 16), "window": (0, 2), "last": True},
)
"""Steps and rows beyond 2 to the 31st numbers."""


PRODUCTS = (((3, 3, 5, 4), None), ((2, 5, 0, 3), None), ((1, 1, 8, 1), None), ((5, 4, 3, 7), 4))
"""Sizes T, B, I, H and rows of a split."""
FAR_PRODUCTS = (
    ((1 << 16, 1 << 15, 9, 1), Tile(16, 16, 16, 4, 1), 4),
    ((1, 1 << 24, 200, 16), Tile(16, 16, 16, 4, 1), 4),
    ((2, 2, 1 << 20, 1024), Tile(2, 2, 4 << 17, 4, 1), None),
)
"""Rows, columns and weights beyond 2 to the 31st numbers: the last of them."""


def orders() -> Iterator[str]:
    """The errors in some order of the programs' steps."""
    for sizes, chosen, programs in GROUPS:
        for launch in record(sizes, chosen, programs):
            yield from (f"{launch.kernel}: {problem}" for problem in sorted(launch.found().problems))


@contextmanager
def without_tf32() -> Iterator[None]:
    """torch's switch is off within."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def accesses() -> Iterator[str]:
    """The errors of single accesses, also beyond 2**31 numbers, and beyond the rows that the host takes."""
    with without_tf32(), patch.object(triton_recorded.run, "MOST_ROWS", 1 << 33):
        for sizes, split in PRODUCTS:
            for launch in record_products(sizes, Tile(4, 4, 8, 4, 1), split):
                yield from (f"{launch.kernel}: {problem}" for problem in sorted(launch.wrong))
        for sizes, tile, split in FAR_PRODUCTS:
            for launch in record_products(sizes, tile, split, last=True):
                yield from (f"{launch.kernel}: {problem}" for problem in sorted(launch.wrong))
        for sizes, chosen, programs in GROUPS:
            for steps in (False, True):
                tiles = -(-sizes[1] // chosen.rows)
                for launch in record(sizes, chosen, tiles if steps else programs, steps=steps):
                    yield from (f"{launch.kernel}: {problem}" for problem in sorted(launch.wrong))
        for far in FAR:
            rows = 64 if "last" in far else 16
            tiles = -(-far["sizes"][1] // rows)
            for launch in record(chosen=Plan(16, 1, rows, 16, 16, 4), programs=tiles, **far):
                yield from (f"{launch.kernel}: {problem}" for problem in sorted(launch.wrong))


def residents(launch: Launch) -> str:
    """How many of a launch's programs have to run at once, if no order may wait for ever."""
    model = launch.model()
    needed = next(n for n in range(1, model.n + 1) if not model.explore(resident=n).problems)
    return f"{needed} of {model.n} programs have to run at once"


def main() -> int:
    bad = sorted(set(accesses()))
    for problem in bad:
        print(f"WRONG {problem}")
    for sizes, chosen, programs in (*GROUPS, *LARGER):
        for launch in record(sizes, chosen, programs):
            found = launch.found()
            bad += found.problems
            about = f"{launch.kernel}, T, B, H {sizes}, {chosen.slices} slices, {programs} tiles at once"
            print(f"{'WRONG' if found.problems else 'right'} {about}: {found.states} states, {residents(launch)}")
            for problem in sorted(found.problems):
                print(f"      {problem}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
