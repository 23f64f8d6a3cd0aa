"""Measured times: the shipped table, overridden by this machine's own.

Times of every backend over a grid of cases (hidden size, mode, resets, rows, steps), one table for each kind of device.
``rnn-backends tune`` writes them; ``choose.py`` decides by them. An unusable file is reported once and ignored.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .paths import cache_folder

FORMAT = 1
"""The version of the format, which grows when its meaning changes; files of other versions are not read."""
SHIPPED = Path(__file__).with_name("crossovers.json")
MODES = ("train", "forward", "step")
LARGEST_FILE = 4 << 20
"""In bytes. A table takes about 10 kB; a file above this size is rejected."""
LARGEST_SIZE = 2**31
SHORTEST, LONGEST = 1e-9, 1e6
"""The limits of a measured time, in seconds."""


@dataclass(frozen=True)
class Cell:
    """One measured case: ``hidden`` size, ``mode`` (one of ``MODES``), share of ``resets`` (or ``"once"`` a row).

    ``batch``, ``time`` and ``features`` are B, T and I; ``seconds`` of a call, by the backend's name; ``cell``: which
    kind of recurrent cell was measured.
    """

    hidden: int
    mode: str
    resets: str
    batch: int
    time: int
    features: int
    seconds: Mapping[str, float]
    cell: str = "lstm"


@dataclass(frozen=True)
class Table:
    """The measured cases of one device, and their origin.

    Attributes:
        device: its type: ``"cpu"``, ``"cuda"``.
        where: ``date``, ``processor``, ``threads`` (empty where they don't count), ``torch`` and ``rnn-backends``
            (versions); ``note`` has remarks on the figures, if any.
        cells: the measured cases.
        first_call: the seconds of the first forward and backward pass in a new process, by backend.
        allow_compile: whether ``"auto"`` may choose a backend with a first call of any duration.
        shipped: whether it is the package's.
    """

    device: str
    where: Mapping[str, Any]
    cells: tuple[Cell, ...]
    first_call: Mapping[str, float] = field(default_factory=dict)
    allow_compile: bool = False
    shipped: bool = False

    def origin(self) -> str:
        """The table's owner, date, processor and versions, in words."""
        owner, facts = "the shipped table" if self.shipped else "this machine's table", self.where
        threads = f"{facts['threads']} thread{'s' * (str(facts['threads']) != '1')}" if facts["threads"] else ""
        measured_on = [str(facts["date"]), str(facts["processor"]), threads, f"torch {facts['torch']}"]
        note = f" ({facts['note']})" if facts.get("note") else ""
        return f"{owner} of {', '.join(filter(None, measured_on))}{note}"


def table_for(device: torch.device) -> Table | None:
    """This machine's table for the device, else the shipped one for its type, else ``None``."""
    own = machine_file(device)
    tables = [*(_read_own(own) if own is not None else ()), *_read(SHIPPED, 0)[0]]
    return next((table for table in tables if table.device == device.type), None)


def _read_own(file: Path) -> tuple[Table, ...]:
    """This machine's tables. An unusable file causes one warning and no error."""
    changed, tables, problem = 0, tuple[Table, ...](), None
    try:
        changed = file.stat().st_mtime_ns
        tables, problem = _read(file, changed)
    except (FileNotFoundError, NotADirectoryError):
        return ()  # a missing file is no error
    except OSError as error:
        problem = str(error)
    if problem is not None and (file, changed) not in _reported:
        _reported.add((file, changed))
        warnings.warn(
            f"the table of measured backends in {file} is not used: {problem[:300]}. "
            f"Delete it, or measure again with: rnn-backends tune",
            RuntimeWarning,
            stacklevel=2,
        )
    return tables


_reported: set[tuple[Path, int]] = set()


def machine_file(device: torch.device) -> Path | None:
    """This machine's table, which may not exist: one for each processor or GPU and (on the CPU) number of threads."""
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
    """The processor's or GPU's name; ``None`` if the device has none or is absent."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    uname = os.uname() if hasattr(os, "uname") else None
    return next(named, uname.machine if uname else "cpu")


@lru_cache
def versions(names: tuple[str, ...] = ("torch", "rnn-backends")) -> dict[str, str]:
    """The versions of distributions in their metadata; ``"not installed"`` for an absent one.

    Those of the default names are stored in a machine's table, which is valid only while they stay the same.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@lru_cache
def _read(path: Path, changed: int) -> tuple[tuple[Table, ...], str | None]:
    """The tables of a file; none, and the reason, if it is broken or (this machine's) of other versions."""
    try:
        if not path.is_file():  # reading a pipe could block forever
            return (), "it is not a regular file"
        if path.stat().st_size > LARGEST_FILE:
            return (), f"it has more than {LARGEST_FILE >> 20} MiB"
        tables = parse(path.read_text(encoding="utf-8"), shipped=path == SHIPPED)
    except (OSError, ValueError) as error:
        return (), str(error)
    except Exception as error:  # any fault of JSON: nested too deeply, a number too large, another type
        return (), f"{type(error).__name__}: {error}"
    for table in tables:
        measured_with = {name: table.where[name] for name in versions()}
        if not table.shipped and measured_with != versions():
            return (), "it was measured with " + " and ".join(f"{k} {v}" for k, v in measured_with.items())
    return tables, None


def parse(text: str, shipped: bool = False) -> tuple[Table, ...]:
    """The tables in a file's text.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: the text has another format.
    """
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, and this rnn-backends reads {FORMAT}")
    return tuple(_table(entry, shipped) for entry in content["tables"])


def _table(entry: dict[str, Any], shipped: bool) -> Table:
    cells = tuple(Cell(**cell) for cell in entry["cells"])
    for cell in cells:
        sizes = (cell.hidden, cell.batch, cell.time, cell.features)
        if cell.mode not in MODES or not _is_share(cell.resets) or not all(_is_size(n) for n in sizes):
            raise ValueError(f"no such case: {cell.mode!r} at {sizes}, resets {cell.resets!r}")
    times = [*entry["first_call"].values(), *(second for cell in cells for second in cell.seconds.values())]
    if not all(type(t) in (int, float) and SHORTEST <= t <= LONGEST for t in times):
        raise ValueError(f"a time in it is not a number of seconds between {SHORTEST:g} and {LONGEST:g}")
    where = {name: str(entry["where"][name]) for name in ("date", "processor", "threads", "torch", "rnn-backends")}
    if "note" in entry["where"]:
        where["note"] = str(entry["where"]["note"])
    return Table(str(entry["device"]), where, cells, entry["first_call"], entry["allow_compile"] is True, shipped)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIZE


def _is_share(value: object) -> bool:
    return value == "once" or (isinstance(value, str) and 0 <= float(value) <= 1)


def text_of(tables: list[Table]) -> str:
    """The text that :func:`parse` reads, one case per line."""
    written = []
    for table in tables:
        about = {name: value for name, value in asdict(table).items() if name not in ("cells", "shipped")}
        cells = ",\n   ".join(json.dumps(asdict(cell)) for cell in table.cells)
        written.append(f'  {{{json.dumps(about)[1:-1]}, "cells": [\n   {cells}]}}')
    return f'{{"format": {FORMAT}, "tables": [\n' + ",\n".join(written) + "\n]}\n"
