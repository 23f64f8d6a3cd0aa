"""Mutants of C++ sources, for `tools/mutants_suite.py`: one token changed, or a statement deleted.

Tokens are found by regular expressions, line by line, outside of comments, text, types and the preprocessor. Tools that
parse C++ (mull, dextool) need the libraries of one version of the compiler, and are not Python packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Change(NamedTuple):
    """One changed line: its kind, its number from 1, the line before and after, and the whole text."""

    kind: str
    line: int
    before: str
    after: str
    text: str


SWAPS = (
    ("comparison", r"(?<= )<(?= )", ("<=",)), ("comparison", r"(?<= )<=(?= )", ("<",)),
    ("comparison", r"(?<= )>(?= )", (">=",)), ("comparison", r"(?<= )==(?= )", ("!=",)),
    ("comparison", r"(?<= )!=(?= )", ("==",)), ("operator", r"(?<= )\+(?= )", ("-",)),
    ("operator", r"(?<= )-(?= )", ("+",)), ("operator", r"(?<=[\w)\]] )\*(?= )", ("+",)),
    ("operator", r"(?<= )/(?= )", ("*",)), ("operator", r"(?<= )\+=(?= )", ("=", "-=")),
    ("condition", r"&&", ("||",)), ("condition", r"\|\|", ("&&",)), ("condition", r"(?<=[(\s])!(?=\w)", ("",)),
    ("condition", r"\bif \((?!constexpr)", ("if (!",)), ("function", r"\bstd::min\b", ("std::max",)),
    ("function", r"\bstd::max\b", ("std::min",)), ("function", r"\bsigmoid\(", ("tanh(",)),
    ("index", r"(?<=\[)0(?=\])", ("1",)), ("index", r"(?<=\[)1(?=\])", ("0",)), ("index", r"(?<=\[)2(?=\])", ("3",)),
)  # fmt: skip
"""A kind of change, the pattern to find, and its replacements."""
NUMBER = re.compile(r"(?<![\w.<\[])(\d+)(?![\w.>\]])")
LEFT_OUT = re.compile(
    r"^\s*(?!const|constexpr|auto|using|template|struct|return|int|int64_t|static|#|S\b|Vec|View|Run|Sums)\S.*;$"
)
NOT_CODE = re.compile(r"^\s*(//|#|template|using|static_assert|throw|const char)")


def changes(source: str) -> Iterator[Change]:
    """All changes of a file's text, each at one position of one line."""
    lines = source.splitlines()
    for number, line in enumerate(lines):
        code = line.split("//")[0].rstrip()
        if not code.strip() or NOT_CODE.match(code) or '"' in code:
            continue
        for kind, new in _of_line(code):
            text = "\n".join([*lines[:number], new, *lines[number + 1 :]]) + "\n"
            yield Change(kind, number + 1, code.strip(), new.strip() or "(left out)", text)


def _of_line(code: str) -> Iterator[tuple[str, str]]:
    for kind, pattern, others in SWAPS:
        for found in re.finditer(pattern, code):
            for other in others:
                closing = _closed(code, found.end()) if other == "if (!" else None
                if closing is not None:
                    inner = code[found.end() : closing]
                    yield kind, f"{code[: found.start()]}if (!({inner})){code[closing + 1 :]}"
                elif other != "if (!":
                    yield kind, code[: found.start()] + other + code[found.end() :]
    for found in NUMBER.finditer(code):
        value = int(found[1])
        for other in {value + 1, max(value - 1, 0)} - {value}:
            yield "off by one", code[: found.start()] + str(other) + code[found.end() :]
    if LEFT_OUT.match(code) and code.count("(") == code.count(")") and code.count("{") == code.count("}"):
        yield "line left out", re.match(r"\s*", code)[0] + ";"  # type: ignore[index]


def _closed(code: str, begin: int) -> int | None:
    """The position on this line that closes the bracket opened before ``begin``."""
    depth = 1
    for at in range(begin, len(code)):
        depth += (code[at] == "(") - (code[at] == ")")
        if not depth:
            return at
    return None
