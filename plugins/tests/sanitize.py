"""Run the ``cpp`` kernel under AddressSanitizer and UBSan over random cases: ``make sanitize``.

The kernel is compiled with both, every allocation of torch lies between guards, and each result is compared with the
plain unroll. Two planted faults must be reported first, because without that a missing report would show nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLANTED = """
#include "lstm.cpp"

// Faults that the sanitizers have to report, in the same build.
extern "C" int rnn_planted(int kind) {
  if (kind == 0) {
    float* volatile three = new float[3]();  // volatile: hides the size of the memory from the compiler
    return int(three[3]);
  }
  return int(share(INT64_MAX, 2, 2));
}
"""
EXTRA = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65)
LARGE = (129, 130, 257)


def main() -> int:
    """Build, check the sanitizers by planted faults, run the cases; the exit status is 0 if nothing is reported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    parser.add_argument("--planted", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library and options.planted is not None:
        return ctypes.CDLL(options.library).rnn_planted(options.planted)
    if options.library:
        return run_cases(options.library, options.cases, options.seed)
    return watch(options.cases, options.seed)


def watch(cases: int, seed: int) -> int:
    """Compile, then run in separate processes: a report ends a process."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        made = compile_watched(Path(name))
        if made is None:
            print("the compiler has no sanitizers: nothing was run")
            return 2
        for kind, words in enumerate(("AddressSanitizer", "runtime error: signed integer overflow")):
            done = child(made, "--planted", str(kind))
            if done.returncode == 0 or words not in done.stderr:
                print(f"a planted fault was not reported ({words}):\n{done.stderr}")
                return 2
        print(f"compiled in {time.monotonic() - began:.0f} s; both planted faults were reported", flush=True)
        done = child(made, "--cases", str(cases), "--seed", str(seed))
    print(done.stdout, end="")
    if done.returncode:
        print(done.stderr[-6000:])
        return 1
    print(f"{cases} cases from seed {seed}: no report, in {time.monotonic() - began:.0f} s")
    return 0


def compile_watched(folder: Path) -> Path | None:
    """The kernel with both sanitizers; ``None`` if the compiler has none."""
    from rnn_backends_plugins.cpp import build, compiler

    if guard() is None:
        return None
    source, made = folder / "watched.cpp", folder / "watched.so"
    source.write_text(PLANTED)
    include = f"-I{build.SOURCES}"
    command = [*compiler.command(), *build.FLAGS, *EXTRA, include, str(source), *build._openmp(), "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def guard() -> str | None:
    """AddressSanitizer's library: it has to be the first in the process."""
    from rnn_backends_plugins.cpp import compiler

    command = [*compiler.command(), "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found if os.path.isabs(found) else None


def child(made: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This program, with the instrumented kernel. Leaks are not checked: Python itself leaks at its end."""
    environment = {
        **os.environ,
        "LD_PRELOAD": guard() or "",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, __file__, "--library", str(made), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def run_cases(library: str, cases: int, seed: int) -> int:
    """In the instrumented process: the cases, each compared with the plain unroll."""
    import torch
    from rnn_backends_plugins.cpp import kernel, memory

    kernel.library = lambda: ctypes.CDLL(library)
    memory.SMALLEST = 1 << 60  # all memory comes from torch, each tensor between guards
    for number in range(cases):
        draw = random.Random(f"{seed}.{number}")
        torch.manual_seed(draw.randrange(1 << 32))
        torch.set_num_threads(draw.randint(1, 4))
        words = one_case(draw)
        if os.environ.get("RNN_SANITIZE_VERBOSE"):
            print(number, words, flush=True)
    return 0


def one_case(draw: random.Random) -> str:
    """Forward and backward of a layer, then a step with and without resets."""
    import torch
    from rnn_backends import LayerWeights, State, get_backend
    from rnn_backends_plugins import cpp

    size = lambda: draw.choice(SIZES) if draw.random() < 0.9 else draw.choice(LARGE)  # noqa: E731
    T, B = draw.choice((0, 1, 1, 2, 3, 17, 40)), draw.choice((0, 1, 1, 2, 3, 4, 5, 9, 40, 130))
    inputs, H = size(), size()
    P = draw.randrange(1, H) if H > 1 and draw.random() < 0.4 else H
    if T * B * H * (inputs + P) > 1 << 25:
        T, B = 2, 5
    dtype = draw.choice((torch.float32, torch.float64))

    def tensor(*shape: int) -> torch.Tensor:
        """A tensor of these sizes, with strides of a random kind."""
        kind = draw.choice(("plain", "plain", "turned", "apart", "expanded", "offset"))
        if kind == "turned" and len(shape) > 1:
            return torch.randn(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
        if kind == "apart":
            return torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
        if kind == "expanded" and len(shape) == 3:
            return torch.randn(1, *shape[1:], dtype=dtype).expand(shape)
        if kind == "offset":
            return torch.randn(shape[0] + 1, *shape[1:], dtype=dtype)[1:]
        return torch.randn(shape, dtype=dtype)

    biases = draw.random() < 0.7
    w_hr = tensor(P, H) if P != H else None
    weights = LayerWeights(
        tensor(4 * H, inputs),
        tensor(4 * H, P),
        tensor(4 * H) if biases else None,
        tensor(4 * H) if biases else None,
        w_hr,
    )
    weights = LayerWeights(*(None if v is None else v * H**-0.5 for v in weights))
    x, entry = tensor(T, B, inputs), State(tensor(T, B, P), tensor(T, B, H))
    starts = torch.rand(B, T).t() < draw.choice((0.0, 0.3, 1.0))
    if draw.random() < 0.5:
        starts = starts.contiguous()
    starts[:1] = True
    leaves = [v for v in (x, *entry, *weights) if v is not None]
    wanted = [v for v in leaves if draw.random() < 0.8]
    for v in wanted:
        v.requires_grad_()
    read = draw.choice(("hc", "h", "c"))
    results = []
    for name in ("cpp", "vmap") if T else ("cpp",):  # the plain unroll has no empty rows
        out = get_backend(name).layer(weights, x, entry, starts)
        grads: tuple = ()
        total = sum(getattr(out, part).pow(2).sum() for part in read)
        if wanted and total.requires_grad:
            grads = torch.autograd.grad(total, wanted, allow_unused=True)
        results.append(
            [out.h, out.c, *(torch.zeros_like(v) if g is None else g for v, g in zip(wanted, grads, strict=False))]
        )
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    for found, right in zip(results[0], results[-1], strict=True):
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance * max(1.0, _largest(right)))
    with torch.no_grad():
        if T:
            state, is_init = State(entry.h[0], entry.c[0]), torch.rand(2 * B)[::2] < 0.5
            cpp.step(weights, x[0], state)
            cpp.act(weights, x[0], state, is_init)
        cpp.layer(weights, x, entry, starts)
    if T and B:
        _row_of_one_step(cpp, weights, x[:1], State(entry.h[:1], entry.c[:1]), draw.random() < 0.5, wanted)
    return f"T{T} B{B} I{inputs} H{H} P{P} {dtype} threads {torch.get_num_threads()} {read}"


def _row_of_one_step(cpp, weights, x, state, resets: bool, wanted) -> None:
    """A row of one step, forward and (if a gradient is required) backward, in memory of exactly its size."""
    import torch
    from rnn_backends.authoring import weight_info

    info, is_init = weight_info(weights), torch.rand(1, 2 * x.shape[1])[:, ::2] < 0.5
    found = None if info is None else cpp.layer.row(weights, info, x, state, is_init if resets else None, False)
    if found is not None and found[0].requires_grad:
        output, (h, c) = found
        torch.autograd.grad(output.sum() + (h * c.sum()).sum(), wanted, allow_unused=True)


def _largest(v) -> float:
    return v.abs().max().item() if v.numel() else 0.0


if __name__ == "__main__":
    sys.exit(main())
