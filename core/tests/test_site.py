"""The documentation site builds strictly, its picture is the script's, and the package page's links work."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def script(path):
    """A file of the repository that is not a module of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. Broken links, anchors and references are errors of the build."""
    pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: make setup")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / page).is_file()} == set()


def test_the_site_loads_nothing_from_the_network(site):
    loads = re.compile(r"""<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)=["'](https?:[^"']+)""")
    assert {url for page in site.rglob("*.html") for url in loads.findall(page.read_text())} == set()


def test_the_reference_has_every_public_name(site):
    import rnn_backends

    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    missing = {
        name
        for name in set(rnn_backends.__all__) - {"__version__"}  # a string, which needs no page
        if f'id="rnn_backends.{name}"' not in text and f'id="rnn_backends.errors.{name}"' not in text
    }
    assert missing == set()


def test_the_reference_has_the_tools_for_tests_of_a_policy_and_the_command(site):
    page = (site / "api" / "testing.html").read_text()
    for name in ("testing.assert_rollout_equals_replay", "testing.diagnose", "testing.Diagnosis", "mistakes.Mistake"):
        assert f'id="rnn_backends.{name}"' in page, name
    assert "rnn-backends doctor" in page


def test_no_role_is_left_in_the_reference(site):
    for page in (site / "api").glob("*.html"):
        assert not re.search(r":(class|func|meth|data|attr):", page.read_text()), page.name


def test_long_names_in_tables_may_break_and_are_found_whole(site):
    """Without the breaks the sentences beside the names of defects get a column of a few letters."""
    assert "<code>storage_<wbr>offset_<wbr>ignored</code>" in (site / "generated" / "kill_table.html").read_text()
    assert "storage_offset_ignored" in (site / "search" / "search_index.json").read_text()


def test_the_picture_of_resets_is_what_its_script_draws():
    drawing = script(ROOT / "tools" / "draw_resets.py")
    assert drawing.PICTURE.read_text() == drawing.picture(), "run tools/draw_resets.py"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"])
def test_relative_links_of_a_file_in_the_repository_lead_to_files(name):
    file = ROOT / name
    for target in LINK.findall(file.read_text()):
        if not target.startswith(("http", "#")):
            assert (file.parent / target.split("#")[0]).exists(), target


def test_a_package_page_has_no_relative_link():
    pytest.importorskip("hatchling", reason="hatchling is not installed: make setup")
    hook = script(ROOT / "hatch_build.py")
    readme = (ROOT / "README.md").read_text()
    assert any(not target.startswith("http") for target in LINK.findall(readme))
    assert [link for link in LINK.findall(hook.for_a_package_page(readme, None)) if not link.startswith("http")] == []
    page = hook.for_a_package_page("[a](docs/a.md#b), [c](https://d.e)", "https://host/us/it/")
    assert page == "[a](https://host/us/it/blob/main/docs/a.md#b), [c](https://d.e)"
    assert hook.for_a_package_page("![a](b.png)", "https://host/it") == "![a](https://host/it/raw/main/b.png)"
    assert hook.for_a_package_page("![a](b.png)", None).startswith("a (`b.png`)")
