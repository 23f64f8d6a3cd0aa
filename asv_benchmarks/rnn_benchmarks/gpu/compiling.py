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

STAGES = {"Python": "", "MLIR": "ttir ttgir", "LLVM": "llir ptx", "ptxas": "cubin"}
"""By what the table calls it: Triton's names of the stages."""


def measure(shape: Sequence[int], which: str, among: int) -> None:
    """Print what the first training call takes, another one of other sizes, and a single step. In its own process.

    The calls are of two steps and three: no kernel depends on how many there are.

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
        (B, _, I, H), dtype = Shape(*shape), DTYPES[which]  # noqa: E741

        def make(*sizes: int) -> torch.Tensor:
            return torch.empty(*sizes, dtype=dtype, requires_grad=True)

        leaves = make(4 * H, I), make(4 * H, H), make(4 * H)
        weights = LayerWeights(*leaves, None, None)

        def train(T: int, B: int) -> None:
            x, starts = make(T, B, I), torch.rand(T, B) < 0.5
            entry = State(*(torch.zeros(1, 1, H, dtype=dtype).expand(T, B, H) for _ in range(2)))
            h = plugin.layer(weights, x, entry, starts).h
            torch.autograd.grad(h, [x, *leaves], torch.empty_like(h))

        def step() -> None:
            with torch.no_grad():
                plugin.step(weights, make(B, I), State(make(B, H), make(B, H)))

        calls = {"training": lambda: train(2, B), "again": lambda: train(3, B - 1), "a step": step}
        about: dict[str, Any] = {"seconds": {}, "busy": {}, "kernels": []}
        with precision(which):
            for name, call in calls.items():
                begun, busy, before = perf_counter(), _busy(), len(kernels)
                call()
                about["seconds"][name], about["busy"][name] = perf_counter() - begun, _busy() - busy
                about["kernels"].append(len(kernels) - before)
        about["stages"] = {
            name: sum(_microseconds(times, of) for _, times in kernels) / 1e6 for name, of in STAGES.items()
        }
        print(json.dumps(about))


def _busy() -> float:
    """Seconds that processors worked for this process and for the assembler's, which have ended."""
    return sum(os.times()[:4])


def _microseconds(times: Any, names: str) -> float:
    if not names:
        return float(times.ir_initialization)
    return float(sum(took for name, took in times.lowering_stages if name in names.split()))


def show(shapes: Sequence[Shape], precisions: Sequence[str], tree: Path | None, say: Callable[[str], None]) -> None:
    """The lines of a table of :func:`measure`, with one processor and with all that this process may use.

    The first call's processor seconds with one processor are what it takes there if nothing else runs. ``kernels`` are
    those of the first training call, of one with other sizes and resets, and of a single step.

    Args:
        shapes: of training calls.
        precisions: names of :data:`~.settings.PRECISIONS`.
        tree: another checkout, measured beside this one.
        say: takes the lines.
    """
    every = processors()
    counts = sorted({1, every})
    heads = ["seconds", "kernels", *STAGES, "a step, busy", "training, busy"]
    heads += [f"training, {n} of {every} processors" for n in counts]
    heads += [f"the same of {tree}"] if tree else []
    say("| " + " | ".join(heads) + " |")
    say("| --- |" + " ---: |" * (len(heads) - 1))
    for which, shape in product(precisions, shapes):
        about = {"shape": list(shape), "which": which}
        found = [in_a_process("compiling", {**about, "among": n}) for n in counts]
        found += [in_a_process("compiling", {**about, "among": every}, tree)] if tree else []
        first = found[0]
        values = *first["stages"].values(), first["busy"]["a step"], first["busy"]["training"]
        cells = [f"{name_of(shape)}, {which}", "{} + {} + {}".format(*first["kernels"])]
        cells += [f"{value:.2f}" for value in (*values, *(one["seconds"]["training"] for one in found))]
        say("| " + " | ".join(cells) + " |")
