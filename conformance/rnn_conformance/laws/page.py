"""The generated part of ``docs/contract.md``: the sentences of all laws, by subject.

``python -m rnn_conformance.laws.page`` writes it, ``--check`` only tests whether it is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rnn_backends.paths import write_whole

from ..suite.law import Law
from .catalogue import LAWS, SUBJECTS

BEGIN = "<!-- generated from the catalogue: python -m rnn_conformance.laws.page -->"
END = "<!-- end of the generated part -->"
PAGE = Path(__file__).parents[3] / "docs" / "contract.md"


def table() -> str:
    """All laws as Markdown, with a table for each subject."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for module in SUBJECTS:
        subject = module.__name__.rpartition(".")[2]
        laws = [law for law in LAWS.values() if law.subject == subject]
        title, _, rest = (module.__doc__ or subject).strip().splitlines()[0].partition(": ")
        yield from (f"### {title}", "", f"{rest[:1].upper()}{rest[1:]}", "")
        yield from ("| law | check | when |", "| --- | --- | --- |")
        yield from (f"| {_cell(law.sentence)} | `{law.name}` | {_when(law)} |" for law in laws)
        yield ""


def _when(law: Law) -> str:
    """The law's first profile, its trait, and whether it runs in its own process."""
    words = [f"from {law.profiles[0]} on"] if law.profiles[0] != "smoke" else ["always"]
    words += [f"trait `{law.trait.name}`"] if law.trait else []
    words += ["in its own process"] if law.time_limit is not None else []
    return ", ".join(words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def renewed(page: str) -> str:
    """The page with its generated part updated.

    Raises:
        ValueError: the page does not have both marks.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/contract.md must have the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{table()}\n{END}{tail}"


def main() -> None:
    """Write the page, or with ``--check`` exit with status 1 if it is out of date."""
    old = PAGE.read_text(encoding="utf-8")
    new = renewed(old)
    if old == new:
        print(f"{PAGE.name} is up to date: {len(LAWS)} laws")
    elif "--check" in sys.argv[1:]:
        raise SystemExit(f"{PAGE.name} is out of date: run python -m rnn_conformance.laws.page")
    else:
        write_whole(PAGE, new)
        print(f"wrote {PAGE.name}: {len(LAWS)} laws")


if __name__ == "__main__":
    main()
