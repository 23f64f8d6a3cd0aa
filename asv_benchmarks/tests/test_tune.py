"""``rnn-backends tune``: measure, store, show and validate, with simulated times."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from rnn_backends import LSTM, LSTMBackend, register, unregister
from rnn_backends.crossovers import Cell, Table, machine_file, parse, table_for
from rnn_backends.ranking import PATIENCE
from rnn_backends.unroll import unroll
from rnn_benchmarks import tune
from rnn_benchmarks.cases import Call, Contestant
from rnn_benchmarks.tune import HELD_OUT, QUICK, TUNED, Grid, judge, measure, share, table_of
from rnn_benchmarks.tune_report import store
from rnn_conformance.cli.main import cli

SPEED = {"cudnn": 3.0, "vmap": 2.0, "torchscript": 4.0, "compile": 1.0, "cpp": 5.0, "mine": 1.5}
"""Seconds per call, for every shape."""


class Clock:
    """A clock that only calls advance."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def make(self, contestant: Contestant) -> Call:
        if contestant.backend == "picky" and contestant.shape.H > 100:
            raise NotImplementedError("too wide")

        def spend(k: int) -> None:
            self.now += SPEED.get(contestant.backend, 9.0) * (1.5 if k % 2 else 1.0)

        return spend


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["tune", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of this machine's table; nothing is measured."""
    clock, real = Clock(), measure

    def fake(cases: Any, seconds: float, tick: Any, done: Any) -> Any:
        return real(cases, seconds, tick, done, make=clock.make, clock=clock, slow=100.0)

    monkeypatch.setattr(tune, "measure", fake)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # a large heap takes it half a second, and there are 60 cases
    starts = {"compile": PATIENCE + 10}
    monkeypatch.setattr(tune.first_calls, "__defaults__", (*tune.first_calls.__defaults__[:2], _first(starts)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = machine_file(torch.device("cpu"))
    assert file is not None
    return file


def _first(starts: dict[str, float]) -> Any:
    def first(who: str, T: int) -> dict[str, float]:
        if who == "mine":
            raise NotImplementedError("it is of this process")
        return {"seconds": starts.get(who, 0.1)}

    return first


@pytest.fixture
def third_party() -> Iterator[str]:
    register(LSTMBackend("mine", unroll))
    yield "mine"
    unregister("mine")


def test_tune_measures_keeps_shows_and_from_then_on_auto_goes_by_it(mine: Path) -> None:
    assert LSTM(3, 128).lstm_backend == "cpp"
    said = run()
    assert said.exit_code == 0, said.output
    assert f"wrote {mine}: auto uses it from now on" in said.output
    assert "compile 15 s; so auto takes it last" in said.output
    assert LSTM(3, 128).lstm_backend == "vmap"
    found = table_for(torch.device("cpu"))
    assert found is not None
    assert (len(found.cells), found.shipped) == (len(TUNED.cases()), False)
    assert found.cells[0].seconds == {name: SPEED[name] for name in SPEED if name != "mine"}
    assert not list(mine.parent.glob("*.part"))
    shown = run("--show")
    assert "this machine's table" in shown.output
    assert str(mine) in shown.output
    assert "vmap" in shown.output.splitlines()[-6]


def test_a_third_partys_backend_is_measured_like_the_others(mine: Path, third_party: str) -> None:
    assert LSTM(3, 128).lstm_backend == "cpp"
    run("--quick")
    assert LSTM(3, 128).lstm_backend == "mine"


def test_what_is_slow_to_start_is_left_out_of_quick_and_taken_if_allowed(mine: Path) -> None:
    run("--quick")
    [table] = parse(mine.read_text())
    assert "compile" not in table.cells[0].seconds
    assert len(table.cells) == len(QUICK.cases())
    run("--quick", "--allow-compile")
    assert LSTM(3, 128).lstm_backend == "compile"


def test_write_leaves_this_machines_table_alone_and_keeps_other_devices(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    store(Table("cuda", {**table_of([], {}, "cpu").where}, ()), out)
    said = run("--quick", "--write", str(out))
    assert "auto does not read it there" in said.output
    assert not mine.exists()
    assert [table.device for table in parse(out.read_text())] == ["cpu", "cuda"]
    run("--quick", "--write", str(out))
    assert [table.device for table in parse(out.read_text())] == ["cpu", "cuda"]


def test_a_broken_file_is_written_over(mine: Path) -> None:
    mine.parent.mkdir(parents=True)
    mine.write_text("{")
    with pytest.warns(RuntimeWarning, match="is not used"):
        run("--quick")
    assert json.loads(mine.read_text())["tables"]


def test_show_without_a_machines_table_shows_the_shipped_one() -> None:
    said = run("--show")
    assert "the shipped table of 20" in said.output
    assert "crossovers.json" in said.output


def test_validate_measures_the_held_out_grid_and_says_how_often_auto_is_right(mine: Path, tmp_path: Path) -> None:
    run()
    out = tmp_path / "cells.json"
    said = run("--validate", "--write", str(out))
    assert f"within 5% of the best on 100% of {len(HELD_OUT.cases())} cells" in said.output
    assert "Against those it does not take for their first call too: 0%" in said.output
    assert len(parse(out.read_text())[0].cells) == len(HELD_OUT.cases())
    mine.unlink()
    said = run("--validate")  # by the shipped table auto takes cpp, and vmap is faster in all cells
    assert "within 5% of the best on 0% of" in said.output
    assert "the worst: 2.50 times as long" in said.output


def cell(**seconds: float) -> Cell:
    return Cell(128, "train", "0.03", 32, 64, 16, seconds)


def test_judging_is_against_the_best_that_auto_may_take() -> None:
    table = table_of([cell(cudnn=1.0, vmap=2.0)], {}, "cpu")
    held_out = [cell(cudnn=1.0, vmap=0.96), cell(cudnn=1.06, vmap=1.0), cell(cudnn=1.0, vmap=3.0, compile=0.5)]
    found = judge(held_out, table, lambda name: name != "compile")
    assert [(one.auto, one.best) for one in found] == [("cudnn", "vmap"), ("cudnn", "vmap"), ("cudnn", "cudnn")]
    assert [one.times for one in found] == pytest.approx([1 / 0.96, 1.06, 1.0])
    assert share(found) == pytest.approx(2 / 3)
    assert share(judge(held_out, table, lambda name: True)) == pytest.approx(1 / 3)
    assert share([]) == 0


def test_the_held_out_grid_shares_nothing_with_the_others() -> None:
    for grid in (TUNED, QUICK):
        assert not set(grid.hidden) & set(HELD_OUT.hidden)
        assert not set(grid.resets) & set(HELD_OUT.resets)
        assert not {*grid.rows, *grid.wide_rows} & {*HELD_OUT.rows, *HELD_OUT.wide_rows}
        assert grid.features != HELD_OUT.features
        assert {mode for _, mode, _ in grid.cases()} == {"train", "forward", "step"}


def test_the_least_time_counts_and_a_busy_machine_is_said() -> None:
    clock = Clock()
    grid = Grid((8, 128), ((2, 3),), ((2, 3),), ("0",), 4, 0.0)
    cases = tune.contestants(grid, ["vmap", "picky"], "cpu")
    timed = measure(cases, 0.0, make=clock.make, clock=clock, slow=100.0)
    assert [set(one.seconds) for one in timed.cells] == [{"vmap", "picky"}] * 3 + [{"vmap"}] * 3
    assert timed.cells[0].seconds["vmap"] == SPEED["vmap"]  # every other call takes longer
    assert timed.noisy == 1
    assert "This machine was busy: 100%" in run("--quick").output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--show", "--validate"), "give one of"),
        (("--quick", "--validate"), "give one of"),
        (("--device", "quantum"), "--device"),
        (("--device", "meta"), "no default file"),
        (("--show", "--device", "meta"), "no times are measured on meta"),
        (("--write", "no/such/folder.json"), "no folder"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, ...], says: str) -> None:
    said = run(*arguments)
    assert said.exit_code != 0
    assert says in said.output
    assert "Traceback" not in said.output


def test_help_teaches() -> None:
    said = run("--help").output
    assert "Examples:\n  rnn-backends tune " in said
    assert "rnn-backends tune --validate" in said
    assert "  tune     Measure this machine" in CliRunner().invoke(cli, ["--help"]).output
