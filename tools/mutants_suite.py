"""Mutants against the suite: `make mutants-suite`, or `python tools/mutants_suite.py --minutes 30`.

A mutant is a change in one place of core, of a kernel written in Python, or of the sources of `cpp`
(`tools/cpp_mutants.py`): of an operator, a constant, a condition or an index, swapped arguments, or a dropped line. The
laws of the profile `quick` run over each in a forked process until one fails: those that kill most in a second first,
and some of them first over few cases. A mutant of core that survives `quick` meets the laws of `full` that compile, and
counts separately if one of them kills it. Results are stored in `.mutants/suite.jsonl`, one line each, so that a
stopped run can continue. A survivor is equivalent, for a reason in `tools/mutants_suite.toml`, or shows a gap of the
laws. Another `--seed` is another sample: it leaves out the mutants that are listed in
`tools/mutants_suite_samples.toml`, where a sample is added when the laws are changed for its survivors.

C++ is compiled with `-O1`, which takes half the time of `-O3`, and with a trap at every index outside of an array
(`-fsanitize=bounds`). A survivor of the first laws runs under AddressSanitizer as well (`make sanitize`).

The mutants are made here: cosmic-ray (`tools/mutants.py`) drops no lines and swaps no arguments, and it changes files,
so that each mutant imports everything again; here a fork replaces the code of one module's functions.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import cpp_mutants
from mutants import by_turns

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutants" / "suite.jsonl"
EXPLAINED = ROOT / "tools" / "mutants_suite.toml"
SAMPLES = ROOT / "tools" / "mutants_suite_samples.toml"
PAGE = ROOT / "docs" / "generated" / "mutants.md"
TARGETS = {
    "unroll": ("core/rnn_backends/unroll.py", "rnn_backends.unroll"),
    "stack": ("core/rnn_backends/stack.py", "rnn_backends.stack"),
    "resets": ("core/rnn_backends/resets.py", "rnn_backends.resets"),
    "layout": ("core/rnn_backends/layout.py", "rnn_backends.layout"),
    "module": ("core/rnn_backends/module.py", "rnn_backends.module"),
    "mode": ("core/rnn_backends/mode.py", "rnn_backends.mode"),
    "tiled": ("conformance/rnn_conformance/defects/tiled.py", "rnn_conformance.defects.tiled"),
    "blocks": (
        "conformance/rnn_conformance/defects/hand_written_blocks.py",
        "rnn_conformance.defects.hand_written_blocks",
    ),
    "cpp": ("plugins/rnn_backends_plugins/cpp", "rnn_backends_plugins.cpp"),
}
"""The targets: core under `vmap`, a tiled kernel, one with a backward pass written by hand, C++ of `cpp`."""
SECONDS = 600.0
"""Of one mutant; one that is not done then is unfinished, and a later run takes it up again."""
LAW_SECONDS = 90
SOUND = KEPT.with_name("sound.txt")
"""Which targets the laws have held for, as they are: one a line, with the seed and a sum of the sources."""
FIRST = 24
"""The laws that kill most in a second run over few cases, before all run over those of `quick`."""
COMPILE = ("transforms", "nesting", "tracing", "compiled", "recompiling")
"""Subjects whose laws of `full` with a process of their own run at last over a mutant of core: most of them compile."""
TRACED = ("scripted_saved_and_loaded", "compiled_in_one_graph", "exported")
"""Laws that see how a mutant was installed: they read sources and code."""
INDUCTORS = ("inductor_in_one_graph", "a_compiled_result_outlives_the_next_call", "a_compiled_module_follows_its_mode")
"""Laws that are left out: minutes of Inductor, which is behind core; others see the same trace."""
CONCERNS = {
    "module": ("keys", "recurrent", "nets", "modes", "rollouts"),
    "layout": ("keys", "recurrent", "refusals"),
    "mode": ("modes", "threads"),
    "resets": ("resets", "stepping"),
    "blocks": ("gradients", "transforms"),
}
"""Subjects of laws that are likely to kill mutants of a target: they come before others as long as little is known."""
KERNELS = ("tiled", "blocks", "cpp")
CPP_FLAGS = ("-O1", "-fsanitize=bounds", "-fsanitize-undefined-trap-on-error")
"""In the place of ``-O3``."""
SANITIZE = "make sanitize"
LOADED = "(as it is loaded)"
"""In the place of a law, where a mutant's process ends before the first one."""
WATCHED_CASES = 25
"""Of `make sanitize`, for a mutant of C++ that the first laws did not kill over few cases."""
DIED = ("killed", "crashed", "endless")


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Attributes:
        target: a key of :data:`TARGETS`.
        kind: of the change.
        line: its number.
        before: the original innermost statement, in one line.
        after: the same as the mutant has it.
        code: the whole file's text.
        file: its name, of a target of several files.
        within: the text of the function or method that was changed, of a target in Python.
    """

    target: str
    kind: str
    line: int
    before: str
    after: str
    code: str
    file: str = ""
    within: str = ""

    @property
    def key(self) -> str:
        """The same for the same mutant of a function, method or C++ file, even if comments or docstrings change."""
        code = re.sub(r" *//.*", "", self.code) if self.file else self.within or self.code
        return hashlib.sha256(f"{self.target}\n{code}".encode()).hexdigest()[:12]


Found = tuple[str, str, str] | None
"""A verdict, the law that gave it and its message; ``None``: no law failed."""
Judge = Callable[[Callable[[str], None]], Found]

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


Change = tuple[str, ast.AST]
"""A kind of change, and a replacement of a node."""


def changes(node: ast.AST) -> list[Change]:
    """The replacements of a node."""
    made = CHANGES.get(type(node))
    return list(made(node)) if made else []


def _comparison(node: Any) -> Iterator[Change]:
    if len(node.ops) == 1:
        yield "comparison", ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)


def _operator(node: Any) -> Iterator[Change]:
    if type(node.op) in OPERATORS:
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)


def _and_or(node: Any) -> Iterator[Change]:
    yield "condition", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)


def _sign(node: Any) -> Iterator[Change]:
    yield "sign", node.operand


def _constant(node: Any) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield "off by one", ast.Constant(node.value + 1)
        yield "off by one", ast.Constant(node.value - 1)


def _choice(node: Any) -> Iterator[Change]:
    yield "condition", node.body
    yield "condition", node.orelse


def _slice(node: Any) -> Iterator[Change]:
    if node.lower is not None:
        yield "index", ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield "index", ast.Slice(node.lower, None, node.step)


def _arguments(node: Any) -> Iterator[Change]:
    if len(node.args) > 1 and not any(isinstance(value, ast.Starred) for value in node.args):
        first, second, *others = node.args
        yield "arguments swapped", ast.Call(node.func, [second, first, *others], node.keywords)


def _if(node: Any) -> Iterator[Change]:
    yield "condition", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    yield "line left out", ast.Pass()


def _left_out(node: Any) -> Iterator[Change]:
    yield "line left out", ast.Pass()


CHANGES: dict[type[ast.AST], Callable[[Any], Iterator[Change]]] = {
    ast.Compare: _comparison, ast.BinOp: _operator, ast.BoolOp: _and_or, ast.UnaryOp: _sign, ast.Constant: _constant,
    ast.IfExp: _choice, ast.Slice: _slice, ast.Call: _arguments, ast.If: _if, ast.AugAssign: _left_out,
    ast.Expr: _left_out, ast.Assign: _left_out,
}  # fmt: skip


def mutants(target: str) -> Iterator[Mutant]:
    """All mutants of a target that are different programs."""
    if target == "cpp":
        yield from _cpp_mutants()
        return
    tree = _without_docstrings((ROOT / TARGETS[target][0]).read_text())
    texts = [ast.unparse(part) for part in tree.body]
    seen = {ast.dump(part) for part in tree.body}
    number_of = {id(node): number for number, part in enumerate(tree.body) for node in ast.walk(part)}
    method_of = {id(node): method for _, method in _methods(tree) for node in ast.walk(method)}
    for node, statement, parent, field, index in list(_places(tree)):
        number = number_of[id(statement)]
        part = tree.body[number]
        before, line = ast.unparse(statement), int(getattr(node, "lineno", statement.lineno))
        for kind, new in changes(node):
            _put(parent, field, index, new)
            if (dump := ast.dump(part)) not in seen:
                seen.add(dump)
                after = ast.unparse(new if node is statement else statement)
                code = "\n".join([*texts[:number], ast.unparse(part), *texts[number + 1 :]])
                within = ast.unparse(method_of.get(id(statement), part))
                if isinstance(part, ast.ClassDef):
                    within = f"{part.name}: {within}"
                yield Mutant(target, kind, line, _short(before), _short(after), code, within=within)
            _put(parent, field, index, node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [child for child in node.body if not _is_docstring(child)] or [ast.Pass()]
    return tree


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _cpp_mutants() -> Iterator[Mutant]:
    for file in sorted((ROOT / TARGETS["cpp"][0]).iterdir()):
        if file.suffix in (".h", ".cpp"):
            for change in cpp_mutants.changes(file.read_text()):
                yield Mutant("cpp", change.kind, change.line, change.before, change.after, change.text, file.name)


Place = tuple[ast.AST, ast.stmt, ast.AST, str, int | None]
"""A node, its innermost statement, and its position: its parent, the field, the index in a list."""


def _places(tree: ast.Module) -> Iterator[Place]:
    """Every node within a function, except annotations, decorators, docstrings and the messages of errors."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield from _below(function, None)


def _below(node: ast.AST, statement: ast.stmt | None) -> Iterator[Place]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list") or (
            field == "args" and isinstance(node, ast.FunctionDef)
        ):
            continue  # defaults are not part of a function's code
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_text(child):
                inner = child if isinstance(child, ast.stmt) else statement
                if inner is not None:
                    yield child, inner, node, field, index
                yield from _below(child, inner)


def _is_text(node: ast.AST) -> bool:
    """Messages of errors, docstrings; and imports, without which nothing runs."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _short(text: str) -> str:
    lines = text.splitlines()
    return lines[0] + (" ..." if len(lines) > 1 else "")


def installed(mutant: Mutant, folder: Path) -> None:
    """Replace the code of the target's functions in place, so that all references run the mutant: nothing is imported
    again.

    The code is in a file of the folder, because `torch.jit.script` reads a function's source.
    """
    name = TARGETS[mutant.target][1]
    if mutant.target == "cpp":
        raise ValueError("C++ is compiled: see compiled")
    file = importlib.import_module(name).__file__
    functions: list[FunctionType] = [
        function
        for function in gc.get_objects()
        if type(function) is FunctionType and function.__code__.co_filename == file
    ]
    tree = ast.parse(mutant.code)
    _keep_classes(tree, {f.__code__.co_qualname for f in functions if "__class__" in f.__code__.co_freevars})
    source = folder / Path(str(file)).name
    source.write_text(ast.unparse(tree))
    codes = _by_place(_codes(compile(source.read_text(), str(source), "exec")))
    places = {code: place for place, code in _by_place(function.__code__ for function in functions).items()}
    inlined = _decorated(tree, "only_inlined")
    for function in functions:
        new = codes.get(places[function.__code__])
        if new is not None and "<locals>" not in new.co_qualname:
            function.__code__ = new
            if new.co_qualname in inlined:
                from rnn_backends._torch import only_inlined

                only_inlined(function)  # it marks the code, and this is another one


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _by_place(codes: Iterable[CodeType]) -> dict[tuple[str, int], CodeType]:
    """Code objects by name, and by their order among those of one name: a property's functions share theirs."""
    found: dict[tuple[str, int], CodeType] = {}
    for code in sorted(set(codes), key=lambda code: code.co_firstlineno):
        order = sum(name == code.co_qualname for name, _ in found)
        found[code.co_qualname, order] = code
    return found


def _methods(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module and the methods of its classes, by their qualified names."""
    for part in tree.body:
        for inner in part.body if isinstance(part, ast.ClassDef) else [part]:
            if isinstance(inner, ast.FunctionDef):
                yield (f"{part.name}.{inner.name}" if isinstance(part, ast.ClassDef) else inner.name), inner


def _keep_classes(tree: ast.Module, names: set[str]) -> None:
    """Let methods that a mutant has robbed of their `super()` refer to their class still: a function takes no other
    code than one with the same cells."""
    for name, function in _methods(tree):
        if name in names:
            function.body.insert(0, ast.parse("if False:\n    __class__").body[0])


def _decorated(tree: ast.Module, decorator: str) -> set[str]:
    return {
        name
        for name, function in _methods(tree)
        if any(isinstance(found, ast.Name) and found.id == decorator for found in function.decorator_list)
    }


def compiled(mutant: Mutant | None, folder: Path) -> str | None:
    """Compile the sources of `cpp` with a mutant, for this process alone; return the reason if they do not compile."""
    from rnn_backends_plugins.cpp import build

    build.FLAGS = (*(flag for flag in build.FLAGS if flag != "-O3"), *CPP_FLAGS)
    sources = folder / "sources"
    shutil.copytree(build.SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    if mutant is not None:
        (sources / mutant.file).write_text(mutant.code)
    build.SOURCES = sources
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return build.why_not()


def watched(folder: Path) -> str | None:
    """The findings of the sanitizers, or of a comparison with the plain unroll, in the sources that were compiled
    last."""
    sys.path.append(str(ROOT / "plugins" / "tests"))
    sanitize = importlib.import_module("sanitize")
    sanitize.EXTRA = ("-O0", "-fsanitize=address,bounds", "-fno-sanitize-recover=all")  # a fifth of the time to compile
    made = sanitize.compile_watched(folder)
    if made is None:
        return None  # this compiler has no sanitizers
    done = sanitize.child(made, "--cases", str(WATCHED_CASES), "--seed", "0")
    if done.returncode == 0:
        return None
    told = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
    return told[0] if told else f"its process ended with status {done.returncode}"


def backend_of(target: str) -> Any:
    """The backend for a target. It is not registered, so that isolated laws fork this process."""
    from dataclasses import replace

    from rnn_backends import LSTMBackend, get_backend

    if target == "tiled":
        return importlib.import_module(TARGETS[target][1]).tiled()
    if target == "blocks":
        return LSTMBackend("blocks", importlib.import_module(TARGETS[target][1]).by_hand())
    return replace(get_backend("cpp" if target == "cpp" else "vmap"), name="mutant")


def laws_in_order(kills: Counter[str], target: str) -> list[str]:
    """The laws of `quick` over drawn cases that run in this process: those that kill most in a second first."""
    from rnn_conformance.laws.catalogue import LAWS

    slow = target == "tiled"  # its loops over tiles take a minute to trace
    fit = [
        name
        for name, law in LAWS.items()
        if law.belongs("quick") and law.drawn and law.time_limit is None and not (slow and law.costly and law.trait)
    ]

    def rate(name: str) -> float:  # what kills mutants of other targets says a little
        prior = 1.0 if LAWS[name].subject in CONCERNS.get(target, ()) else 0.1
        return (kills[f"{target} {name}"] + 0.1 * kills[name] + prior) / max(_costs.get(name, 1.0), 0.02)

    return sorted(fit, key=lambda name: -rate(name))


def laws_of_their_own(target: str, profile: str) -> list[str]:
    """The isolated laws: those of `quick`, or those only of `full` that test core."""
    from rnn_conformance.laws.catalogue import LAWS

    found = [name for name, law in LAWS.items() if law.time_limit is not None and law.drawn]
    if profile == "quick":
        return [name for name in found if LAWS[name].belongs("quick")]
    if target in KERNELS:
        return []
    found = [name for name in found if not LAWS[name].belongs("quick") and LAWS[name].subject in COMPILE]
    return sorted(set(found) - set(INDUCTORS), key=lambda name: _costs.get(name, 1.0))


_costs: dict[str, float] = {}
"""Seconds that each law takes over few cases of code that is right."""
COSTS = KEPT.with_name("costs.json")


def measure_laws(seed: int) -> None:
    """Measure the time of each law, once for a set of laws: it is stored for the next run. In a separate process,
    because some laws use threads, for which a later fork of this one would wait.
    """
    names = [*laws_in_order(Counter(), "unroll"), *laws_of_their_own("unroll", "full")]
    if not COSTS.exists() or json.loads(COSTS.read_text()).keys() != set(names):
        COSTS.parent.mkdir(exist_ok=True)
        pid = os.fork()
        if pid == 0:
            _measure(seed, names)
            os._exit(0)
        os.waitpid(pid, 0)
    _costs.update(json.loads(COSTS.read_text()))


def _measure(seed: int, names: Sequence[str]) -> None:
    from rnn_conformance.check import quiet_single_thread
    from rnn_conformance.laws.catalogue import LAWS
    from rnn_conformance.suite.runner import RunOptions, run_law

    options = RunOptions(backend_of("unroll"), "smoke", "cpu", seed, shrink=False)
    with quiet_single_thread():
        run_law(LAWS[names[0]], options)  # work done once per process is no law's cost
        run_law(LAWS["compiled_in_one_graph"], options)
        found = {name: run_law(LAWS[name], options).seconds for name in names}
    COSTS.write_text(json.dumps(found))


def _judged(target: str, laws: Sequence[str], profile: str, seed: int, tell: Callable[[str], None]) -> Found:
    """The verdict of the first law that fails in this process, which law it is, and its message."""
    from rnn_conformance.check import quiet_single_thread
    from rnn_conformance.laws.catalogue import LAWS
    from rnn_conformance.suite.runner import RunOptions, run_law

    options = RunOptions(backend_of(target), profile, "cpu", seed, shrink=False)
    with quiet_single_thread():
        for name in laws:
            tell(name)
            result = run_law(LAWS[name], options)
            if not result.ok:
                return ("crashed" if result.verdict == "crashed" else "killed"), name, result.message[:200]
    return None


def _child(mutant: Mutant | None, target: str, kills: Counter[str], seed: int, answer: Path, few: bool) -> None:
    """Run the laws; the file always has the running law, and at the end the verdict.

    Laws with a process of their own fork this one, which therefore runs no other itself: a fork waits for ever for the
    threads that a law before it has used.
    """
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)

    def say(verdict: str, law: str, message: str = "", profile: str = "quick") -> None:
        part = answer.with_suffix(".part")
        told = {"verdict": verdict, "law": law, "message": message, "profile": profile, "since": time.time()}
        part.write_text(json.dumps(told))
        part.rename(answer)

    say("runs", LOADED)
    try:
        reason = compiled(mutant, answer.parent) if target == "cpp" else None
        if target != "cpp" and mutant is not None:
            installed(mutant, answer.parent)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        say("uncompilable", "", reason[:200])
        return
    order = laws_in_order(kills, target)
    some, own = order[:FIRST], laws_of_their_own(target, "quick")
    stages: list[tuple[str, Sequence[str], bool]] = [("smoke", some, True), ("quick", order, True)]
    stages += [("quick", own, False), ("full", laws_of_their_own(target, "full"), False)]
    if few:
        stages = [("smoke", [*some, *(law for law in TRACED if law in order)], True)]
    for profile, laws, forks in stages:
        of = "full" if profile == "full" else "quick"
        # few cases of full's laws: over more of them they compile the same again
        judge = partial(_judged, target, laws, "smoke" if of == "full" else profile, seed)
        tell = partial(say, "runs", profile=of)
        found = _in_a_fork(judge, tell, answer) if forks else _answered(judge, tell, answer)
        if found is None and target == "cpp" and profile == "smoke":
            say("runs", SANITIZE)
            told = watched(answer.parent)
            found = None if told is None else ("killed", SANITIZE, told[:200])
        if found is not None:
            say(*found, of)
            return
    say("survived", "")


def _answered(judge: Judge, tell: Callable[[str], None], answer: Path) -> Found:
    try:
        return judge(tell)
    except BaseException as error:  # a mutant may raise anything
        return "crashed", json.loads(answer.read_text())["law"], f"{type(error).__name__}: {error}"[:200]


def _in_a_fork(judge: Judge, tell: Callable[[str], None], answer: Path) -> Found:
    """The result of the laws in a fork of this process; its end is a verdict too."""
    path = answer.with_name("found.json")
    path.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            path.write_text(json.dumps(_answered(judge, tell, answer)))
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not path.exists() or not (text := path.read_text()):
        return "crashed", json.loads(answer.read_text())["law"], f"its process ended with status {status}"
    read = json.loads(text)
    return None if read is None else (read[0], read[1], read[2])


def run_seeds(
    mutant: Mutant, kills: Counter[str], seeds: Sequence[int], seconds: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """A mutant's verdict by the cases of several seeds: the first seed that it outlives, or the first one."""
    said = []
    for seed in seeds:
        said.append(run(mutant, mutant.target, kills, seed, seconds))
        if len(seeds) > 1:
            tell(f"  seed {seed}: {said[-1]['verdict']} {said[-1]['law']}")
        if said[-1]["verdict"] not in DIED:
            break
    return next((one for one in said if one["verdict"] not in DIED), said[0])


def run(
    mutant: Mutant | None, target: str, kills: Counter[str], seed: int, seconds: float = SECONDS, few: bool = False
) -> dict[str, Any]:
    """A mutant's verdict and the deciding law; ``None``: the original code. ``few``: the first laws alone."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        answer = Path(folder, "answer.json")
        pid = os.fork()
        if pid == 0:
            try:
                _child(mutant, target, kills, seed, answer, few)
            finally:
                os._exit(0)
        said = _wait(pid, answer, begin, seconds)
    return said | {"seconds": round(time.monotonic() - begin, 1)}


def _wait(pid: int, answer: Path, begin: float, seconds: float) -> dict[str, Any]:
    said: dict[str, Any]
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        said = {"verdict": "runs", "law": LOADED, "profile": "quick", "since": time.time()}
        if answer.exists():
            said = json.loads(answer.read_text())
        stuck = time.time() - float(said.pop("since")) > LAW_SECONDS
        late = time.monotonic() - begin > seconds
        if done:
            if said["verdict"] == "runs":
                said |= {"verdict": "crashed", "message": f"its process ended with status {status}"}
            return {"message": ""} | said
        if said["verdict"] == "runs" and (late or stuck):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"message": ""} | said | {"verdict": "endless" if stuck else "unfinished"}
        time.sleep(0.02)


def prepare() -> None:
    """Import everything, so that each fork has it already; TorchRL too, whose mode and ours act as one."""
    for name in (
        "rnn_conformance.check",
        "rnn_backends_plugins.vmap",
        "torchrl.modules",
        *(name for _, name in TARGETS.values()),
    ):
        importlib.import_module(name)


def explained() -> dict[tuple[str, str, str], str]:
    """The reason of each equivalent mutant, by (target, before, after)."""
    rows = tomllib.loads(EXPLAINED.read_text()).get("equivalent", []) if EXPLAINED.exists() else []
    return {(row["target"], row["before"], row["after"]): row["reason"] for row in rows}


def sample(targets: Sequence[str], seed: int) -> list[Mutant]:
    """All mutants that no other seed's sample tried, in a random order fixed by the seed, the targets in turn."""
    others = {key for row in earlier(seed) for key in row["keys"].split()}
    return by_turns({t: (mutant for mutant in mutants(t) if mutant.key not in others) for t in targets}, seed)


def earlier(seed: int) -> list[dict[str, Any]]:
    """The samples of other seeds, with the keys of the mutants that each tried."""
    rows = tomllib.loads(SAMPLES.read_text()).get("sample", []) if SAMPLES.exists() else []
    return [row for row in rows if row["seed"] != seed]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The last line of each mutant in earlier runs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({row["key"]: row for row in rows}.values())


def kills_of(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    """How many mutants each law killed, by its name, and of each target, by both names: in earlier runs here, or by the
    page, so that a first run has an order too."""
    dead = [row for row in rows if row["verdict"] in DIED]
    here = Counter(row["law"] for row in dead) + Counter(f"{row['target']} {row['law']}" for row in dead)
    if not here and PAGE.exists():
        here.update({law: int(n) for law, n in re.findall(r"^\| `(\w+)` \| (\d+) \|$", PAGE.read_text(), re.M)})
    return here


def present(rows: Sequence[dict[str, Any]], found: Sequence[Mutant]) -> list[dict[str, Any]]:
    """The rows of mutants of the current sources: other rows do not apply."""
    keys = {mutant.key for mutant in found}
    return [row for row in rows if row["key"] in keys]


def go_on(
    targets: Sequence[str],
    minutes: float,
    most: int,
    seed: int,
    seconds: float,
    tell: Callable[[str], None],
    guess: Sequence[str] = (),
    again: Sequence[str] = (),
    cases: Sequence[int] = (),
) -> None:
    """Run mutants that have no verdict yet until the time is up; with a guess, run the unfinished ones with those laws
    first.

    Args:
        targets: keys of :data:`TARGETS`.
        minutes: the budget.
        most: no more mutants than that.
        seed: of the sample.
        seconds: of one mutant.
        tell: gets a line for each.
        guess: laws to run first over unfinished mutants.
        again: keys, or verdicts, of mutants to run although they have a verdict.
        cases: seeds of the laws' cases; without them that of the sample. A mutant dies if it dies by each.
    """
    end = time.monotonic() + 60 * minutes
    todo = sample(targets, seed)
    rows = present(rows_of(KEPT), todo)
    redo = {row["key"] for row in rows if row["key"] in again or row["verdict"] in again}
    known = {row["key"]: row for row in rows if row["verdict"] != "unfinished" and row["key"] not in redo}
    kills, tally = kills_of(rows_of(KEPT)), Counter(row["verdict"] for row in known.values())
    tell(f"{len(todo)} mutants of {', '.join(targets)}; {len(known)} have a verdict")
    KEPT.parent.mkdir(exist_ok=True)
    for target in dict.fromkeys(mutant.target for mutant in todo[:most]):
        hold(target, kills, cases or (seed,), tell)
    tried, reasons = {row["key"] for row in rows}, explained()
    decided = {row["key"] for row in rows if row["key"] in known or _key(row) in reasons} - set(again)
    todo = [mutant for mutant in todo[:most] if mutant.key not in decided and (not again or mutant.key in redo)]
    todo.sort(key=lambda mutant: mutant.key in tried)  # unfinished mutants take longest, so they come last
    if guess:
        todo = [mutant for mutant in todo if mutant.key in tried]
        kills.update(dict.fromkeys(guess, 10**6))
    for number, mutant in enumerate(todo, 1):
        if time.monotonic() > end:
            break
        said = run_seeds(mutant, kills, cases or (seed,), seconds, tell)
        row = {"key": mutant.key} | {k: v for k, v in asdict(mutant).items() if k not in ("code", "within")} | said
        with KEPT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if said["verdict"] in DIED:
            kills.update([said["law"], f"{mutant.target} {said['law']}"])
        tally[said["verdict"]] += 1
        left = max(0.0, end - time.monotonic()) / 60
        counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(tally.items()))
        tell(
            f"[{number} of {len(todo)}, {left:.0f} min left; {counts}] "
            f"{mutant.target}:{mutant.line} {mutant.key} {said['verdict']} {said['law']} {said['seconds']} s"
        )


def hold(target: str, kills: Counter[str], seeds: Sequence[int], tell: Callable[[str], None]) -> None:
    """Run the laws over the original code, installed like its mutants: a law that fails then says nothing about a
    mutant.

    The first laws over few cases, once for the same sources and laws. Exits if a law fails.
    """
    path = ROOT / TARGETS[target][0]
    texts = [file.read_bytes() for file in (sorted(path.glob("*.[hc]*")) if path.is_dir() else [path])]
    texts += [file.read_bytes() for file in sorted((ROOT / "conformance" / "rnn_conformance" / "laws").glob("*.py"))]
    for seed in seeds:
        held = f"{target} {seed} {hashlib.sha256(b''.join(texts)).hexdigest()}"
        if SOUND.exists() and held in SOUND.read_text().splitlines():
            continue
        same = None
        if target != "cpp":
            same = Mutant(target, "", 0, "", "", ast.unparse(_without_docstrings(path.read_text())))
        said = run(same, target, kills, seed, few=True)
        if said["verdict"] != "survived":
            raise SystemExit(f"{target} dies without a mutant: {said['verdict']} {said['law']} {said['message']}")
        tell(f"{target} holds as it is, in {said['seconds']} s")
        with SOUND.open("a") as file:
            file.write(held + "\n")


def page(rows: Sequence[dict[str, Any]], seed: int, day: str, commit: str, numbers: Counter[str]) -> str:
    """The table of all results as Markdown."""
    reasons = explained()
    rows = [row for row in rows if row["verdict"] != "uncompilable"]
    equivalent = [row for row in rows if row["verdict"] not in DIED and _key(row) in reasons]
    live = [row for row in rows if row["verdict"] in ("survived", "unfinished") and _key(row) not in reasons]
    dead = [row for row in rows if row["verdict"] in DIED]
    of_quick = [row for row in dead if row.get("profile") != "full"]
    of_all = len(dead) + len(live)
    lines = [
        "# Mutants against the suite", "",
        f"`make mutants-suite`, {day}, commit `{commit}`, seed {seed}. A machine changed one place of core or of a",
        "kernel; the laws of `quick` ran over each until one failed, and over what outlives those in core the laws of",
        "`full` that compile. The mutants that were tried are a random sample.", "",
        f"**Of {of_all} mutants that are not equivalent {len(dead)} died: {_percent(dead, of_all)}. The laws of",
        f"`quick` alone killed {len(of_quick)}: {_percent(of_quick, of_all)}.** {len(equivalent)} are equivalent, and",
        "not counted.",
    ]  # fmt: skip
    open_ends = sum(row["verdict"] == "unfinished" for row in live)
    if open_ends:
        lines += [f"{open_ends} of those that live are unfinished: no law had failed when their time was up."]
    lines += [
        "",
        "| target | mutants | tried | killed | crashed | endless | `full` alone | equivalent | unfinished | survived "
        + "| died |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for target, number in numbers.items():
        own = [row for row in rows if row["target"] == target]
        count = Counter(row["verdict"] for row in own)
        same = sum(row in equivalent for row in own)
        open_ends = [
            sum(row["verdict"] == v and row not in equivalent for row in own) for v in ("unfinished", "survived")
        ]
        late = sum(row.get("profile") == "full" for row in own if row in dead)
        died = sum(row in dead for row in own)
        figures = [number, len(own), *(count[v] for v in DIED), late, same, *open_ends, _percent(died, len(own) - same)]
        lines.append(f"| {target} | {' | '.join(map(str, figures))} |")
    before = [
        f"| {row['seed']} | {row['date']} | `{row['commit']}` | {row['tried']} | {row['equivalent']} | {row['died']} "
        + f"| {_percent(row['died'], row['tried'] - row['equivalent'])} | {row['note']} |"
        for row in earlier(seed)
    ]
    if before:
        lines += ["", "## Earlier samples", "", "No mutant above is in one of them.", ""]
        lines += ["| seed | day | commit | tried | equivalent | died | of the others | note |"]
        lines += ["| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |", *before]
    lines += ["", "## What kills", "", "| law | mutants |", "| --- | ---: |"]
    for law, n in Counter(row["law"] or LOADED for row in dead).most_common():
        lines += [f"| {law} | {n} |" if law == LOADED else f"| `{law}` | {n} |"]
    for title, chosen in (("Survived or unfinished", live), ("Equivalent", equivalent)):
        lines += ["", f"## {title}", ""] + (["None."] if not chosen else [])
        for row in chosen:
            verdict = "" if chosen is equivalent else f"{row['verdict']}, "
            where = f"{verdict}`{row.get('file') or row['target']}`, line {row['line']}, {row['kind']}"
            lines += [f"- {where}: `{row['before']}` became `{row['after']}`."]
            lines += [f"  {reasons[_key(row)]}"] if _key(row) in reasons else []
    return "\n".join(lines) + "\n"


def _percent(part: int | Sequence[Any], whole: int) -> str:
    number = part if isinstance(part, int) else len(part)
    return f"{100 * number / whole:.1f} %" if whole else "-"


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["target"], row["before"], row["after"]


def main() -> int:
    """Run; 1 if a mutant survives without a reason."""
    options = argparse.ArgumentParser(description="Mutants against the conformance suite.")
    options.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    options.add_argument("--minutes", "--budget", type=float, default=30, help="budget (30); a later run continues")
    options.add_argument("--most", type=int, default=10**6, help="no more mutants than that, of a random sample")
    options.add_argument("--seed", type=int, default=1, help="of the sample and of the laws' cases (1)")
    options.add_argument("--seconds", type=float, default=SECONDS, help="of one mutant (600); less for a first look")
    options.add_argument(
        "--guess", nargs="+", default=(), metavar="LAW", help="continue unfinished mutants with these laws first"
    )
    options.add_argument(
        "--again", nargs="+", default=(), metavar="KEY", help="run these once more, by key or by verdict (survived)"
    )
    options.add_argument(
        "--cases", nargs="+", type=int, default=(), metavar="SEED", help="of the laws' cases: a mutant must die by each"
    )
    options.add_argument("--list", action="store_true", help="print the mutants without running them")
    options.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="the page's")
    given = options.parse_args()
    targets = given.targets or list(TARGETS)
    if given.list:
        for mutant in sample(targets, given.seed)[: given.most]:
            print(f"{mutant.target}:{mutant.line}: {mutant.kind}: {mutant.before}  ->  {mutant.after}")
        return 0
    if given.minutes > 0:
        prepare()
        measure_laws(given.seed)
        tell = lambda text: print(text, flush=True)  # noqa: E731
        go_on(
            targets, given.minutes, given.most, given.seed, given.seconds, tell, given.guess, given.again, given.cases
        )
    found = sample(targets, given.seed)
    rows = present(rows_of(KEPT), found)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    numbers = Counter({target: sum(1 for _ in mutants(target)) for target in targets})
    text = page(rows, given.seed, given.date, commit.stdout.strip(), numbers)
    if given.write:
        PAGE.write_text(text)
    print(text)
    return int(any(row["verdict"] == "survived" and _key(row) not in explained() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
