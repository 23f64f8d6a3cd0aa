"""A griffe extension: the docstrings' roles (:class:`~a.b.C`) become links of the documentation site.

Python's own help and editors show roles, so the docstrings keep them. Names of other projects become code, because
their inventories would have to be downloaded.
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


def _own(parent: griffe.Module) -> list[griffe.Object]:
    """The members that are defined in the module, not imported."""
    return [member for member in parent.members.values() if not member.is_alias]


def _as_function(attribute: griffe.Attribute, method: griffe.Function) -> griffe.Function:
    parameters = griffe.Parameters(*(parameter for parameter in method.parameters if parameter.name != "self"))
    return griffe.Function(
        attribute.name,
        parameters=parameters,
        returns=method.returns,
        docstring=method.docstring,
        parent=attribute.parent,
    )


class Roles(griffe.Extension):
    """Rewrites the docstrings of every loaded object, and shows functions that are bound methods as functions."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """For `names = _registry.names` in a module, document the method under the module's name."""
        for module in _own(pkg):
            if not module.is_module:
                continue
            known = {member.name: member for member in _own(module)}
            for attribute in [member for member in known.values() if member.is_attribute]:
                owner, _dot, method = str(attribute.value or "").partition(".")
                kind = str(known[owner].value).removesuffix("()") if owner in known and method else ""
                if kind in known and method in known[kind].members:
                    module.set_member(attribute.name, _as_function(attribute, known[kind].members[method]))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring, as soon as griffe has read the object."""
        if obj.docstring:
            obj.docstring.value = with_links(obj.docstring.value)
