"""Generated mutants: each is a different program, and the code is right without a mutation."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FunctionType

import pytest
import torch
from rnn_conformance.check import check_backend
from rnn_conformance.defects import tiled

TOOLS = Path(__file__).parents[2] / "tools"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def tool():
    yield from loaded("mutants_suite")


@pytest.fixture(scope="module")
def of_core():
    yield from loaded("mutants")


def test_every_mutant_is_another_program(tool):
    source = ast.unparse(ast.parse((tool.ROOT / tool.TARGETS["resets"][0]).read_text()))
    found = list(tool.mutants("resets"))
    assert len(found) > 20
    assert source not in {mutant.code for mutant in found}
    assert max(Counter(mutant.key for mutant in found).values()) == 1
    assert {"operator", "off by one", "arguments swapped", "line left out"} <= {mutant.kind for mutant in found}


def test_a_mutants_key_follows_its_function_and_no_words(tool, monkeypatch, tmp_path):
    path = tmp_path / "one.py"
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "TARGETS", {"one": ("one.py", "one")})

    def keys(source: str) -> set[str]:
        path.write_text(source)
        return {mutant.key for mutant in tool.mutants("one")}

    add, sub = "def f(a, b):\n    {}return a + b\n", "def g(a, b):\n    return a - {}\n"
    before = keys(add.format("") + sub.format("b"))
    assert len(before) == 2
    assert keys(add.format('"""Words."""; ') + "\n# more\n" + sub.format("b")) == before
    assert len(keys(add.format("") + sub.format("a")) & before) == 1


def test_a_sample_is_the_same_for_a_seed_and_takes_turns(tool):
    once, again = tool.sample(["resets", "stack"], 1), tool.sample(["resets", "stack"], 1)
    assert [mutant.key for mutant in once] == [mutant.key for mutant in again]
    assert [mutant.target for mutant in once[:4]] == ["resets", "stack", "resets", "stack"]


def test_a_sample_leaves_out_what_the_samples_of_other_seeds_tried(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "SAMPLES", tmp_path / "samples.toml")
    every = {mutant.key for mutant in tool.sample(["stack"], 1)}
    tried = sorted(every)[:3]
    fields = 'date = "2026-01-01"\ncommit = "abc"\ntried = 3\nequivalent = 1\ndied = 1\nnote = "why"'
    tool.SAMPLES.write_text(f'[[sample]]\nseed = 1\n{fields}\nkeys = "{" ".join(tried)}"\n')
    assert {mutant.key for mutant in tool.sample(["stack"], 2)} == every - set(tried)
    assert {mutant.key for mutant in tool.sample(["stack"], 1)} == every
    row = "| 1 | 2026-01-01 | `abc` | 3 | 1 | 1 | 50.0 % | why |"
    assert row in tool.page([], 2, "2026-01-02", "def", Counter(stack=5))
    assert row not in tool.page([], 1, "2026-01-02", "def", Counter(stack=5))


def test_a_mutant_of_the_tiled_kernel_dies_and_the_kernel_holds(tool, tmp_path):
    laws = ["output_equals_reference"]
    assert check_backend(tiled.tiled(), profile="smoke", laws=laws, rollouts=()).ok
    kept = {value: value.__code__ for value in vars(tiled).values() if isinstance(value, FunctionType)}
    mutant = next(m for m in tool.mutants("tiled") if "torch.where(inside, 0, found)" in m.code or "|" in m.after)
    tool.installed(mutant, tmp_path)
    try:
        assert tiled.load.__code__ is not kept[tiled.load]
        assert not check_backend(tiled.tiled(), profile="smoke", laws=laws, rollouts=(), shrink=False).ok
    finally:
        for function, code in kept.items():
            function.__code__ = code


def test_an_installed_mutant_keeps_properties_supers_and_what_is_scripted(tool, monkeypatch, tmp_path):
    source = (
        "import torch\nclass A:\n    def f(self):\n        return 1\n"
        "class B(A):\n    def f(self):\n        return super().f()\n"
        "    @property\n    def p(self):\n        return self.q\n"
        "    @p.setter\n    def p(self, q):\n        self.q = q\n"
        "def g(x: torch.Tensor):\n    return x + 1\n"
    )
    (tmp_path / "one.py").write_text(source)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "TARGETS", {"one": ("one.py", "one")})
    monkeypatch.syspath_prepend(tmp_path)
    one = importlib.import_module("one")
    (tmp_path / "folder").mkdir()
    code = source.replace("super().f()", "2").replace("x + 1", "x - 1")
    tool.installed(tool.Mutant("one", "", 0, "", "", code), tmp_path / "folder")
    del sys.modules["one"]
    b = one.B()
    b.p = 3  # the setter has the getter's name
    assert (b.f(), b.p) == (2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert torch.jit.script(one.g)(torch.zeros(1)).item() == -1


def test_a_mutant_that_outlives_quick_meets_the_laws_that_compile(tool, tmp_path):
    assert {"exported", "compiled_in_one_graph"} <= set(tool.laws_in_order(Counter(), "mode"))
    own, late = tool.laws_of_their_own("mode", "quick"), tool.laws_of_their_own("mode", "full")
    assert "traces_follow_inputs_and_resets" in own
    assert "a_compiled_function_follows_sizes_resets_and_mode" in late
    assert not set(own) & set(late)
    assert tool.laws_of_their_own("tiled", "full") == []
    ordered = tool.laws_in_order(Counter(chunked_rows=3, no_bias=9), "mode")
    assert ordered[0] == "no_bias"
    kills = Counter({"no_bias": 9, "tiled no_bias": 9, "resets chunked_rows": 1, "mode layers": 3, "layers": 3})
    assert tool.laws_in_order(kills, "mode")[0] == "layers"  # kills of other targets count a tenth


def test_the_verdict_of_a_fork_is_that_of_its_law_or_of_its_end(tool, tmp_path):
    answer = tmp_path / "answer.json"

    def tell(law: str) -> None:
        answer.write_text(json.dumps({"law": law}))

    def ends(tell):
        tell("a_law")
        os._exit(3)

    def raises(tell):
        tell("a_law")
        raise ZeroDivisionError

    assert tool._in_a_fork(lambda tell: None, tell, answer) is None
    assert tool._in_a_fork(lambda tell: ("killed", "a_law", "b"), tell, answer) == ("killed", "a_law", "b")
    assert tool._in_a_fork(raises, tell, answer) == ("crashed", "a_law", "ZeroDivisionError: ")
    assert tool._in_a_fork(ends, tell, answer)[:2] == ("crashed", "a_law")


def test_a_mutant_dies_only_if_it_dies_by_the_cases_of_every_seed(tool, monkeypatch):
    said = {1: "killed", 2: "survived", 3: "killed"}
    monkeypatch.setattr(tool, "run", lambda mutant, target, kills, seed, seconds: {"verdict": said[seed], "law": ""})
    mutant = tool.Mutant("one", "sign", 1, "a", "b", "code")
    assert tool.run_seeds(mutant, Counter(), (1, 2, 3), 1.0, print)["verdict"] == "survived"
    assert tool.run_seeds(mutant, Counter(), (1, 3), 1.0, print)["verdict"] == "killed"


def test_a_stopped_run_goes_on_and_takes_up_what_is_unfinished(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "KEPT", tmp_path / "suite.jsonl")
    made = {name: [tool.Mutant(name, "sign", k, "a", "b", f"{name} {k}") for k in range(3)] for name in ("one", "two")}
    monkeypatch.setattr(tool, "mutants", made.__getitem__)
    ran, told = [], []

    def run(mutant, target, kills, seed, seconds):
        ran.append(mutant.key)
        return {"message": "", "verdict": "unfinished" if len(ran) == 2 else "killed", "law": "a_law", "seconds": 0.0}

    monkeypatch.setattr(tool, "run", run)
    monkeypatch.setattr(tool, "hold", lambda *_: None)
    tool.go_on(["one", "two"], 0.0, 4, 1, 1.0, told.append)
    assert not ran  # no time, no mutant
    tool.go_on(["one", "two"], 1.0, 2, 1, 1.0, told.append)
    tool.go_on(["one", "two"], 1.0, 4, 1, 1.0, told.append)
    order = [mutant.key for mutant in tool.sample(["one", "two"], 1)[:4]]
    assert ran == [*order, order[1]]  # unfinished mutants come last
    with tool.KEPT.open("a") as kept:  # an unfinished mutant with a reason is not run again
        for mutant in tool.sample(["one", "two"], 1)[4:]:
            row = {"key": mutant.key, "target": mutant.target, "before": "a", "after": "b", "verdict": "unfinished"}
            kept.write(json.dumps(row) + "\n")
    monkeypatch.setattr(tool, "explained", lambda: {("one", "a", "b"): "a reason"})
    tool.go_on(["one", "two"], 1.0, 6, 1, 1.0, told.append)
    assert [mutant.target for mutant in tool.sample(["one", "two"], 1)[4:] if mutant.key in ran[5:]] == ["two"]
    assert "5 killed" in told[-1]
    tool.go_on(["one", "two"], 1.0, 6, 1, 1.0, told.append, ["a_law"])
    assert len(ran) == 6  # guesses are for unfinished mutants, and there are none
    tool.go_on(["one", "two"], 1.0, 6, 1, 1.0, told.append, again=["unfinished"])
    assert len(ran) == 6  # an equivalent mutant with a reason is not run again
    tool.go_on(["one", "two"], 1.0, 6, 1, 1.0, told.append, again=[order[0]])
    assert ran[6:] == [order[0]]
    rows = tool.rows_of(tool.KEPT)
    assert Counter(row["verdict"] for row in rows) == Counter(killed=5, unfinished=1)
    assert tool.kills_of(rows)["a_law"] == 5
    assert set(tool.kills_of(rows)) == {"a_law", "one a_law", "two a_law"}


def test_the_page_has_no_rows_of_other_sources_and_gives_a_first_run_its_order(tool, monkeypatch, tmp_path):
    found = [tool.Mutant("resets", "sign", 1, "a", "b", "code")]
    row = {"target": "resets", "verdict": "killed", "law": "a_law", "line": 1, "kind": "sign"}
    rows = [row | {"key": found[0].key}, row | {"key": "of another source"}]
    assert tool.present(rows, found) == rows[:1]
    text = tool.page(tool.present(rows, found), 1, "2026-01-01", "abc", Counter(resets=2))
    assert "| resets | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 100.0 % |" in text
    late = [rows[0] | {"profile": "full", "law": tool.LOADED}]
    text_late = tool.page(late, 1, "2026-01-01", "abc", Counter(resets=2))
    assert "| resets | 2 | 1 | 1 | 0 | 0 | 1 |" in text_late
    assert "alone killed 0: 0.0 %" in text_late.replace("\n", " ")
    assert f"| {tool.LOADED} | 1 |" in text_late
    monkeypatch.setattr(tool, "PAGE", tmp_path / "mutants.md")
    tool.PAGE.write_text(text)
    assert tool.kills_of([]) == Counter(a_law=1)


def test_mutants_of_core_run_by_turns_within_the_budget(of_core, monkeypatch, tmp_path):
    made = {file: [of_core.Mutant(file, 1, "a", "b", f"{file} = {k}") for k in range(3)] for file in ("stack", "mode")}
    monkeypatch.setattr(of_core, "mutants", made.__getitem__)
    for file in made:
        (tmp_path / "core" / "rnn_backends").mkdir(parents=True, exist_ok=True)
        (tmp_path / "core" / "rnn_backends" / f"{file}.py").write_text("")
    monkeypatch.setattr(of_core, "KEPT", tmp_path)
    monkeypatch.setattr(of_core, "TREE", tmp_path)
    ran = []
    monkeypatch.setattr(of_core, "run", lambda mutant: ran.append(mutant) or "killed" if mutant.code else "survived")
    todo = of_core.sample(["stack", "mode"], 1)
    assert [mutant.file for mutant in todo] == ["stack", "mode"] * 3
    assert of_core.run_all(todo, 0.0) == []
    assert of_core.run_all(todo[:4], 1.0) == [(mutant, "killed") for mutant in todo[:4]]
    assert len(of_core.run_all(todo, 1.0)) == 6
    assert ran == todo  # the second run took only the other two
