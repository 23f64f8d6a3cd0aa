"""docs/troubleshooting.md quotes error messages: each quote is in the sources, and each error of core is quoted."""

import ast
import re
from pathlib import Path

import pytest
import rnn_backends

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = [Path(rnn_backends.__file__).parent, ROOT / "plugins" / "rnn_backends_plugins"]
ERRORS = {"InputError", "MissingKeyError", "ContractError", "BrokenBackendError", "UnknownBackendError"}
ANY = "…"
"""The part that differs from message to message: a value in a source, the same sign on the page."""


def text_of(node):
    """A string expression as text, with ``…`` for every part that is not constant; ``None`` if it is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(v) or ANY for v in node.values)
    return None


def texts(folder):
    """All strings of the sources in a folder, with their places."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = text_of(node)
            if text:
                found[text] = f"{path.name}:{node.lineno}"
    return found


def raised(folder):
    """The messages of the errors that the files of a folder raise with a literal message."""
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS):
                continue
            text = text_of(node.args[0]) if node.args else None
            if text and text != ANY:
                yield text, f"{path.name}:{node.lineno}"


def fixed_parts(text):
    return [part for part in re.split(r"…|\s*\n\s*", text) if len(part.strip()) > 2]


def is_quote_of(quote, message):
    """Whether the fixed parts of a quote follow each other in a message."""
    at = 0
    for part in fixed_parts(quote):
        at = message.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


KNOWN = [text for folder in SOURCES for text in texts(folder)]
QUOTES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def test_the_page_quotes_messages():
    assert len(QUOTES) > 40
    assert all(fixed_parts(quote) for quote in QUOTES)


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_in_the_sources(quote):
    assert any(is_quote_of(quote, text) for text in KNOWN), "no source raises it: correct docs/troubleshooting.md"


@pytest.mark.parametrize(("message", "place"), sorted(set(raised(SOURCES[0]))))
def test_every_error_of_core_is_on_the_page(message, place):
    assert any(is_quote_of(quote, message) for quote in QUOTES), (
        f"core/rnn_backends/{place} raises it and docs/troubleshooting.md has no row for it"
    )


def test_a_message_that_changed_is_noticed():
    assert is_quote_of("… must have shape …", "h_0 must have shape (1, 2), got 3")
    assert not is_quote_of("… must have size …", "h_0 must have shape (1, 2), got 3")
