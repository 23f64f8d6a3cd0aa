"""One step without gradients: a module, torch's bare cells, and the module's step captured in a CUDA graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..cases import DENSE, Call, Contestant, Shape, build, module_named
from ..groups import Group

CELL = "nn.LSTMCell"
GRAPH = "graph of "
TORCHRL = "torchrl-pad"


def acting_group(title: str, backends: list[str], shape: Shape, device: str, seconds: float) -> Group:
    """torch's, TorchRL's and ours over one batch, and ours as graphs; ratios are over ``nn.LSTM``."""
    graphs = [GRAPH + name for name in backends] if torch.device(device).type == "cuda" else []
    names = [DENSE, CELL, TORCHRL, *backends, *graphs]
    return Group(title, {one: Contestant(one, shape, "0", "step", "module", device) for one in names}, DENSE, seconds)


def build_acting(contestant: Contestant) -> Call:
    """The callable of a contestant.

    Raises:
        NotImplementedError: it cannot be measured here, with the reason.
    """
    if contestant.backend == CELL:
        return _cell(contestant)
    if contestant.backend.startswith(GRAPH):
        try:
            return _graph(replace(contestant, backend=contestant.backend.removeprefix(GRAPH)))
        except (RuntimeError, ImportError, ValueError) as error:
            raise NotImplementedError(f"{contestant.backend}: {error}") from error
    return build(contestant)


def _cell(contestant: Contestant) -> Call:
    shape, device = contestant.shape, contestant.device
    cell = nn.LSTMCell(shape.I, shape.H, device=device)
    x, h = (torch.full((shape.B, size), 0.25, device=device) for size in (shape.I, shape.H))
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else (lambda: None)

    @torch.no_grad()
    def run(k: int) -> Any:
        value = cell(x, (h, h))
        wait()
        return value

    return run


@torch.no_grad()
def _graph(contestant: Contestant) -> Call:
    """Replays a captured step, and waits for it."""
    from tensordict import TensorDict

    shape, device = contestant.shape, contestant.device
    module = module_named(contestant.backend, shape, device)
    state = torch.full((shape.B, 1, shape.H), 0.25, device=device)
    entries = {"observation": torch.randn(shape.B, shape.I, device=device), "recurrent_state_h": state}
    entries |= {"recurrent_state_c": state.clone()}
    entries |= {"is_init": torch.zeros(shape.B, 1, dtype=torch.bool, device=device)}
    td = TensorDict(entries, [shape.B], device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(td.clone(False))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(td.clone(False))

    def run(k: int) -> Any:
        graph.replay()
        torch.cuda.synchronize()
        return out

    return run
