"""The commands of ``rnn-backends``. torch and the suite are imported by the command that needs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .bench import bench_command
from .check import check_command
from .defects import defects_command
from .doctor import doctor_command
from .laws import laws_command
from .options import Examples, device_named, refuse
from .replay import diff_command, replay_command
from .tune import tune_command

if TYPE_CHECKING:
    from rnn_backends import LSTMSpec

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell has it."""
HELP = {"help_option_names": ["-h", "--help"]}


class Commands(click.Group):
    """The commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, as they were added."""
        return list(self.commands)


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(package_name="rnn-backends")
def cli() -> None:
    """One LSTM, many kernels, provably the same.

    Each command has examples in its own --help.
    """


LIST_EXAMPLES = """\
Examples:
  rnn-backends list                   load every backend, show which fail
  rnn-backends list --names           faster: load none
  rnn-backends list --json | python -m json.tool
"""


@cli.command("list", cls=Examples, epilog=LIST_EXAMPLES, short_help="List the installed backends.")
@click.option("--names", "names_only", is_flag=True, help="Print only the names, one per line; import no plugin.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(names_only: bool, as_json: bool) -> None:
    """List the installed backends: the package of each, and whether it loads."""
    from rnn_backends import list_backends, names

    if names_only:
        rows: list[Any] = list(names())
        click.echo(json.dumps(rows) if as_json else "\n".join(name.replace("\n", "\\n") for name in rows))
        return
    from ..report.terminal import console, listings_table, state_of

    listings = list_backends(load=True)
    if as_json:
        rows = [
            {"name": r.name, "distribution": r.distribution, "state": state_of(r), "reason": r.reason} for r in listings
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    console().print(listings_table(listings))


EXPLAIN_EXAMPLES = """\
Examples:
  rnn-backends explain                LSTM(8, 64) on the CPU in float32
  rnn-backends explain --num-layers 2 --dropout 0.1 --proj-size 16
  rnn-backends explain --device cuda --dtype bfloat16
  rnn-backends explain --bidirectional --json
"""


@cli.command(
    "explain",
    cls=Examples,
    epilog=EXPLAIN_EXAMPLES,
    short_help="Show which backends run an LSTM, and why others do not.",
)
@click.option("--input-size", type=click.IntRange(min=1), default=8, show_default=True, help="Input features.")
@click.option("--hidden-size", type=click.IntRange(min=1), default=64, show_default=True, help="Hidden units.")
@click.option("--num-layers", type=click.IntRange(min=1), default=1, show_default=True, help="Stacked layers.")
@click.option("--no-bias", is_flag=True, help="Without the biases b_ih and b_hh.")
@click.option("--dropout", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Dropout between layers.")
@click.option("--bidirectional", is_flag=True, help="With a reverse direction.")
@click.option(
    "--proj-size", type=click.IntRange(min=0), default=0, show_default=True, help="Projection size; 0: no projection."
)
@click.option("--device", default="cpu", show_default=True, help="As torch.device takes it: cpu, cuda, cuda:1, ...")
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of weights and input.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def explain_command(no_bias: bool, device: str, dtype: str, as_json: bool, **options: Any) -> None:
    """Show whether each backend runs an LSTM with these options, or why not, and which one "auto" takes."""
    import torch
    from rnn_backends import LSTMSpec, explain

    from ..report.terminal import console, verdicts_table

    if options["proj_size"] >= options["hidden_size"]:
        refuse("--proj-size", "must be smaller than --hidden-size, as in torch.nn.LSTM")
    spec, place = LSTMSpec(bias=not no_bias, **options), device_named(device)
    verdicts = explain(spec, place, getattr(torch, dtype))
    if as_json:
        answer = {"spec": asdict(spec), "device": str(place), "dtype": dtype, "backends": [asdict(v) for v in verdicts]}
        click.echo(json.dumps(answer, indent=1))
        return
    console().print(verdicts_table(verdicts, f"{_call(spec)} on {place} in {dtype}"))


def _call(spec: LSTMSpec) -> str:
    """The call that gives this spec, default options left out."""
    defaults = type(spec)(spec.input_size, spec.hidden_size)
    extras = [f", {k}={v}" for k, v in asdict(spec).items() if v != getattr(defaults, k)]
    return f"LSTM({spec.input_size}, {spec.hidden_size}{''.join(extras)})"


@cli.command("record", hidden=True)
@click.argument("file", type=click.Path(dir_okay=False))
def record_command(file: str) -> None:
    """Record the rollouts again and write them to FILE. The package's own data was made this way."""
    from pathlib import Path

    from ..rollouts.recorded import write_shipped

    write_shipped(Path(file))
    click.echo(f"wrote {file}")


for command in (
    check_command,
    laws_command,
    replay_command,
    diff_command,
    bench_command,
    tune_command,
    doctor_command,
    defects_command,
):
    cli.add_command(command)


def run() -> int:
    """Run the command as a shell does; the exit status. click's own is 1 after Ctrl-C, which is a verdict here."""
    try:
        status = cli.main(prog_name="rnn-backends", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("interrupted: there is no verdict", err=True)
        return INTERRUPTED
    return status or 0
