"""Defects that are planted twice: their sources are equal apart from local names and docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

MODULES = frozenset({"binding", "core", "execution", "layout", "mode", "modes", "nets", "registry"})
"""Names of modules of core: ``modes._stack`` and an imported ``_stack`` are the same."""


class _Normal(ast.NodeTransformer):
    """Numbers in place of local names; no annotations, decorators and docstrings."""

    def __init__(self, local: set[str]) -> None:
        self._local = local
        self._numbers: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return self._numbers.setdefault(name, f"_{len(self._numbers)}") if name in self._local else name

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._number(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._number(node.arg))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns, node.decorator_list = self._number(node.name), None, []
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self._number(node.name)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return self.visit(ast.Assign([node.target], node.value)) if node.value else None

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in MODULES:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


def _local_names(function: ast.FunctionDef) -> Iterable[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def normal(source: str) -> dict[str, str]:
    """For every decorated function of a file: its source in normal form."""
    decorated = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.decorator_list]
    forms = {}
    for function in decorated:
        name = function.name
        tree = _Normal(set(_local_names(function))).visit(function)
        forms[name] = ast.unparse(ast.fix_missing_locations(tree))
    return forms


def doubles(folder: Path) -> list[list[str]]:
    """Names of the defects in a folder with equal sources, apart from local names, annotations and docstrings."""
    names: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.py")):
        for name, form in normal(file.read_text()).items():
            names.setdefault(form, []).append(name)
    return [same for same in names.values() if len(same) > 1]
