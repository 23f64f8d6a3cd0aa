"""The kernel of ``cpp``, built to watch every access."""

import os
import subprocess
import sys

import pytest
from rnn_backends_plugins.cpp import build

pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))

WATCHED = """
import ctypes, itertools, sys
import torch
from rnn_backends_plugins.cpp import build, kernel
kernel.library = lambda: ctypes.CDLL(sys.argv[1])
from rnn_backends import LayerWeights, State, get_backend
backend = get_backend("cpp")
draw = lambda dtype, *shape: torch.randn(*shape, dtype=dtype).requires_grad_()
small = itertools.product((1, 3, 17), (1, 4, 9, 40), (1, 15, 33), (1, 15, 16, 17, 33, 65), (0, 1, 16, 64))
few_rows = itertools.product((1, 3, 40), (1, 2, 5, 9), (133,), (257,), (0, 64))
for number, (T, B, I, H, P) in enumerate((*small, *few_rows)):
    torch.set_num_threads(1 + number % 3)
    dtype = (torch.float32, torch.float64)[number % 2]
    biases = (draw(dtype, 4 * H), draw(dtype, 4 * H)) if number % 5 else (None, None)
    w_hr = draw(dtype, P, H) if P else None
    weights = LayerWeights(draw(dtype, 4 * H, I), draw(dtype, 4 * H, P or H), *biases, w_hr)
    x, entry = draw(dtype, T, B, I), State(draw(dtype, T, B, P or H), draw(dtype, T, B, H))
    starts = torch.rand(T, B) < 0.3
    starts[0] = True
    out = backend.layer(weights, x, entry, starts)
    torch.autograd.grad(out.h.sum() + out.c.sum(), [v for v in (x, *entry, *weights) if v is not None])
    with torch.no_grad():
        backend.step(weights, x[0], State(entry.h[0], entry.c[0]))
"""


@pytest.mark.slow
def test_no_memory_but_its_own_is_touched(tmp_path):
    """Built to watch every access; the tensors' memory has guards on both sides then."""
    compiler, made = os.environ.get("CXX") or "g++", tmp_path / "watched.so"
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    guard = found.stdout.strip()
    if not os.path.isabs(guard):
        pytest.skip("the compiler has no libasan")
    flags = [*build.FLAGS, "-O1", "-fsanitize=address"]
    subprocess.run([compiler, *flags, build.SOURCES / "lstm.cpp", *build._openmp(), "-o", made], check=True)
    options = {"LD_PRELOAD": guard, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", WATCHED, made]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **options})
    assert done.returncode == 0, done.stderr[-2000:]
