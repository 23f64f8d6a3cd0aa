"""``rnn-backends defects``: the suite is tested, and the table says how well."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Examples, refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..defects.kill import Kill

EXAMPLES = """\
Examples:
  rnn-backends defects                                all planted defects, each against the laws that it names
  rnn-backends defects reset_by_multiplication        one of them
  rnn-backends defects -k gradients --seeds 1         one family, quickly
  rnn-backends defects --invented --write docs/kill_table.md

Exit status:
  0 each defect died, or has a written reason   1 one survived without   2 bad usage, an unknown name
"""


@click.command("defects", cls=Examples, epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("-k", "family", metavar="FAMILY", help="Only families with this in their name.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds 1, 2, ... of each law.")
@click.option("--profile", type=click.Choice(["smoke", "quick", "full"]), default="quick", show_default=True)
@click.option("--drawn-only", is_flag=True, help="Without the fixed rich cases: does what is drawn kill alone?")
@click.option("--invented", is_flag=True, help="Then all laws over the defects that no law names. Minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Write the page of all results here.")
@click.option("--date", help="The page's date. Default: today.")
@click.pass_context
def defects_command(ctx: click.Context, name: str | None, family: str | None, **options: Any) -> None:
    """Run planted defects against the laws that must kill them: all, or those named."""
    from datetime import date

    from ..defects.catalogue import DEFECTS, select
    from ..defects.kill import kills_of, survives
    from ..defects.page import page

    if options["write"] and (name or family):
        raise click.BadParameter("the page is of all defects", param_hint="'--write'")
    with refusals((ValueError, "NAME")):
        chosen = select(name, family)
    seeds, profile = range(1, options["seeds"] + 1), options["profile"]
    rows = _each("defects", chosen, lambda one: kills_of(chosen[one], seeds, profile, options["drawn_only"]))
    found = _invented(profile) if options["invented"] else None
    surviving = [one for one, kills in rows.items() if survives(DEFECTS[one], kills)]
    if options["as_json"]:
        kills = {one: [asdict(kill) | {"killed": kill.killed} for kill in own] for one, own in rows.items()}
        click.echo(json.dumps({"defects": kills, "surviving": surviving, "invented": found}, indent=1))
    else:
        _show(rows, surviving, found)
    if options["write"]:
        how = f"{profile}|1 to {options['seeds']}|{', drawn cases only' if options['drawn_only'] else ''}"
        options["write"].write_text(page(rows, found, options["date"] or date.today().isoformat(), how))
    ctx.exit(1 if surviving else 0)


def _invented(profile: str) -> dict[str, str | None]:
    from ..defects.kill import first_kill
    from ..defects.rounds import INVENTED
    from ..laws.catalogue import select

    laws = sorted(select(None, profile).values(), key=lambda law: law.costly)
    names = [law.name for law in laws]
    return _each("invented", INVENTED, lambda one: first_kill(INVENTED[one], names, 1, profile))


def _each(what: str, names: Iterable[str], run: Callable[[str], Any]) -> dict[str, Any]:
    """Run over all names, with a bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    label, law = TextColumn(what), TextColumn("{task.description}")
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), law)
    found = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        names = tuple(names)
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            found[name] = run(name)
            progress.advance(task)
    return found


def _show(rows: dict[str, list[Kill]], surviving: list[str], found: dict[str, str | None] | None) -> None:
    from rich.table import Table

    from ..defects.catalogue import DEFECTS
    from ..report.terminal import console

    table = Table("family", "defects", "killed", "survive with a reason", "survive")
    for family in dict.fromkeys(DEFECTS[name].family for name in rows):
        own = [name for name in rows if DEFECTS[name].family == family]
        dead = sum(all(kill.killed for kill in rows[name]) for name in own)
        left = sum(name in surviving for name in own)
        table.add_row(family, str(len(own)), str(dead), str(len(own) - dead - left), str(left))
    out = console()
    out.print(table)
    for name, kills in rows.items():
        for kill in kills:
            if not kill.killed:
                said = ", ".join(kill.verdicts)
                out.print(f"{name} survives {kill.law}: {said}. {DEFECTS[name].why_not}", markup=False)
    if found is not None:
        dead = sum(law is not None for law in found.values())
        out.print(f"invented: {dead} of {len(found)} died; not: {', '.join(n for n, law in found.items() if not law)}")
