"""``rnn-backends bench``: how long a backend takes over shapes of your own, beside others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Examples, refuse, writable

if TYPE_CHECKING:
    from rich.console import Console
    from rnn_benchmarks.groups import Figures, Group

EXAMPLES = """\
Examples:
  rnn-backends bench cudnn                                      over torch's dense nn.LSTM, at 0 and 3 % resets
  rnn-backends bench cudnn --vs vmap --vs torchrl-pad --shape 32,128,64,128
  rnn-backends bench mine --shape S1 --resets 0,0.03,once --png mine.png
  rnn-backends bench auto --vs torchrl-pad --mode step          one step, for acting
  rnn-backends bench cudnn --json now.json --seconds 20         longer, so less noise

Besides backends, NAME and --vs take: nn.LSTM (dense, without resets), nn.LSTM-packed (the same
over packed rows of equal length), torchrl-pad, torchrl-scan, torchrl-triton.
The ratio is a median of ratios, round by round: time over the first --vs, or over nn.LSTM where there is none.
"""


@click.command("bench", cls=Examples, epilog=EXAMPLES)
@click.argument("name")
@click.option("--vs", multiple=True, metavar="NAME", help="What to compare with. Repeat it for more.")
@click.option("--shape", "shapes", multiple=True, metavar="B,T,I,H", help="Or S1 to S5. Default: S2.")
@click.option("--resets", default="0,0.03", show_default=True, help="Shares of the steps, or once.")
@click.option("--mode", type=click.Choice(["forward", "train", "step"]), default="train", show_default=True)
@click.option("--module", is_flag=True, help="LSTMModule over a TensorDict; so it is anyway beside torchrl-....")
@click.option("--threads", type=click.IntRange(min=1), help="torch's. Default: as many as torch takes.")
@click.option("--seconds", type=click.FloatRange(min=0), default=5.0, show_default=True, help="For each group.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), callback=writable, help="Draw a picture.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), callback=writable, help="Write all.")
def bench_command(name: str, vs: tuple[str, ...], png: Path | None, out: Path | None, **options: Any) -> None:
    """Measure NAME, a backend, in turn with others, and print medians, ratios and how noisy they are."""
    import torch
    from rnn_benchmarks.tables import rows_table

    from ..report.terminal import console

    if png is not None:
        _need_matplotlib()
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    groups = _groups(name, vs, options)
    to = console()
    figures = measure(groups, console(stderr=True), options["device"])
    here = figures.where
    to.print(rows_table(figures.rows, f"{options['mode']} on {here['processor']}, {here['threads']} threads, fp32"))
    to.print("ratio: median over rounds of time / time of the one named under 'over'; below 1 is faster", style="dim")
    if out is not None:
        figures.save(out)
    if png is not None:
        from rnn_benchmarks.plots import draw_bars

        draw_bars(figures.rows, f"{options['mode']}: {here['processor']}, {here['threads']} threads", png)
        to.print(f"wrote {png}", highlight=False)
    if not any(row.seconds for row in figures.rows if row.label == name):
        raise SystemExit(1)


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        refuse("--png", "matplotlib is not installed. Run: pip install 'rnn-backends[bench]'")


def _groups(name: str, vs: tuple[str, ...], options: dict[str, Any]) -> list[Group]:
    from rnn_backends import names
    from rnn_benchmarks.cases import DENSE, PEERS, STEPS, TORCHRL, Asked, Shape
    from rnn_benchmarks.groups import Group

    from .options import device_named, refusals

    device, mode = str(device_named(options["device"])), options["mode"]
    known = (*names(), "auto", "torch", "torchrl", *PEERS)
    for asked in (name, *vs):
        if asked not in known:
            refuse("NAME" if asked == name else "--vs", f"unknown: {asked!r}. There are: {', '.join(known)}")
    with refusals((ValueError, "--shape")):
        shapes = [
            Shape.parse(text) for text in options["shapes"] or (map(str, STEPS.values()) if mode == "step" else ("S2",))
        ]
    rates = ["0"] if mode == "step" else [_rate(text.strip()) for text in options["resets"].split(",")]
    module = options["module"] or mode == "step" or any(asked in TORCHRL for asked in (name, *vs))
    who = list(dict.fromkeys((name, *(vs or (DENSE,)))))
    reads = "module" if module else "output"
    return [
        Group(
            "bench",
            {one: Asked(one, s, rate, mode, reads, device) for one in who},
            who[-1] if not vs else vs[0],
            options["seconds"],
        )
        for s in shapes
        for rate in rates
    ]


def _rate(text: str) -> str:
    try:
        good = text == "once" or 0 <= float(text) <= 1
    except ValueError:
        good = False
    if not good:
        refuse("--resets", f"takes shares between 0 and 1, or once, with commas between; got {text!r}")
    return text


def measure(groups: list[Group], to: Console, device: str = "cpu", **options: Any) -> Figures:
    """Run the groups one after another, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rnn_benchmarks.groups import Figures, run, where

    figures = Figures(where(device))
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=to, transient=True, disable=not to.is_terminal) as bar:
        task = bar.add_task("", total=len(groups))
        for group in groups:
            about = next(iter(group.asked.values()))
            told = f"{about.shape}, resets {about.resets}: "

            def tick(who: str, told: str = told) -> None:
                bar.update(task, description=told + who)

            figures.rows += run(group, tick, **options)
            bar.advance(task)
    return figures
