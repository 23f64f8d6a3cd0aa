"""Training on several processes: DDP and FSDP2 with torchrun, and collectors in separate processes.

    torchrun --nproc-per-node 2 examples/many_machines.py              DDP, two processes
    torchrun --nproc-per-node 2 examples/many_machines.py --fsdp       FSDP2: each process holds a share of the weights
    torchrun --nnodes 2 --node-rank 0 --master-addr HOST ...           the same on two machines
    python examples/many_machines.py --collectors 2                    one process trains, two act

The file is the same for GPUs: processes communicate by NCCL if CUDA is available, else by gloo. (NCCL was not tried.)

Data that processes share, and data that they do not:
- DDP: every process has all weights and its own optimizer. Gradients are averaged in each backward pass, so the weights
  stay the same without communication.
- FSDP2: every process has a share of each weight and of the optimizer's state. They are gathered before a call and
  freed after it: do not keep `module.lstm.weight_hh_l0`.
- Recurrent states are data, not weights: they stay in the process that acts, and are part of its batches.
- A collector's process has a copy of the policy, in sequential mode; `update_policy_weights_()` sends the new weights.
  The copy that trains in recurrent mode shares its weights only with the policy in the same process.
- `set_recurrent_mode` applies to the thread that entered it: every process enters its own.
"""

import argparse
import os

import torch
import torch.distributed as dist
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

INPUTS, HIDDEN, ROWS, STEPS = 4, 32, 8, 16


def make_model(backend, device):
    """A memory and a head: ``observation [*, 4]`` to ``prediction [*, 1]``."""
    torch.manual_seed(0)  # every process begins with the same weights
    memory = LSTMModule(INPUTS, HIDDEN, in_key="observation", out_key="features", lstm_backend=backend, device=device)
    head = TensorDictModule(nn.Linear(HIDDEN, 1, device=device), ["features"], ["prediction"])
    return TensorDictSequential(memory, head)


def make_rows(generator, device):
    """Rows of synthetic episodes, different in each process. The target is a sum since the episode's start."""
    observation = torch.randn(ROWS, STEPS, INPUTS, generator=generator)
    is_init = torch.rand(ROWS, STEPS, 1, generator=generator) < 0.1
    is_init[:, 0] = True
    target, total = torch.empty(ROWS, STEPS, 1), torch.zeros(ROWS, 1)
    for t in range(STEPS):
        total = torch.where(is_init[:, t], 0.0, total) + observation[:, t, :1]
        target[:, t] = total
    rows = {"observation": observation, "is_init": is_init, "target": target}
    return TensorDict(rows, [ROWS, STEPS], device=device)


class Loss(nn.Module):
    """The loss as a module, because DDP and FSDP2 wrap the calls of a module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, rows):
        """Mean squared error of ``rows [ROWS, STEPS]``."""
        with set_recurrent_mode(True):
            return nn.functional.mse_loss(self.model(rows)["prediction"], rows["target"])


def train_with_others(args):
    """Train, on as many processes as torchrun has started."""
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    train(args, cuda)
    # A DDP module alive here would end the group with the GIL that gloo's thread may wait for: torch 2.13 then hangs.
    dist.destroy_process_group()
    if args.fsdp and not cuda:  # FSDP2 keeps the group until Python ends, and gloo's thread may abort the process there
        os._exit(0)


def train(args, cuda):
    """Train as one process of the group."""
    rank, device = dist.get_rank(), torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    loss = Loss(make_model(args.backend, device))
    wrapped = fully_shard(loss) if args.fsdp else DistributedDataParallel(loss)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-2)  # after fully_shard: it replaces the parameters
    generator = torch.Generator().manual_seed(rank)
    for update in range(args.updates):
        value = wrapped(make_rows(generator, device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        if rank == 0 and (update % 50 == 0 or update == args.updates - 1):
            print(
                f"update {update:4d}  mean loss of {dist.get_world_size()} processes {mean / dist.get_world_size():.4f}"
            )
    print(f"process {rank}: weights sum to {weight_sum(wrapped):.6f}", flush=True)


def weight_sum(module):
    """The sum of all weights; those of FSDP2 are gathered for it."""
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
    return sum(float(p.detach().double().sum()) for p in whole)


def collect(args):
    """Act in other processes, train in this one."""
    import train_ppo as ppo
    from torchrl.collectors import MultiSyncCollector

    memory = ppo.make_memory(args.backend, True)
    model = ppo.make_model(memory, "cpu")
    makers = [lambda seed=seed: ppo.make_env(memory, seed, envs=2) for seed in range(args.collectors)]
    collector = MultiSyncCollector(
        makers, model.get_policy_operator(), frames_per_batch=64 * args.collectors, total_frames=256 * args.collectors
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in collector:
        with set_recurrent_mode(True):
            features = memory(batch.select("observation", "is_init", "recurrent_state_h", "recurrent_state_c"))[
                "features"
            ]
        optimizer.zero_grad()
        features.square().mean().backward()  # your own loss
        optimizer.step()
        collector.update_policy_weights_()  # otherwise the collectors keep their first weights
        states = tuple(batch["recurrent_state_h"].shape)
        print(f"batch {tuple(batch.shape)} of {args.collectors} processes, states {states}")
    collector.shutdown()


def main():
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="the LSTM's backend; `rnn-backends list` has the names")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 in place of DDP")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--collectors", type=int, default=0, help="act in this many other processes, without torchrun")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.collectors:
        collect(args)
    else:
        train_with_others(args)


if __name__ == "__main__":
    main()
