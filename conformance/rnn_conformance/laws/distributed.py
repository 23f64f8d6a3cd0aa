"""Distributed: data parallel over two processes, distributed tensors in one; each law runs in its own process."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rnn_backends import LSTM, State
from torch import Tensor, nn

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Trial, differentiate
from ..suite.verdict import Declined, LawBroken
from ._kinds import IN_FULL, KINDS, WAYS, Given, attempt, compare, expected, given, naming, run

SECONDS = 90.0


def _needs_gloo(trial: Trial) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise Declined("torch.distributed is not available, or lacks gloo")
    if torch.device(trial.device).type != "cpu":
        raise Declined("gloo is tested on the CPU only")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise Declined("two processes of one backend need a system that forks")


def _rank(rank: int, lstm: LSTM, x: Tensor, is_init: Tensor, folder: Path) -> None:
    """One of two processes: runs every other row forward and backward under DDP, and writes its gradients."""
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
        time.sleep(0.01)  # the other process may still be reading
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


@contextmanager
def _mesh_of_one() -> Iterator[Any]:
    """A mesh of this process alone, over gloo: torch's results and rules are the same with more processes."""
    from torch.distributed.device_mesh import init_device_mesh

    group = torch.distributed
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory(prefix="rnn-conformance-") as folder:
        group.init_process_group("gloo", f"file://{folder}/meet", world_size=1, rank=0)
        try:
            yield init_device_mesh("cpu", (1,))
        finally:
            group.destroy_process_group()


def _placed(mesh: Any, values: Given, what: str) -> Given:
    """The tensors of a call as distributed tensors; ``what`` names those that are distributed, and how."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    def each(placement: Any) -> Callable[[Tensor], Tensor]:
        return lambda value: distribute_tensor(value.detach(), mesh, [placement])

    rows = Shard(1) if what == "shards of the rows" else Replicate()
    columns = Shard(0) if what == "shards of the weights" else Replicate()
    weights: dict[str, Tensor] = {
        name: nn.Parameter(each(columns)(value), value.requires_grad) for name, value in values.weights.items()
    }
    if what == "the weights alone":
        return values._replace(weights=weights)
    if what == "the input alone":
        return values._replace(x=each(rows)(values.x))
    if what == "the state alone":
        return values._replace(state=State(*map(each(rows), values.state)))
    if what == "the mask alone":
        return values._replace(is_init=each(rows)(values.is_init))
    state = State(*map(each(rows), values.state))
    return Given(each(rows)(values.x), each(rows)(values.is_init), state, weights)


ALONE = ("the input alone", "the weights alone", "the state alone", "the mask alone")
PLACEMENTS = ("replicas", "shards of the rows", "shards of the weights", *ALONE)
"""The distributed tensors of a call, and how they are distributed: the whole tensor, or a part of it."""


def _whole(value: Tensor) -> Tensor:
    full: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return value if full is None else full()


@law(**KINDS | IN_FULL)
def distributed_tensors_are_right_or_refused(trial: Trial) -> None:
    """Replicated and sharded DTensors, alone or mixed with plain tensors, are right, gradients too, or rejected."""
    _needs_gloo(trial)
    answers = 0
    with _mesh_of_one() as mesh:
        for what in PLACEMENTS:
            for way in WAYS:
                kind, grad = f"DTensors ({what})", way in ("with resets", "one step with resets")

                def call(what: str = what, way: str = way, grad: bool = grad) -> tuple[list[Tensor], list[Tensor]]:
                    lstm = trial.lstm().requires_grad_(grad)
                    values = _placed(mesh, given(trial, lstm), what)
                    values.installed(lstm)
                    found = run(lstm, values, way)
                    output = found[0].square().sum()
                    gradients = list(differentiate(output, values.weights).values()) if grad else []
                    return [_whole(v) for v in found], [_whole(v) for v in gradients]

                found = attempt(kind, way, call)
                if found is None:
                    continue
                answers += 1
                compare(trial, f"{kind}, {way}", found[0], expected(trial, way))
                if grad:
                    _agree(trial, f"{kind}, {way}", found[1], way)
    if not answers:
        raise Declined("every kind is rejected with a reason")


def _agree(trial: Trial, what: str, found: list[Tensor], way: str) -> None:
    """Check the weights' gradients of the sum of the output's squares against the reference's."""
    own = {name: value.double().requires_grad_() for name, value in trial.inputs.weights.items()}
    right = differentiate(expected(trial, way, own)[0].square().sum(), own)
    with naming(what):
        trial.agree_gradients(dict(zip(right, found, strict=True)), right)
