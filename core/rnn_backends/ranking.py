"""The order in which ``"auto"`` tries the backends, from measured times, and the figure that decided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .contract import LSTMSpec
from .crossovers import Cell, Table

WEIGHTS = {"train": 0.7, "step": 0.2, "forward": 0.1}
"""The weight of each mode. A backend is chosen once, at construction, where mode, B, T and resets are
unknown: so the choice is for a policy that acts and is trained, and training takes most of its time."""
MARGIN = 0.05
"""The share by which a backend must be faster than the first of the fixed order; a smaller difference is noise."""
PATIENCE = 5.0
"""In seconds. ``"auto"`` skips a backend whose first call takes longer (it compiles), unless the table allows it."""


class Ranking:
    """Names in the order of preference for one spec, and why the first is the first.

    Args:
        names: names of backends. Those that reject the spec must be absent, or excluded by ``tested`` of :meth:`first`.
        order: the fixed order, which decides where nothing was measured and within the margin.
        table: the times measured on this kind of device, if any.
        spec: the LSTM's options.
    """

    def __init__(self, names: Sequence[str], order: Sequence[str], table: Table | None, spec: LSTMSpec) -> None:
        self._table = table
        self._fixed = [name for name in order if name in names] + [name for name in names if name not in order]
        cells = [case for case in table.cells if case.cell == "lstm"] if table else []
        self._cells = _nearest(cells, spec.hidden_size)
        self._slow = [name for name in self._fixed if self._first_call(name) > PATIENCE]
        measured = [name for name in self._fixed if all(name in cell.seconds for cell in self._cells)]
        self.cost = costs(self._cells, measured)
        ready = [name for name in self.cost if name not in self._slow]
        self._ready = sorted(ready, key=self.cost.__getitem__)

    def first(self, tested: Mapping[str, bool] | None = None) -> str | None:
        """The first backend that is able: of those within the margin of the fastest, the first of the fixed order.

        Then the backends without measurements, in the fixed order; then those with a long first call. No more need
        be tested than necessary, because each test imports a plugin.

        Args:
            tested: whether a backend is able, for those that have been tested; ``None``: all are.

        Returns:
            The choice, if it is among ``tested``; else the next backend to test. ``None``: none is able.
        """
        known = dict.fromkeys(self._fixed, True) if tested is None else tested
        able = [name for name in self._ready if known.get(name, True)]
        if able and able[0] not in known:
            return able[0]
        if able:
            return next(n for n in self._fixed if n in able and self.cost[n] * (1 - MARGIN) <= self.cost[able[0]])
        rest = [name for name in self._fixed if name not in self._ready and known.get(name, True)]
        return min(rest, key=self._slow.__contains__, default=None)

    def faster(self, name: str) -> list[str]:
        """The names measured to be faster by more than the margin, without a long first call; fastest first."""
        if name not in self.cost:
            return list(self._ready)
        return [other for other in self._ready if self.cost[other] < self.cost[name] * (1 - MARGIN)]

    def _first_call(self, name: str) -> float:
        return 0.0 if self._table is None or self._table.allow_compile else self._table.first_call.get(name, 0.0)

    def why(self) -> str:
        """Why :meth:`first` is the first, with the figure that decided."""
        if self._table is None:
            return "the first of the fixed order that accepts: nothing is measured on this kind of device"
        first = self.first()
        if first not in self._ready:
            return f"the first of the fixed order that accepts: none that does is in {self._table.origin()}"
        cell = _shown(self._cells)
        reasons = [f"measured: {_time(cell.seconds[first])} at {_words(cell)}"]
        others = [name for name in self._ready if name != first]
        if others:
            times = self.cost[others[0]] / self.cost[first]
            reasons.append(
                f"next {others[0]} {_time(cell.seconds[others[0]])}, {times:.2f} times as long over all modes"
            )
        if first != self._ready[0]:
            reasons.append(f"less than {MARGIN:.0%} decides nothing, and {first} is first in the fixed order")
        reasons += [
            f"{name} is faster but its first call takes {self._first_call(name):.0f} s"
            for name in self._slow
            if name in self.cost and self.cost[name] < self.cost[first] * (1 - MARGIN)
        ]
        return "; ".join([*reasons, self._table.origin()])


def costs(cells: Iterable[Cell], names: Iterable[str]) -> dict[str, float]:
    """Seconds, by name: the geometric mean over the cells of a mode, then over modes by their weights."""
    by_mode: dict[str, list[Cell]] = {}
    for cell in cells:
        by_mode.setdefault(cell.mode, []).append(cell)
    total = sum(WEIGHTS[mode] for mode in by_mode)

    def cost(name: str) -> float:
        means = {mode: sum(math.log(c.seconds[name]) for c in found) / len(found) for mode, found in by_mode.items()}
        return math.exp(sum(WEIGHTS[mode] * mean for mode, mean in means.items()) / total)

    return {name: cost(name) for name in names} if by_mode else {}


def _nearest(cells: Sequence[Cell], hidden: int) -> list[Cell]:
    """The cells of the nearest measured hidden size, by the ratio."""
    sizes = sorted({cell.hidden for cell in cells}, key=lambda size: (abs(math.log(size / hidden)), size))
    return [cell for cell in cells if sizes and cell.hidden == sizes[0]]


def _shown(cells: Sequence[Cell]) -> Cell:
    """The cell to quote: training, with resets, many rows."""
    return max(cells, key=lambda cell: (WEIGHTS[cell.mode], cell.resets == "0.03", cell.batch, cell.time))


def _words(cell: Cell) -> str:
    """A cell in words."""
    resets = "resets once a row" if cell.resets == "once" else f"{float(cell.resets):.0%} resets"
    return f"H {cell.hidden} ({cell.mode}, {resets}, B {cell.batch}, T {cell.time})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
