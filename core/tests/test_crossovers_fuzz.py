"""Damaged tables of this machine's times: at most one warning, and an LSTM as without the table."""

import json
import os
import random
import warnings

import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, crossovers, explain
from rnn_backends.crossovers import LARGEST_FILE, Cell, Table, machine_file, text_of, versions

CPU = torch.device("cpu")
WHERE = {"date": "2026-11-21", "processor": "AMD EPYC", "threads": "2", **versions()}
TIMES = {"cpp": 0.3, "cudnn": 0.1, "vmap": 0.2, "compile": 0.05}
VALID = text_of(
    [
        Table(
            "cpu",
            WHERE,
            tuple(Cell(H, mode, "0.03", 32, 64, 16, TIMES) for H in (32, 512) for mode in crossovers.MODES),
            first_call={"cpp": 0.1, "compile": 60.0},
        )
    ]
)
JUNK = [
    *(None, True, False, 0, 1, -1, 0.5, 10**400, -(10**400), 2**63, 5e-324, 1e308, float("nan"), float("inf")),
    *("", "x", "nan", "1e999", "\ud800", "once", "cpu", "lstm", [], [[]], {}, {"cudnn": None}, [{}], [None], "[/bold]"),
]
BUDGET = 300


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = machine_file(CPU)
    file.parent.mkdir()
    return file


def usable():
    """Make and explain an LSTM with any content of the file; return the messages of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for H in (4, 100_000):
            verdicts = explain(LSTMSpec(3, H), CPU, torch.float32)
            assert sum(v.chosen for v in verdicts) == 1
        assert LSTM(3, 4).lstm_backend in {v.name for v in verdicts}
    return [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


def changed(rng, value):
    """``value`` with one part replaced, removed or added."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(sorted(copy) if isinstance(copy, dict) else range(len(copy)))
    action = rng.random()
    if action < 0.75:
        copy[key] = changed(rng, copy[key])
    elif action < 0.9:
        del copy[key]
    elif isinstance(copy, dict):
        copy[rng.choice(["cell", "\x00", "cpp", "hidden"])] = rng.choice(JUNK)
    else:
        copy.append(rng.choice(JUNK))
    return copy


def damaged(rng, text):
    """``text`` as bytes, with some bytes changed, or only a part of it."""
    content = bytearray(text.encode())
    if rng.random() < 0.4:
        return bytes(content[: rng.randrange(len(content))])
    for _ in range(rng.randrange(1, 6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def write_anew(file, content, number):
    file.write_bytes(content)
    os.utime(file, ns=(number, number))


def test_the_fuzzers_starting_point_is_a_table_that_counts(mine):
    write_anew(mine, VALID.encode(), 1)
    assert usable() == []
    assert any("this machine's table" in (v.reason or "") for v in explain(LSTMSpec(3, 4), CPU, torch.float32))


@pytest.mark.parametrize("seed", range(3))
def test_no_content_breaks_anything_or_is_reported_twice(mine, seed):
    rng, reported = random.Random(seed), 0
    for number in range(BUDGET // 3):
        if number % 3:
            content = json.dumps(changed(rng, json.loads(VALID))).encode()
        else:
            content = damaged(rng, VALID)
        write_anew(mine, content, number + 2)
        first = usable()
        assert len(first) <= 1, content
        assert all("rnn-backends tune" in message for message in first)
        assert usable() == [], content
        reported += len(first)
    assert reported > BUDGET // 6


DEEP = {
    "lists": "[" * 100_000,
    "objects": '{"format":' * 100_000,
    "whole lists": "[" * 50_000 + "]" * 50_000,
    "a long number": '{"format": ' + "9" * 100_000 + "}",
    "a long string": '{"format": "' + "x" * 100_000 + '"}',
    "too many bytes": " " * (LARGEST_FILE + 1),
    "another encoding": VALID.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("name", DEEP)
def test_bombs_are_reported_in_few_words(mine, name):
    mine.write_text(DEEP[name], encoding="latin-1")
    [message] = usable()
    assert len(message) < 600
    assert usable() == []


def test_times_that_cannot_be_computed_with_are_refused(mine):
    for number, seconds in enumerate((5e-324, 1e308, 10**400, True, float("nan"), "1")):
        said = json.loads(VALID)
        said["tables"][0]["cells"][0]["seconds"] = {"cudnn": seconds}
        write_anew(mine, json.dumps(said).encode(), number + 1)
        assert len(usable()) == 1, seconds


def a_folder(file):
    file.mkdir()


def a_pipe(file):
    os.mkfifo(file)


def a_link_to_itself(file):
    file.symlink_to(file)


def a_device(file):
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_link_to_itself, a_device])
def test_what_is_no_regular_file_is_reported_and_not_read(mine, make):
    make(mine)
    [message] = usable()
    assert str(mine) in message
    assert usable() == []


def test_an_unreadable_file_is_reported(mine, monkeypatch):
    mine.write_text(VALID)

    read_text = type(mine).read_text

    def denied(self, **options):
        if self == mine:
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, **options)

    monkeypatch.setattr(type(mine), "read_text", denied)
    [message] = usable()
    assert "Permission denied" in message
    assert usable() == []


@pytest.mark.parametrize("link", ["nowhere", "file/inside"])
def test_a_file_that_is_not_there_is_no_error(mine, link):
    (mine.parent / "file").touch()
    mine.symlink_to(mine.parent / link)
    assert usable() == []
