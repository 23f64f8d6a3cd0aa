"""The time of a whole PPO iteration with each LSTM, and of its parts; the program is examples/train_ppo.py.

    make ppo-times                                       measures, and writes the documentation's tables and picture
    python tools/ppo_times.py --lstm auto --lstm loop    some of them, on the terminal

All have the same weights and seeds, and hence the same experience, and run in turn: one iteration each is a round.
Times are CPU time of one thread, medians over the rounds without the first, which is a warm-up.

The LSTMs: a backend's name is LSTMModule of this project; `loop` is torch.nn.LSTM called step by step, with the state
set to zero where an episode starts; `torchrl-pad` is TorchRL's LSTMModule with its default, which pads every episode to
the longest; `torchrl-scan` is TorchRL's loop.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rnn_backends import LSTMModule, RNNBackendsError, recurrent_mode
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.modules import LSTMModule as TorchRLModule
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import train_ppo as ppo  # noqa: E402
from results import PACKAGES  # noqa: E402

STAGES = {"at the beginning": 0, "after 100 iterations": 100}
PAGE, FILE = ROOT / "docs/performance.md", ROOT / "docs/generated/examples/ppo_times.json"
PARTS = {
    "environments": "the environments themselves (Gymnasium)",
    "collector": "TorchRL's collector and transforms",
    "policy": "policy and value while acting, without the LSTM",
    "LSTM, acting": "LSTM while acting",
    "values": "values of the next observations and GAE",
    "LSTM, forward": "LSTM forward, in recurrent mode",
    "LSTM, backward": "LSTM backward",
    "optimizer": "Adam",
    "loss": "minibatches, heads, loss and its backward, clipping",
}


class Loop(TorchRLModule):
    """torch.nn.LSTM in a Python loop over steps in recurrent mode; otherwise TorchRL's module."""

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """``td [B, T]`` in recurrent mode."""
        if not recurrent_mode():
            return super().forward(td)
        x, is_init, outputs = td["observation"], td["is_init"], []
        state = [td[name][:, 0].transpose(0, 1).contiguous() for name in self.in_keys[1:3]]
        for t in range(x.shape[1]):
            if t:
                state = [value * ~is_init[:, t].unsqueeze(0) for value in state]
            output, state = self.lstm(x[:, t : t + 1], tuple(state))
            outputs.append(output)
        return td.set("features", torch.cat(outputs, 1))


def make_memory(name: str) -> TensorDictModuleBase:
    """The module for ``name``."""
    keys = {"input_size": 2, "hidden_size": ppo.HIDDEN, "in_key": "observation", "out_key": "features"}
    if name == "loop":
        return Loop(**keys)
    if name.startswith("torchrl-"):
        return TorchRLModule(**keys, recurrent_backend=name.removeprefix("torchrl-"))
    return LSTMModule(**keys, lstm_backend=name)


class Clock:
    """CPU seconds by part. Parts may be nested; the time of an inner part does not count for the outer one."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._since = 0.0

    def begin(self, part: str) -> None:
        """Enter ``part``."""
        now = time.process_time()
        if self.parts:
            self.spent[self.parts[-1]] += now - self._since
        self.parts.append(part)
        self._since = now

    def end(self) -> None:
        """Leave it."""
        now = time.process_time()
        self.spent[self.parts.pop()] += now - self._since
        self._since = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as ``part``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.begin(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return timed


class Training:
    """PPO with one LSTM. ``round()`` runs an iteration and returns the seconds of each part."""

    def __init__(self, name: str, iterations: int, weights: dict[str, Tensor] | None = None) -> None:
        self.clock, self.memory, self.open = Clock(), make_memory(name), 0
        self.model = ppo.make_model(self.memory, "cpu")
        self.model.load_state_dict(weights or self.model.state_dict())
        self.gae = GAE(gamma=0.99, lmbda=0.95, value_network=None, average_gae=True)
        critic = {"entropy_coeff": 0.0, "critic_coeff": 0.5}
        self.loss = ClipPPOLoss(self.model.get_policy_operator(), self.model.get_value_head(), **critic)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=1e-3)
        env, frames = ppo.make_env(self.memory, 0), ppo.ENVS * ppo.STEPS
        games = env.base_env._env
        games.step = self.clock.around("environments", games.step)
        batches = Collector(env, self.model, frames_per_batch=frames, total_frames=frames * iterations)
        self.collect = self.clock.around("collector", partial(next, iter(batches)))
        self.memory.register_forward_pre_hook(self._before_memory)
        self.memory.register_forward_hook(self._after_memory)
        for weight in self.memory.parameters():
            weight.register_post_accumulate_grad_hook(self._one_gradient)
        self.model.register_forward_pre_hook(lambda *_: self.clock.begin("policy"))
        self.model.register_forward_hook(lambda *_: self.clock.end())
        self.optimizer.register_step_pre_hook(lambda *_: self.clock.begin("optimizer"))
        self.optimizer.register_step_post_hook(lambda *_: self.clock.end())

    def _before_memory(self, *_: Any) -> None:
        over_time = "LSTM, forward" if recurrent_mode() else "values"
        self.clock.begin("LSTM, acting" if "collector" in self.clock.parts else over_time)

    def _after_memory(self, memory: TensorDictModuleBase, args: Any, out: TensorDictBase) -> None:
        self.clock.end()
        if out["features"].requires_grad:
            out["features"].register_hook(lambda grad: self.clock.begin("LSTM, backward"))
            self.open = len(list(memory.parameters()))

    def _one_gradient(self, _: Tensor) -> None:
        self.open -= 1
        if not self.open:  # the last of the LSTM's weights has its gradient
            self.clock.end()

    def _advantage(self, batch: TensorDictBase) -> TensorDictBase:
        batch = self.gae(batch)
        self.clock.end()  # of "values"
        self.clock.begin("loss")
        return batch

    def round(self, seed: int) -> tuple[dict[str, float], int]:
        """One iteration."""
        self.clock.spent.clear()
        torch.manual_seed(seed)
        batch = self.collect()
        episodes = int(batch["next", "done"].sum())
        self.clock.begin("values")
        ppo.update(batch, self.model, self.loss, self._advantage, self.optimizer)
        self.clock.end()
        return {part: self.clock.spent[part] for part in PARTS}, episodes


def measure(names: list[str], rounds: int, after: int) -> dict[str, Any]:
    """The seconds by name and part, as lists over the rounds, and the episodes per round."""
    first = Training("auto", after + 1)
    for i in range(after):
        first.round(i)
    weights = {name: value.clone() for name, value in first.model.state_dict().items()}
    trainings = {name: Training(name, rounds + 1, weights) for name in names}
    spent, ended = {name: {part: [] for part in PARTS} for name in names}, []
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:  # so that none is always first
            parts, episodes = trainings[name].round(after + k)
            print(f"round {k}  {name:14} {sum(parts.values()):6.3f} s, {episodes} episodes", flush=True)
            if k:  # the first one warms up
                ended.append(episodes)
                for part, value in parts.items():
                    spent[name][part].append(value)
    return {"seconds": spent, "episodes": median(ended)}


def wholes(spent: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The seconds of an iteration by name."""
    return {name: median(map(sum, zip(*parts.values(), strict=True))) for name, parts in spent.items()}


def table(data: dict[str, Any]) -> str:
    """Iterations per second, and the seconds of each part, as Markdown."""
    lines = []
    for stage, found in data["stages"].items():
        spent, ended = found["seconds"], found["episodes"]
        whole = wholes(spent)
        names, base = list(spent), next(iter(whole.values()))
        lines += [f"{stage.capitalize()} ({ended:.0f} episodes end in the {ppo.ENVS * ppo.STEPS} steps):", ""]
        lines += [f"| CPU milliseconds | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
        for part, words in PARTS.items():
            cells = (f"{1e3 * median(parts[part]):.0f}" for parts in spent.values())
            lines.append(f"| {words} | {' | '.join(cells)} |")
        lines.append(f"| **an iteration** | {' | '.join(f'{1e3 * value:.0f}' for value in whole.values())} |")
        lines.append(f"| iterations a second | {' | '.join(f'{1 / value:.2f}' for value in whole.values())} |")
        lines.append(f"| times as long as `{names[0]}` | {' | '.join(f'{v / base:.1f}' for v in whole.values())} |")
        lines.append("")
    return "\n".join(lines[:-1])


def draw(data: dict[str, Any], picture: Path) -> None:
    """A bar for each LSTM, divided into parts; bars much longer than the rest are cut off and have their length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shape = {"figsize": (9, 6), "layout": "constrained", "sharex": True, "squeeze": False}
    figure, columns = plt.subplots(len(data["stages"]), **shape)
    plots = columns[:, 0]
    lengths = sorted(value for found in data["stages"].values() for value in wholes(found["seconds"]).values())
    limit = 1.15e3 * max(value for value in lengths if value < 5 * lengths[len(lengths) // 2])  # a common scale
    for axes, (stage, found) in zip(plots, data["stages"].items(), strict=True):
        names, left = list(found["seconds"])[::-1], defaultdict(float)
        for i, (part, words) in enumerate(PARTS.items()):
            width = [1e3 * median(found["seconds"][name][part]) for name in names]
            axes.barh(names, width, left=[left[n] for n in names], label=words, color=plt.get_cmap("tab10")(i))
            for name, value in zip(names, width, strict=True):
                left[name] += value
        whole = wholes(found["seconds"])
        for name in names:
            axes.annotate(f" {1e3 * whole[name]:.0f} ms", (min(left[name], 0.88 * limit), name), va="center", size=8)
        axes.set(title=stage, xlim=(0, limit))
    plots[-1].set(xlabel="CPU milliseconds of an iteration")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def fill(data: dict[str, Any]) -> None:
    """Write the page's table and the picture."""
    between = re.compile(r"(<!-- ppo times -->\n).*?(<!-- end -->)", re.DOTALL)
    text = PAGE.read_text()
    PAGE.write_text(between.sub(lambda found: f"{found[1]}{table(data)}\n{found[2]}", text))
    draw(data, FILE.with_suffix(".png"))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lstm", action="append", help="what to measure; may be repeated (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="iterations each, and one to warm up (default: 5)")
    parser.add_argument("--stage", action="append", choices=STAGES, help="of training (default: both)")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md's table, picture and figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = args.lstm or ["auto", "cudnn", "vmap", "loop", "torchrl-pad", "torchrl-scan"]
    for name in names:
        try:
            make_memory(name)
        except (RNNBackendsError, ValueError) as error:
            parser.error(f"--lstm {name}: {error}")
    stages = {stage: measure(names, args.rounds, STAGES[stage]) for stage in args.stage or STAGES}
    data = {"rounds": args.rounds, "auto": LSTMModule(2, ppo.HIDDEN, in_key="a", out_key="b").lstm_backend}
    data |= {"versions": {name: version(name) for name in PACKAGES}, "stages": stages}
    print(table(data))
    if args.write:
        FILE.write_text(json.dumps(data) + "\n")
        fill(data)


if __name__ == "__main__":
    main()
