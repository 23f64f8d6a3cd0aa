"""Groups of contestants, measured in turn, and their results as JSON for another run, a table or a page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cases import DENSE, SHAPES, STEPS, TORCHRL, Call, Contestant, Shape, build
from .timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Group:
    """Contestants that are measured in turn, round by round, for comparison.

    Attributes:
        title: the title of their table.
        contestants: by labels that are unique in the group.
        base: the label of the contestant in the denominator of ratios.
        seconds: the measuring time.
    """

    title: str
    contestants: dict[str, Contestant]
    base: str
    seconds: float = 5.0

    @property
    def first(self) -> Contestant:
        """The first contestant; shape and resets are the same for all of them."""
        return next(iter(self.contestants.values()))


@dataclass(frozen=True)
class Row:
    """One contestant's result: ``seconds`` per call and the ratio ``over`` the base, or a ``note`` with the reason."""

    title: str
    label: str
    shape: str
    resets: str
    mode: str
    reads: str
    seconds: Spread | None = None
    over: Spread | None = None
    base: str = ""
    note: str = ""


@dataclass
class Figures:
    """All results of one run: rows and other numbers, the machine and the versions."""

    where: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def of(self, title: str) -> list[Row]:
        """The rows of a title."""
        return [row for row in self.rows if row.title == title]

    def save(self, path: Path) -> None:
        """Write JSON."""
        from rnn_backends.paths import write_whole

        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Figures:
        """Read a file that :meth:`save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["where"], [_row(row) for row in data["rows"]], data["numbers"])


def _row(row: dict[str, Any]) -> Row:
    spreads = {name: Spread(**row[name]) if row[name] else None for name in ("seconds", "over")}
    return Row(**{**row, **spreads})


def where(device: str = "cpu") -> dict[str, Any]:
    """Date, machine and versions."""
    import torch
    from rnn_backends.crossovers import processor, versions

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor(torch.device(device)) or device,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(("torch", "torchrl", "tensordict", "rnn-backends")),
    }


Make = Callable[[Contestant], Call]
Tick = Callable[[str], None]


def run(group: Group, tick: Tick = lambda name: None, make: Make = build, **options: Any) -> list[Row]:
    """Measure one group; the options are those of :func:`interleaved`.

    The row of a contestant that cannot be measured has the reason as its note.
    """
    calls, refused = {}, {}
    for label, contestant in group.contestants.items():
        tick(f"{label} (set-up)")
        try:
            calls[label] = make(contestant)
        except NotImplementedError as reason:
            refused[label] = str(reason)
    found = interleaved(calls, group.seconds, tick=tick, **options)
    return [_measured(group, label, found, refused) for label in group.contestants]


def _measured(group: Group, label: str, found: dict[str, list[float]], refused: dict[str, str]) -> Row:
    contestant = group.contestants[label]
    about = (group.title, label, str(contestant.shape), contestant.resets, contestant.mode, contestant.reads)
    if label in refused:
        return Row(*about, note=refused[label].splitlines()[0])
    seconds = Spread.of(found[label])
    over = ratio(found[label], found[group.base]) if group.base in found else None
    notes = ["one call only"] if seconds.samples == 1 else []
    notes += ["noisy"] if over and over.noise > 0.1 else []
    return Row(*about, seconds, over, group.base, ", ".join(notes))


def comparisons(
    names: list[str], shapes: list[Shape], rates: list[str], mode: str, module: bool, device: str, seconds: float
) -> list[Group]:
    """The groups of ``rnn-backends bench``: the first name against the others, or alone against dense ``nn.LSTM``.

    ``shapes`` may be empty: S2, or for a step those of ``STEPS``. A step is always a module's and has no resets.
    """
    module = module or mode == "step" or any(name in TORCHRL for name in names)
    base = names[1] if len(names) > 1 else DENSE
    labels = list(dict.fromkeys([*names, base]))
    if mode == "step":
        rates, shapes = ["0"], shapes or list(STEPS.values())
    reads = "module" if module else "output"
    return [
        Group("bench", {one: Contestant(one, shape, rate, mode, reads, device) for one in labels}, base, seconds)
        for shape in shapes or [SHAPES["S2"]]
        for rate in rates
    ]
