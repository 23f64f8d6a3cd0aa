"""``rnn-backends laws``."""

from __future__ import annotations

import inspect
import json
import textwrap
from dataclasses import asdict

import click

from .options import Examples, refusals

EXAMPLES = """\
Examples:
  rnn-backends laws                            all of them, by subject
  rnn-backends laws vmap_over_weights          one explained, with its source
  rnn-backends laws --json | python -m json.tool
"""


@click.command("laws", cls=Examples, epilog=EXAMPLES)
@click.argument("law", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def laws_command(law: str | None, as_json: bool) -> None:
    """List the laws by subject, or explain one: its sentence, what it tries, its tolerance and its source."""
    from ..laws.asked import UnknownLawError, about, exact_law, known_laws

    if law is not None:
        with refusals((UnknownLawError, "LAW")):
            law = exact_law(law)
        click.echo(json.dumps({"law": law, **asdict(about(law))}, indent=1) if as_json else _explained(law))
        return
    if as_json:
        click.echo(json.dumps([{"law": name, **asdict(about(name))} for name in known_laws()], indent=1))
        return
    subject = ""
    for name in known_laws():
        info = about(name)
        if info.subject != subject:
            subject = info.subject
            click.secho(f"{subject}", bold=True)
        trait = f" [{info.trait}]" if info.trait else ""
        click.echo(f"  {name}{trait}")
        click.echo(textwrap.fill(info.sentence, 110, initial_indent="      ", subsequent_indent="      "))
    click.echo(f"{len(known_laws())} laws; [trait]: a capability that a backend may claim, tried claimed or not")


def _explained(name: str) -> str:
    """Everything about one law that there is to say."""
    from ..laws.asked import about
    from ..laws.catalogue import LAWS
    from ..rollouts import laws as rollout_laws
    from ..suite.verdict import PROFILE_NAMES

    info = about(name)
    lines = [name, f"  {info.sentence}", "", f"  subject    {info.subject}"]
    if name in rollout_laws.LAWS:
        function: object = rollout_laws.LAWS[name]
        lines += _tolerance("f32", rollout_laws.FLOOR)
        lines.append(f"  profiles   {', '.join(PROFILE_NAMES)}")
    else:
        law = LAWS[name]
        function = law.function
        lines.append(f"  trait      {info.trait or 'none: every backend must'}")
        for dtype in law.where.get("dtype", ("f64",)):
            lines += _tolerance(dtype)
        lines.append(f"  profiles   {', '.join(p for p in PROFILE_NAMES if law.belongs(p))}")
        lines.append(f"  cases      {_cases(law.where, law.costly)}{', and recorded rollouts' * law.rollouts}")
    source = inspect.getsource(function)  # type: ignore[arg-type]
    return "\n".join([*lines, "", textwrap.indent(source.rstrip(), "  ")])


def _tolerance(dtype: str, floor: float | None = None) -> list[str]:
    """How far from right is wrong, where the law compares numbers."""
    from ..suite.case import DTYPES
    from ..suite.tolerances import TOLERANCES

    limit = TOLERANCES[DTYPES[dtype]]
    head = f"  tolerance  {dtype}: values {limit.values:g}, gradients {limit.gradients:g} of the worst row's largest"
    indent = " " * 13
    return [head, textwrap.fill(limit.reason, 110, initial_indent=indent, subsequent_indent=indent)]


def _cases(where: object, costly: bool) -> str:
    drawn = "a few fixed ones, as it compiles" if costly else "drawn"
    assert isinstance(where, dict)
    limits = "; ".join(f"{key} in {', '.join(map(str, allowed))}" for key, allowed in where.items())
    return f"{drawn}, with {limits}" if limits else drawn
