"""The time of a step without gradients, of this checkout beside another.

    python tools/acting_of_trees.py ../other                 # every backend of a CPU, a minute
    python tools/acting_of_trees.py ../other --backend cpp --rounds 5
    python tools/acting_of_trees.py ../other --bare          # LSTM.step, without a TensorDict

``../other`` is a checkout of another commit (``git worktree add --detach ../other COMMIT``). Both run with this
environment's torch, in new processes that take turns. A time is the least of all rounds: other programs only add to it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
SHAPES = ((1, 64), (1, 256), (8, 128), (32, 256))
"""Rows B and hidden size H; 32 features."""
BACKENDS = ("cpp", "cudnn", "vmap", "torchscript")
CALLS, TURNS = 25, 40


def measure(bare: bool, backends: list[str]) -> dict[str, float]:
    """Microseconds of a step, by backend and shape; ``bare``: of ``LSTM.step``."""
    import torch
    from rnn_backends import LSTMModule, State
    from tensordict import TensorDict

    torch.set_num_threads(1)
    steps = {}
    for backend in backends:
        for B, H in SHAPES:
            module = LSTMModule(32, H, in_key="x", out_key="y", lstm_backend=backend)
            states = {f"recurrent_state_{name}": torch.zeros(B, 1, H) for name in "hc"}
            td = TensorDict({"x": torch.randn(B, 32), "is_init": torch.zeros(B, 1, dtype=torch.bool), **states}, [B])
            tensors = td["x"], State(*[torch.zeros(1, B, H)] * 2), td["is_init"].squeeze(-1)
            steps[f"{backend}, B = {B}, H = {H}"] = (module.lstm.step, tensors) if bare else (module, (td,))
    least = dict.fromkeys(steps, float("inf"))
    gc.disable()
    with torch.no_grad():
        for turn in range(TURNS + 1):  # the first turn warms up
            for name, (step, given) in steps.items():
                begun = time.perf_counter()
                for _ in range(CALLS):
                    step(*given)
                if turn:
                    least[name] = min(least[name], (time.perf_counter() - begun) / CALLS * 1e6)
    return least


def in_a_process(tree: Path, bare: bool, backends: list[str]) -> dict[str, float]:
    """:func:`measure` with the packages of ``tree``."""
    paths = os.pathsep.join(str(tree / folder) for folder in ("core", "plugins"))
    command = [sys.executable, __file__, "--measure", "bare" if bare else "module", *backends]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tree} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2] == "bare", sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated; default: all")
    parser.add_argument("--bare", action="store_true", help="LSTM.step in place of LSTMModule")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout; default: %(default)s")
    options = parser.parse_args()
    trees = (HERE, options.other.resolve())
    if not (trees[1] / "core" / "rnn_backends").is_dir():
        parser.error(f"{options.other} is no checkout: it has no core/rnn_backends")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    rounds = [
        [in_a_process(tree, options.bare, options.backend or [*BACKENDS]) for tree in trees]
        for _ in range(options.rounds)
    ]
    what = "LSTM.step" if options.bare else "a step of LSTMModule"
    print(f"| {what}, us | here | {options.other} | here over there |\n| --- | ---: | ---: | ---: |")
    for name in rounds[0][0]:
        here, there = (min(found[k][name] for found in rounds) for k in range(2))
        print(f"| {name} | {here:.1f} | {there:.1f} | {here / there:.2f} |")


if __name__ == "__main__":
    main()
