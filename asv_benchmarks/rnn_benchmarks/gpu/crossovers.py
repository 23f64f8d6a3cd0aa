"""The times that ``auto`` uses on a GPU: a short grid; each case is written when it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from rnn_backends.ranking import PATIENCE

from ..cases import Contestant, Shape
from ..figures import first_call
from ..tables import seconds as time_text
from ..tune import Grid, contestants, measure, table_of
from ..tune_report import store
from .plan import accepting
from .settings import chosen

GRID = Grid((64, 128, 256, 512), ((16, 64), (1024, 32)), ((16, 64), (256, 32)), ("0", "0.03", "0.30"), 64, 30.0)
LONGEST = 1.5
"""Seconds for one case."""
FIRST_CALL = 15.0
"""Seconds after which a first call is given up: the backend then has no times, and auto takes it last."""


def measure_crossovers(
    device: str,
    folder: Path,
    seconds: float,
    backends: Sequence[str] = (),
    shapes: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Measure the cases that the time suffices for, those at 3 % first, into ``crossovers.json``.

    A backend whose first call takes longer than ``PATIENCE`` (it compiles) has no times: ``auto`` would not take it.
    """
    until, first = monotonic() + seconds, {}
    for name in backends or accepting(device):
        try:
            first[name] = float(f"{first_call(name, 16, timeout=FIRST_CALL, device=device)['seconds']:.3g}")
            say(f"first call: {name} {time_text(first[name])}")
        except NotImplementedError as reason:
            say(f"first call: {name}: {reason}")
        if monotonic() > until:
            return
    quick = [name for name, took in first.items() if took <= PATIENCE]
    cases = _few(quick, chosen(shapes, ()), device) if shapes else contestants(GRID, quick, device)
    cases.sort(key=lambda case: case[0].resets != "0.03" and case[0].mode == "train")
    cells = []
    for k, case in enumerate(cases):
        if (left := until - monotonic()) <= 0:
            say(f"the time is up: {len(cases) - k} of {len(cases)} cases are not measured")
            break
        cells += measure([case], min(LONGEST, 0.6 * left / (len(cases) - k)), slow=1.0, rounds=(3, 31)).cells
        times = ", ".join(f"{name} {time_text(took)}" for name, took in cells[-1].seconds.items())
        say(f"{case[0].shape}, {case[0].mode}, resets {case[0].resets}: {times}")
        store(table_of(cells, first, device), folder / "crossovers.json")


def _few(names: list[str], shapes: list[Shape], device: str) -> list[list[Contestant]]:
    return [[Contestant(name, shape, "0.03", "train", "module", device) for name in names] for shape in shapes]
