"""``rnn-backends tune``: measure the backends on this machine, so that ``auto`` chooses by its times."""

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
  rnn-backends tune                    under 3 minutes
  rnn-backends tune --quick            under 1 minute: fewer sizes, no backend
                                       with a slow first call
  rnn-backends tune --show             the times that auto uses now
  rnn-backends tune --validate         how often auto is right at other sizes
  rnn-backends tune --device cuda      the GPU, which has its own table
  rnn-backends tune --allow-compile    with backends that compile for seconds
  OMP_NUM_THREADS=1 rnn-backends tune  for programs with one thread, which have
                                       their own table

Close other programs first. The backends take turns, so load slows all of them,
but differences of a few percent are lost in the noise.

To go back to the shipped table, delete the file that --show prints. To always
use one backend, name it instead of auto.
"""


@click.command(
    "tune", cls=Examples, epilog=EXAMPLES, short_help="Measure this machine, so that auto takes the fastest."
)
@click.option("--quick", is_flag=True, help="Two hidden sizes instead of three, fewer rows and resets.")
@click.option("--show", is_flag=True, help="Print the table that auto uses now; measure nothing.")
@click.option("--validate", is_flag=True, help="Measure other shapes and resets, and compare auto with the best.")
@click.option("--device", default="cpu", show_default=True, help="Device to measure on.")
@click.option(
    "--allow-compile", is_flag=True, help="Let auto take a backend whose first call takes over 5 s (it compiles)."
)
@click.option(
    "--write",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write the table to FILE instead of this machine's own file. Tables of other devices in FILE stay.",
)
def tune_command(quick: bool, show: bool, validate: bool, device: str, allow_compile: bool, out: Path | None) -> None:
    """Measure every installed backend on this machine, so that "auto" takes the fastest one.

    Until then auto uses the shipped table, measured on another machine. The backend of an LSTM is chosen once, at its
    construction, by its hidden size; `rnn-backends explain` prints the figure that decides.
    """
    from rnn_backends.crossovers import table_for
    from rnn_benchmarks.tune_report import show_table

    from ..report.terminal import console

    if show + validate + quick > 1:
        refuse("--show" if show else "--validate", "cannot be combined: give one of --show, --validate and --quick")
    place, to = device_named(device), console()
    if show:
        table = table_for(place)
        if table is None:
            raise click.ClickException(
                f"no times are measured on {place.type} yet. Run: rnn-backends tune --device {place}"
            )
        show_table(table, to)
        to.print(_kept(table, place), highlight=False, soft_wrap=True)
    elif validate:
        _validate(place, table_for(place), out, to)
    else:
        _tune(quick, place, allow_compile, out, to)


def _kept(table: Table, device: torch.device) -> str:
    from rnn_backends.crossovers import SHIPPED, machine_file

    return f"file: {SHIPPED if table.shipped else machine_file(device)}"


def _tune(quick: bool, device: torch.device, allow_compile: bool, out: Path | None, to: Console) -> None:
    from rnn_backends.crossovers import machine_file
    from rnn_backends.ranking import PATIENCE
    from rnn_benchmarks.tune import QUICK, TUNED, first_calls, table_of
    from rnn_benchmarks.tune_report import show_table, store

    from .progress import steps

    file = out or machine_file(device)
    if file is None:
        refuse("--device", f"a table of {device} has no default file: name one with --write")
    backends = _accepting(device)
    with steps(len(backends)) as (tick, done):
        first = first_calls(backends, tick, done)
    if quick and not allow_compile:
        backends = [name for name in backends if first.get(name, 0) <= PATIENCE]
    cells = _measured(QUICK if quick else TUNED, backends, device, to)
    table = table_of(cells, first, str(device), allow_compile)
    store(table, file)
    show_table(table, to)
    use = "auto does not read it there" if out else "auto uses it from now on"
    to.print(f"wrote {file}: {use}", highlight=False, soft_wrap=True)


def _validate(device: torch.device, table: Table | None, out: Path | None, to: Console) -> None:
    from rnn_benchmarks.tune import HELD_OUT, table_of
    from rnn_benchmarks.tune_report import show_judged, store

    cells = _measured(HELD_OUT, _accepting(device), device, to)
    if out is not None:
        store(table_of(cells, {}, str(device)), out)
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


def _measured(grid: Grid, backends: list[str], device: torch.device, to: Console) -> list[Cell]:
    from rnn_benchmarks.tune import BUSY, contestants, measure

    from .progress import steps

    cases = contestants(grid, backends, str(device))
    with steps(len(cases)) as (tick, done):
        timed = measure(cases, grid.seconds, tick, done)
    if timed.noisy > 1 / 3:
        to.print(
            f"This machine was busy: {timed.noisy:.0%} of the times vary by more than {BUSY:.0%}. "
            f"Close other programs and measure again.",
            style="yellow",
            soft_wrap=True,
        )
    return timed.cells
