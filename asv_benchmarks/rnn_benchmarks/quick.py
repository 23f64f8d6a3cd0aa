"""``make bench``: R and Q for every shape and backend in under five minutes; ``python -m rnn_benchmarks.quick``.

R is the time over torch's dense nn.LSTM without resets, Q that of TorchRL's pad over our LSTMModule; forward and
backward. It takes few rounds: quote figures of ``make figures`` only.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from .cases import SHAPES
from .groups import Figures, Group, Row, where
from .schedule import QUICK, Q, R, name_of, quick, run_all
from .tables import percent, pivot, pivot_table, ratio_text, seconds


def main() -> None:
    """Measure, then print the tables."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=QUICK, help="seconds in total; default: %(default)s")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="number of torch threads; default: %(default)s")
    parser.add_argument("--json", type=Path, help="JSON file for all figures")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    console, figures = Console(), Figures(where())
    groups = [group for group in quick() if name_of(_shape(group)) in options.shapes.split(",")]

    def begin(group: Group) -> None:
        console.print(f"{group.title} {_shape(group)} ...", style="dim", highlight=False)

    run_all(groups, figures, options.seconds, begin, rounds=(2, 9), slow=2.0)
    show(figures, console)
    if options.json:
        figures.save(options.json)


def _shape(group: Group) -> str:
    return str(group.first.shape)


def show(figures: Figures, console: Console) -> None:
    """The tables of R and Q."""
    here = figures.where
    about = f"{here['processor']}, {here['threads']} threads, torch {here['torch']}"
    for title, cell, said in ((R, _first_time, "over nn.LSTM, dense"), (Q, _q, "LSTMModule, auto against TorchRL")):
        heads, lines = pivot(figures.of(title), _place, lambda row: row.label, cell)
        console.print(pivot_table("shape, resets", heads, lines, f"{title}, {said}: {about}"))
    notes = {f"{row.label}, {_place(row)}: {row.note}" for row in figures.rows if row.note}
    for note in sorted(notes):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)


def _place(row: Row) -> str:
    return f"{name_of(row.shape)}, {percent(row.resets)}"


def _first_time(row: Row) -> str:
    """The time of the base, and the ratios of the others."""
    return seconds(row.seconds.median) if row.seconds and row.label == row.base else ratio_text(row.over)


def _q(row: Row) -> str:
    if row.seconds is None:
        return "-"
    time = seconds(row.seconds.median)
    return time if row.label == row.base else f"{time}, Q {ratio_text(row.over)}"


if __name__ == "__main__":
    main()
