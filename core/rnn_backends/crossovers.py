"""What was measured: the table that comes with the package, and this machine's own, which goes before it.

Times of every backend over a grid of cells (hidden size, mode, resets, rows, steps), one table a kind of device.
``rnn-backends tune`` makes them; ``choose.py`` decides by them. A file that cannot be used is said once and left out.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .paths import cache_folder

FORMAT = 1
"""Raised when the meaning of a file changes; files of another format are not read."""
SHIPPED = Path(__file__).with_name("crossovers.json")
MODES = ("train", "forward", "step")


@dataclass(frozen=True)
class Cell:
    """One measured case: ``hidden`` size, ``mode`` (one of ``MODES``), share of ``resets`` (or ``"once"`` a row).

    ``batch``, ``time`` and ``features`` are B, T and I; ``seconds`` a call, by the backend's name.
    """

    hidden: int
    mode: str
    resets: str
    batch: int
    time: int
    features: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Cells of one device, and where they come from.

    Attributes:
        device: its type: ``"cpu"``, ``"cuda"``.
        where: ``date``, ``processor``, ``threads`` (empty where they don't count), ``torch`` and ``rnn-backends``
            (versions); ``note`` says what is special about the figures, if anything.
        cells: what was measured.
        first_call: seconds that the first forward and backward took in a fresh process, by backend.
        allow_compile: whether ``"auto"`` may take a backend whatever its first call takes.
        shipped: whether it came with the package.
    """

    device: str
    where: Mapping[str, Any]
    cells: tuple[Cell, ...]
    first_call: Mapping[str, float] = field(default_factory=dict)
    allow_compile: bool = False
    shipped: bool = False

    def origin(self) -> str:
        """Whose table it is, of when and of what, in words."""
        whose, said = "the shipped table" if self.shipped else "this machine's table", self.where
        threads = f"{said['threads']} thread{'s' * (str(said['threads']) != '1')}" if said["threads"] else ""
        measured_on = [str(said["date"]), str(said["processor"]), threads, f"torch {said['torch']}"]
        note = f" ({said['note']})" if said.get("note") else ""
        return f"{whose} of {', '.join(filter(None, measured_on))}{note}"


def table_for(device: torch.device) -> Table | None:
    """This machine's table for the device, else the shipped one for its type, else ``None``."""
    own = machine_file(device)
    mine: tuple[Table, ...] = ()
    if own is not None:
        with suppress(OSError):  # there is none, which is no error
            mine = _read(own, own.stat().st_mtime_ns)
    found = [*mine, *_read(SHIPPED, 0)]
    return next((table for table in found if table.device == device.type), None)


def machine_file(device: torch.device) -> Path | None:
    """Where this machine's table is kept: one file for each processor or GPU and (on the CPU) number of threads."""
    name = processor(device)
    if name is None:
        return None
    folder = cache_folder()
    if folder is None:
        return None
    threads = f"-{torch.get_num_threads()}-threads" if device.type == "cpu" else ""
    key = re.sub(r"[^a-z0-9]+", "-", f"{device.type}-{name}".lower()).strip("-")
    return folder / f"tune-{key}{threads}.json"


@lru_cache
def processor(device: torch.device) -> str | None:
    """The processor's or GPU's name; ``None`` where a device has none or is not there."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    uname = os.uname() if hasattr(os, "uname") else None
    return next(named, uname.machine if uname else "cpu")


@lru_cache
def versions(names: tuple[str, ...] = ("torch", "rnn-backends")) -> dict[str, str]:
    """Versions of distributions as their metadata has them; ``"not installed"`` for one that has none.

    Those of the default names are kept in a machine's table, which counts only while they stay the same.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@lru_cache
def _read(path: Path, changed: int) -> tuple[Table, ...]:
    """The tables of a file; none, and one warning, if it is broken or (this machine's) of other versions."""
    try:
        tables = parse(path.read_text(encoding="utf-8"), shipped=path == SHIPPED)
        for table in tables:
            made = {name: table.where[name] for name in versions()}
            if not table.shipped and made != versions():
                raise ValueError("it was measured with " + " and ".join(f"{k} {v}" for k, v in made.items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        warnings.warn(
            f"the table of measured backends in {path} is not used: {why}. "
            f"Delete it, or measure again with: rnn-backends tune",
            RuntimeWarning,
            stacklevel=2,
        )
        return ()
    return tables


def parse(text: str, shipped: bool = False) -> tuple[Table, ...]:
    """The tables of a file's text.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not such a file.
    """
    said = json.loads(text)
    if said["format"] != FORMAT:
        raise ValueError(f"its format is {said['format']!r}, and this rnn-backends reads {FORMAT}")
    return tuple(_table(entry, shipped) for entry in said["tables"])


def _table(said: dict[str, Any], shipped: bool) -> Table:
    cells = tuple(Cell(**cell) for cell in said["cells"])
    for cell in cells:
        sizes = (cell.hidden, cell.batch, cell.time, cell.features)
        shares = cell.resets == "once" or 0 <= float(cell.resets) <= 1
        if cell.mode not in MODES or not shares or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise ValueError(f"no such cell: {cell.mode!r} at {sizes}, resets {cell.resets!r}")
    times = [*said["first_call"].values(), *(second for cell in cells for second in cell.seconds.values())]
    if not all(isinstance(t, (int, float)) and math.isfinite(t) and t > 0 for t in times):
        raise ValueError("a time in it is not a number above 0")
    where = {name: str(said["where"][name]) for name in ("date", "processor", "threads", "torch", "rnn-backends")}
    if "note" in said["where"]:
        where["note"] = str(said["where"]["note"])
    return Table(str(said["device"]), where, cells, said["first_call"], said["allow_compile"] is True, shipped)


def text_of(tables: list[Table]) -> str:
    """What :func:`parse` reads: one cell a line."""
    written = []
    for table in tables:
        about = {name: value for name, value in asdict(table).items() if name not in ("cells", "shipped")}
        cells = ",\n   ".join(json.dumps(asdict(cell)) for cell in table.cells)
        written.append(f'  {{{json.dumps(about)[1:-1]}, "cells": [\n   {cells}]}}')
    return f'{{"format": {FORMAT}, "tables": [\n' + ",\n".join(written) + "\n]}\n"
