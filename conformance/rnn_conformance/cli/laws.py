"""``rnn-backends laws``."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .options import Examples, refusals

if TYPE_CHECKING:
    from ..suite.law import Law

EXAMPLES = """\
Examples:
  rnn-backends laws                     all laws, by subject
  rnn-backends laws vmap_over_weights   one law, with its source
  rnn-backends laws --json | python -m json.tool
"""


@click.command("laws", cls=Examples, epilog=EXAMPLES, short_help="List the laws that are checked.")
@click.argument("law", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def laws_command(law: str | None, as_json: bool) -> None:
    """List the laws by subject, or explain one: its sentence, cases, tolerance and source."""
    from ..check import about
    from ..laws.catalogue import LAWS
    from ..suite.names import UnknownNameError, exact

    if law is not None:
        with refusals((UnknownNameError, "LAW")):
            law = exact(law, LAWS, "law")
        click.echo(json.dumps({"law": law, **asdict(about(law))}, indent=1) if as_json else _explained(law))
        return
    if as_json:
        click.echo(json.dumps([{"law": name, **asdict(about(name))} for name in LAWS], indent=1))
        return
    subject = ""
    for name in LAWS:
        info = about(name)
        if info.subject != subject:
            subject = info.subject
            click.secho(f"{subject}", bold=True)
        trait = f" [{info.trait}]" if info.trait else ""
        click.echo(f"  {name}{trait}")
        click.echo(textwrap.fill(info.sentence, _width(), initial_indent="      ", subsequent_indent="      "))
    click.echo(
        f"{len(LAWS)} laws; [trait]: a capability that a backend may claim; its laws run whether it is claimed or not"
    )


def _width() -> int:
    """The width of wrapped text: the terminal's, at most 110 columns; 110 in a pipe or a file."""
    return min(110, shutil.get_terminal_size((110, 24)).columns)


def _explained(name: str) -> str:
    """All details of one law."""
    from ..check import about
    from ..laws.catalogue import LAWS
    from ..suite.verdict import PROFILE_NAMES

    law, info = LAWS[name], about(name)
    lines = [name, f"  {info.sentence}", "", f"  subject    {info.subject}"]
    lines.append(f"  trait      {info.trait or 'none: required of every backend'}")
    for dtype in law.where.get("dtype", ("f64",)):
        lines += _tolerance(dtype)
    lines.append(f"  profiles   {', '.join(p for p in PROFILE_NAMES if law.belongs(p))}")
    lines.append(f"  cases      {_cases(law)}")
    source = inspect.getsource(law.function)
    return "\n".join([*lines, "", textwrap.indent(source.rstrip(), "  ")])


def _tolerance(dtype: str) -> list[str]:
    """The tolerance, where the law compares numbers."""
    from ..suite.case import DTYPES
    from ..suite.tolerances import TOLERANCES

    limit = TOLERANCES[DTYPES[dtype]]
    head = f"  tolerance  {dtype}: values {limit.values:g}, gradients {limit.gradients:g} of the worst row's largest"
    indent = " " * 13
    return [head, textwrap.fill(limit.reason, _width(), initial_indent=indent, subsequent_indent=indent)]


def _cases(law: Law) -> str:
    drawn = "a few fixed ones, as it compiles" if law.costly else "drawn"
    limits = "; ".join(f"{key} in {', '.join(map(str, allowed))}" for key, allowed in law.where.items())
    kinds = [f"{drawn}, with {limits}" if limits else drawn] if law.drawn else []
    return ", and ".join(kinds + ["recorded rollouts"] * law.rollouts)
