"""The HTML report: the content of the page, and its behaviour in a real browser."""

import importlib.util
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from rnn_conformance.check import about
from rnn_conformance.laws.catalogue import LAWS as CATALOGUE
from rnn_conformance.report.html import page
from rnn_conformance.report.html_details import with_code
from rnn_conformance.report.model import BackendRun, Header, LawInfo, Report, Results
from rnn_conformance.suite.verdict import GLYPHS, LawResult

LAWS = {
    "output_equals_reference": LawInfo("values", "The output equals the <reference>'s."),
    "one_row": LawInfo("batch", "A batch of one is a batch."),
    "double_backward": LawInfo("transforms", "Gradients of gradients are right.", "double_backward"),
    "vmap_over_data": LawInfo("transforms", "vmap over data works.", "vmap"),
}
EVIL = '</script><script>window.broken = 1</script><!-- "quoted" & so on'
TOKEN = "T2.B1.I1.H1.f64.r1.s5"


def run(name: str, **verdicts: str) -> BackendRun:
    """A backend that passes all laws except the given ones."""
    results = []
    for law in LAWS:
        verdict = verdicts.get(law, "passed")
        bad = verdict in ("failed", "silently_wrong", "waived")
        results.append(
            LawResult(
                name, law, "failed" if verdict == "waived" else verdict, 12, 1, 3.5e4 if bad else 0.01,  # type: ignore[arg-type]
                f"output differs first at [t=1, b=0, unit=0]: {EVIL}" if bad else "", TOKEN if bad else None, 0.5,
                "known, until 2099" if verdict == "waived" else "", "reset one step late" if bad else "",
            )
        )  # fmt: skip
    header = Header(name, "cpu", "quick", 5, tuple(LAWS), claimed=("double_backward",))
    return BackendRun(name, Report(header, results), time_ratio=1.5)


def results(*runs: BackendRun) -> Results:
    return Results("quick", 5, LAWS, tuple(LAWS), runs, seconds=9.0)


BOTH = results(
    run("good", vmap_over_data="declined"),
    run("bad", one_row="failed", double_backward="waived", vmap_over_data="silently_wrong"),
    BackendRun("broken", reason="its library is missing"),
)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(html: str) -> list[str]:
    return re.findall(r'<span class="law">(\w+)</span>', html.replace("<wbr>", ""))


def test_backticks_in_a_sentence_become_code_and_nothing_else_becomes_markup() -> None:
    assert with_code("With `x < 1` all <b>hold</b>.") == "With <code>x &lt; 1</code> all &lt;b&gt;hold&lt;/b&gt;."
    assert not [law for law in CATALOGUE if "``" in about(law).sentence]


def test_failing_laws_come_first_and_the_worst_of_them_before() -> None:
    assert rows(page(BOTH)) == ["vmap_over_data", "one_row", "output_equals_reference", "double_backward"]


def test_every_cell_has_glyph_and_word() -> None:
    cells = re.findall(r'<button class="v (\w+)" data-key="[^"]+">(.*?)</button>', page(BOTH))
    assert len(cells) == 3 * len(LAWS)
    for state, inner in cells:
        assert inner.startswith(f"{GLYPHS[state]} {state.replace('_', ' ')}")
    assert {state for state, _ in cells} == {"passed", "declined", "failed", "waived", "silently_wrong", "missing"}


def test_it_needs_nothing_from_elsewhere() -> None:
    for tag, attributes in Elements(page(BOTH)).tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "@import" not in page(BOTH)
    assert "url(" not in page(BOTH)


def test_what_a_backend_says_is_text_and_never_markup() -> None:
    html = page(BOTH)
    assert EVIL not in html
    assert html.count("<script") == 2
    data = json.loads(html.partition('id="details">')[2].partition("</script>")[0])
    assert EVIL in dict(row[:2] for row in data["1:one_row"]["rows"])["found"]


def test_details_have_the_token_the_replay_line_and_the_margin() -> None:
    data = json.loads(page(BOTH).partition('id="details">')[2].partition("</script>")[0])
    said = {name: text for name, text, _ in data["1:one_row"]["rows"]}
    assert said["smallest case"] == TOKEN
    assert said["run it again"] == f"rnn-backends replay {TOKEN} --law one_row --backend bad"
    assert said["worst error"] == "3.5e+04 times its tolerance"
    assert said["looks like"] == "reset one step late"
    assert said["cases"] == "12 run, 1 declined"


def test_failures_and_waivers_are_there_in_full_without_javascript() -> None:
    text = Elements(page(BOTH)).text
    assert "bad: one_row" in text
    assert "known, until 2099" in text
    assert "broken? not run its library is missing" in " ".join(text.split())


def test_claimed_against_observed() -> None:
    html = page(BOTH).partition('id="traits"')[2].partition("</table>")[0]
    text = Elements(html).text
    for state in (
        "claimed, works",
        "not claimed, declines",
        "claimed, fails, waived",
        "gives wrong numbers",
        "not run",
    ):
        assert state in text


def test_headings_say_how_it_went() -> None:
    assert "✓ Every law held" in page(results(run("good")))
    assert "? The run is incomplete" in page(results(run("good"), BackendRun("broken", reason="no")))
    assert "✗ 2 failed, 1 waived" in page(BOTH)


def test_every_backend_that_could_not_be_run_is_still_a_page() -> None:
    assert "its library is missing" in page(results(BackendRun("broken", reason="its library is missing")))


def _browser() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browser = _browser()
in_browser = pytest.mark.skipif(browser.MISSING is not None, reason=browser.MISSING or "")


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with browser.Browser() as found:
        yield found


@pytest.fixture
def shown(chromium, tmp_path: Path) -> Iterator:
    file = tmp_path / "report.html"
    file.write_text(page(BOTH), encoding="utf-8")
    chromium.open(file)
    yield chromium
    assert chromium.errors() == [], "the console is silent"


VISIBLE = "return [...document.querySelectorAll('tr.row:not([hidden]) .law')].map(law => law.textContent)"
FOCUS = "return document.activeElement.dataset.key || document.activeElement.id"
OPEN = "return document.getElementById('detail').open"


@pytest.mark.browser
@in_browser
class TestInABrowser:
    def test_it_loads_and_runs_no_code_of_a_message(self, shown) -> None:
        assert shown.run("return document.title").startswith("✗ 2 failed")
        assert shown.run("return window.broken === undefined")
        assert shown.run(VISIBLE) == ["vmap_over_data", "one_row", "output_equals_reference", "double_backward"]

    def test_slash_then_words_filter_and_escape_ends_it(self, shown) -> None:
        shown.press("/", *"row batch")
        assert shown.run(VISIBLE) == ["one_row"]
        assert shown.run("return document.getElementById('shown').textContent") == "1 of 4 laws"
        shown.press("Escape")
        assert len(shown.run(VISIBLE)) == 4
        shown.press(*"nothing like it")
        assert shown.run(VISIBLE) == []
        assert shown.run("return document.getElementById('nothing').offsetHeight > 0")

    def test_verdicts_filter(self, shown) -> None:
        for state in ("passed", "declined", "missing", "waived"):
            shown.click(f".bar button[data-state={state}]")
        assert shown.run(VISIBLE) == ["vmap_over_data", "one_row"]
        shown.click(".bar button[data-state=failed]")
        assert shown.run(VISIBLE) == ["vmap_over_data"]
        shown.click(".bar button[data-state=waived]")
        assert shown.run(VISIBLE) == ["vmap_over_data", "double_backward"]

    def test_a_click_opens_a_detail_and_escape_closes_it(self, shown) -> None:
        shown.click("button[data-key='1:one_row']")
        assert shown.run(OPEN)
        text = shown.run("return document.getElementById('detail').textContent")
        assert f"rnn-backends replay {TOKEN}" in text
        assert EVIL in text
        shown.press("Escape")
        shown.wait("return !document.getElementById('detail').open")
        assert shown.run(FOCUS) == "1:one_row", "the focus is back where it was"

    def test_the_keyboard_alone_is_enough(self, shown) -> None:
        shown.press("/", *"one_row", "Enter")
        assert shown.run(FOCUS) == "0:one_row"
        shown.press("Right", "Enter")
        assert shown.run("return document.getElementById('detail-title').textContent") == "bad: one_row"
        shown.press("Escape")
        shown.press("/", "Escape", "Down")
        assert shown.run(FOCUS) == "1:one_row"
        shown.press("Up", "Left", "Left")
        assert shown.run(FOCUS) == "0:vmap_over_data"
        shown.press("Down", "Down")
        assert shown.run(FOCUS) == "0:output_equals_reference"

    def test_tab_comes_to_one_cell_of_the_table(self, shown) -> None:
        assert (
            shown.run("return [...document.querySelectorAll('#laws button')].filter(b => b.tabIndex === 0).length") == 1
        )

    def test_nothing_is_wider_than_the_window(self, shown) -> None:
        assert shown.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def test_words_stand_out_from_their_ground(self, shown) -> None:
        ratios = shown.run((Path(__file__).with_name("contrast.js")).read_text())
        assert min(ratios.values()) >= 4.5, ratios


@pytest.mark.browser
@in_browser
def test_dark_is_dark_and_readable(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(BOTH), encoding="utf-8")
    with browser.Browser("--force-dark-mode", "--blink-settings=preferredColorScheme=0") as dark:
        dark.open(file)
        assert dark.run("return matchMedia('(prefers-color-scheme: dark)').matches")
        ratios = dark.run((Path(__file__).with_name("contrast.js")).read_text())
        assert min(ratios.values()) >= 4.5, ratios
