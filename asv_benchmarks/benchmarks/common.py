"""The lists that all benchmarks share, and the cases, built once a process.

The lists are written out: asv hands the measuring process an *index* into them, so a list made from what happens to be
installed would let one backend be measured and stored under another's name. A backend of somebody else's is named by
RNN_BENCH_EXTRA (names with commas between), which must stay the same for the whole run.
"""

import os
import sys
from functools import cache
from pathlib import Path

# By path: the commit under measurement may have another version of it, or none.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rnn_benchmarks import cases

EXTRA = [name.strip() for name in os.environ.get("RNN_BENCH_EXTRA", "").split(",") if name.strip()]
OURS = ["cpp", "cudnn", "vmap", "compile", "torchscript", "auto", *EXTRA]
DENSE = "nn.LSTM"
TORCHRL = ["torchrl-pad", "torchrl-scan"]
SHAPES = [
    "S1-B64-T128-I64-H256",
    "S2-B32-T128-I64-H128",
    "S3-B256-T128-I32-H512",
    "S4-B1024-T32-I64-H128",
    "S5-B8-T64-I16-H64",
]
S2 = SHAPES[1]
RESETS = ["0", "0.01", "0.03", "0.10", "0.20", "once"]
STEPS = ["B1-H64", "B1-H256", "B32-H64", "B32-H256"]


def shape_of(text):
    """``"S1-B64-..."`` or ``"B1-H64"`` -> a Shape."""
    return cases.STEPS[text] if text in cases.STEPS else cases.Shape.parse(text.partition("-")[2])


@cache
def case(who, shape, resets, mode, reads):
    """A callable that does it once, and takes the next resets each time; built, compiled and warmed up only once."""
    _threads()
    call = cases.build(cases.Asked(who, shape_of(shape), resets, mode, reads))
    numbers = iter(range(1 << 60))
    return lambda: call(next(numbers))


def tracked(figure, who, shape, *rest):
    """A tracked figure of ``figures``; what cannot be measured is refused in ``setup``, by :func:`refuse`."""
    _threads()
    return figure(who, shape_of(shape), *rest)


@cache
def refuse(who, reads="output"):
    """Raise NotImplementedError, with the backend's own reason, where it cannot be measured."""
    cases.build(cases.Asked(who, cases.Shape(2, 3, 4, 5), "once", "forward", reads))


def _threads():
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
