"""Run FSDP2, DDP and DTensor over every backend in gloo processes; print all results as JSON. See test_distributed.

python distributed_run.py PROCESSES BACKEND...
"""

import json
import os
import sys
import tempfile
import warnings
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rnn_backends import LSTM, LSTMModule
from tensordict import TensorDict
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

B, T = 4, 5


def data(recurrent):
    g = torch.Generator().manual_seed(1)
    td = TensorDict({"x": torch.randn(B, T, 3, generator=g), "is_init": torch.rand(B, T, 1, generator=g) < 0.3}, [B, T])
    return td if recurrent else td[:, 0]


def module(backend, recurrent):
    torch.manual_seed(0)
    options = {"default_recurrent_mode": recurrent, "lstm_backend": backend}
    return LSTMModule(3, 4, num_layers=2, in_key="x", out_key="y", **options)


def full(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def errors(output, expected, parameters, reference):
    """The largest difference of outputs, and of gradients of the sum of squares."""
    full(output).square().sum().backward()
    expected.square().sum().backward()
    gradients = [
        (full(p.grad) - q.grad).abs().max().item() for p, q in zip(parameters, reference.parameters(), strict=True)
    ]
    return [(full(output) - expected).abs().max().item(), max(gradients)]


def sharded(mesh, backend, recurrent, which, copied=lambda run: run):
    """The parameters are those that an optimizer gets, and each process has a loss of its own."""
    run, reference = module(backend, False), module(backend, recurrent)
    for part in {"lstm": [run.lstm], "module": [run], "both": [run.lstm, run]}[which]:
        fully_shard(part, mesh=mesh)
    parameters, run = list(run.parameters()), copied(run.set_recurrent_mode(recurrent))
    processes, rank = dist.get_world_size(), dist.get_rank()
    output = run(data(recurrent))["y"] * ((1 + rank) * 2 / (1 + processes)) ** 0.5  # the losses' mean is the reference
    found = errors(output, reference(data(recurrent))["y"], parameters, reference)
    return found[1:]  # the outputs differ


def replicated(mesh, backend, recurrent):
    run, reference = DistributedDataParallel(module(backend, recurrent)), module(backend, recurrent)
    return errors(run(data(recurrent))["y"], reference(data(recurrent))["y"], run.parameters(), reference)


def distributed(mesh, backend, placement, call):
    torch.manual_seed(0)
    reference = LSTM(3, 4, batch_first=True, lstm_backend=backend)
    run = LSTM(3, 4, batch_first=True, lstm_backend=backend)
    run.load_state_dict(reference.state_dict())
    for name, value in list(run.named_parameters()):
        run.register_parameter(name, nn.Parameter(distribute_tensor(value.detach(), mesh, [placement])))
    x, is_init = data(True)["x"], data(True)["is_init"].squeeze(-1)
    whole = partial(distribute_tensor, device_mesh=mesh, placements=[Replicate()])
    calls = {
        "dense": lambda lstm, kind: lstm(kind(x))[0],
        "resets": lambda lstm, kind: lstm(kind(x), is_init=kind(is_init))[0],
        "step": lambda lstm, kind: lstm.step(kind(x[:, 0]), None)[0],
        "act": lambda lstm, kind: lstm.step(kind(x[:, 0]), None, kind(is_init[:, 0]))[0],
    }
    return errors(calls[call](run, whole), calls[call](reference, lambda v: v), run.parameters(), reference)


CASES = {
    **{
        f"FSDP2 of {which}, {mode}": partial(sharded, recurrent=mode == "over time", which=which)
        for which in ("lstm", "module", "both")
        for mode in ("over time", "acting")
    },
    "FSDP2 of a twin": partial(sharded, recurrent=True, which="both", copied=lambda run: run.with_backend("vmap")),
    **{
        f"DDP, {mode}": partial(replicated, recurrent=mode == "over time") for mode in ("over time", "acting")
    },
    **{
        f"DTensor, {name}, {call}": partial(distributed, placement=placement, call=call)
        for name, placement in (("replicated", Replicate()), ("sharded", Shard(0)))
        for call in ("dense", "resets", "step", "act")
    },
}  # fmt: skip


def work(rank, processes, folder, backends):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    mesh, found = init_device_mesh("cpu", (processes,)), {}
    for backend in backends:
        for name, case in CASES.items():
            try:
                found[f"{backend}: {name}"] = case(mesh, backend)
            except Exception as error:
                found[f"{backend}: {name}"] = f"{type(error).__name__}: {error}"
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)  # FSDP2 may keep the group alive until Python ends, and gloo's thread then aborts the process


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (int(sys.argv[1]), folder, sys.argv[2:]), nprocs=int(sys.argv[1]))
