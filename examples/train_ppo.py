"""PPO with memory on CartPole without velocities: the policy observes the cart's position and the pole's angle only.

A policy without memory cannot tell which way the pole falls, and stays under 100 of 500 steps. An LSTM balances it.

    python examples/train_ppo.py                       two minutes of one CPU core
    python examples/train_ppo.py --no-memory           the same network without the LSTM, for comparison
    python examples/train_ppo.py --backend vmap        another kernel; the numbers stay the same, the time does not
    python examples/train_ppo.py --frames 2048         two iterations, to see that it runs
    python examples/train_ppo.py --out result.json     keeps the result, and the learning curve as result.png

Five lines make a TorchRL policy recurrent; each is marked with a number in the source:
  (1) LSTMModule reads "observation", "is_init" and the stored state, and writes "features".
  (2) InitTracker marks where an episode starts.
  (3) The primer carries the state from one step to the next. Without it the policy silently acts without memory.
  (4) The value of every next observation is one step from the state stored beside it: a single call for all of them.
  (5) A minibatch is made of whole rows [rows, time], run in recurrent mode. Rows start from their stored states.
"""

import gymnasium
import numpy as np
import torch
from results import Run, options
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    ExplorationType,
    InitTracker,
    RewardScaling,
    RewardSum,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.envs.libs.gym import GymWrapper
from torchrl.modules import ActorValueOperator, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

ENVS, STEPS, HIDDEN, EPOCHS, ROWS = 16, 64, 64, 10, 4  # a batch is [16, 64]; a minibatch is 4 of its rows
SCALE = np.array([1, 10], np.float32)  # angles are a tenth of positions: scale both to the same size


def make_env(memory, seed, envs=ENVS):
    """CartPole without velocities, ``envs`` at once. Observation ``[envs, 2]``."""

    def hide_velocities(env):
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        return gymnasium.wrappers.TransformObservation(env, lambda x: x[[0, 2]] * SCALE, box)

    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # TorchRL resets
    env = gymnasium.make_vec("CartPole-v1", envs, "sync", vector_kwargs=mode, wrappers=[hide_velocities])
    env = TransformedEnv(GymWrapper(env), Compose(InitTracker(), RewardSum(), RewardScaling(0.0, 0.05)))  # (2)
    if hasattr(memory, "make_tensordict_primer"):
        env.append_transform(memory.make_tensordict_primer())  # (3)
    env.set_seed(seed)
    return env


def make_memory(backend, with_memory):
    """From "observation" and the state to "features"."""
    if not with_memory:
        return TensorDictModule(nn.Sequential(nn.Linear(2, HIDDEN), nn.Tanh()), ["observation"], ["features"])
    return LSTMModule(2, HIDDEN, in_key="observation", out_key="features", lstm_backend=backend)  # (1)


def make_model(memory, device):
    """A policy and a value on the features of ``memory``."""
    logits = TensorDictModule(nn.Linear(HIDDEN, 2), ["features"], ["logits"])
    options = {"distribution_class": torch.distributions.OneHotCategorical, "return_log_prob": True}
    policy = ProbabilisticActor(logits, in_keys=["logits"], **options)
    return ActorValueOperator(memory, policy, ValueOperator(nn.Linear(HIDDEN, 1), in_keys=["features"])).to(device)


def update(batch, model, loss, advantage, optimizer):
    """One PPO update from ``batch [ENVS, STEPS]``."""
    with torch.no_grad():
        following = batch["next"].copy().set("is_init", torch.zeros_like(batch["is_init"]))
        batch["next", "state_value"] = model.get_value_operator()(following)["state_value"]  # (4)
        batch = advantage(batch).exclude("features", "logits", "next")
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(batch)).split(ROWS):
            with set_recurrent_mode(True):  # (5)
                losses = loss(batch[rows.to(batch.device)])
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()


def evaluate(memory, model, seed):
    """Mean return of 16 new episodes with the policy's most probable actions."""
    env = make_env(memory, seed + 1000, envs=16)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        steps = env.rollout(500, model.get_policy_operator(), break_when_any_done=False).cpu()
    first = steps["next", "done"].squeeze(-1).int().argmax(1)  # the end of each row's first episode
    return steps["next", "episode_reward"][torch.arange(16), first].mean().item()


def train(args):
    """Train until the limit of frames or minutes, or until the last 100 episodes' mean return exceeds 470."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    memory = make_memory(args.backend, not args.no_memory)
    model = make_model(memory, args.device)
    policy, iterations = model.get_policy_operator(), -(-args.frames // (ENVS * STEPS))
    sizes = {"frames_per_batch": ENVS * STEPS, "total_frames": iterations * ENVS * STEPS}
    places = {"policy_device": args.device, "storing_device": args.device, "env_device": "cpu"}
    collector = Collector(make_env(memory, args.seed), model, **sizes, **places)  # the model stores values, too
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=None, average_gae=True)
    loss = ClipPPOLoss(policy, model.get_value_head(), entropy_coeff=0.0, critic_coeff=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=args.lr)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, iterations)
    run, returns = Run(vars(args) | {"runs_on": getattr(memory, "lstm_backend", "no memory")}), [0.0]
    for batch in collector:
        ended = batch["next", "done"].squeeze(-1)
        returns = (returns + batch["next", "episode_reward"].squeeze(-1)[ended].tolist())[-100:]
        update(batch, model, loss, advantage, optimizer)
        slower.step()
        run.log(frames=batch.numel(), mean_return=float(np.mean(returns)))
        if run.minutes > args.minutes or (len(returns) == 100 and np.mean(returns) > 470):
            break
    collector.shutdown()
    run.finish(evaluated_return=evaluate(memory, model, args.seed))
    return run


def main():
    """Read the options, train, and write the result."""
    parser = options(__doc__, minutes=5.0, frames=256 * 1024)
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate (default: 0.001)")
    parser.add_argument("--threads", type=int, default=1, help="of torch; small tensors gain nothing from more")
    args = parser.parse_args()
    train(args).write(args.out)


if __name__ == "__main__":
    main()
