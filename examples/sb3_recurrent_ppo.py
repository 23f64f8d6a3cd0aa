"""RecurrentPPO of Stable-Baselines3-contrib with this project's LSTM: the same losses, updates in less time.

Its policy runs torch.nn.LSTM in a Python loop over steps if an episode starts in a batch, which is nearly always so.
`FastPolicy` below is its policy with the loop replaced by one call: a change in two places.

    pip install sb3-contrib rnn-backends                      its dependencies
    python examples/sb3_recurrent_ppo.py                      both policies side by side, half a minute
    python examples/sb3_recurrent_ppo.py --iterations 1 --steps 16 --hidden 8     to see that it runs

Both start with the same weights, seeds and environments and run in turn, one iteration each. So they have the same
experience, and their losses agree up to rounding, until rounding makes one of them choose a different action.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from rnn_backends import LSTM

try:
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import set_random_seed
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\n{missing.name} is not installed: pip install sb3-contrib") from None


class FastPolicy(RecurrentActorCriticPolicy):
    """A replacement for "MlpLstmPolicy": ``RecurrentPPO(FastPolicy, env)``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lstm_actor = LSTM.from_torch(self.lstm_actor)  # shares the parameters
        if self.lstm_critic is not None:
            self.lstm_critic = LSTM.from_torch(self.lstm_critic)

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        rows = lstm_states[0].shape[1]
        x = features.reshape(rows, -1, lstm.input_size).swapaxes(0, 1)
        starts = episode_starts.reshape(rows, -1).swapaxes(0, 1) > 0
        output, lstm_states = lstm(x, lstm_states, is_init=starts)
        return output.swapaxes(0, 1).flatten(0, 1), lstm_states


class Timed(RecurrentPPO):
    """RecurrentPPO that records the CPU seconds and losses of every update, and the seconds of the whole iteration."""

    def _setup_model(self):
        super()._setup_model()
        self.noted, self._begun = [], 0.0

    def learn_on(self, steps):
        """Collect ``steps`` and update once."""
        self._begun = time.process_time()
        self.learn(steps, reset_num_timesteps=not self.noted)

    def train(self):
        """One update."""
        start = time.process_time()
        super().train()
        stop = time.process_time()
        found = {name: float(self.logger.name_to_value[f"train/{name}"]) for name in ("loss", "value_loss")}
        self.noted.append({"update": stop - start, "iteration": stop - self._begun, **found})


def make_model(policy, args):
    """PPO with ``policy``, from the same seed."""
    env = make_vec_env(args.env, n_envs=args.envs, seed=args.seed)
    sizes = {"n_steps": args.steps, "batch_size": args.envs * args.steps // 4, "n_epochs": 4}
    options = {"lstm_hidden_size": args.hidden}
    return Timed(policy, env, seed=args.seed, policy_kwargs=options, device=args.device, **sizes)


def main():
    """Train both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium's name (default: CartPole-v1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=8, help="each collects steps and updates (default: 8)")
    parser.add_argument("--steps", type=int, default=128, help="of each environment in an iteration (default: 128)")
    parser.add_argument("--envs", type=int, default=8, help="environments (default: 8)")
    parser.add_argument("--hidden", type=int, default=128, help="H (default: 128)")
    parser.add_argument("--out", type=Path, help="a file for the result (JSON)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # small tensors gain nothing from more
    models = {"nn.LSTM": make_model("MlpLstmPolicy", args), "FastPolicy": make_model(FastPolicy, args)}
    for i in range(args.iterations):
        words = []
        for name, model in models.items():
            set_random_seed(args.seed + i)
            model.learn_on(args.envs * args.steps)
            words.append(f"{name}: loss {model.noted[-1]['loss']:.6f}, {model.noted[-1]['update']:.3f} s")
        print(f"update {i:3d}  " + "  ".join(words), flush=True)
    noted = {name: model.noted for name, model in models.items()}
    first = [values[0] for values in noted.values()]
    apart = max(abs(first[0][name] - first[1][name]) / abs(first[0][name]) for name in ("loss", "value_loss"))
    usual = {n: {part: median(one[part] for one in v) for part in ("update", "iteration")} for n, v in noted.items()}
    faster = {part: round(usual["nn.LSTM"][part] / usual["FastPolicy"][part], 2) for part in ("update", "iteration")}
    print(f"losses of the first update differ by {apart:.1e} of their size; times as fast: {faster}")
    if args.out:
        options = {k: v for k, v in vars(args).items() if k != "out"}
        versions = {name: version(name) for name in ("rnn-backends", "torch", "stable-baselines3", "sb3-contrib")}
        result = {"first_losses_differ_by": apart, "cpu_seconds": usual, "times_faster": faster}
        args.out.write_text(json.dumps({"options": options, "versions": versions, "result": result}) + "\n")


if __name__ == "__main__":
    main()
