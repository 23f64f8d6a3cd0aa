"""A recurrent DQN (R2D2) on CartPole without velocities, trained on old rows of experience and their stored states.

    python examples/train_r2d2.py                       minutes of one CPU core
    python examples/train_r2d2.py --no-memory           the same network without the LSTM
    python examples/train_r2d2.py --frames 2048         to see that it runs
    python examples/train_r2d2.py --out result.json     keeps the result, and the learning curve as result.png

The requirements of old rows, and the use of `hidden_output="all"`; each is marked with a number in the source:
  (1) `hidden_output="all"` writes the state after every step; by default it is written only where a sequence ends.
  (2) The primer stores the policy's states in the rows. A row [time] is one item of the buffer, and starts from them.
  (3) Stored states are those of older weights. One pass without gradients updates the state of every step; the first
      steps of a row, its burn-in, are left out of the loss, because their states are still old.
  (4) The value of every next observation is one step from the state after each step: a single call for all of them,
      right at an episode's end too, where the row continues with another episode.
  (5) Truncated backpropagation: the rest of a row is cut into pieces, each of which starts from its updated state.
"""

import copy

import numpy as np
import torch
from results import Run, options
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives.value.functional import vec_td_lambda_return_estimate
from train_ppo import make_env

ENVS, STEPS, HIDDEN, BURN_IN, PIECE = 16, 64, 64, 16, 16  # a row has 64 steps: 16 to warm up, then 3 pieces of 16
ROWS, GAMMA, LAMBDA, COPY = 16, 0.99, 0.8, 50  # rows of a minibatch; updates between two copies to the target network
STATE = ("recurrent_state_h", "recurrent_state_c")


def make_model(args):
    """A memory, and the values of the two actions on its features."""
    if args.no_memory:
        memory = TensorDictModule(nn.Sequential(nn.Linear(2, HIDDEN), nn.Tanh()), ["observation"], ["features"])
    else:
        options = {"lstm_backend": args.backend, "hidden_output": "all"}  # (1)
        memory = LSTMModule(2, HIDDEN, in_key="observation", out_key="features", **options)
    head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
    values = TensorDictModule(head, ["features"], ["action_value"])
    network = QValueActor(TensorDictSequential(memory, values), in_keys=["observation"], action_space="one_hot")
    return memory, network.to(args.device)


def replay(network, rows):
    """Run ``rows [B, T]`` again: the states from which each step starts, and the values of next observations."""
    with set_recurrent_mode(True):
        out = network(rows.copy())
    following = out["next"].copy().set("is_init", torch.zeros_like(rows["is_init"]))
    states = {}
    for name in STATE if "recurrent_state_h" in rows else ():
        before = torch.cat([rows[name][:, :1], following[name][:, :-1]], 1)  # the state after t is read at t + 1
        states[name] = torch.where(rows["is_init"].unsqueeze(-1), rows[name], before)
    return states, network(following)["action_value"]  # (4)


def update(rows, network, target, optimizer):
    """One step of double Q-learning with lambda-returns on ``rows [ROWS, STEPS]``."""
    with torch.no_grad():
        states, values = replay(network, rows)
        best = values.argmax(-1, keepdim=True)
        future = replay(target, rows)[1].gather(-1, best)
        reward, ends = rows["next", "reward"], {key: rows["next", key] for key in ("done", "terminated")}
        rows["goal"] = vec_td_lambda_return_estimate(GAMMA, LAMBDA, future, reward, **ends)
    pieces = rows.update(states)[:, BURN_IN:].reshape(-1, PIECE)  # (3), (5)
    with set_recurrent_mode(True):
        values = network(pieces.exclude("next"))["action_value"]
    chosen = (values * pieces["action"]).sum(-1, keepdim=True)
    optimizer.zero_grad()
    nn.functional.smooth_l1_loss(chosen, pieces["goal"]).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def evaluate(memory, network, seed):
    """Mean return of 16 new episodes with the best actions."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        steps = make_env(memory, seed + 1000).rollout(500, network, break_when_any_done=False).cpu()
    first = steps["next", "done"].squeeze(-1).int().argmax(1)  # the end of each row's first episode
    return steps["next", "episode_reward"][torch.arange(ENVS), first].mean().item()


def train(args):
    """Train until the limit of frames or minutes, or until the last 100 episodes' mean return exceeds 470."""
    torch.set_num_threads(1)  # small tensors gain nothing from more
    torch.manual_seed(args.seed)
    memory, network = make_model(args)
    target, env = copy.deepcopy(network), make_env(memory, args.seed)
    explore = EGreedyModule(env.action_spec, eps_init=0.5, eps_end=0.01, annealing_num_steps=args.frames // 2)
    sizes = {"frames_per_batch": ENVS * STEPS, "total_frames": -(-args.frames // (ENVS * STEPS)) * ENVS * STEPS}
    places = {"policy_device": args.device, "storing_device": "cpu", "env_device": "cpu"}
    collector = Collector(env, TensorDictSequential(network, explore).to(args.device), **sizes, **places)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(1000), batch_size=ROWS)  # (2)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    run = Run(vars(args) | {"runs_on": getattr(memory, "lstm_backend", "no memory")})
    returns, updates = [0.0], 0
    for batch in collector:
        ended = batch["next", "done"].squeeze(-1)
        returns = (returns + batch["next", "episode_reward"].squeeze(-1)[ended].tolist())[-100:]
        buffer.extend(batch.exclude("features", "action_value", "chosen_action_value", *(("next", n) for n in STATE)))
        for _ in range(args.updates):
            update(buffer.sample().to(args.device), network, target, optimizer)
            updates += 1
            if updates % COPY == 0:
                target.load_state_dict(network.state_dict())
        explore.step(batch.numel())
        run.log(frames=batch.numel(), mean_return=float(np.mean(returns)))
        if run.minutes > args.minutes or (len(returns) == 100 and np.mean(returns) > 470):
            break
    collector.shutdown()
    run.finish(evaluated_return=evaluate(memory, network, args.seed))
    return run


def main():
    """Read the options, train, and write the result."""
    parser = options(__doc__, minutes=10.0, frames=200 * 1024)
    parser.add_argument("--updates", type=int, default=16, help="after each 1024 frames (default: 16)")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate (default: 0.001)")
    args = parser.parse_args()
    train(args).write(args.out)


if __name__ == "__main__":
    main()
