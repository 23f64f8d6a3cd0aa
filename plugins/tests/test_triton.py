"""The ``triton`` backend without a GPU: its kernels in Triton's interpreter, each in a process of its own."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTM, UnsupportedError

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/generated/triton_defects.md"
PARTS = 3
"""Of the laws, so that they run side by side."""

pytest.importorskip("triton", reason="the interpreter comes with triton, and it is not installed")


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_slices_and_tiles_equal_the_unroll():
    done = interpreted(str(HERE / "triton_interpreted.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right") == 36


@pytest.mark.slow
def test_in_every_order_of_the_programs_each_reads_what_it_needs_and_none_waits_for_ever():
    done = interpreted(str(HERE / "triton_exchange.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right") == 12
    assert "backward_kernel, T, B, H (3, 3, 3), 3 slices, 1 tiles at once" in done.stdout
    assert done.stdout.count(": 1 states, 1 of 1 programs have to run at once") == 2  # one slice waits for nobody
    assert done.stdout.count("2 of 2 programs have to run at once") == 4  # where not all of a tile's run, they wait


SAMPLE = ("stale_tile", "one_slot_forward", "arrival_releases_nothing", "waits_for_its_own_step", "int32_steps")
SAMPLE += ("tf32_where_it_is_off", "a_slice_is_missing")


@pytest.mark.slow
def test_planted_defects_are_found_by_whom_they_name():
    """A sample; ``make triton-defects`` tries all."""
    picked = [word for name in SAMPLE for word in ("--only", name)]
    done = interpreted(str(HERE / "triton_defects.py"), *picked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["died", name] for name in ordered(SAMPLE)]


def test_every_planted_defect_is_an_edit_of_the_source_and_has_its_line_on_the_page():
    assert re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.MULTILINE) == defects()


@functools.cache
def defects() -> list[str]:
    done = interpreted(str(HERE / "triton_defects.py"), "--list")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def ordered(names: tuple[str, ...]) -> list[str]:
    return [name for name in defects() if name in names]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_smoke_laws_hold(part):
    from rnn_conformance.laws.catalogue import LAWS

    names = sorted(law.name for law in LAWS.values() if law.belongs("smoke"))[part::PARTS]
    picked = [word for name in names for word in ("-k", name)]
    done = interpreted(str(HERE / "triton_laws.py"), "--profile", "smoke", "--seed", "1", *picked)
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_cpu_it_gives_the_reason():
    with pytest.raises(UnsupportedError, match="made for cuda, not for cpu"):
        LSTM(3, 4, lstm_backend="triton", device="cpu")
    assert LSTM(3, 4, device="cpu").lstm_backend != "triton"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float64}, "computes in float32"),
        ({"proj_size": 2}, "no projection"),
        ({"input_size": 2**19}, "an input_size of at most 524287"),
    ],
)
def test_what_it_declines(options, reason):
    sizes = {"input_size": 3, "hidden_size": 4, **options}
    code = f"import torch; from rnn_backends import LSTM; LSTM(lstm_backend='triton', **{sizes!r})"
    done = interpreted("-c", code)
    assert "UnsupportedError" in done.stderr
    assert reason in done.stderr
