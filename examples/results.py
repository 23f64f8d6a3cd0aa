"""Functions shared by the training programs: options, progress lines, a result as JSON, a learning curve as PNG.

python examples/results.py curve.png A.json B.json ...      draws several results in one picture
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("rnn-backends", "torch", "tensordict", "torchrl", "gymnasium")


def options(description, minutes, frames):
    """A parser with the options that all training programs have, to which each adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="the LSTM's backend; `rnn-backends list` has the names")
    parser.add_argument("--device", default="cpu", help="of the networks; the environments stay on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock limit (default: %(default)g)")
    parser.add_argument("--frames", type=int, default=frames, help="environment steps (default: %(default)d)")
    parser.add_argument("--no-memory", action="store_true", help="without the LSTM")
    parser.add_argument("--out", type=Path, help="a file for the result (JSON); the learning curve is beside it (PNG)")
    return parser


class Run:
    """A training run: its options, its progress and its result."""

    def __init__(self, options):
        self.options = {name: value for name, value in options.items() if name != "out"}
        self.frames, self.curve, self.result = 0, [], {}
        self._start, self._cpu, self._shown = time.monotonic(), time.process_time(), 0.0

    @property
    def minutes(self):
        """Wall-clock minutes since the start."""
        return (time.monotonic() - self._start) / 60

    def log(self, frames, mean_return):
        """Record an iteration of ``frames`` frames, and the recent mean return. Prints a line every five seconds."""
        self.frames += frames
        self.curve.append([self.frames, round(mean_return, 2)])
        if time.monotonic() - self._shown > 5:
            self._shown = time.monotonic()
            print(f"{self.minutes * 60:6.0f} s  {self.frames:8d} frames  mean return {mean_return:7.1f}", flush=True)

    def finish(self, **result):
        """Record the result, with the frames and seconds, and print it."""
        took = {"wall_s": round(self.minutes * 60, 1), "cpu_s": round(time.process_time() - self._cpu, 1)}
        self.result = {"frames": self.frames, **took, **result}
        print("result: " + ", ".join(f"{name} {value}" for name, value in self.result.items()), flush=True)

    def write(self, path):
        """Write ``path`` (JSON), and the learning curve beside it (PNG); nothing if it is ``None``."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in PACKAGES}
        data = {"options": self.options, "versions": versions, "result": self.result, "curve": self.curve}
        path.write_text(json.dumps(data) + "\n")
        draw(path.with_suffix(".png"), [path])


def draw(picture, paths):
    """Draw the learning curves of the results in ``paths`` into ``picture``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for path in paths:
        data = json.loads(Path(path).read_text())
        axes.plot(*zip(*data["curve"], strict=True), label=Path(path).stem.replace("_", " "))
    axes.set(xlabel="environment steps", ylabel="mean return of recent episodes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2:])
