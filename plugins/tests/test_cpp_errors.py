"""Errors inside the kernel: a status and a message for Python, never the end of the process."""

import os
import subprocess
import sys

import pytest
from rnn_backends import InputError
from rnn_backends_plugins.cpp import build, kernel

pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))

THROWING = """
#include "lstm.cpp"
#include <cstdlib>

// argv: threads, phase that throws, share that throws, kind. Exit status: the Status.
int main(int, char** argv) {
  const int threads = std::atoi(argv[1]), at = std::atoi(argv[2]);
  const int share = std::atoi(argv[3]), kind = std::atoi(argv[4]);
  return status_of([&] {
    on_threads(threads, [&](auto together) {
      for (int phase = 0; phase < 4; ++phase)
        together([&](int64_t k) {
          if (phase != at || (share >= 0 && share != k)) return;
          if (kind == NO_MEMORY) throw std::bad_alloc();
          if (kind == INVALID) throw std::invalid_argument("a size");
          if (kind == FAILED) throw 3;
        });
    });
  });
}
"""


@pytest.fixture(scope="module")
def throwing(tmp_path_factory):
    """A program whose phases throw."""
    folder = tmp_path_factory.mktemp("throwing")
    source, made = folder / "throwing.cpp", folder / "throwing"
    source.write_text(THROWING)
    command = ["g++", "-std=c++17", "-O0", "-march=native", "-fopenmp", f"-I{build.SOURCES}", source, "-o", made]
    subprocess.run(command, check=True)
    return made


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("phase", "share"), [(0, 0), (2, 1), (3, -1)])
def test_an_exception_in_a_parallel_region_becomes_a_status(throwing, threads, phase, share, kind):
    done = subprocess.run([throwing, *map(str, (threads, phase, share, kind))], check=False, timeout=60)
    assert done.returncode == (kind if share < threads else 0)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(1, MemoryError, "out of memory"), (2, InputError, "rejects"), (3, RuntimeError, "failed"), (9, RuntimeError, "")],
)
def test_each_status_is_an_error_of_its_kind(status, kind, words):
    with pytest.raises(kind, match=f"the cpp kernel .*{words}"):
        kernel._check_status(status)


LITTLE_MEMORY = """
import resource, sys
import torch
from rnn_backends import LayerWeights, State
from rnn_backends_plugins import cpp

B, H, P, dtype = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
zeros = lambda *shape: torch.zeros(shape, dtype=dtype)
weights = LayerWeights(zeros(4 * H, 3), zeros(4 * H, P or H), None, None, zeros(P, H) if P else None)
small = LayerWeights(zeros(4, 3), zeros(4, 1), None, None, None)
cpp.step(small, zeros(1, 3), State(zeros(1, 1), zeros(1, 1)))
x, state = zeros(B, 3), State(zeros(B, P or H), zeros(B, H))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)
for _ in range(2):
    try:
        cpp.act(weights, x, state, torch.ones(B, dtype=torch.bool))
    except MemoryError as error:
        print("MemoryError", isinstance(error, RuntimeError), error)
print("alive", cpp.step(small, zeros(1, 3), State(zeros(1, 1), zeros(1, 1))).h.item())
"""


@pytest.mark.parametrize("case", ["5 2048 0 float32", "64 1200 0 float64", "2 2048 1024 float32"])
def test_a_step_without_memory_is_an_error_in_words(case):
    """By a refusal of the system."""
    command = [sys.executable, "-c", LITTLE_MEMORY, *case.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in lines[:2]] == ["MemoryError True the cpp kernel is out of memory"] * 2
    assert lines[2:] == ["alive 0.0"]
