"""SAC with memory on Pendulum without angular velocity: the policy observes the cosine and sine of the angle only.

It is off-policy: slices of experience are sampled from a replay buffer, with the states that the policy stored.

    python examples/train_sac.py                       minutes of one CPU core
    python examples/train_sac.py --no-memory           the same networks without LSTMs
    python examples/train_sac.py --frames 2000         to see that it runs
    python examples/train_sac.py --out result.json     keeps the result, and the learning curve as result.png

The requirements of a recurrent policy off-policy; each is marked with a number in the source:
  (1) The policy and the critics have separate LSTMs, with separate state keys. SACLoss copies the critic and runs the
      copies under torch.vmap, which all backends but `cudnn` and `torchscript` support.
  (2) The primer stores the policy's state in each step: a slice may begin anywhere.
  (3) SliceSampler returns slices [rows, time] of one episode each.
  (4) Stored states are those of older weights, and the critics, which do not act, have none. Burn-in: the first steps
      of a slice update the states, and are left out of the loss.
  (5) The loss runs in recurrent mode.
"""

import gymnasium
import numpy as np
import torch
from results import Run, options
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import Compose, InitTracker, RewardScaling, RewardSum, TransformedEnv
from torchrl.envs.libs.gym import GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

ENVS, STEPS, HIDDEN, WARMUP, ROWS, SLICE, BURN_IN = 8, 20, 64, 1600, 64, 12, 4


def make_env(memory, seed, envs=ENVS):
    """Pendulum without its angular velocity, ``envs`` at once. Observation ``[envs, 2]``."""

    def hide_velocity(env):
        box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        return gymnasium.wrappers.TransformObservation(env, lambda x: x[:2], box)

    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # TorchRL resets
    env = gymnasium.make_vec("Pendulum-v1", envs, "sync", vector_kwargs=mode, wrappers=[hide_velocity])
    env = TransformedEnv(GymWrapper(env), Compose(InitTracker(), RewardSum(), RewardScaling(0.0, 0.1)))
    if isinstance(memory, LSTMModule):
        env.append_transform(memory.make_tensordict_primer())  # (2)
    env.set_seed(seed)
    return env


def make_memory(name, inputs, backend, with_memory):
    """An LSTM with its own state keys (1), or a layer without memory: from ``inputs`` numbers to ``name``_features."""
    if not with_memory:
        layer = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh())
        return TensorDictModule(layer, [f"{name}_in"], [f"{name}_features"])
    h, c = f"{name}_h", f"{name}_c"
    keys = {"in_keys": [f"{name}_in", h, c], "out_keys": [f"{name}_features", ("next", h), ("next", c)]}
    return LSTMModule(inputs, HIDDEN, lstm_backend=backend, **keys)


def make_models(args):
    """The policy's memory, the policy, and a critic."""
    memory = make_memory("actor", 2, args.backend, not args.no_memory)
    head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2), NormalParamExtractor())
    seen = TensorDictModule(lambda x: x, ["observation"], ["actor_in"])
    out = TensorDictModule(head, ["actor_features"], ["loc", "scale"])
    how = {"distribution_class": TanhNormal, "distribution_kwargs": {"low": -2.0, "high": 2.0}}
    policy = ProbabilisticActor(TensorDictSequential(seen, memory, out), in_keys=["loc", "scale"], **how)
    both = TensorDictModule(lambda x, action: torch.cat([x, action], -1), ["observation", "action"], ["critic_in"])
    value = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    value = ValueOperator(value, in_keys=["critic_features"], out_keys=["state_action_value"])
    critic = TensorDictSequential(both, make_memory("critic", 3, args.backend, not args.no_memory), value)
    return memory, policy.to(args.device), critic.to(args.device)


def evaluate(memory, policy, seed):
    """Mean return of 16 new episodes with the policy's mean actions."""
    env = make_env(memory, seed + 1000, envs=16)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        steps = env.rollout(200, policy)
    return steps["next", "episode_reward"][:, -1].mean().item()


def update(rows, loss, target, optimizer):
    """One step of SAC on ``rows [ROWS, SLICE]``; the loss leaves the burn-in out (4)."""
    with set_recurrent_mode(True):  # (5)
        losses = loss(rows)
    total = sum(losses[f"loss_{name}"][..., BURN_IN:].mean() for name in ("actor", "qvalue", "alpha"))
    optimizer.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(loss.parameters(), 10.0)
    optimizer.step()
    target.step()


def train(args):
    """Train until the limit of frames or minutes."""
    torch.set_num_threads(1)  # small tensors gain nothing from more
    torch.manual_seed(args.seed)
    memory, policy, critic = make_models(args)
    sizes = {"frames_per_batch": ENVS * STEPS, "total_frames": -(-args.frames // (ENVS * STEPS)) * ENVS * STEPS}
    places = {"policy_device": args.device, "storing_device": "cpu", "env_device": "cpu"}
    env = make_env(memory, args.seed)
    collector = Collector(env, policy, **sizes, **places)
    options = {"alpha_init": 0.1, "reduction": "none", "scalar_output_mode": "exclude"}  # one loss a step: (4)
    loss = SACLoss(policy, critic, action_spec=env.action_spec_unbatched, **options)
    loss.make_value_estimator(gamma=0.98)
    target, optimizer = SoftUpdate(loss, tau=0.01), torch.optim.Adam(loss.parameters(), lr=1e-3)
    parts = {"sampler": SliceSampler(slice_len=SLICE, end_key=("next", "done"))}  # (3)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(args.frames, ndim=2), batch_size=ROWS * SLICE, **parts)
    run = Run(vars(args) | {"runs_on": getattr(memory, "lstm_backend", "no memory")})
    before, returns = evaluate(memory, policy, args.seed), []
    for batch in collector:
        ended = batch["next", "done"].squeeze(-1)
        returns = (returns + batch["next", "episode_reward"].squeeze(-1)[ended].tolist())[-16:]
        buffer.extend(batch)
        if run.frames >= WARMUP:
            for _ in range(args.updates):
                update(buffer.sample().reshape(ROWS, SLICE).to(args.device), loss, target, optimizer)
        run.log(frames=batch.numel(), mean_return=float(np.mean(returns)) if returns else before)
        if run.minutes > args.minutes:
            break
    collector.shutdown()
    run.finish(return_before=before, evaluated_return=evaluate(memory, policy, args.seed))
    return run


def main():
    """Read the options, train, and write the result."""
    parser = options(__doc__, minutes=20.0, frames=20_000)
    parser.add_argument("--updates", type=int, default=32, help="after each 160 frames (default: 32)")
    args = parser.parse_args()
    train(args).write(args.out)


if __name__ == "__main__":
    main()
