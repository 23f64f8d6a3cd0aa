"""Mutation testing of core's smallest files: `make mutants`, or `python tools/mutants.py FILE... [--minutes 20]`.

cosmic-ray makes the mutants (an operator, a constant or a condition changed in one place). This script runs them: a
process that imports torch once and forks for each mutant needs a quarter of the time of new processes. A mutant is
killed if a test fails, crashes or takes too long. A survivor needs a test, or a reason in `tools/mutants.toml`. Results
are saved in `.mutants/`, so that an interrupted run can continue; a survivor without a reason is tried again, because
the tests may have changed. The mutants run in a random order fixed by a seed, with the files in turn, so that a limited
run is a sample.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutants"
TREE = KEPT / "tree"
EXPLAINED = ROOT / "tools" / "mutants.toml"
FOLDERS = ("core", "plugins", "conformance", "asv_benchmarks")
SECONDS = 180
"""A mutant that runs longer counts as killed: an endless loop is a failure too."""
TESTS = {
    "resets": ("resets", "module", "layout", "lstm", "calls", "sharing"),
    "stack": ("lstm", "dropout", "resets", "module", "calls", "transforms"),
    "unroll": ("lstm", "unroll", "dropout", "resets", "module", "transforms"),
    "layout": ("layout", "module", "bad_input", "bad_tensors", "calls", "writes"),
    "mode": ("mode", "module"),
}
"""The test files of each file of core, the one most likely to fail first."""
QUICK = "not compile and not inductor and not script"
"""Tests that compile take too long for hundreds of mutants. Core's code is the same for every backend."""
TRACED = {"mode": ("mode_compiled", "mode")}
"""Files with code that only a trace runs: the test files that run in full, also what compiles, if the others pass."""


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file.

    Attributes:
        file: the file's name without its suffix.
        line: its number.
        before: the original line.
        after: the line of the mutant.
        code: the whole file's text.
    """

    file: str
    line: int
    before: str
    after: str
    code: str

    @property
    def key(self) -> str:
        """A key that is the same for the same mutant of the same function, class or other top-level statement."""
        return hashlib.sha256(f"{self.file}\n{_statement(self.code, self.line)}".encode()).hexdigest()[:16]


def _statement(code: str, line: int) -> str:
    """The text of the top-level statement that this line is in, with its decorators."""
    nodes = ast.parse(code).body
    begins = [min(n.lineno for n in (node, *getattr(node, "decorator_list", ()))) for node in nodes]
    begin = max(number for number in (1, *begins) if number <= line)
    ends = [node.end_lineno for number, node in zip(begins, nodes, strict=True) if number == begin]
    return "\n".join(code.splitlines()[begin - 1 : ends[0] if ends else line])


class _WithoutAnnotations(ast.NodeTransformer):
    """A program's tree without annotations and docstrings: mutants that differ only there are no mutants."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def program(code: str) -> str:
    """The text of the program's tree without annotations and docstrings."""
    return ast.dump(_WithoutAnnotations().visit(ast.parse(code)))


def mutants(file: str) -> Iterator[Mutant]:
    """All mutants of a file of core that differ as programs."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / "core" / "rnn_backends" / f"{file}.py").read_text()
    seen = {program(source)}
    tree = get_ast(source)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        places = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
        for occurrence in range(places):
            code = mutate_code(source, operator, occurrence)
            try:
                tree_of_mutant = program(code)
            except SyntaxError:
                continue  # not a valid program
            if tree_of_mutant not in seen:
                seen.add(tree_of_mutant)
                yield Mutant(file, *_changed(source, code), code)


def _changed(source: str, code: str) -> tuple[int, str, str]:
    """Number and text of the first line that differs."""
    changes = list(unified_diff(source.splitlines(), code.splitlines(), n=0, lineterm=""))[2:]
    number = int(changes[0].split()[1].split(",")[0][1:])
    gone = " ".join(line[1:].strip() for line in changes if line.startswith("-"))
    new = " ".join(line[1:].strip() for line in changes if line.startswith("+"))
    return number, gone, new


def run(mutant: Mutant) -> str:
    """``"killed"``, ``"too slow"`` or ``"survived"``."""
    target = TREE / "core" / "rnn_backends" / f"{mutant.file}.py"
    original = target.read_text()
    target.write_text(mutant.code)
    try:
        pid = os.fork()
        if pid == 0:
            _child(
                [(name, QUICK) for name in TESTS[mutant.file]] + [(name, "") for name in TRACED.get(mutant.file, ())]
            )
        return _verdict(pid)
    finally:
        target.write_text(original)


def _child(tests: Sequence[tuple[str, str]]) -> None:
    """Run the test files, each with its ``-k``, in this forked process and exit."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.chdir(TREE)
    import pytest

    for name, chosen in tests:
        failed = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", chosen, f"core/tests/test_{name}.py"]))
        if failed:
            os._exit(failed)
    os._exit(0)


def _verdict(pid: int) -> str:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too slow"


def prepare() -> None:
    """Copy the tree to mutate, and import the modules that every mutant needs."""
    shutil.rmtree(TREE, ignore_errors=True)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(TREE / folder) for folder in FOLDERS]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(sys.path[: len(FOLDERS)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # no test here needs a plugin, and they take half a second to load
    }
    import pytest
    import tensordict.nn  # noqa: F401
    import torch._dynamo
    import torch.func  # noqa: F401

    assert "rnn_backends" not in sys.modules, "each mutant must import core again"
    print(f"mutating {TREE}; pytest {pytest.__version__}", flush=True)


def results(file: str) -> dict[str, str]:
    """The verdicts of earlier runs by key."""
    path = KEPT / f"{file}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["key"]: row["verdict"] for row in rows}


def explained() -> dict[tuple[str, str, str], str]:
    """The reasons by (file, before, after); a row may list several lines ``after``."""
    rows = tomllib.loads(EXPLAINED.read_text()).get("equivalent", [])
    return {
        (row["file"], row["before"], after): row["reason"]
        for row in rows
        for after in ([row["after"]] if isinstance(row["after"], str) else row["after"])
    }


def sample(files: Sequence[str], seed: int) -> list[Mutant]:
    """All mutants, in a random order fixed by the seed, the files in turn."""
    return by_turns({file: mutants(file) for file in files}, seed)


def by_turns(found: Mapping[str, Iterable[T]], seed: int) -> list[T]:
    """The mutants by name, shuffled by the seed and the name, one of each name in turn."""
    queues = {name: list(of) for name, of in found.items()}
    for name, queue in queues.items():
        random.Random(f"{seed} {name}").shuffle(queue)
    return [queue[k] for k in range(max(map(len, queues.values()))) for queue in queues.values() if k < len(queue)]


def run_all(todo: Sequence[Mutant], minutes: float) -> list[tuple[Mutant, str]]:
    """Run the mutants that have no verdict yet until the time is up; all that have one."""
    files = list(dict.fromkeys(mutant.file for mutant in todo))
    known = {key: verdict for file in files for key, verdict in results(file).items()}
    reasons = explained()
    for mutant in todo:
        if known.get(mutant.key) == "survived" and (mutant.file, mutant.before, mutant.after) not in reasons:
            del known[mutant.key]
    verdicts = [(mutant, known[mutant.key]) for mutant in todo if mutant.key in known]
    print(f"{len(todo)} mutants of {', '.join(files)}; {len(verdicts)} have a verdict", flush=True)
    end, sound = time.monotonic() + 60 * minutes, set()
    for number, mutant in enumerate(todo, 1):
        if mutant.key in known:
            continue
        if time.monotonic() > end:
            break
        if mutant.file not in sound:
            whole = Mutant(mutant.file, 0, "", "", (TREE / "core" / "rnn_backends" / f"{mutant.file}.py").read_text())
            if run(whole) != "survived":
                raise SystemExit(f"the tests of {mutant.file} fail without a mutant: {', '.join(TESTS[mutant.file])}")
            sound.add(mutant.file)
        began = time.monotonic()
        verdict = run(mutant)
        verdicts.append((mutant, verdict))
        row = {"key": mutant.key, "verdict": verdict, **asdict(mutant)}
        del row["code"]
        with (KEPT / f"{mutant.file}.jsonl").open("a") as kept:
            kept.write(json.dumps(row) + "\n")
        took, left = time.monotonic() - began, max(0.0, end - time.monotonic()) / 60
        where = f"{mutant.file}.py:{mutant.line}"
        print(f"[{number} of {len(todo)}, {left:.0f} min left] {where} {verdict}, {took:.1f} s", flush=True)
    return verdicts


def report(file: str, number: int, verdicts: list[tuple[Mutant, str]]) -> bool:
    """Print a file's figures and its survivors; return whether each survivor is explained."""
    reasons, good = explained(), True
    counts = Counter(verdict for _, verdict in verdicts)
    survivors = [mutant for mutant, verdict in verdicts if verdict == "survived"]
    told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    print(f"== {file}: {number} mutants, {len(verdicts)} tried: {told}")
    for mutant in survivors:
        reason = reasons.get((mutant.file, mutant.before, mutant.after))
        good = good and reason is not None
        print(f"  {mutant.file}.py:{mutant.line}\n    - {mutant.before}\n    + {mutant.after}")
        print(f"    {reason or 'no test fails'}")
    return good


def main() -> int:
    """Run; return 1 if a survivor has no reason."""
    options = argparse.ArgumentParser(description="Mutation testing of core.")
    options.add_argument("files", nargs="*", choices=[*TESTS, []], help="default: all")
    options.add_argument("--fresh", action="store_true", help="forget the verdicts of earlier runs")
    options.add_argument("--minutes", "--budget", type=float, default=600, help="budget (600); a later run continues")
    options.add_argument("--most", type=int, default=10**6, help="no more mutants than that, of a random sample")
    options.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    options.add_argument("--list", action="store_true", help="print the mutants without running them")
    given = options.parse_args()
    files = given.files or list(TESTS)
    found = sample(files, given.seed)
    if given.list:
        for mutant in found[: given.most]:
            print(f"{mutant.file}.py:{mutant.line}: {mutant.before}  ->  {mutant.after}")
        return 0
    KEPT.mkdir(exist_ok=True)
    if given.fresh:
        for file in files:
            (KEPT / f"{file}.jsonl").unlink(missing_ok=True)
    prepare()
    verdicts, numbers = run_all(found[: given.most], given.minutes), Counter(mutant.file for mutant in found)
    good = [report(file, numbers[file], [row for row in verdicts if row[0].file == file]) for file in files]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
