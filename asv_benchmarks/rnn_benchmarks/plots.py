"""Pictures of results. matplotlib is imported when one is drawn: the extra ``bench`` brings it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .groups import Row

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d00", "#555555", "#6a3d9a")
MARKERS = "osD^vP*Xh"


def axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    ax = figure.add_subplot()
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, fontsize=10, loc="left")  # in the middle of the axes, a long one leaves the figure
    ax.grid(axis="y", alpha=0.3)
    return figure, ax


def draw_lines(rows: Iterable[Row], at: Callable[[Row], str], y: str, title: str, x: str, file: Path) -> None:
    """One line a contestant: its median, with the quartiles as a band. ``y`` is ``seconds`` or ``over``."""
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
    """A logarithmic y axis with plain numbers at its ticks, more of them where it is short."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def draw_bars(rows: Iterable[Row], title: str, file: Path) -> None:
    """Groups of bars: each contestant's median over every group's label, quartiles as whiskers."""
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


def percent(resets: str) -> str:
    """``0.03`` -> ``3 %``; ``once`` -> ``once a row``."""
    return "once a row" if resets == "once" else f"{100 * float(resets):.3g} %"
