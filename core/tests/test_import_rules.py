"""The import rules of the whole repository, in one table; no cycles, counting imports inside of functions."""

import re
import sys
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTMModule
from tensordict import TensorDict

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import import_graph  # noqa: E402
import walk  # noqa: E402

sys.path.remove(str(ROOT / "tools"))

IMPORTS = import_graph.all_imports()
PROJECT = tuple(import_graph.PACKAGES)

# A module whose name starts with the left side may import modules of this repository that match the right side.
# The first row that matches applies.
RULES = {
    "rnn_backends": "",
    "rnn_backends_plugins": "rnn_backends",
    "rnn_benchmarks": "rnn_backends",
    "rnn_benchmarks.plots": "rnn_backends|rnn_backends_plugins.cudnn|rnn_benchmarks",
    "rnn_benchmarks.gpu": "rnn_backends|rnn_backends_plugins.triton|rnn_benchmarks",
    "rnn_conformance.suite": "rnn_backends",
    "rnn_conformance.laws": "rnn_backends|rnn_conformance.suite",
    "rnn_conformance.rollouts": "rnn_backends|rnn_conformance.suite",
    "rnn_conformance.report": "rnn_backends|rnn_conformance.suite",
    "rnn_conformance.check": "rnn_backends|rnn_conformance.(suite|laws|rollouts|report|defects)",
    "rnn_conformance.waivers": "rnn_backends|rnn_conformance.(suite|laws|report|check)",
    "rnn_conformance.script": "rnn_backends|rnn_conformance.(suite|laws|report|check)",
    "rnn_conformance.defects": "rnn_backends|rnn_conformance.(suite|laws|rollouts|check)",
    "rnn_conformance.cli": "rnn_backends|rnn_benchmarks|rnn_conformance",
    "rnn_conformance.doctor_example": "rnn_backends",
    "rnn_conformance.pytest_plugin": "rnn_conformance.pytest_items",
    "rnn_conformance.pytest_items": "rnn_backends|rnn_conformance.(suite|laws|report|check|waivers)",
    "rnn_conformance.test_backend": "rnn_conformance.pytest_plugin",
    "rnn_conformance.__main__": "rnn_conformance.cli",
    "rnn_conformance": "rnn_conformance.(check|report|suite.verdict)",
}
# Third-party packages, and the only modules that may import them.
OUTSIDE = {
    "click": "rnn_conformance.cli",
    "rich": "rnn_conformance.(cli|report)|rnn_benchmarks",
    "pytest": "rnn_conformance.pytest_",
    "hypothesis": "rnn_conformance.suite",
    "matplotlib": "rnn_benchmarks.plots",
    "torchrl": "rnn_backends.module|rnn_benchmarks|rnn_conformance.(rollouts|defects|doctor_example)",
    "gymnasium": "rnn_conformance.rollouts",
}


def within(name, pattern):
    """Whether a dotted name is named by the pattern, or lies inside of a named package."""
    return bool(pattern) and re.match(rf"(?:{pattern})(?=[._]|$)", name) is not None


def rule_of(name):
    return max((prefix for prefix in RULES if within(name, re.escape(prefix))), key=len)


@pytest.mark.parametrize("prefix", RULES)
def test_units_import_only_what_the_table_allows(prefix):
    broken = [
        f"{name}:{line} imports {imported}"
        for name, imported, line in IMPORTS
        if rule_of(name) == prefix
        and imported.split(".")[0] in PROJECT
        and not within(imported, re.escape(prefix))
        and not within(imported, RULES[prefix])
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("package", OUTSIDE)
def test_packages_from_outside_are_imported_where_the_table_says(package):
    broken = [
        f"{name}:{line} imports {imported}"
        for name, imported, line in IMPORTS
        if imported.split(".")[0] == package and re.match(OUTSIDE[package], name) is None
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("package", PROJECT)
@pytest.mark.parametrize("by_unit", [True, False], ids=["units", "modules"])
def test_no_cycle_of_imports(package, by_unit):
    assert import_graph.cycles(import_graph.edges(package, by_unit)) == []


def test_a_circle_is_found_and_an_arrow_is_not_one():
    assert import_graph.cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert import_graph.cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_law_takes_a_private_name_from_another_law():
    folder = import_graph.PACKAGES["rnn_conformance"] / "rnn_conformance" / "laws"
    taken = [
        f"{path.name}: {line}"
        for path in folder.glob("*.py")
        for line in re.findall(r"^from \.\w+ import .*\b_\w+.*$", path.read_text(), re.MULTILINE)
    ]
    assert not taken, "shared helpers of laws belong in laws/_shared.py, without an underscore: " + "; ".join(taken)


def test_no_call_within_core_goes_up_to_a_module_that_imports_the_caller():
    def run():
        module = LSTMModule(3, 4, in_key="x", out_key="y")  # auto chooses
        td = TensorDict({"x": torch.randn(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}, [2, 5])
        module.set_recurrent_mode(True)(td)["y"].sum().backward()

    higher = walk.above()
    found = walk.calls(run)
    assert ("rnn_backends.choose", "rnn_backends.ranking") in found, "the calls are seen"
    climbs = {(a, b): how for (a, b), how in found.items() if b in higher.get(a, ()) and b.startswith("rnn_backends.")}
    assert climbs == {}
