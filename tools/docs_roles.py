"""A griffe extension: the docstrings' roles (:class:`~a.b.C`) become links of the documentation site.

Python's own help and editors read roles as they stand, so the docstrings keep them. Names of other projects become
code: their inventories would have to be fetched from the network.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc):`(~?)([\w.]+)`")
OURS = ("rnn_backends", "rnn_conformance", "rnn_benchmarks")


def with_links(text: str) -> str:
    """Replace every role by a link, or by code where the name belongs to another project."""

    def link(role: re.Match[str]) -> str:
        short, name = role.groups()
        first = name.split(".")[0]
        shown = name.rsplit(".", 1)[-1] if short else name
        if not first or ("." in name and first not in OURS and first.islower()):
            return f"`{shown}`"
        return f"[`{shown}`][{name}]"

    return ROLE.sub(link, text)


class Roles(griffe.Extension):
    """Rewrites the docstrings of every loaded object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring, as soon as griffe has read the object."""
        if obj.docstring:
            obj.docstring.value = with_links(obj.docstring.value)
