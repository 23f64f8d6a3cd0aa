"""The types that a user's program gets under ``mypy --strict``."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from rnn_backends import LSTM, LSTMModule, LSTMNet, __version__, get_backend

lstm = LSTM(3, 4, lstm_backend="vmap")
output, (h, c) = lstm(torch.zeros(5, 2, 3), is_init=torch.zeros(5, 2, dtype=torch.bool))
reveal_type(output)
reveal_type(h)
net = LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3})
reveal_type(net(torch.zeros(2, 3))[0])
reveal_type(__version__)
reveal_type(get_backend("vmap").name)
reveal_type(LSTMModule(3, 4, in_key="x", out_key="y").recurrent_mode)
lstm("x")
lstm(torch.zeros(1), None, None, None)
lstm(is_init=None)
"""


@pytest.mark.slow
def test_calls_have_their_types_and_wrong_ones_are_errors(tmp_path):
    pytest.importorskip("mypy", reason="mypy belongs to the dev group")
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    revealed = [line.split('"')[1].rpartition(".")[2] for line in done.stdout.splitlines() if "Revealed" in line]
    assert revealed == ["Tensor", "Tensor", "Tensor", "str", "str", "bool"], done.stdout
    wrong = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    calls = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.startswith("lstm(")]
    assert wrong == calls, done.stdout
