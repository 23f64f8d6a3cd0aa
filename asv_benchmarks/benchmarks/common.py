"""The lists that all benchmarks share, and the cases, built once a process.

asv hands the measuring process an *index* into the lists, so they are the package's constants and never made from the
installed packages: a backend could be measured and stored under another's name. RNN_BENCH_EXTRA names further backends,
with commas between, and RNN_BENCH_DEVICE the device ("cpu"); both must stay the same for the whole run.
"""

import os
import sys
from functools import cache
from pathlib import Path

# This checkout's method, whatever commit is measured: the commit's own wheel may have another version of it, or none.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rnn_benchmarks import cases, figures, schedule  # noqa: F401 (the benchmarks import them from here)

if Path(cases.__file__).resolve().parents[1] != Path(__file__).resolve().parents[1]:
    raise ImportError(f"rnn_benchmarks was imported from {cases.__file__}, not from the folder beside {__file__}")

DEVICE = os.environ.get("RNN_BENCH_DEVICE", "cpu")
EXTRA = [name.strip() for name in os.environ.get("RNN_BENCH_EXTRA", "").split(",") if name.strip()]
OURS = [*schedule.OURS, *EXTRA]
DENSE = cases.DENSE
TORCHRL = list(schedule.THEIRS)
SHAPES = [f"{name}-{shape}" for name, shape in cases.SHAPES.items()]
S2 = next(name for name in SHAPES if name.startswith("S2"))
RESETS = list(cases.RESETS)
STEPS = list(cases.STEPS)


def shape_of(text):
    """``"S1-B64-..."`` or ``"B1-H64"`` -> a Shape."""
    return cases.STEPS[text] if text in cases.STEPS else cases.Shape.parse(text.partition("-")[2])


@cache
def case(backend, shape, resets, mode, reads):
    """A callable that takes other resets at each call; built, compiled and warmed up once a process."""
    _threads()
    call = cases.build(cases.Contestant(backend, shape_of(shape), resets, mode, reads, DEVICE))
    numbers = iter(range(1 << 60))
    return lambda: call(next(numbers))


def tracked(figure, backend, shape, *rest):
    """A figure of ``figures`` on ``DEVICE``; ``setup`` skips, by :func:`refuse`, what cannot be measured."""
    _threads()
    return figure(backend, shape_of(shape), *rest, device=DEVICE)


@cache
def refuse(backend, reads="output"):
    """Raise NotImplementedError, with the reason, for a backend or device that cannot be measured."""
    import torch

    if torch.device(DEVICE).type == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError("no CUDA device is available here")
    cases.build(cases.Contestant(backend, cases.Shape(2, 3, 4, 5), "once", "forward", reads, DEVICE))


def _threads():
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
