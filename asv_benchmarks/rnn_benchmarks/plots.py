"""Plots: results as lines and bars, a plan of ``cudnn``, and a map of the fastest backends.

matplotlib is part of the extra ``bench``; it and the plugin of the plan are imported when a plot is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rnn_backends.crossovers import MODES, SHIPPED, Cell, parse

from .groups import Row
from .tables import percent

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d00", "#555555", "#6a3d9a")
MARKERS = "osD^vP*Xh"


def axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    ax = figure.add_subplot()
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, fontsize=10, loc="left")  # centred on the axes, a long title would not fit
    ax.grid(axis="y", alpha=0.3)
    return figure, ax


def draw_lines(rows: Iterable[Row], at: Callable[[Row], str], y: str, title: str, x: str, file: Path) -> None:
    """One line per contestant: its median, with the quartiles as a band. ``y`` is ``seconds`` or ``over``."""
    rows = [row for row in rows if getattr(row, y) is not None]
    places = list(dict.fromkeys(at(row) for row in rows))
    figure, ax = axes(title, x, "milliseconds, median" if y == "seconds" else f"times {rows[0].base}, median")
    for k, label in enumerate(dict.fromkeys(row.label for row in rows)):
        mine = [row for row in rows if row.label == label]
        values = [getattr(row, y) for row in mine]
        scale = 1e3 if y == "seconds" else 1.0
        xs = [places.index(at(row)) for row in mine]
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        ax.plot(xs, [v.median * scale for v in values], label=label, linewidth=1.6, markersize=5, **style)
        band = ([v.low * scale for v in values], [v.high * scale for v in values])
        ax.fill_between(xs, *band, color=style["color"], alpha=0.15, linewidth=0)
    ax.set_xticks(range(len(places)), places)
    _logarithmic(ax)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _logarithmic(ax: Any) -> None:
    """A logarithmic y axis with plain numbers at its ticks, and more ticks if it is short."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def draw_bars(rows: Iterable[Row], title: str, file: Path) -> None:
    """Groups of bars: each contestant's median in each group, with quartiles as whiskers."""
    rows = [row for row in rows if row.seconds is not None]
    places = list(dict.fromkeys(group_of(row) for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    figure, ax = axes(title, "", "milliseconds, median")
    width = 0.8 / max(1, len(labels))
    for k, label in enumerate(labels):
        mine = [(places.index(group_of(row)), row.seconds) for row in rows if row.label == label]
        found = [(x + k * width, s) for x, s in mine if s is not None]
        low = [(s.median - s.low) * 1e3 for _, s in found]
        high = [(s.high - s.median) * 1e3 for _, s in found]
        heights = [s.median * 1e3 for _, s in found]
        ax.bar([x for x, _ in found], heights, width, yerr=(low, high), label=label, color=COLOURS[k % len(COLOURS)])
    ax.set_xticks([x + 0.4 - width / 2 for x in range(len(places))], places, fontsize=8)
    ax.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def group_of(row: Row) -> str:
    """Shape and resets, on two lines."""
    return f"{row.shape}\n{percent(row.resets)}"


ROW_LENGTHS = ((14, 2), (3, 3, 4, 6), (16,), (5, 11))
"""The lengths of the sequences in each row of the drawn batch."""


def draw_plans(file: Path) -> None:
    """Three plots in one: the batch, a plan that keeps its rows, and a plan that rearranges its sequences."""
    from matplotlib.figure import Figure
    from rnn_backends_plugins.cudnn.plan import Sequences, aligned_plan, tiled_plan

    T, B = sum(ROW_LENGTHS[0]), len(ROW_LENGTHS)
    starts = np.zeros((T, B), bool)
    for b, lengths in enumerate(ROW_LENGTHS):
        starts[np.cumsum((0, *lengths[:-1])), b] = True
    seqs = Sequences.of(starts)
    owner = np.empty((T, B), int)
    for n, (row, first, length) in enumerate(zip(seqs.row, seqs.first, seqs.length, strict=True)):
        owner[first : first + length, row] = n

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[4, 4, 3])
    _draw(top, owner, None, "The batch: one letter per sequence, one line per row")
    kept, tiled = aligned_plan(seqs, every_end=False), tiled_plan(seqs, rows=3, every_end=True)
    for ax, plan, title in (
        (middle, kept, "Rows kept: F (FLUSH) empties the state, H (HOLD) keeps it to the end of a row"),
        (bottom, tiled, "Packed into three rows, with end states: H and P (PROBE) show c before F clears it"),
    ):
        (block,) = plan.blocks
        kind = plan.kind.numpy().reshape(block.steps, block.rows)
        held = np.full(block.steps * block.rows, -1)
        held[plan.cell.numpy()] = owner.reshape(-1)
        _draw(ax, held.reshape(block.steps, block.rows), kind, title)
    bottom.set_xlabel("step")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _draw(ax: Any, owner: np.ndarray, kind: np.ndarray | None, title: str) -> None:
    """``owner [steps, rows]``: the number of each cell's sequence; ``kind``: the meaning of negative numbers."""
    steps, rows = owner.shape
    for t in range(steps):
        for b in range(rows):
            n = owner[t, b]
            real = n >= 0
            text = chr(ord("a") + n) if real or kind is None else " FHP"[kind[t, b]]
            colour = COLOURS[n % len(COLOURS)] if real else "#ffffff"
            box = {"facecolor": colour, "edgecolor": "#ffffff" if real else "#999999", "alpha": 0.75 if real else 1.0}
            ax.add_patch(_rectangle(t, b, box))
            ax.text(
                t + 0.5, b + 0.5, text, ha="center", va="center", fontsize=8, color="#000000" if real else "#555555"
            )
    ax.set(xlim=(0, 28), ylim=(rows, 0), yticks=np.arange(rows) + 0.5, yticklabels=range(rows), ylabel="row")
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xticks(np.arange(0, 28, 2) + 0.5, range(0, 28, 2), fontsize=8)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)


def _rectangle(t: int, b: int, style: dict[str, Any]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((t, b), 1, 1, **style)


def draw_map(cells: Sequence[Cell], file: Path) -> None:
    """One field for each measured case: the fastest backend's name, and the relative time of the second fastest."""
    from matplotlib.figure import Figure

    names = sorted({name for cell in cells for name in cell.seconds})
    columns = list(dict.fromkeys((cell.mode, cell.resets) for mode in MODES for cell in cells if cell.mode == mode))
    lines = sorted({(cell.hidden, cell.batch) for cell in cells})
    figure = Figure(figsize=(1.6 * len(columns) + 2, 0.5 * len(lines) + 1.4), layout="constrained")
    ax = figure.add_subplot()
    for cell in cells:
        x, y = columns.index((cell.mode, cell.resets)), lines.index((cell.hidden, cell.batch))
        first, *others = sorted(cell.seconds, key=cell.seconds.__getitem__)
        ahead = f"\n{others[0]} {cell.seconds[others[0]] / cell.seconds[first]:.2f}x" if others else ""
        style = {"facecolor": COLOURS[names.index(first) % len(COLOURS)], "edgecolor": "#ffffff", "alpha": 0.6}
        ax.add_patch(_rectangle(x, y, style))
        ax.text(x + 0.5, y + 0.5, first + ahead, ha="center", va="center", fontsize=8)
    ax.set(xlim=(0, len(columns)), ylim=(len(lines), 0), title="The fastest backend, and the next one's relative time")
    ax.set_xticks(np.arange(len(columns)) + 0.5, [f"{mode}\n{percent(resets)}" for mode, resets in columns], fontsize=8)
    ax.set_yticks(np.arange(len(lines)) + 0.5, [f"H {hidden}, B {batch}" for hidden, batch in lines], fontsize=8)
    figure.savefig(file, dpi=130)


def draw_all(folder: Path) -> None:
    """Draw ``plan.png``, and ``map.png`` if the package's table of crossovers has one for the CPU."""
    draw_plans(folder / "plan.png")
    shipped = [table for table in parse(SHIPPED.read_text(encoding="utf-8"), shipped=True) if table.device == "cpu"]
    for table in shipped:
        draw_map(table.cells, folder / "map.png")


if __name__ == "__main__":
    draw_all(Path("docs/generated/plots"))
