"""``make gpu-page``: what a run on a GPU found, into the documentation and the shipped crossovers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rnn_backends.crossovers import parse
from rnn_backends.paths import write_whole

from ..cases import DENSE
from ..groups import Figures, Row
from ..page import markdown
from ..tables import percent, pivot, ratio_text
from ..tables import seconds as time_text
from ..tune_report import store
from .cuts import FILE as CUTS
from .measure import ACTING, Q_TRITON, Q, R
from .products import FILE as PRODUCTS
from .products import KINDS
from .settings import PRECISIONS, name_of

BETWEEN = re.compile(r"(<!-- gpu: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured in this run."
PROFILES = ("smoke", "quick")
BAD = ("silently_wrong", "failed", "crashed")


class NotOfAGpuError(ValueError):
    """The folder is of a run on a CPU: it must not fill pages about GPUs."""


def fill_all(folder: Path, docs: Path, crossovers: Path) -> list[Path]:
    """Fill the GPU parts of performance.md and conformance.md, and put the run's times into the shipped table.

    Args:
        folder: of :mod:`rnn_benchmarks.gpu`'s run.
        docs: the documentation's folder.
        crossovers: the shipped table; its tables of other devices stay.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: the folder has no environment.json.
        NotOfAGpuError: the run was not on a GPU.
        KeyError: a page has a marker that no table belongs to.
    """
    here = _read(folder / "environment.json")
    if torch.device(here["device"]).type != "cuda":
        raise NotOfAGpuError(f"{folder} is of a run on {here['device']}; these pages are about GPUs")
    made = tables(folder, here)
    pages = [docs / "performance.md", docs / "conformance.md"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        write_whole(page, BETWEEN.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text))
    measured = folder / "crossovers.json"
    if not measured.exists():
        return pages
    for table in parse(measured.read_text(encoding="utf-8")):
        store(table, crossovers)
    return [*pages, crossovers]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def tables(folder: Path, here: dict[str, Any]) -> dict[str, str]:
    """Every text by the name in its marker; each names the chip, the date and the versions."""
    file = folder / "figures.json"
    figures = Figures.load(file) if file.exists() else Figures()
    about = where(here)
    made = {
        "R": _R_table(figures),
        "Q": _pivot("shape, resets", figures.of(Q), _place, _both),
        "Q, triton": _pivot("shape, resets", figures.of(Q_TRITON), _place, _both),
        "acting": _pivot("B, H", figures.of(ACTING), _rows_and_size, _both),
        "memory": _numbers("over `nn.LSTM`", figures, "memory", "{:.2f}"),
        "first call": _numbers("backend", figures, "first call", "{:.1f}"),
    }
    return {
        "cuts": _cuts(folder / CUTS),
        "products": _products(folder / PRODUCTS),
        "where": f"{about}{_endings(folder)}",
        "laws": f"{about}\n\n{_laws(folder)}",
        **made,
    }


def where(here: dict[str, Any]) -> str:
    """The date, the chip and the versions, in a sentence."""
    card = here["nvidia-smi"] if isinstance(here["nvidia-smi"], dict) else {}
    clocks = f", {card['clocks.max.sm']} at most" if "clocks.max.sm" in card else ""
    return (
        f"Measured on {here['date']}: {here['chip']}{clocks}, driver {card.get('driver_version', 'unknown')}, "
        f"{here['cores']} cores; Python {here['python']}, torch {here['torch']}, CUDA {here['cuda']}, "
        f"cuDNN {here['cudnn']}, Triton {here['triton']}, tensordict {here['tensordict']}, TorchRL {here['torchrl']}, "
        f"rnn-backends {here['rnn-backends']} at commit {here['commit']}."
    )


def _endings(folder: Path) -> str:
    """What did not end well, so that a gap in a table is no riddle; and the tests."""
    file = folder / "run.json"
    parts = _read(file)["parts"] if file.exists() else {}
    jobs = [job for part in parts.values() for job in part["jobs"]]
    bad = [f"{job['name']} ({job['status']})" for job in jobs if job["status"] != 0]
    said = f"\nDid not end with exit status 0: {', '.join(bad)}." if bad else ""
    return f"{said}{_tests(folder / 'tests.xml')}"


def _tests(file: Path) -> str:
    if not file.exists():
        return ""
    counted = re.search(r'errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', file.read_text("utf-8"))
    if counted is None:
        return ""
    errors, failures, skipped, tests = map(int, counted.groups())
    return f"\nTests that need CUDA: {tests}, of them failed {errors + failures}, skipped {skipped}."


def _pivot(corner: str, rows: list[Row], down: Callable[[Row], str], cell: Callable[[Row], str]) -> str:
    return markdown(corner, *pivot(rows, down, lambda row: row.label, cell)) if rows else NOTHING


def _R_table(figures: Figures) -> str:
    rows = [row for which in PRECISIONS for row in figures.of(R + which)]
    return _pivot("precision, shape, resets", rows, lambda r: f"{r.title.removeprefix(R)}, {_place(r)}", _both)


def _place(row: Row) -> str:
    return f"{name_of(row.shape)}, {percent(row.resets)}"


def _rows_and_size(row: Row) -> str:
    batch, _, _, hidden = row.shape.split("-")
    return f"{batch}, {hidden}"


def _both(row: Row) -> str:
    """The time, and in brackets the ratio over the group's base."""
    if row.seconds is None:
        return "-"
    over = f" ({ratio_text(row.over)})" if row.over and row.label not in (row.base, DENSE) else ""
    return time_text(row.seconds.median) + over


def _numbers(corner: str, figures: Figures, what: str, form: str) -> str:
    found: dict[str, dict[str, str]] = {}
    for key, value in figures.numbers.items():
        kind, who, name = key.split("/")
        if kind == what:
            found.setdefault(who, {})[name] = form.format(value) if isinstance(value, float) else "-"
    heads = list(dict.fromkeys(name for cells in found.values() for name in cells))
    lines = [[who, *(cells.get(name, "-") for name in heads)] for who, cells in found.items()]
    return markdown(corner, heads, lines) if lines else NOTHING


def _cuts(file: Path) -> str:
    """Every cut of a shape, and which was the fastest."""
    rows = _read(file) if file.exists() else []
    fastest: dict[tuple[str, str], float] = {}
    for row in rows:
        where = row["shape"], row["precision"]
        fastest[where] = min(fastest.get(where, row.get("train", float("inf"))), row.get("train", float("inf")))
    heads = ["by", "G, U, BB, BK, warps", "forward", "both", "on paper", "note"]
    lines = [
        [
            f"{row['shape']}, {row['precision']}", row["by"],
            ", ".join(str(row[size]) for size in ("slices", "units", "rows", "piece", "warps")),
            *(time_text(row[mode]) if mode in row else "-" for mode in ("forward", "train", "predicted")),
            "fastest" if row.get("train") == fastest[row["shape"], row["precision"]] else row.get("note", ""),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown("shape, precision", heads, lines) if lines else NOTHING


def _products(file: Path) -> str:
    """Our kernels' time of each product, and in brackets over torch's."""
    cells: dict[str, dict[str, str]] = {}
    for row in _read(file) if file.exists() else []:
        own = f"{time_text(row['ours'])} ({row['ours'] / row['torch']:.2f})"
        cells.setdefault(f"{row['shape']}, {row['precision']}", {})[row["kind"]] = own
    lines = [[place, *(by_kind[kind] for kind in KINDS)] for place, by_kind in cells.items()]
    return markdown("shape, precision", list(KINDS), lines) if lines else NOTHING


def _laws(folder: Path) -> str:
    files = [(profile, file) for profile in PROFILES for file in sorted(folder.glob(f"{profile}-*.jsonl"))]
    lines = [_law_line(profile, file) for profile, file in files]
    heads = ["passed", "declined", "failed", "not run", "dtypes", "laws that failed"]
    return markdown("backend, profile", heads, lines) if lines else NOTHING


def _law_line(profile: str, file: Path) -> list[str]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    expected = rows[0]["runs"][0]["expected"]
    results = [row for row in rows if row["kind"] == "result"]
    bad = [row["law"] for row in results if row["verdict"] in BAD and not row["waived"]]
    declined = sum(row["verdict"] == "declined" for row in results)
    dtypes = Counter(dtype for row in results for dtype in row["dtypes"])
    counts = (len(results) - len(bad) - declined, declined, len(bad), len(expected) - len(results))
    said = ", ".join(f"{dtype} {count}" for dtype, count in dtypes.most_common())
    name = file.stem.removeprefix(f"{profile}-")
    return [f"{name}, {profile}", *map(str, counts), said or "-", ", ".join(f"`{law}`" for law in bad) or "-"]
