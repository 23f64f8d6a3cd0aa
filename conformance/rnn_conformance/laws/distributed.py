"""Distributed: data parallel over two processes on this machine, in a process of its own with a time limit."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch
from rnn_backends import LSTM
from torch import Tensor, nn

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Trial, differentiate
from ..suite.verdict import Declined, LawBroken

SECONDS = 90.0


def _needs_gloo(trial: Trial) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise Declined("torch.distributed is not available, or lacks gloo")
    if torch.device(trial.device).type != "cpu":
        raise Declined("gloo is tested on the CPU only")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise Declined("two processes of one backend need a system that forks")


def _rank(rank: int, lstm: LSTM, x: Tensor, is_init: Tensor, folder: Path) -> None:
    """One of two processes: every other row forward and backward under DDP; writes its gradients."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    group = torch.distributed
    group.init_process_group("gloo", f"file://{folder / 'meet'}", world_size=2, rank=rank)
    model = nn.parallel.DistributedDataParallel(lstm)
    model(x[:, rank::2], is_init=is_init[:, rank::2])[0].square().sum().backward()
    found = {name: parameter.grad for name, parameter in lstm.named_parameters()}
    torch.save(found, folder / f"{rank}.part")
    (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
    end = time.monotonic() + SECONDS
    while not (folder / f"{1 - rank}.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)  # the other may still be reading
    os._exit(0)  # ~ProcessGroupGloo may wait for its thread forever


def _both(lstm: LSTM, x: Tensor, is_init: Tensor) -> list[dict[str, Tensor]]:
    """The gradients of each of the two processes."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="rnn-conformance-") as name:
        folder = Path(name)
        ranks = [fork.Process(target=_rank, args=(k, lstm, x, is_init, folder), daemon=True) for k in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(SECONDS)
            process.kill()
            process.join()
        codes = [process.exitcode for process in ranks]
        if not all((folder / f"{k}.pt").exists() for k in range(2)):
            raise RuntimeError(f"two processes under DistributedDataParallel ended with status {codes[0]}, {codes[1]}")
        return [torch.load(folder / f"{k}.pt", weights_only=True) for k in range(2)]


@law(time_limit=240.0, profiles=("full",), T=(4,), B=(4,), L=(1, 2), layout=("contiguous",))
def data_parallel_gradients_are_averaged(trial: Trial) -> None:
    """Under DistributedDataParallel, two processes with half the rows each have half the whole batch's gradients."""
    _needs_gloo(trial)
    lstm, inputs = trial.lstm(), trial.fresh()
    found = _both(lstm, inputs.x, trial.is_init)
    own = {name: value.double().requires_grad_() for name, value in inputs.weights.items()}
    zeros = (torch.zeros_like(inputs.h), torch.zeros_like(inputs.c))
    loss = trial.reference(Inputs(inputs.x, *zeros, inputs.starts, own)).output.square().sum()
    expected = {name: value / 2 for name, value in differentiate(loss, own).items()}
    for rank, gradients in enumerate(found):
        lost = [name for name in expected if gradients.get(name) is None]
        if lost:
            raise LawBroken(f"in process {rank} there is no gradient of {', '.join(lost)}")
        trial.agree_gradients(gradients, expected)
