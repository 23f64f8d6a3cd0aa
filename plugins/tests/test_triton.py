"""The ``triton`` backend without a GPU: its kernels in Triton's interpreter, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTM, UnsupportedError

HERE = Path(__file__).parent
PARTS = 4
"""Of the laws, so that they run side by side."""

pytest.importorskip("triton", reason="the interpreter comes with triton, and it is not installed")


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_slices_and_tiles_equal_the_unroll():
    done = interpreted(str(HERE / "triton_interpreted.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right") == 45


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_smoke_laws_hold(part):
    from rnn_conformance.laws.catalogue import LAWS

    names = sorted(law.name for law in LAWS.values() if law.belongs("smoke"))[part::PARTS]
    picked = [word for name in names for word in ("-k", name)]
    done = interpreted("-m", "rnn_conformance", "check", "triton", "--profile", "smoke", "--seed", "1", *picked)
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_cpu_it_gives_the_reason():
    with pytest.raises(UnsupportedError, match="made for cuda, not for cpu"):
        LSTM(3, 4, lstm_backend="triton", device="cpu")
    assert LSTM(3, 4, device="cpu").lstm_backend != "triton"


@pytest.mark.parametrize(
    ("options", "reason"), [({"dtype": torch.float64}, "computes in float32"), ({"proj_size": 2}, "no projection")]
)
def test_what_it_declines(options, reason):
    code = f"import torch; from rnn_backends import LSTM; LSTM(3, 4, lstm_backend='triton', **{options!r})"
    done = interpreted("-c", code)
    assert "UnsupportedError" in done.stderr
    assert reason in done.stderr
