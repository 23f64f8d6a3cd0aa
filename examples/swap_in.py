"""A training loop of your own, without TorchRL: torch.nn.LSTM in a Python loop over resets, replaced by one call.

Episodes that end in the middle of a row are usually handled by a loop that multiplies the state by 1 - done and calls
the LSTM for one step. `LSTM(x, state, is_init=done)` does the same in one call: a change of two lines.

    python examples/swap_in.py                        both ways side by side: losses, and seconds for a whole update
    python examples/swap_in.py --backend cudnn --steps 64 --hidden 128
    python examples/swap_in.py --updates 2 --steps 8   to see that it runs

An update is the whole of forward, a policy-gradient loss with values and entropy, backward, clipping and Adam.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from rnn_backends import LSTM
from torch import nn


class Agent(nn.Module):
    """An encoder, an LSTM, and heads for the policy and the value."""

    def __init__(self, lstm, observation=16, actions=6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(observation, lstm.input_size), nn.Tanh())
        self.lstm = lstm
        self.policy, self.value = nn.Linear(lstm.hidden_size, actions), nn.Linear(lstm.hidden_size, 1)


class Before(Agent):
    """A loop over steps. Shapes: ``x [T, B, I]``, ``done [T, B]`` (true: an episode starts), states ``[1, B, H]``."""

    def features(self, x, done, state):
        """The LSTM's output at every step, ``[T, B, H]``."""
        outputs = []
        for x_t, done_t in zip(self.encoder(x), done, strict=True):
            keep = (1.0 - done_t.float()).view(1, -1, 1)
            output, state = self.lstm(x_t.unsqueeze(0), (keep * state[0], keep * state[1]))
            outputs.append(output)
        return torch.cat(outputs)


class After(Agent):
    """The same network, with one call instead of the loop."""

    def features(self, x, done, state):
        """The LSTM's output at every step, ``[T, B, H]``."""
        return self.lstm(self.encoder(x), state, is_init=done)[0]


def update(agent, optimizer, batch):
    """One update; returns the loss."""
    x, done, state, action, advantage, target = batch
    features = agent.features(x, done, state)
    policy = torch.distributions.Categorical(logits=agent.policy(features))
    value_loss = (agent.value(features).squeeze(-1) - target).square().mean()
    loss = -(policy.log_prob(action) * advantage).mean() + 0.5 * value_loss - 0.01 * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return loss.item()


def make_batch(args, generator):
    """Synthetic rollouts with episodes of 33 steps on average."""
    T, B = args.steps, args.envs
    normal = {"generator": generator}
    return (
        torch.randn(T, B, 16, **normal),
        torch.rand(T, B, **normal) < args.resets,
        (torch.randn(1, B, args.hidden, **normal), torch.randn(1, B, args.hidden, **normal)),
        torch.randint(6, (T, B), **normal),
        torch.randn(T, B, **normal),
        torch.randn(T, B, **normal),
    )


def main():
    """Train both on the same batches, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="of the LSTM that replaces the loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--steps", type=int, default=128, help="T, steps of a row (default: 128)")
    parser.add_argument("--envs", type=int, default=16, help="B, rows (default: 16)")
    parser.add_argument("--hidden", type=int, default=128, help="H (default: 128)")
    parser.add_argument(
        "--resets", type=float, default=0.03, help="share of steps that start an episode (default: 0.03)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--out", type=Path, help="a file for the result (JSON)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    before = Before(nn.LSTM(64, args.hidden))
    after = After(LSTM(64, args.hidden, lstm_backend=args.backend))
    after.load_state_dict(before.state_dict())  # the names are the same, so either can load the other's checkpoint
    agents = {"loop": before.to(args.device), "one call": after.to(args.device)}
    optimizers = {name: torch.optim.Adam(agent.parameters(), 1e-3) for name, agent in agents.items()}
    generator, losses, seconds = torch.Generator().manual_seed(args.seed), {}, {}
    for i in range(args.updates):
        batch = make_batch(args, generator)
        batch = [b.to(args.device) if torch.is_tensor(b) else tuple(s.to(args.device) for s in b) for b in batch]
        for name, agent in agents.items():
            start = time.process_time() if args.device == "cpu" else time.perf_counter()  # item() waits for a GPU
            losses.setdefault(name, []).append(update(agent, optimizers[name], batch))
            stop = time.process_time() if args.device == "cpu" else time.perf_counter()
            seconds.setdefault(name, []).append(stop - start)
        print(f"update {i:3d}  " + "  ".join(f"{n}: loss {losses[n][-1]:.6f}, {seconds[n][-1]:.4f} s" for n in agents))
    apart = max(abs(a - b) for a, b in zip(losses["loop"], losses["one call"], strict=True))
    usual = {name: median(values[args.updates > 1 :]) for name, values in seconds.items()}  # the first one warms up
    faster = usual["loop"] / usual["one call"]
    print(
        f"backend {after.lstm.lstm_backend}: losses differ by at most {apart:.1e}; an update is {faster:.1f} x as fast"
    )
    if args.out:
        options = {k: v for k, v in vars(args).items() if k != "out"} | {"runs_on": after.lstm.lstm_backend}
        result = {"largest_loss_difference": apart, "seconds": usual, "times_faster": round(faster, 2)}
        args.out.write_text(json.dumps({"options": options, "torch": torch.__version__, "result": result}) + "\n")


if __name__ == "__main__":
    main()
