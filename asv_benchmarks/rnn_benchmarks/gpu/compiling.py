"""What compiling the kernels of a call of ``triton`` takes, for a GPU that is not here, with an empty cache."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from ..cases import Shape
from .settings import DTYPES, name_of, precision
from .without import in_a_process, processors, triton_on_cpu

SHAPES = tuple(Shape(B, 32, 64, H) for B in (64, 4096) for H in (64, 128, 256, 512))
"""Few rows and many."""
STAGES = {"Python": "", "MLIR": "ttir ttgir", "LLVM": "llir ptx", "ptxas": "cubin"}
"""By what the table calls it: Triton's names of the stages."""


def measure(shape: Sequence[int], which: str, among: int) -> None:
    """Print what the first training call and the first single step take. For a process of its own.

    Args:
        shape: of the training call.
        which: the precision.
        among: how many processors the process may use.
    """
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:among])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        plugin = triton_on_cpu()
        import triton
        from rnn_backends import LayerWeights, State

        kernels: list[Any] = []
        triton.knobs.compilation.listener = lambda **about: kernels.append((about["src"].name, about["times"]))
        sizes, dtype = Shape(*shape), DTYPES[which]

        def make(*sizes: int) -> torch.Tensor:
            return torch.empty(*sizes, dtype=dtype, requires_grad=True)  # its memory is never touched

        B, T, I, H = sizes  # noqa: E741
        leaves = make(4 * H, I), make(4 * H, H), make(4 * H)
        weights = LayerWeights(*leaves, None, None)
        entry = State(*(torch.zeros(1, 1, H, dtype=dtype).expand(T, B, H) for _ in range(2)))
        x, starts = make(T, B, I), torch.ones(T, B, dtype=torch.bool)
        seconds = {}
        with precision(which):
            begun = perf_counter()
            h = plugin.layer(weights, x, entry, starts).h
            torch.autograd.grad(h, [x, *leaves], torch.empty_like(h))
            seconds["training"] = perf_counter() - begun
            of_training = len(kernels)
            begun = perf_counter()
            with torch.no_grad():
                plugin.step(weights, x[0], State(make(B, H), make(B, H)))
            seconds["a step"] = perf_counter() - begun
        stages = {name: sum(_microseconds(times, of) for _, times in kernels) / 1e6 for name, of in STAGES.items()}
        about = {"seconds": seconds, "kernels": [of_training, len(kernels) - of_training], "stages": stages}
        print(json.dumps(about))


def _microseconds(times: Any, names: str) -> float:
    if not names:
        return float(times.ir_initialization)
    return float(sum(took for name, took in times.lowering_stages if name in names.split()))


def show(shapes: Sequence[Shape], precisions: Sequence[str], tree: Path | None, say: Callable[[str], None]) -> None:
    """The lines of a table of :func:`measure`, with one processor and with all that this process may use.

    Args:
        shapes: of training calls.
        precisions: names of :data:`~.settings.PRECISIONS`.
        tree: another checkout, measured beside this one.
        say: takes the lines.
    """
    every = processors()
    counts = sorted({1, every})
    heads = ["seconds", "kernels", *STAGES, "a step", *(f"training, {n} of {every} processors" for n in counts)]
    heads += [f"the same of {tree}"] if tree else []
    say("| " + " | ".join(heads) + " |")
    say("| --- |" + " ---: |" * (len(heads) - 1))
    for which, shape in product(precisions, shapes):
        about = {"shape": list(shape), "which": which}
        found = [in_a_process("compiling", {**about, "among": n}) for n in counts]
        found += [in_a_process("compiling", {**about, "among": every}, tree)] if tree else []
        first = found[0]
        cells = [f"{name_of(shape)}, {which}", "{} + {}".format(*first["kernels"])]
        cells += [f"{value:.2f}" for value in (*first["stages"].values(), first["seconds"]["a step"])]
        say("| " + " | ".join([*cells, *(f"{one['seconds']['training']:.2f}" for one in found)]) + " |")
