"""The machine's defects: each is another program, and the code that is mutated is right as it stands."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import FunctionType

import pytest
from rnn_conformance.check import check_backend
from rnn_conformance.defects import tiled

TOOL = Path(__file__).parents[2] / "tools" / "mutants_suite.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("mutants_suite", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants_suite"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants_suite"]


def test_every_mutant_is_another_program(tool):
    source = ast.unparse(ast.parse((tool.ROOT / tool.TARGETS["resets"][0]).read_text()))
    found = list(tool.mutants("resets"))
    assert len(found) > 20
    assert source not in {mutant.code for mutant in found}
    assert max(Counter(mutant.key for mutant in found).values()) == 1
    assert {"operator", "off by one", "arguments swapped", "line left out"} <= {mutant.kind for mutant in found}


def test_a_sample_is_the_same_for_a_seed_and_takes_turns(tool):
    once, again = tool.sample(["resets", "stack"], 1), tool.sample(["resets", "stack"], 1)
    assert [mutant.key for mutant in once] == [mutant.key for mutant in again]
    assert [mutant.target for mutant in once[:4]] == ["resets", "stack", "resets", "stack"]


def test_a_mutant_of_the_tiled_kernel_dies_and_the_kernel_holds(tool):
    laws = ["output_equals_reference"]
    assert check_backend(tiled.tiled(), profile="smoke", laws=laws, rollouts=()).ok
    kept = {value: value.__code__ for value in vars(tiled).values() if isinstance(value, FunctionType)}
    mutant = next(m for m in tool.mutants("tiled") if "torch.where(inside, 0, found)" in m.code or "|" in m.after)
    tool.installed(mutant)
    try:
        assert tiled.load.__code__ is not kept[tiled.load]
        assert not check_backend(tiled.tiled(), profile="smoke", laws=laws, rollouts=(), shrink=False).ok
    finally:
        for function, code in kept.items():
            function.__code__ = code
