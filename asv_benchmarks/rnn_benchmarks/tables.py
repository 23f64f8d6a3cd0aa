"""Results as a table on the terminal: medians, ratios and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from .groups import Row
from .timing import Spread


def seconds(value: float) -> str:
    """A time with three significant digits and its unit."""
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, size = next((pair for pair in units if value >= pair[1]), units[-1])
    return f"{value / size:.3g} {unit}" if value / size < 999 else f"{value / size:.0f} {unit}"


def ratio_text(value: Spread | None) -> str:
    """A ratio with two decimals, fewer if it is large and more if it is small."""
    if value is None:
        return "-"
    if value.median < 0.1:
        return f"{value.median:.2g}"
    return f"{value.median:.2f}" if value.median < 10 else f"{value.median:.0f}"


def rows_table(rows: Iterable[Row], title: str | None = None) -> Table:
    """One row per contestant, with a rule between groups."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left", pad_edge=False)
    for column in ("shape", "resets", "backend"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "quartiles", "calls", "ratio", "quartiles"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("over")
    table.add_column("note", overflow="fold")
    last = None
    for row in rows:
        here = (row.shape, row.resets)
        if last not in (None, here):
            table.add_section()
        table.add_row(*([*here] if here != last else ["", ""]), *_cells(row))
        last = here
    return table


def _cells(row: Row) -> list[str | Text]:
    note, label = Text(row.note), Text(row.label)
    if row.seconds is None:
        return [label, *["-"] * 6, Text(row.note, "yellow")]
    time, over = row.seconds, row.over
    between = f"{seconds(time.low)} .. {seconds(time.high)}" if time.samples > 1 else "-"
    spread = f"{over.low:.2f} .. {over.high:.2f}" if over and over.samples > 1 and row.label != row.base else "-"
    shown: list[str | Text] = [label, seconds(time.median), between, str(time.samples)]
    return [*shown, Text(ratio_text(over), "bold"), spread, Text(row.base), note]


def pivot(
    rows: Iterable[Row], down: Callable[[Row], str], across: Callable[[Row], str], cell: Callable[[Row], str]
) -> tuple[list[str], list[list[str]]]:
    """Column heads and lines of a table with one ``cell`` per row; ``-`` for a missing one."""
    rows = list(rows)
    columns = list(dict.fromkeys(across(row) for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(down(row), {})[across(row)] = cell(row)
    return columns, [[name, *(cells.get(column, "-") for column in columns)] for name, cells in lines.items()]


def pivot_table(corner: str, heads: list[str], lines: list[list[str]], title: str) -> Table:
    """The same rows as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False)
    table.add_column(corner, no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right")
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def percent(resets: str) -> str:
    """``0.03`` -> ``3 %``; ``once`` -> ``once a row``."""
    return "once a row" if resets == "once" else f"{100 * float(resets):.3g} %"
