"""The table of measured times that ``auto`` uses: the choice of the table, its decisions, its messages, damaged
files."""

import json
import math
import os
import warnings
from dataclasses import replace
from importlib.metadata import version

import pytest
import rnn_backends
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMSpec, Trait, crossovers, explain
from rnn_backends.crossovers import FORMAT, SHIPPED, Cell, Table, machine_file, parse, table_for, text_of, versions
from rnn_backends.ranking import MARGIN, PATIENCE, WEIGHTS, Ranking, costs
from rnn_backends.unroll import unroll

CPU = torch.device("cpu")
WHERE = {"date": "2026-11-21", "processor": "AMD EPYC", "threads": "2", **versions()}
SPEC = LSTMSpec(3, 128)


def cell(hidden=128, mode="train", resets="0.03", **seconds):
    return Cell(hidden, mode, resets, 32, 64, 16, seconds)


def table(*cells, **more):
    return Table("cpu", WHERE, cells, **more)


def ranking(found, names=("cudnn", "fast", "vmap"), spec=SPEC):
    return Ranking(names, ("cudnn", "vmap"), found, spec)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The path of this machine's table in these tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = machine_file(CPU)
    assert file.is_relative_to(tmp_path)
    file.parent.mkdir()
    return file


@pytest.fixture
def fast():
    """A third-party backend in this process, which declines projections."""
    rejects = lambda spec, *_: "no projection" if spec.proj_size else None  # noqa: E731
    yield rnn_backends.register(LSTMBackend("fast", unroll, rejects))
    rnn_backends.unregister("fast")


def write(file, *tables):
    file.write_text(text_of(list(tables)))


def chosen(**options):
    return next(v for v in explain(LSTMSpec(3, 128, **options), "cpu", torch.float32) if v.chosen)


def test_the_fastest_measured_one_is_taken_and_explain_names_figure_and_table(mine, fast):
    assert LSTM(3, 128).lstm_backend == "cpp"  # "fast" is installed and not measured: it comes after the measured ones
    write(mine, table(cell(fast=0.0213, cudnn=0.064, vmap=0.1)))
    assert LSTM(3, 128).lstm_backend == "fast"
    said = chosen()
    assert said.name == "fast"
    assert said.reason == (
        "measured: 21.3 ms at H 128 (train, 3% resets, B 32, T 64); next cudnn 64 ms, 3.00 times as long over all modes"
        f"; this machine's table of 2026-11-21, AMD EPYC, 2 threads, torch {version('torch')}"
    )


def test_those_that_decline_or_lack_a_trait_are_passed_over_however_fast(mine, fast):
    write(mine, table(cell(fast=0.01, cudnn=0.06, vmap=0.1)))
    assert LSTM(3, 128, proj_size=2).lstm_backend == "cudnn"
    assert chosen(proj_size=2).name == "cudnn"
    needs = frozenset({Trait.VMAP})
    assert rnn_backends.choose.resolve("auto", SPEC, CPU, torch.float32, needs).name == "vmap"


def test_without_a_table_the_fixed_order_decides_and_says_so():
    assert ranking(None).first() == "cudnn"
    assert (
        ranking(None).why() == "the first of the fixed order that accepts: nothing is measured on this kind of device"
    )
    unmeasured = ranking(table(cell(other=1.0)))
    assert unmeasured.first() == "cudnn"
    assert "none that does is in this machine's table" in unmeasured.why()
    assert table_for(torch.device("meta")) is None


def test_less_than_the_margin_decides_nothing():
    close = ranking(table(cell(fast=1 - MARGIN + 0.01, cudnn=1.0, vmap=2.0)))
    assert close.first() == "cudnn"
    assert "less than 5% decides nothing, and cudnn is first in the fixed order" in close.why()
    assert ranking(table(cell(fast=1 - MARGIN - 0.01, cudnn=1.0, vmap=2.0))).first() == "fast"
    assert "decides nothing" not in ranking(table(cell(fast=2.0, cudnn=1.0, vmap=2.0))).why()


def test_the_choice_is_the_same_whether_the_unable_are_left_out_or_tested():
    found = table(cell(fast=0.93, cudnn=1.0, vmap=0.96, best=0.9))
    names = ("best", "cudnn", "fast", "vmap")
    for unable in names:
        able = tuple(name for name in names if name != unable)
        assert ranking(found, names).first({name: name in able for name in names}) == ranking(found, able).first()


def test_no_more_are_tested_than_needed():
    found = ranking(table(cell(fast=0.1, cudnn=1.0, vmap=2.0)))
    assert found.first({}) == "fast", "the next to test"
    assert found.first({"fast": True}) == "fast", "the choice"
    assert found.first({"fast": False}) == "cudnn", "the next to test"
    near = ranking(table(cell(fast=0.97, cudnn=1.0, vmap=2.0)))
    assert near.first({"fast": True}) == "cudnn", "within the margin, and first in the fixed order: to be tested"
    assert near.first({"fast": True, "cudnn": False}) == "fast"
    assert near.first(dict.fromkeys(("fast", "cudnn", "vmap"), False)) is None


def test_a_backend_that_was_not_measured_is_behind_those_that_were():
    found = table(cell(vmap=9.0, fast=10.0), cell(mode="step", vmap=9.0, fast=10.0, cudnn=0.1))
    assert ranking(found).first() == "vmap"  # cudnn lacks a time in one cell
    assert ranking(found).first({"vmap": False, "fast": False}) == "cudnn"


def test_what_compiles_for_seconds_comes_last_unless_the_table_allows_it():
    cells = (cell(fast=0.1, cudnn=1.0),)
    slow = table(*cells, first_call={"fast": PATIENCE + 10, "cudnn": 0.1})
    assert ranking(slow).first() == "cudnn"
    assert "fast is faster but its first call takes 15 s" in ranking(slow).why()
    assert ranking(slow).first({"cudnn": False}) == "vmap"  # not measured, but quick to start
    assert ranking(slow, ("fast",)).first() == "fast"
    assert ranking(replace(slow, allow_compile=True)).first() == "fast"
    assert "first call" not in ranking(replace(slow, allow_compile=True)).why()


def test_the_nearest_hidden_size_decides():
    found = table(cell(32, fast=1.0, cudnn=2.0), cell(512, fast=2.0, cudnn=1.0))
    assert [ranking(found, spec=LSTMSpec(3, H)).first() for H in (1, 32, 127, 129, 5000)] == ["fast"] * 3 + [
        "cudnn"
    ] * 2


def test_modes_count_by_their_weights_and_cells_of_a_mode_alike():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    cells = [cell(a=2.0, b=1.0), cell(a=8.0, b=1.0), cell(mode="step", a=1.0, b=3.0)]
    train, step = WEIGHTS["train"], WEIGHTS["step"]
    found = costs(cells, ["a", "b"])
    assert found["a"] == pytest.approx(4 ** (train / (train + step)))
    assert found["b"] == pytest.approx(3 ** (step / (train + step)))
    assert costs([], ["a"]) == {}


def test_a_table_survives_being_written_and_read():
    first = table(cell(a=0.5, b=1e-5), cell(mode="step", a=0.1), first_call={"a": 2.0}, allow_compile=True)
    both = [first, replace(first, device="cuda", allow_compile=False)]
    assert list(parse(text_of(both))) == both


def text(**changes):
    said = json.loads(text_of([table(cell(cudnn=1.0))]))
    said["tables"][0].update(changes)
    return json.dumps(said)


BROKEN = {
    "not JSON": "{",
    "not an object": "[]",
    "empty": "",
    "bytes": "\x00",
    "another format": json.dumps({"format": FORMAT + 1, "tables": []}),
    "no tables": json.dumps({"format": FORMAT}),
    "no such mode": text(cells=[{**vars(cell(cudnn=1.0)), "mode": "sleep"}]),
    "a key too many": text(cells=[{**vars(cell(cudnn=1.0)), "colour": "red"}]),
    "a hidden size of 0": text(cells=[{**vars(cell(cudnn=1.0)), "hidden": 0}]),
    "no time": text(cells=[{**vars(cell(cudnn=1.0)), "seconds": {"cudnn": 0}}]),
    "time in words": text(cells=[{**vars(cell(cudnn=1.0)), "seconds": {"cudnn": "fast"}}]),
    "not a number": text(cells=[{**vars(cell(cudnn=1.0)), "seconds": {"cudnn": math.nan}}]),
    "resets in words": text(cells=[{**vars(cell(cudnn=1.0)), "resets": "often"}]),
    "no origin": text(where={}),
    "an older torch": text(where={**WHERE, "torch": "1.0"}),
    "an older package": text(where={**WHERE, "rnn-backends": "0.0.1"}),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_or_old_table_is_said_once_and_breaks_nothing(mine, broken):
    mine.write_text(BROKEN[broken])
    with pytest.warns(RuntimeWarning, match="is not used: .* rnn-backends tune") as said:
        made = LSTM(3, 128)
    assert str(mine) in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LSTM(3, 128).lstm_backend == made.lstm_backend
        assert "this machine's" not in chosen().reason


def test_a_table_that_was_measured_anew_counts_at_once(mine, fast):
    write(mine, table(cell(fast=1.0, cudnn=2.0)))
    assert LSTM(3, 128).lstm_backend == "fast"
    write(mine, table(cell(fast=2.0, cudnn=1.0)))
    os.utime(mine, ns=(1, 1))
    assert LSTM(3, 128).lstm_backend == "cudnn"


def test_the_shipped_table_is_sound_and_used_where_this_machine_has_none(monkeypatch):
    [shipped] = [one for one in parse(SHIPPED.read_text(), shipped=True) if one.device == "cpu"]
    assert {"cudnn", "vmap", "torchscript", "compile"} <= set(shipped.cells[0].seconds)
    assert {c.mode for c in shipped.cells} == set(WEIGHTS)
    assert table_for(CPU) == shipped
    assert shipped.origin() in chosen().reason
    assert "the shipped table of 20" in shipped.origin()


def test_the_shipped_table_for_cuda_says_what_it_is(monkeypatch):
    [shipped] = [one for one in parse(SHIPPED.read_text(), shipped=True) if one.device == "cuda"]
    assert table_for(torch.device("cuda")) == shipped
    assert {name for cell in shipped.cells for name in cell.seconds} == {"cudnn"}
    [said] = [verdict for verdict in explain(LSTMSpec(3, 128), "cuda") if verdict.chosen]
    assert said.name == "cudnn"
    assert "measured: 3.67 ms at H 128 (train, 3% resets, B 1024, T 32)" in said.reason
    assert said.reason.endswith(
        "the shipped table of 2026-11-27, NVIDIA H100 80GB HBM3, torch 2.11.0+cu130"
        " (cudnn alone; triton is left out until the laws have run over its present kernels on a GPU)"
    )
    assert parse(text_of([shipped]), shipped=True) == (shipped,)


def test_the_file_is_one_for_each_processor_and_number_of_threads(mine, monkeypatch):
    assert f"-{torch.get_num_threads()}-threads.json" in mine.name
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert machine_file(CPU).name.endswith("-77-threads.json")
    monkeypatch.setattr(crossovers, "processor", lambda device: 'Intel(R) "Xeon" / 8')
    assert machine_file(CPU).name == "tune-cpu-intel-r-xeon-8-77-threads.json"
    assert machine_file(torch.device("cuda")).name == "tune-cuda-intel-r-xeon-8.json"


def test_the_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative/folder"):  # the XDG specification: a relative path is to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert machine_file(CPU).parent == tmp_path / ".cache" / "rnn_backends"
