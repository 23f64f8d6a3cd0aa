"""Groups of contestants and what came out of them, as JSON that another run, a table or a page can read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cases import DENSE, Asked, Call, Shape, build
from .timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Group:
    """What is measured in turn, round by round, to be compared.

    Attributes:
        title: what the group shows; rows of one title make one table.
        asked: the contestants, by a label that is unique in the group.
        base: the label of the one that ratios are over.
        seconds: how long to measure.
    """

    title: str
    asked: dict[str, Asked]
    base: str
    seconds: float = 5.0


@dataclass(frozen=True)
class Row:
    """One contestant's result: ``seconds`` a call and ``over`` the base, or the reason why there is none."""

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
    """Everything that was measured in one run, and where."""

    where: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def of(self, title: str) -> list[Row]:
        """The rows of one title."""
        return [row for row in self.rows if row.title == title]

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        from rnn_backends.paths import write_whole

        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Figures:
        """What :meth:`save` wrote."""
        said = json.loads(path.read_text(encoding="utf-8"))
        return cls(said["where"], [_row(row) for row in said["rows"]], said["numbers"])


def _row(said: dict[str, Any]) -> Row:
    spreads = {name: Spread(**said[name]) if said[name] else None for name in ("seconds", "over")}
    return Row(**{**said, **spreads})


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


Make = Callable[[Asked], Call]
Tick = Callable[[str], None]


def run(group: Group, tick: Tick = lambda name: None, make: Make = build, **options: Any) -> list[Row]:
    """Measure one group; options go to :func:`interleaved`."""
    calls, refused = {}, {}
    for label, asked in group.asked.items():
        tick(f"{label} (set-up)")
        try:
            calls[label] = make(asked)
        except NotImplementedError as reason:
            refused[label] = str(reason)
    found = interleaved(calls, group.seconds, tick=tick, **options)
    return [_measured(group, label, found, refused) for label in group.asked]


def _measured(group: Group, label: str, found: dict[str, list[float]], refused: dict[str, str]) -> Row:
    asked = group.asked[label]
    about = (group.title, label, str(asked.shape), asked.resets, asked.mode, asked.reads)
    if label in refused:
        return Row(*about, note=refused[label].splitlines()[0])
    seconds = Spread.of(found[label])
    over = ratio(found[label], found[group.base]) if group.base in found else None
    notes = ["one call only"] if seconds.samples == 1 else []
    notes += ["noisy"] if over and over.noise > 0.1 else []
    return Row(*about, seconds, over, group.base, ", ".join(notes))


def tensor_group(
    title: str, who: Iterable[str], shape: Shape, resets: str, mode: str, seconds: float, reads: str = "output"
) -> Group:
    """Backends over the tensor interface, against torch's dense ``nn.LSTM`` without resets: the figure R."""
    names = [name for name in who if name != DENSE]
    asked = {name: Asked(name, shape, resets, mode, reads) for name in (DENSE, *names)}
    return Group(title, asked, DENSE, seconds)


def module_group(
    title: str, who: Iterable[str], shape: Shape, resets: str, mode: str, seconds: float, base: str
) -> Group:
    """``LSTMModule``s over a TensorDict, against one of them: the figure Q is over ours."""
    return Group(title, {name: Asked(name, shape, resets, mode, "module") for name in who}, base, seconds)
