"""``rnn-backends check``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..suite.verdict import PROFILE_NAMES
from .options import Examples, device_called, refusals, writable, writable_folder

if TYPE_CHECKING:
    from ..report.model import Results
    from ..waivers import Waiver

EXAMPLES = """\
Examples:
  rnn-backends check                        all installed backends: minutes
  rnn-backends check vmap --profile smoke   one backend, in seconds
  rnn-backends check vmap -k gradient       laws with "gradient" in their name
  rnn-backends check --device cpu,cuda      on both, one after the other
  rnn-backends check --html report.html     a page to read, with all details
  rnn-backends check --json report.jsonl    for programs and for `diff`
  rnn-backends check mine --waivers waivers.toml --script failures/

A waiver excuses one failure of one backend until a date. Once its case passes,
the waiver itself is a failure.
  [[waiver]]
  backend = "mine"
  law = "double_backward"
  reason = "the kernel has no second derivative yet"
  link = "https://github.com/me/mine/issues/3"
  token = "T2.B1.I1.H1.f64.s0"
  expires = 2027-03-01

Exit status:
  0 every law held   1 a law failed   2 bad usage   3 the run is incomplete
"""
FILE = click.Path(dir_okay=False, path_type=Path, allow_dash=True)


def _devices(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(device_called(name.strip())) for name in value.split(",")))


@click.command("check", cls=Examples, epilog=EXAMPLES, short_help="Check that backends compute the same.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--profile", type=click.Choice(PROFILE_NAMES), default="quick", show_default=True, help="How many cases are tried."
)
@click.option("-k", "laws", multiple=True, metavar="LAW", help="Only laws with this in their name; may be repeated.")
@click.option(
    "--device",
    "devices",
    default="cpu",
    show_default=True,
    callback=_devices,
    metavar="DEVICE[,DEVICE]",
    help="Devices to run on.",
)
@click.option("--seed", type=int, help="Seed of the generated cases. [default: a fresh one, shown in the report]")
@click.option(
    "--shrink/--no-shrink", default=True, help="Search for a smaller failing case, for a few seconds per law."
)
@click.option(
    "--strict",
    is_flag=True,
    help="A capability that works and is not claimed is a failure; a report that shows little is incomplete.",
)
@click.option(
    "--waivers",
    "waivers_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of known failures; its format is below.",
)
@click.option(
    "--json", "json_file", type=FILE, callback=writable, metavar="FILE", help="Write JSON lines; - prints them."
)
@click.option(
    "--html", "html_file", type=FILE, callback=writable, metavar="FILE", help="Write one self-contained page."
)
@click.option(
    "--script",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    callback=writable_folder,
    metavar="DIR",
    help="Write one program per failure that reproduces it.",
)
@click.pass_context
def check_command(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    waivers_file: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    folder: Path | None,
    **options: object,
) -> None:
    """Check backends against the laws: all installed ones, or those named.

    The laws run over generated cases and over rollouts of real Gymnasium environments, with episodes that start and
    end in the middle of a row. A table shows the verdicts; each failure shows the law, the first difference with its
    actual and expected value, the smallest failing case and the command that repeats it.
    """
    from rnn_backends import UnknownBackendError

    from ..report.terminal import console, plain
    from ..suite.names import UnknownNameError
    from .check_run import CheckRun, Options

    to = console(stderr="-" in map(str, (json_file, html_file)))
    with refusals((UnknownBackendError, "NAME"), (UnknownNameError, "-k")):
        run = CheckRun(names, to, Options(**options), _waivers(waivers_file))  # type: ignore[arg-type]
    with _interrupted_by_sigterm():
        results = run.run()
    _write(results, json_file, html_file)
    if folder is not None:
        from ..script import write_scripts

        with refusals((OSError, "--script")):
            for path in write_scripts(results, folder):
                to.print(plain(f"wrote {path}"), soft_wrap=True)
    ctx.exit(results.status)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM acts as an interrupt: the results so far are printed and written."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _waivers(file: Path | None) -> list[Waiver]:
    from ..waivers import WaiverError, read

    with refusals((WaiverError, "--waivers")):
        return read(file) if file is not None else []


def _write(results: Results, json_file: Path | None, html_file: Path | None) -> None:
    """Write each file completely or not at all: a truncated report is worthless."""
    from rnn_backends.paths import write_whole

    from ..report.html import page
    from ..report.model import Results

    for option, path, make in (("--json", json_file, Results.to_json), ("--html", html_file, page)):
        if path is not None and str(path) == "-":
            click.echo(make(results), nl=False)
        elif path is not None:
            with refusals((OSError, option)):
                write_whole(path, make(results))
