"""The kill table as a page: docs/kill_table.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .catalogue import DEFECTS, killers
from .kill import KILLS, Kill, survives
from .rounds import ROUNDS
from .uncovered import UNCOVERED

HEAD = """\
# Kill table

Written by `rnn-backends defects --write` on {date}; do not edit. Every planted defect names beforehand the laws that
must kill it. A kill counts only where such a law *fails by assertion*, with every seed; a crash or a refusal is none.

- Planted: **{planted}** defects in {families} families; profile `{profile}`, seeds {seeds}{how}.
- Killed by every law that they name, with every seed: **{killed}** ({rate:.1%}).
- Not killed, with a written reason: {excused}. Not killed, without one: {surviving}.
{invented}"""


def page(kills: Mapping[str, Sequence[Kill]], found: Mapping[str, str | None] | None, date: str, how: str) -> str:
    """The whole page.

    Args:
        kills: of every defect that ran, by name.
        found: of every invented defect the law that killed it, if they ran.
        date: when.
        how: the profile and the seeds, in words.
    """
    dead = [name for name, own in kills.items() if own and all(kill.killed for kill in own)]
    surviving = [name for name, own in kills.items() if survives(DEFECTS[name], list(own))]
    profile, seeds, extra = how.split("|")
    parts = [
        HEAD.format(
            date=date,
            planted=len(kills),
            families=len({DEFECTS[n].family for n in kills}),
            profile=profile,
            seeds=seeds,
            how=extra,
            killed=len(dead),
            rate=len(dead) / max(len(kills), 1),
            excused=len(kills) - len(dead) - len(surviving),
            surviving=len(surviving),
            invented=_rate(found, dead),
        )
    ]
    for family in dict.fromkeys(DEFECTS[name].family for name in kills):
        rows = [_row(name, own) for name, own in kills.items() if DEFECTS[name].family == family]
        parts += [
            f"\n## {family}\n\n| defect | what is wrong | named laws, kills by seed |\n| --- | --- | --- |",
            *rows,
        ]
    return "\n".join([*parts, *_invented(found), *_by_law()]) + "\n"


def _row(name: str, kills: Sequence[Kill]) -> str:
    laws = "; ".join(f"`{k.law}` {sum(v in KILLS for v in k.verdicts)}/{len(k.verdicts)}" for k in kills)
    why = DEFECTS[name].why_not
    return f"| `{name}` | {DEFECTS[name].sentence} | {laws}{f' **survives**: {why}' if why else ''} |"


def _rate(found: Mapping[str, str | None] | None, dead: Sequence[str]) -> str:
    if found is None:
        return ""
    first = "; ".join(f"**{len(one.unnamed)} of {one.count}** {one.what}" for one in ROUNDS)
    every, survived = sum(one.count for one in ROUNDS), [name for one in ROUNDS for name in one.survived]
    now = sum(law is not None for law in found.values()) + sum(name in dead for name in survived)
    return (
        f"- Invented after the suite, no law named, and dead in the first run of the quick profile:\n  {first}.\n"
        f"  Laws were then written or widened for the other {len(survived)}; **{now} of {every}** die now.\n"
    )


def _invented(found: Mapping[str, str | None] | None) -> list[str]:
    if found is None:
        return []
    head = "\n## Invented {what}\n\n| defect | what is wrong | first law that killed it |\n| --- | --- | --- |"
    rows = []
    for one in ROUNDS:
        rows.append(head.format(what=one.what))
        for name, defect in one.unnamed.items():
            rows.append(f"| `{name}` | {defect.sentence} | {f'`{found[name]}`' if found[name] else '**none**'} |")
        for name in one.survived:
            laws = ", ".join(f"`{law}`" for law in DEFECTS[name].killed_by)
            rows.append(f"| `{name}` | {DEFECTS[name].sentence} | **none** in the first run; since then {laws} |")
    return rows


def _by_law() -> list[str]:
    head = "\n## By law\n\n| law | planted defects that name it |\n| --- | --- |"
    rows = [f"| `{law}` | {', '.join(f'`{n}`' for n in names)} |" for law, names in sorted(killers().items())]
    return [head, *rows, *(f"| `{law}` | none: {why} |" for law, why in UNCOVERED.items())]
