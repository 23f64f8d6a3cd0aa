"""``rnn-backends tune``: measure the backends on this machine, so that ``auto`` chooses by that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Examples, device_named, refuse, writable

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rnn_backends.crossovers import Cell, Table
    from rnn_benchmarks.tune import Grid

EXAMPLES = """\
Examples:
  rnn-backends tune                       under 3 minutes; from then on auto chooses by this machine's times
  rnn-backends tune --quick               under 1 minute: fewer sizes, and none that is slow to start
  rnn-backends tune --show                measures nothing: the times that auto goes by now, and whose they are
  rnn-backends tune --validate            how often auto is right, on shapes and resets that it was not tuned on
  OMP_NUM_THREADS=1 rnn-backends tune     for programs that run with one thread: a table of its own
  rnn-backends tune --device cuda         for the GPU: a table of its own
  rnn-backends tune --allow-compile       auto may also take what compiles for seconds at its first call

Close what else runs: the backends take turns, so other load slows all of them, but it blurs what is close.
To forget what was measured, delete the file that --show names. To have one backend whatever the times, name it.
"""


@click.command("tune", cls=Examples, epilog=EXAMPLES)
@click.option("--quick", is_flag=True, help="Two hidden sizes instead of three, fewer rows and resets.")
@click.option("--show", is_flag=True, help="Print the table that auto goes by, and measure nothing.")
@click.option("--validate", is_flag=True, help="Measure other shapes and resets, and compare auto with the best.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--allow-compile", is_flag=True, help="auto may take a backend whose first call takes over 5 s.")
@click.option(
    "--write",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write the table here and leave this machine's as it is. What FILE has of other devices stays.",
)
def tune_command(quick: bool, show: bool, validate: bool, device: str, allow_compile: bool, out: Path | None) -> None:
    """Measure every installed backend on this machine; "auto" then takes the one that was fastest.

    Without this, auto goes by the table that comes with the package, measured on another machine. An LSTM's backend
    is chosen once, when it is made, by its hidden size. `rnn-backends explain` says on which figure.
    """
    from rnn_backends.crossovers import table_for
    from rnn_benchmarks.tune_report import show_table

    from ..report.terminal import console

    if show + validate + quick > 1:
        refuse("--show" if show else "--validate", "is one thing, and so are --validate and --quick: take one of them")
    place, to = device_named(device), console()
    if show:
        table = table_for(place)
        if table is None:
            raise click.ClickException(
                f"nothing is measured on {place.type} yet. Run: rnn-backends tune --device {place}"
            )
        show_table(table, to)
        to.print(_kept(table, place), highlight=False, soft_wrap=True)
    elif validate:
        _validate(place, table_for(place), out, to)
    else:
        _tune(quick, place, allow_compile, out, to)


def _kept(table: Table, device: torch.device) -> str:
    from rnn_backends.crossovers import SHIPPED, machine_file

    return f"It is in {SHIPPED if table.shipped else machine_file(device)}"


def _tune(quick: bool, device: torch.device, allow_compile: bool, out: Path | None, to: Console) -> None:
    from rnn_backends.crossovers import machine_file
    from rnn_backends.ranking import PATIENCE
    from rnn_benchmarks.tune import QUICK, TUNED, first_calls, table_of
    from rnn_benchmarks.tune_report import bar, show_table, stored

    file = out or machine_file(device)
    if file is None:
        refuse("--device", f"there is no place for a table of {device}: give one with --write")
    who = _accepting(device)
    with bar(len(who)) as (tick, done):
        first = first_calls(who, tick, done)
    if quick and not allow_compile:
        who = [name for name in who if first.get(name, 0) <= PATIENCE]
    cells = _measured(QUICK if quick else TUNED, who, device, to)
    table = table_of(cells, first, str(device), allow_compile)
    stored(table, file)
    show_table(table, to)
    whose = "auto does not read it there" if out else "auto goes by it from now on"
    to.print(f"wrote {file}: {whose}", highlight=False, soft_wrap=True)


def _validate(device: torch.device, table: Table | None, out: Path | None, to: Console) -> None:
    from rnn_benchmarks.tune import HELD_OUT, table_of
    from rnn_benchmarks.tune_report import show_judged, stored

    cells = _measured(HELD_OUT, _accepting(device), device, to)
    if out is not None:
        stored(table_of(cells, {}, str(device)), out)
    show_judged(cells, table, to)


def _accepting(device: torch.device) -> list[str]:
    """Installed backends that accept a plain LSTM there; the first of auto's order first."""
    import torch
    from rnn_backends import LSTMSpec, explain
    from rnn_backends.choose import AUTO_ORDER

    able = [verdict.name for verdict in explain(LSTMSpec(32, 128), device, torch.float32) if verdict.accepted]
    if not able:
        refuse("--device", f"no installed backend accepts an LSTM on {device}")
    return sorted(able, key=lambda name: (AUTO_ORDER.index(name) if name in AUTO_ORDER else len(AUTO_ORDER), name))


def _measured(grid: Grid, who: list[str], device: torch.device, to: Console) -> list[Cell]:
    from rnn_benchmarks.tune import BUSY, asked, measure
    from rnn_benchmarks.tune_report import bar

    cases = asked(grid, who, str(device))
    with bar(len(cases)) as (tick, done):
        timed = measure(cases, grid.seconds, tick, done)
    if timed.blurred > 1 / 3:
        to.print(
            f"This machine was busy: {timed.blurred:.0%} of the times vary by more than {BUSY:.0%}. "
            f"Close what else runs and measure again.",
            style="yellow",
            soft_wrap=True,
        )
    return timed.cells
