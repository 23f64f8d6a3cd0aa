"""Names, reasons and messages with markup, control characters or paths: shown literally everywhere."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rnn_backends import Listing, LSTMSpec, Verdict, get_backend, register, unregister
from rnn_conformance.cli.main import cli
from rnn_conformance.report import terminal
from rnn_conformance.report.model import BackendRun, Header, LawInfo, Report, Results
from rnn_conformance.suite.verdict import LawResult

HOSTILE = (
    "x[/]",
    "[bold red]x",
    "[link=file:///etc]x[/link]",
    "x[/foo]",
    ":smile:",
    "\\[x]",
    "x[",
    "<script>x</script>",
)
LAW = "one_row"


@pytest.fixture(params=HOSTILE)
def name(request):
    register(replace(get_backend("vmap"), name=request.param))
    yield request.param
    unregister(request.param)


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_every_command_shows_the_name(name: str, tmp_path: Path) -> None:
    html, json = tmp_path / "report.html", tmp_path / "report.jsonl"
    assert name in call("list")
    assert name in call("list", "--names").splitlines()
    assert name in call("explain")
    said = call("check", name, "-k", LAW, "--profile", "smoke", "--html", str(html), "--json", str(json))
    assert f"checking {name} (1 of 1) ..." in said
    assert said.count(name) >= 2
    assert "<script>x" not in html.read_text()
    assert name in call("replay", "T2.B1.I1.H1.f64.s0", "--law", LAW, "--backend", name)
    call("diff", str(json), str(json))


def shown(renderable) -> str:
    console = terminal.console()
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


@pytest.mark.parametrize("text", HOSTILE)
def test_every_column_shows_the_text(text: str) -> None:
    row = Listing(name=text, distribution=text, reason=text, loaded=True)
    assert shown(terminal.listings_table([row])).count(text) == 3
    assert shown(terminal.verdicts_table([Verdict(text, False, text, False)], text)).count(text) == 3
    result = LawResult(text, text, "failed", 1, worst_error_ratio=2.0, message=text, looks_like=text, token=text)
    run = BackendRun(text, Report(Header(text, "cpu", "smoke", 1, (text,)), [result]))
    results = Results("smoke", 1, {text: LawInfo(text, text)}, (text,), (run,))
    console = terminal.console()
    with console.capture() as captured:
        terminal.print_results(results, console, text)
    assert captured.get().count(text) >= 8


def test_control_characters_are_shown_as_escapes() -> None:
    evil = "a\x1b[2Jb\x07c\x9bd\re"
    for said in (
        shown(terminal.listings_table([Listing(name=evil, distribution=evil, reason=evil, loaded=True)])),
        shown(terminal.verdicts_table([Verdict(evil, False, evil, False)], evil)),
        terminal.printable(evil),
    ):
        assert not {"\x1b", "\x07", "\x9b", "\r"} & set(said)
        assert "a\\x1b[2Jb\\x07c\\x9bd\\x0de" in said
    assert terminal.printable("a\nb\tc") == "a\nb\tc"
    assert terminal.printable("a\nb\tc", line=True) == "a\\nb\\tc"


def test_our_own_colours_are_still_there() -> None:
    console = Console(force_terminal=True, markup=False, width=100, color_system="standard")
    with console.capture() as captured:
        console.print(terminal.listings_table([Listing(name="x", distribution="y", reason=None, loaded=True)]))
    assert "\x1b[32mready" in captured.get()
    assert LSTMSpec(1, 1)


# Files


def check(*arguments: str):
    return CliRunner().invoke(cli, ["check", "vmap", "-k", LAW, "--profile", "smoke", *arguments])


def test_a_planted_link_of_an_old_name_is_not_followed(tmp_path: Path) -> None:
    report, victim = tmp_path / "report.jsonl", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "report.jsonl.part").symlink_to(victim)
    assert check("--json", str(report)).exit_code == 0
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.jsonl", "report.jsonl.part", "victim"]


@pytest.mark.parametrize("option", ["--json", "--html", "--script"])
def test_what_cannot_be_written_is_known_before_the_run(option: str, tmp_path: Path, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("rnn_conformance.cli.check_run.CheckRun.run", never)
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "report"]
    if option != "--script":
        places += [tmp_path / "no" / "report", tmp_path]
    else:
        places += [tmp_path / "file"]
    if Path("/proc").is_dir():
        places.append(Path("/proc/report"))
    for place in places:
        done = check(option, str(place))
        assert done.exit_code == 2, (place, done.output, done.exception)
        assert option in done.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_file_that_cannot_be_written_in_the_end_is_said(tmp_path: Path) -> None:
    done = check("--json", "/dev/full")
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "No space left" in done.output


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_report_keeps_the_mode_of_the_one_before(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    report.touch(0o600)
    report.chmod(0o600)
    assert check("--json", str(report)).exit_code == 0
    assert report.stat().st_mode & 0o777 == 0o600


# Two backends of one report


def compared(tmp_path: Path, **verdicts: dict[str, str]) -> Path:
    runs = tuple(
        BackendRun(
            name,
            Report(
                Header(name, "cpu", "smoke", 1, tuple(own)),
                [LawResult(name, law, says, 1) for law, says in own.items()],
            ),
        )
        for name, own in verdicts.items()
    )
    file = tmp_path / "report.jsonl"
    laws = {law: LawInfo("values", law) for own in verdicts.values() for law in own}
    file.write_text(Results("smoke", 1, laws, tuple(laws), runs).to_json())
    return file


def test_diff_compares_two_backends_of_one_report(tmp_path: Path) -> None:
    file = str(compared(tmp_path, a={"one": "passed", "two": "failed"}, b={"one": "failed", "two": "passed"}))
    done = CliRunner().invoke(cli, ["diff", file, "--backend", "a", "--backend", "b"])
    assert done.exit_code == 1
    assert "worse   a -> b: one  ✓ passed -> ✗ failed" in done.output
    assert "better  a -> b: two  ✗ failed -> ✓ passed" in done.output
    assert done.output.splitlines()[-1] == "1 worse, 0 gone, 0 new, 1 better, 0 the same"
    done = CliRunner().invoke(cli, ["diff", file, file, "--backend", "a"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "0 worse, 0 gone, 0 new, 0 better, 2 the same")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--backend", "a"],
        ["--backend", "a", "--backend", "c"],
        ["--backend", "a", "--backend", "b", "--backend", "a"],
    ],
)
def test_diff_of_one_report_needs_two_backends_that_are_there(tmp_path: Path, arguments: list[str]) -> None:
    file = str(compared(tmp_path, a={"one": "passed"}, b={"one": "passed"}))
    done = CliRunner().invoke(cli, ["diff", file, *arguments])
    assert done.exit_code == 2
    assert "--backend" in done.output
