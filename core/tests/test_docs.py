"""The documentation's Python runs: the blocks of a page one after another, in one namespace, in an empty folder."""

import ast
import re
from pathlib import Path

import pytest
import rnn_backends
from rnn_backends.torchrl_names import TorchRLOptions

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.md")))
}
MUST_HAVE_CODE = {"README.md"} | {
    f"docs/{page}.md"
    for page in (
        "acting_and_training",
        "adding_a_backend",
        "choosing_a_backend",
        "deployment",
        "first_training",
        "from_torch",
        "from_torchrl",
        "install",
        "resets",
    )
}


@pytest.fixture(autouse=True)
def unregister_what_a_page_registers():
    before = set(rnn_backends.names())
    yield
    for name in set(rnn_backends.names()) - before:
        rnn_backends.unregister(name)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if BLOCK.search(text)])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page}
    for block in BLOCK.finditer(PAGES[page]):
        line = PAGES[page].count("\n", 0, block.start(1))
        exec(compile("\n" * line + block.group(1), page, "exec"), namespace)  # an error shows the page's own line


def test_the_pages_that_must_have_code_have_it():
    assert {page for page, text in PAGES.items() if BLOCK.search(text)} >= MUST_HAVE_CODE


ROW = re.compile(r"^\| (?!---)(?P<subject>[^|]*\S) \|(?P<cells>.*)\|$", re.MULTILINE)


def rows_of_the_comparison():
    text = PAGES["docs/from_torchrl.md"].split("## What differs\n")[1].split("\n## ")[0]
    return {match["subject"]: match["cells"].split(" | ") for match in ROW.finditer(text)}


def test_the_comparison_with_torchrl_has_a_row_for_each_of_its_options():
    subjects = " ".join(rows_of_the_comparison())
    options = {"default_recurrent_mode", "python_based", *TorchRLOptions._fields, "canonicalize", "canonical_keys"}
    others = {"canonicalize_rnn_subset", "BurnInTransform", "get_primers_from_module", "set_recurrent_mode"}
    names = {f'"{name}"' for name in ("pad", "scan", "triton", "auto")}
    assert {word for word in options | others | names if word not in subjects} == set()


@pytest.mark.parametrize(("subject", "cells"), rows_of_the_comparison().items(), ids=str)
def test_each_row_of_the_comparison_with_torchrl_names_a_test_that_exists(subject, cells):
    assert len(cells) == 4, "columns: TorchRL 0.14.1, its main, rnn-backends, test"
    named = re.fullmatch(r"\s*`(test_\w+\.py)::(test_\w+)`\s*", cells[-1])
    assert named, f"no test is named: {cells[-1]}"
    tree = ast.parse((ROOT / "core" / "tests" / named[1]).read_text())
    assert named[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
