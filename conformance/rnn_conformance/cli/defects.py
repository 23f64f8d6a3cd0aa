"""``rnn-backends defects``: run the laws against planted defects, a test of the suite itself."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Examples, refusals, writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..defects.kill import Kill

EXAMPLES = """\
Examples:
  rnn-backends defects                            every planted defect
  rnn-backends defects reset_by_multiplication    one of them
  rnn-backends defects -k gradients --seeds 1     one subject, quickly
  rnn-backends defects --under float32_alone      in a backend of float32 only
  rnn-backends defects --resume kills.jsonl --write docs/generated/kill_table.md

Exit status:
  0 each defect was caught, or has a written reason   2 bad usage
  1 a defect survived without a reason
"""


@click.command("defects", cls=Examples, epilog=EXAMPLES, short_help="Test the suite itself with planted defects.")
@click.argument("name", required=False)
@click.option("-k", "subject", metavar="SUBJECT", help="Only subjects with this in their name.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of seeds per law: 1, 2, ..."
)
@click.option(
    "--profile",
    type=click.Choice(["smoke", "quick", "full"]),
    default="quick",
    show_default=True,
    help="How many cases are tried.",
)
@click.option("--drawn-only", is_flag=True, help="Leave out the fixed rich cases: drawn cases must suffice.")
@click.option(
    "--under", metavar="VARIANT", help="Plant kernel defects only, in a restricted backend, such as float32_alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Store each defect's result in this file; skip the defects that it contains.",
)
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write the page of all results to this file.",
)
@click.option("--date", help="The page's date.  [default: today]")
@click.pass_context
def defects_command(ctx: click.Context, /, name: str | None, subject: str | None, **options: Any) -> None:
    """Run planted defects against the laws that must catch them: all defects, or those named."""
    from datetime import date

    from ..defects.catalogue import DEFECTS, select
    from ..defects.kill import dies_under, matters_under, survives
    from ..defects.page import Run, page
    from ..defects.variants import RESTRICTED
    from ..suite.names import exact

    if options["write"] and (name or subject):
        raise click.BadParameter("the page needs all defects: omit NAME and -k", param_hint="'--write'")
    if options["write"] and options["under"]:
        raise click.BadParameter("the page needs backends without restrictions: omit --under", param_hint="'--write'")
    with refusals((ValueError, "--under")):
        if options["under"]:
            exact(options["under"], RESTRICTED, "variant")
    with refusals((ValueError, "NAME")):
        chosen = select(name, subject)
    if options["under"]:
        chosen = {one: defect for one, defect in chosen.items() if matters_under(defect, options["under"])}
    rows = _kills(list(chosen), options)
    surviving = [
        one for one, kills in rows.items()
        if (not dies_under(kills) if options["under"] else survives(DEFECTS[one], kills))
    ]  # fmt: skip
    if options["as_json"]:
        kills = {one: [asdict(kill) | {"killed": kill.killed} for kill in own] for one, own in rows.items()}
        click.echo(json.dumps({"defects": kills, "surviving": surviving}, indent=1))
    else:
        _show(rows, surviving, options["under"])
    if options["write"]:
        day = options["date"] or date.today().isoformat()
        run = Run(day, _commit(), options["profile"], _seeds(options["seeds"]), options["drawn_only"])
        from rnn_backends.paths import write_whole

        write_whole(options["write"], page(rows, run))
    ctx.exit(1 if surviving else 0)


def _kills(names: list[str], options: dict[str, Any]) -> dict[str, list[Kill]]:
    """The results of all named defects, in their order; those in the file of ``--resume`` are not run again."""
    from ..defects.catalogue import DEFECTS
    from ..defects.kill import Log, kills_of

    log = None
    if options["resume"]:
        settings = {key: options[key] for key in ("profile", "seeds", "drawn_only", "under")} | {"commit": _commit()}
        with refusals((ValueError, "--resume")):
            log = Log(options["resume"], settings)

    def run(name: str) -> list[Kill]:
        if log and name in log.results:
            return log.results[name]
        seeds = range(1, options["seeds"] + 1)
        kills = kills_of(DEFECTS[name], seeds, options["profile"], options["drawn_only"], options["under"])
        if log:
            log.add(kills)
        return kills

    return _each("defects", names, run)


def _seeds(number: int) -> str:
    """The seeds in words, for the page."""
    return f"seeds 1 to {number}" if number > 1 else "seed 1 alone"


def _commit() -> str:
    """The commit of the code that runs, with ``-dirty`` where it was edited; ``unknown`` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _each(what: str, names: Iterable[str], run: Callable[[str], Any]) -> dict[str, Any]:
    """Run each name, with a progress bar on a terminal."""
    from .progress import steps

    names, results = tuple(names), {}
    with steps(len(names), what) as (tick, done):
        for name in names:
            tick(name)
            results[name] = run(name)
            done()
    return results


def _show(rows: dict[str, list[Kill]], surviving: list[str], under: str | None) -> None:
    from rich.table import Table

    from ..defects.catalogue import DEFECTS
    from ..report.terminal import console

    table = Table("subject", "defects", "killed", "survive with a reason", "survive")
    for subject in dict.fromkeys(DEFECTS[name].subject for name in rows):
        own = [name for name in rows if DEFECTS[name].subject == subject]
        left = sum(name in surviving for name in own)
        dead = len(own) - left if under else sum(all(kill.killed for kill in rows[name]) for name in own)
        table.add_row(subject, str(len(own)), str(dead), str(len(own) - dead - left), str(left))
    out = console()
    out.print(table)
    if under:
        died = len(rows) - len(surviving)
        share = died / max(len(rows), 1)
        out.print(f"{died} of {len(rows)} kernel defects die under {under} ({share:.1%})", style="bold")
        for name in surviving:
            out.print(f"{name} survives: {'; '.join(f'{kill.law} {kill.verdicts[0]}' for kill in rows[name])}")
        return
    for name, kills in rows.items():
        for kill in kills:
            if not kill.killed:
                verdicts = ", ".join(kill.verdicts)
                out.print(f"{name} survives {kill.law}: {verdicts}. {DEFECTS[name].why_not}", markup=False)
