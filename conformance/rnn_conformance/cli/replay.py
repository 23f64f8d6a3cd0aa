"""``rnn-backends replay`` and ``rnn-backends diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Examples, device_named, refusals, refuse

if TYPE_CHECKING:
    from ..report.model import Results

REPLAY_EXAMPLES = """\
Examples:
  rnn-backends replay T2.B1.I1.H1.f64.s0 --backend mine \\
      --law output_equals_reference
  rnn-backends replay T2.B1.I1.H1.f64.s0 --backend mine \\
      --law output_equals_reference --script > case.py

Parts of a token, which can be edited by hand:
  T steps   B batch   I inputs   H hidden   L layers   P projection   d dropout
  nobias: no biases   bi: bidirectional   f64, f32, bf16, f16: the dtype
  r: in hexadecimal, bit b * T + t is set if step t of row b starts a sequence
  zeros: sequences start from zeros   s: the seed of all numbers
  transposed, strided, offset: the memory layout of the inputs

Exit status:
  0 the law holds, or the backend declines the case
  1 the law does not hold   2 bad usage
"""


@click.command("replay", cls=Examples, epilog=REPLAY_EXAMPLES, short_help="Run one failing case again.")
@click.argument("token")
@click.option("--law", required=True, help="The law's exact name.")
@click.option("--backend", required=True, metavar="NAME", help="The backend to run.")
@click.option("--device", default="cpu", show_default=True, help="Device to run on.")
@click.option("--script", is_flag=True, help="Print a program that reproduces the case instead of running it.")
@click.pass_context
def replay_command(ctx: click.Context, token: str, law: str, backend: str, device: str, script: bool) -> None:
    """Run one law over one case, given by the TOKEN of a failure."""
    from rnn_backends import BrokenBackendError, UnknownBackendError, get_backend

    from ..check import about, quiet_single_thread, replay
    from ..laws.catalogue import LAWS
    from ..report.terminal import error, printable
    from ..suite.names import UnknownNameError, exact

    kinds = ((UnknownBackendError, "--backend"), (BrokenBackendError, "--backend"), (UnknownNameError, "--law"))
    place = str(device_named(device))
    with refusals(*kinds, (ValueError, "TOKEN")), quiet_single_thread():
        value, law = get_backend(backend), exact(law, LAWS, "law")
        if script:
            from ..script import program

            click.echo(program(value.name, law, token, place), nl=False)
            return
        result = replay(value, law, token, place)
    click.echo(printable(f"{result.label}  {result.backend}: {law}", line=True))
    click.echo(f"  law     {about(law).sentence}")
    if result.message:
        click.echo(printable(f"  {'why    ' if result.ok else 'found  '} {result.message}"))
    if result.worst_error_ratio is not None:
        click.echo(f"  error   {error(result.worst_error_ratio)}")
    ctx.exit(0 if result.ok else 1)


DIFF_EXAMPLES = """\
Examples:
  rnn-backends check --json old.jsonl --seed 1
  rnn-backends check --json new.jsonl --seed 1
  rnn-backends diff old.jsonl new.jsonl
  rnn-backends diff new.jsonl --backend cudnn --backend cpp    two backends

Exit status:
  0 nothing is worse   1 a law is worse, or new and failing   2 bad usage
  3 a file is not a complete report
"""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("diff", cls=Examples, epilog=DIFF_EXAMPLES, short_help="Compare two reports.")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE, required=False)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Compare only this backend. Given twice: the first in OLD with the second in NEW (in OLD, without NEW).",
)
@click.pass_context
def diff_command(ctx: click.Context, old: Path, new: Path | None, backends: tuple[str, ...]) -> None:
    """Show the differences of two reports of `check --json`, or of two backends: worse, gone, new, better."""
    from ..report.diff import KINDS, changes, only
    from ..report.terminal import printable

    if len(backends) > 2 or (new is None and len(backends) < 2):
        refuse("--backend", "one report needs two backends" if new is None else "at most two backends can be compared")
    before = _read(ctx, old)
    after = before if new is None else _read(ctx, new)
    if backends:
        with refusals((ValueError, "--backend")):
            before, after = only(before, backends[0]), only(after, backends[-1])
    if before.profile != after.profile:
        click.echo(printable(f"note: the profiles differ: {before.profile}, {after.profile}", line=True))
    for name in sorted({*before.versions, *after.versions}):
        if before.versions.get(name) != after.versions.get(name):
            sides = f"{before.versions.get(name, 'absent')} -> {after.versions.get(name, 'absent')}"
            click.echo(printable(f"note: {name} {sides}", line=True))
    found = changes(before, after, paired=len(backends) == 2)
    for change in found:
        click.echo(printable(str(change), line=True))
        if change.bad and change.message:
            click.echo(printable(f"        {change.message}"))
    counts = {kind: sum(change.kind == kind for change in found) for kind in KINDS}
    same = sum(len(run.results) for run in after.runs) - len(found) + counts["gone"]
    click.echo(", ".join(f"{count} {kind}" for kind, count in (*counts.items(), ("the same", same))))
    ctx.exit(1 if any(change.bad for change in found) else 0)


def _read(ctx: click.Context, path: Path) -> Results:
    """A report, or exit status 3 and the reason."""
    from ..report.jsonl import ReportError
    from ..report.model import Results
    from ..report.terminal import printable

    try:
        return Results.from_json(path.read_text(encoding="utf-8"))
    except (ReportError, UnicodeDecodeError, OSError) as error:
        click.echo(printable(f"{path}: {error}"), err=True)
        ctx.exit(3)
