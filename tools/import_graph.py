"""The imports between the modules of this repository: units, layers, edges and cycles.

A *unit* is a folder of a package, or a module next to the package's ``__init__.py``. Every import counts, also those
within functions, except those under ``if TYPE_CHECKING``. ``python tools/import_graph.py`` prints the figures.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "rnn_backends": ROOT / "core",
    "rnn_backends_plugins": ROOT / "plugins",
    "rnn_benchmarks": ROOT / "asv_benchmarks",
    "rnn_conformance": ROOT / "conformance",
}


class Import(NamedTuple):
    """One import: the importing module, the imported module or outside package, and the line."""

    importer: str
    imported: str
    line: int


def modules(package: str, home: Path | None = None) -> dict[str, Path]:
    """The files of a package by dotted name."""
    home = home or PACKAGES[package]
    found = {}
    for path in sorted((home / package).rglob("*.py")):
        name = ".".join(path.relative_to(home).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """The imports of one module, without type-checking ones; relative names are made absolute."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(name, inner if inner in known else base, node.lineno)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _nodes(child)


def all_imports() -> list[Import]:
    """Every import of every module of the repository."""
    known = {name: path for package in PACKAGES for name, path in modules(package).items()}
    return [found for name, path in known.items() for found in imports(name, path, known)]


def unit(name: str) -> str:
    """The unit of a module: ``rnn_conformance.suite`` or, next to the ``__init__``, ``rnn_conformance.check``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else f"{name}.__init__"


def edges(package: str, by_unit: bool, home: Path | None = None) -> dict[str, set[str]]:
    """The imports within a package, by module or by unit."""
    known = modules(package, home)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph.setdefault(unit(name) if by_unit else name, set())
        for found in imports(name, path, known):
            if found.imported in known and found.imported != package:
                one, other = (unit(name), unit(found.imported)) if by_unit else (name, found.imported)
                if one != other:
                    graph.setdefault(one, set()).add(other)
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in graph.get(node, ()):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def layers(graph: dict[str, set[str]]) -> int:
    """The number of nodes on the longest path, in a graph without cycles."""
    depth: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in depth:
            depth[node] = 0  # with a cycle the result means little, but the recursion ends
            depth[node] = 1 + max(map(of, graph.get(node, ())), default=0)
        return depth[node]

    return max(map(of, graph), default=0)


def main(home: Path | None = None) -> None:
    """Print the figures of every package."""
    print(f"{'package':22}{'modules':>8}{'units':>7}{'layers':>8}{'edges':>8}{'cycles':>9}{'of modules':>12}")
    for package in PACKAGES:
        if not ((home or PACKAGES[package]) / package).is_dir():
            continue
        units, files = edges(package, True, home), edges(package, False, home)
        figures = (len(units), layers(units), sum(map(len, units.values())), len(cycles(units)), len(cycles(files)))
        print(f"{package:22}{len(modules(package, home)):>8}" + "{:>7}{:>8}{:>8}{:>9}{:>12}".format(*figures))
        for cycle in (*cycles(units), *cycles(files)):
            print(f"    cycle: {' <-> '.join(cycle)}")


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
