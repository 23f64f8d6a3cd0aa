"""The kill table as a page: docs/generated/kill_table.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .catalogue import DEFECTS, killers
from .kill import KILLS, Kill, survives
from .rounds import ROUNDS
from .uncovered import UNCOVERED

HEAD = """\
# Kill table

Written by `rnn-backends defects --write` on {date}, at commit `{commit}`; do not edit. Every planted defect names the
laws that must kill it before they run. A kill counts only if such a law *fails by assertion*, with every seed; a
crash or a refusal is no kill. A defect of one of the rounds below names the law that killed it in the round's first
run, or that was written or widened since.

- Planted: **{planted}** defects, by {subjects} subjects. Run: **{ran}**{partly};
  profile `{profile}`, {seeds}{how}.
- Killed by every law that they name, with every seed: **{killed} of {ran}** ({rate:.1%}).
- Not killed, with a written reason: {excused}. Not killed, without a reason: {surviving}.

## Defects invented after the suite

Each round is a set of defects invented for the suite of that time. *Died* counts the defects that a law killed in the
first run of the quick profile; for the others a law was then written or widened. Only this figure shows how well the
suite detects unexpected defects.

| round | of | invented by | died |
| ---: | --- | --- | ---: |
{rounds}
"""

COLUMNS = "| defect | what is wrong | round | named laws, kills by seed |\n| --- | --- | --- | --- |"


class Run(NamedTuple):
    """The page's facts about the run.

    Attributes:
        date: the day.
        commit: of the code that ran.
        profile: of the laws.
        seeds: "seeds 1 to 5", in words.
        drawn_only: whether the fixed rich cases were left out.
    """

    date: str
    commit: str
    profile: str
    seeds: str
    drawn_only: bool = False


def page(kills: Mapping[str, Sequence[Kill]], run: Run) -> str:
    """The whole page.

    Args:
        kills: of every defect that ran, by name.
        run: the run's circumstances.
    """
    dead = [name for name, own in kills.items() if own and all(kill.killed for kill in own)]
    surviving = [name for name, own in kills.items() if survives(DEFECTS[name], list(own))]
    head = HEAD.format(
        date=run.date,
        commit=run.commit,
        planted=len(DEFECTS),
        subjects=len({defect.subject for defect in DEFECTS.values()}),
        ran=len(kills),
        partly="" if len(kills) == len(DEFECTS) else f", the other {len(DEFECTS) - len(kills)} are not in the table",
        profile=run.profile,
        seeds=run.seeds,
        how=", drawn cases only" if run.drawn_only else "",
        killed=len(dead),
        rate=len(dead) / max(len(kills), 1),
        excused=len(kills) - len(dead) - len(surviving),
        surviving=len(surviving),
        rounds="\n".join(f"| {r.number} | {r.of} | {r.by} | {len(r.died)} of {len(r.defects)} |" for r in ROUNDS),
    )
    parts = [head]
    for subject in dict.fromkeys(DEFECTS[name].subject for name in kills):
        rows = [_row(name, own) for name, own in kills.items() if DEFECTS[name].subject == subject]
        parts += [f"## {subject}\n", COLUMNS, *rows, ""]
    return "\n".join([*parts, *_by_law()]) + "\n"


def _row(name: str, kills: Sequence[Kill]) -> str:
    defect = DEFECTS[name]
    laws = "; ".join(f"`{kill.law}` {sum(v in KILLS for v in kill.verdicts)}/{len(kill.verdicts)}" for kill in kills)
    why = f" **survives**: {defect.why_not}" if defect.why_not else ""
    rounds = ", ".join(f"{n} (survived)" if n in defect.survived else str(n) for n in defect.rounds)
    return f"| `{name}` | {defect.sentence} | {rounds} | {laws}{why} |"


def _by_law() -> list[str]:
    head = "## By law\n\n| law | planted defects that name it |\n| --- | --- |"
    rows = [f"| `{law}` | {', '.join(f'`{n}`' for n in names)} |" for law, names in sorted(killers().items())]
    return [head, *rows, *(f"| `{law}` | none: {why} |" for law, why in UNCOVERED.items())]
