"""The output of ``rnn-backends tune``: the table, in a file and on the terminal, and the accuracy of ``auto``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from rich.console import Console
from rnn_backends import LSTMSpec
from rnn_backends.choose import AUTO_ORDER
from rnn_backends.crossovers import Cell, Table, parse, text_of
from rnn_backends.paths import write_whole
from rnn_backends.ranking import PATIENCE, WEIGHTS, Ranking

from .tables import pivot_table, seconds
from .tune import NEAR, Judged, judge, share

WORST = 5
"""The number of cells shown, first those in which auto is furthest from the best."""


def store(table: Table, file: Path) -> None:
    """Write the table. The file's tables of other devices are kept."""
    try:
        others = [one for one in parse(file.read_text(encoding="utf-8")) if one.device != table.device]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        others = []  # a missing file has no tables, and a broken one is replaced
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text_of(sorted([*others, table], key=lambda one: one.device)))


def show_table(table: Table, to: Console) -> None:
    """A line for each hidden size and mode: geometric means of the times, and the backend that auto chooses."""
    who = list(dict.fromkeys(name for cell in table.cells for name in cell.seconds))
    lines = []
    for hidden in sorted({cell.hidden for cell in table.cells}):
        auto = Ranking(who, AUTO_ORDER, table, LSTMSpec(1, hidden)).first()
        for mode in WEIGHTS:
            here = [cell for cell in table.cells if (cell.hidden, cell.mode) == (hidden, mode)]
            if here:
                lines.append([f"H {hidden}, {mode}", *(_mean(here, name) for name in who), auto or "-"])
    to.print(pivot_table("LSTMModule", [*who, "auto takes"], lines, table.origin()))
    weights = ", ".join(f"{mode} {weight:.0%}" for mode, weight in WEIGHTS.items())
    say = [f"geometric means over rows and resets; auto ranks by their mean over the modes, weighted {weights}"]
    slow = [f"{name} {took:.0f} s" for name, took in table.first_call.items() if took > PATIENCE]
    if slow:
        what = "allowed" if table.allow_compile else "so auto takes it last (--allow-compile)"
        say.append(f"first call in a fresh process: {', '.join(slow)}; {what}")
    for line in say:
        to.print(line, style="dim", highlight=False, soft_wrap=True)


def _mean(cells: Sequence[Cell], name: str) -> str:
    if not all(name in cell.seconds for cell in cells):
        return "-"
    return seconds(geometric_mean([cell.seconds[name] for cell in cells]))


def show_judged(cells: Sequence[Cell], table: Table | None, to: Console) -> None:
    """How often auto is within ``NEAR`` of the best backend it may take, and of all, by mode; and its worst cells."""
    quick = [name for name, took in (table.first_call if table else {}).items() if took <= PATIENCE]
    allowed = table is None or table.allow_compile or not table.first_call
    may = judge(cells, table, lambda name: allowed or name in quick)
    every = judge(cells, table, lambda name: True)
    lines = [
        [mode, str(len(here)), f"{share(here):.0%}", f"{share(whole):.0%}", f"{max(one.times for one in here):.2f}"]
        for mode in WEIGHTS
        for here, whole in [tuple([one for one in found if one.cell.mode == mode] for found in (may, every))]
        if here
    ]
    heads = ["cells", f"within {NEAR:.0%}", "all backends", "worst, times"]
    to.print(pivot_table("mode", heads, lines, f"auto by {table.origin() if table else 'its fixed order'}"))
    worst = sorted(may, key=lambda one: -one.times)[:WORST]
    to.print(pivot_table("the furthest from the best", ["auto", "best", "times"], [_line(one) for one in worst], ""))
    last = max(may, key=lambda one: one.times)
    to.print(
        f"auto within {NEAR:.0%} of the best on {share(may):.0%} of {len(may)} cells that it was not tuned on; "
        f"the worst: {last.times:.2f} times as long. Against those it does not take for their first call too: "
        f"{share(every):.0%}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )


def _line(one: Judged) -> list[str]:
    cell = one.cell
    place = f"B{cell.batch}-T{cell.time}-I{cell.features}-H{cell.hidden}, {cell.mode}, resets {cell.resets}"
    ours, best = (f"{name} {seconds(cell.seconds[name])}" for name in (one.auto, one.best))
    return [place, ours, best, f"{one.times:.2f}"]
