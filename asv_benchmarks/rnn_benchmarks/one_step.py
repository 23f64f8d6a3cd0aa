"""``python -m rnn_benchmarks.one_step``: an LSTM called step by step with gradients, as in Stable-Baselines3.

A loop of ``lstm(x [1, B, I], state)`` over ``--steps`` steps, and one backward pass through all of them: microseconds
per step and, in turn in one process, the ratio to ``torch.nn.LSTM`` (below 1: faster). Medians, quartiles in brackets.
"""

from __future__ import annotations

from argparse import ArgumentParser

import torch
from rich.console import Console
from rnn_backends import LSTM, RNNBackendsError
from torch import nn

from .cases import Call
from .timing import Spread, interleaved, ratio

BATCHES, SIZES = (1, 8, 64), (32, 64, 256, 512)


def loop(lstm: nn.Module, B: int, I: int, H: int, steps: int) -> Call:  # noqa: E741
    """A call of the loop, forward and backward."""
    x = torch.randn(steps, 1, B, I)

    def call(k: int) -> None:
        state, outputs = (torch.zeros(1, B, H), torch.zeros(1, B, H)), []
        for step in x:
            output, state = lstm(step, state)
            outputs.append(output)
        torch.cat(outputs).sum().backward()
        lstm.zero_grad()

    return call


def main() -> None:
    """Measure, and print a line after each size."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="cpp,cudnn", help="default: %(default)s")
    parser.add_argument("--features", type=int, default=64, help="I; default: %(default)s")
    parser.add_argument("--steps", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8, help="seconds for each size; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, backends = Console(), options.backends.split(",")
    for name in backends:
        try:
            LSTM(1, 1, lstm_backend=name)
        except RNNBackendsError as error:
            parser.error(f"--backends {name}: {error}")
    for H in SIZES:
        for B in BATCHES:
            said = measure(H, B, options.features, options.steps, options.seconds, backends)
            console.print(said, soft_wrap=True, highlight=False)


def measure(H: int, B: int, I: int, steps: int, seconds: float, backends: list[str]) -> str:  # noqa: E741
    """One line: the time of nn.LSTM, and the ratio of each backend."""
    calls = {"nn.LSTM": loop(nn.LSTM(I, H), B, I, H, steps)}
    calls |= {name: loop(LSTM(I, H, lstm_backend=name), B, I, H, steps) for name in backends}
    times = interleaved(calls, seconds)
    base = Spread.of(times["nn.LSTM"]).median / steps * 1e6
    ratios = {name: ratio(times[name], times["nn.LSTM"]) for name in backends}
    said = ", ".join(f"{name} {r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for name, r in ratios.items())
    return f"H {H}, B {B}: nn.LSTM {base:.0f} us a step; {said}"


if __name__ == "__main__":
    main()
