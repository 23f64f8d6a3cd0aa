"""OpenMP may start fewer threads than torch requests. oneDNN computes wrong numbers then, and is not used."""

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys
import torch
from rnn_backends import LSTM, UnsupportedError
from rnn_backends_plugins.compile.products import Product, add_product

x, gradient = torch.randn(6, 200, 8), torch.randn(6, 200, 64)
is_init = torch.rand(6, 200) < 0.2
like = LSTM(8, 64, lstm_backend="vmap")

def results(lstm):
    lstm = lstm.with_backend(lstm.lstm_backend)
    y, (h, c) = lstm(x, is_init=is_init)
    with torch.no_grad():
        one, whole = lstm(x[:1])[0], lstm(x)[0]  # a step; rows without resets
    return y, c, one, whole, *torch.autograd.grad((y * gradient).sum(), list(lstm.parameters()))

def equal(backend):
    for got, expected in zip(results(like.with_backend(backend)), results(like), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

made_alone = None
if len(sys.argv) > 1:  # set after construction
    made_alone = like.with_backend("cudnn")
    torch.set_num_threads(int(sys.argv[1]))
assert torch.get_num_threads() > 1
for _ in range(3):
    equal("auto")
try:
    made_alone(x) if made_alone else like.with_backend("cudnn")
    raise SystemExit("cudnn ran")
except UnsupportedError as error:
    assert "OpenMP may start fewer threads than torch's" in str(error), error
left, right, total = torch.randn(512, 300), torch.randn(300, 700), torch.zeros(300, 300)
add_product(total, left, left)
torch.testing.assert_close(total, left.t() @ left, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(Product(right, 512).of(left), left @ right, rtol=1e-4, atol=1e-4)
LSTM(8, 64, proj_size=3, lstm_backend="cudnn")(x)  # without oneDNN
LSTM(8, 64, dtype=torch.float64, lstm_backend="cudnn")(x.double())
torch.set_num_threads(1)
equal("cudnn")
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"OMP_NUM_THREADS": "2", "OMP_DYNAMIC": "true"}, ()),
        ({"OMP_NUM_THREADS": "2", "OMP_MAX_ACTIVE_LEVELS": "0"}, ()),
        ({"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "2"}, ("4",)),
    ],
)
def test_numbers_are_right_with_fewer_threads_than_asked_for(variables, asked):
    command = [sys.executable, "-c", PROGRAM, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
