"""The documentation's Python runs: the blocks of a page one after another, in one namespace, in an empty folder."""

import re
from pathlib import Path

import pytest
import rnn_backends

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
