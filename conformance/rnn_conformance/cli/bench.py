"""``rnn-backends bench``: the time of a backend at shapes that you give, compared with others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Examples, device_named, refusals, refuse, writable

if TYPE_CHECKING:
    from rnn_benchmarks.groups import Group

PICTURES = (".png", ".svg", ".pdf")

EXAMPLES = """\
Examples:
  rnn-backends bench cudnn                against torch's dense nn.LSTM
  rnn-backends bench auto --vs torchrl-pad --mode step    one step, for acting
  rnn-backends bench cudnn --json now.json --seconds 20   longer, for less noise
  rnn-backends bench mine --shape S1 --resets 0,0.03,once --png mine.png
  rnn-backends bench cudnn --vs vmap --vs torchrl-pad --shape 32,128,64,128

Besides backends, NAME and --vs take: nn.LSTM (dense, without resets),
nn.LSTM-packed (the same over packed rows of equal length), torchrl-pad,
torchrl-scan, torchrl-triton.

The ratio is the median over rounds of time / time of the first --vs, or of
nn.LSTM without --vs. Below 1, NAME is faster.
"""


@click.command(
    "bench", cls=Examples, epilog=EXAMPLES, short_help="Compare a backend's time with nn.LSTM and TorchRL's LSTMModule."
)
@click.argument("name")
@click.option("--vs", multiple=True, metavar="NAME", help="Contestant to compare with; may be repeated.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="B,T,I,H", help="Sizes, or S1 to S5; may be repeated.  [default: S2]"
)
@click.option("--resets", help="Shares of steps that reset, or once: one reset per row.  [default: 0,0.03]")
@click.option(
    "--mode",
    type=click.Choice(["forward", "train", "step"]),
    default="train",
    show_default=True,
    help="Time the forward pass, forward and backward, or one step of acting.",
)
@click.option(
    "--module", is_flag=True, help="Measure LSTMModule over a TensorDict. Implied by torchrl-... and --mode step."
)
@click.option("--threads", type=click.IntRange(min=1), help="Number of torch threads.  [default: torch's own choice]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Time per shape and share of resets.",
)
@click.option("--device", default="cpu", show_default=True, help="Device to measure on.")
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=writable,
    help="Write a plot: .png, .svg or .pdf.",
)
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=writable,
    help="Write all figures as JSON.",
)
def bench_command(name: str, vs: tuple[str, ...], png: Path | None, out: Path | None, **options: Any) -> None:
    """Measure the backend NAME in turns with others; print medians, ratios and quartiles."""
    import torch
    from rnn_benchmarks.groups import Figures, where
    from rnn_benchmarks.schedule import run_all
    from rnn_benchmarks.tables import rows_table

    from ..report.terminal import console
    from .progress import steps

    if png is not None:
        _check_picture(png)
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    groups = _groups(name, vs, options)
    to = console()
    figures = Figures(where(options["device"]))
    with steps(len(groups)) as (tick, done):
        run_all(groups, figures, done=done, tick=tick)
    here = figures.where
    to.print(rows_table(figures.rows, f"{options['mode']} on {here['processor']}, {here['threads']} threads, fp32"))
    to.print("ratio: median over rounds of time / time of the contestant under 'over'; below 1 is faster", style="dim")
    if out is not None:
        figures.save(out)
    if png is not None:
        from rnn_benchmarks.plots import draw_bars

        draw_bars(figures.rows, f"{options['mode']}: {here['processor']}, {here['threads']} threads", png)
        to.print(f"wrote {png}", highlight=False)
    if not any(row.seconds for row in figures.rows if row.label == name):
        raise SystemExit(1)


def _check_picture(file: Path) -> None:
    """Reject a plot that could not be drawn, before anything is measured."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        refuse("--png", "matplotlib is not installed. Run: pip install 'rnn-backends[bench]'")
    if file.suffix.lower() not in PICTURES:
        refuse("--png", f"expected a file name that ends in one of {', '.join(PICTURES)}; got {file.name!r}")


def _groups(name: str, vs: tuple[str, ...], options: dict[str, Any]) -> list[Group]:
    from rnn_backends import names
    from rnn_benchmarks.cases import PEERS, Shape
    from rnn_benchmarks.groups import comparisons

    device, mode = str(device_named(options["device"])), options["mode"]
    known = (*names(), "auto", "torch", "torchrl", *PEERS)
    for one in (name, *vs):
        if one not in known:
            refuse("NAME" if one == name else "--vs", f"unknown: {one!r}. Known: {', '.join(known)}")
    with refusals((ValueError, "--shape")):
        shapes = [Shape.parse(text) for text in options["shapes"]]
    if mode == "step":
        if options["resets"] not in (None, "0"):
            refuse("--resets", "a single step has no resets: omit --resets with --mode step")
        if wrong := [str(shape) for shape in shapes if shape.T != 1]:
            refuse("--shape", f"a step has T = 1; got {', '.join(wrong)}")
    rates = [_rate(text.strip()) for text in (options["resets"] or "0,0.03").split(",")]
    return comparisons([name, *vs], shapes, rates, mode, options["module"], device, options["seconds"])


def _rate(text: str) -> str:
    try:
        good = text == "once" or 0 <= float(text) <= 1
    except ValueError:
        good = False
    if not good:
        refuse("--resets", f"expected shares between 0 and 1, or once, separated by commas; got {text!r}")
    return text
