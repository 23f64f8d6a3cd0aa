"""Plain words: the pages, docstrings, comments and messages of the repository avoid the expressions listed here."""

import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    r"\banew\b": "again",
    r"\b(go|goes|going|went) by (?!position|name)": "use, follow",
    r"\bby turns\b": "in turn",
    r"\bwhoever\b": "a caller that, a process that",
    r"\bmend(s|ed|ing)?\b": "correct",
    r"\bnobody (looks|asks|knows)\b": "it is not checked, it is not known",
    r"\b(set|kept|a little) aside\b": "declined, changed",
    r"\b(asks?|asked|asking) for\b": "request, require",
    r"\btold (by|apart)\b": "distinguished",
    r"(?<!let )\bso many\b": "this many, the number of",
    r"\bfrom then on\b": "afterwards",
    r"\bwithout a word\b|\bin silence\b": "silently",
    r"\b(refused|rejected|declined|errors?|raised) in words\b": "with a message, with a reason",
    r"\b(one|a) (bar|call|file|letter|line|name|operator|process|subject|test) an? [a-z]+\b": "one ... per ...",
    r"(?<!## )(?<!\| )\bwhat (is|are|was|were) (?!wrong \|)": "a noun before its clause: the values that ...",
    r"(?<!## )\bwhat it (is|was|does|did|has|had|makes|took|needs)\b": "a noun: its kind, its behaviour, its needs",
    r"\b(does|did|do) what\b": "a noun before its clause",
}
"""Expressions to avoid, and standard English for the same."""

FOLDERS = ("asv_benchmarks", "conformance", "core", "docs", "examples", "plugins", "tools")
SUFFIXES = {".md", ".py", ".cpp", ".h"}
ELSEWHERE = (
    "core/tests/test_words.py",
    "docs/generated/",
    "CHANGELOG.md",
    "asv_benchmarks/vendor/",
)
"""Beginnings of the paths of files that are not searched."""


@cache
def prose():
    """``(file, line, text)`` of each line of a page, and of each comment and string of a program."""
    files = [ROOT / "Makefile", ROOT / "hatch_build.py", *ROOT.glob("*.md")]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found = []
    for name in sorted(path.relative_to(ROOT).as_posix() for path in files):
        if not name.startswith(ELSEWHERE):
            found += [(name, *line) for line in lines(name, (ROOT / name).read_text(encoding="utf-8"))]
    return found


def lines(name, text):
    """``(line, text)`` of one file."""
    if name.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                yield from enumerate(token.string.splitlines(), token.start[0])
    elif name.endswith((".cpp", ".h")):
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.partition("//")[2]
    else:
        yield from enumerate(text.splitlines(), 1)


@pytest.mark.parametrize(("avoided", "instead"), INSTEAD.items(), ids=INSTEAD.values())
def test_plain_words(avoided, instead):
    pattern = re.compile(avoided, re.IGNORECASE)
    found = [f"{name}:{number}: {text.strip()}" for name, number, text in prose() if pattern.search(text)]
    assert not found, f"write it plainly ({instead}):\n" + "\n".join(found)


def test_the_search_covers_pages_docstrings_comments_and_messages():
    python = 'def f():\n    """One."""\n    raise ValueError("two")  # three\n'
    assert [text for _, text in lines("a.py", python)] == ['"""One."""', '"two"', "# three"]
    assert [text for _, text in lines("a.cpp", "int a; // four")] == [" four"]
    assert list(lines("a.md", "# Five\n\nsix")) == [(1, "# Five"), (2, ""), (3, "six")]
    assert {Path(name).suffix for name, _, _ in prose()} == {*SUFFIXES, ""}
