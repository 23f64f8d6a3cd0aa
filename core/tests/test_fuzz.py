"""Fixed budgets of bad calls and of damaged tables of measured times; ``make fuzz`` runs more of the calls."""

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTM
from rnn_backends.crossovers import SHIPPED, machine_file, versions


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_bad_calls_are_errors_with_words_or_right():
    program = Path(__file__).with_name("fuzz_calls.py")
    command = [sys.executable, program, "--calls", "60", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 bad calls from seed 1, a process each: 0 wrong" in done.stdout


def places(value, at=()):
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


VALUES = (
    None,
    True,
    0,
    -1,
    1e308,
    -1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
)


def damaged(draw: random.Random, text: str) -> bytes:
    """This machine's table, damaged in one of several ways."""
    kind = draw.randrange(5)
    if kind == 0:
        return text.encode()[: draw.randrange(len(text))]
    if kind == 1:
        at = draw.randrange(len(text))
        return (text[:at] + draw.choice(("x", '"', "}", "9" * 5000, "[" * 50_000, "\x00")) + text[at + 1 :]).encode()
    if kind == 2:
        return draw.choice((text.encode("utf-16"), b"\xff\xfe", b"", b"[" * 100_000, b"null", b"3", b"[]", b"{}"))
    data = json.loads(text)
    for _ in range(kind - 2):
        *path, last = draw.choice(places(data)[1:])
        inner = data
        for key in path:
            inner = inner[key]
        if draw.random() < 0.3 and isinstance(inner, dict):
            inner.pop(last)
        else:
            inner[last] = draw.choice(VALUES)
    return json.dumps(data).encode()


def test_a_damaged_table_of_this_machine_never_breaks_the_construction(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = machine_file(torch.device("cpu"))
    assert file is not None
    file.parent.mkdir()
    shipped = json.loads(SHIPPED.read_text())
    for table in shipped["tables"] if isinstance(shipped, dict) else shipped:
        table["where"] |= versions()
    text, reported = json.dumps(shipped), 0
    for number in range(200):
        file.write_bytes(damaged(random.Random(number), text))
        os.utime(file, ns=(number + 1, number + 1))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert LSTM(3, 64).lstm_backend
            assert LSTM(3, 5).lstm_backend
        assert len(said) <= 1, (number, [str(one.message) for one in said])
        reported += len(said)
    assert reported > 100
