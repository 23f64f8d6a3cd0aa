"""What a call of ``triton`` or ``cudnn`` takes on the host: kernels compute nothing, all else is done, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import Any

from ..cases import Shape
from ..timing import peak_bytes
from . import without
from .settings import name_of
from .without import in_a_process

SHAPE = Shape(8, 32, 8, 32)
"""Small: no size changes what the host does, and what torch computes on a CPU would be computed on the GPU."""
CALLS = 300
"""Of each way, in a process."""
LAUNCH = (
    "copy_",
    "fill_",
    "zero_",
    "add",
    "sub",
    "rsub",
    "sum",
    "mul",
    "eq",
    "bitwise_or",
    "logical_or",
    "mm",
    "addmm",
    "cat",
    "where",
    "index_copy_",
    "index_fill_",
    "index_select",
    "gather",
    "flip",
    "cumsum",
    "cummax",
    "arange",
    "clamp",
    "atanh",
    "_foreach_copy_",
    "_foreach_norm",
)
"""Operators that launch something on a GPU, those that others are made of."""


BACKENDS = {"triton": without.triton_on_cpu, "cudnn": without.cudnn_on_cpu}
"""What makes a backend take tensors on a CPU as a GPU's."""


def measure(shape: Sequence[int], backend: str) -> None:
    """Print by way a call's microseconds (median of this thread's time), torch's operators, and MiB at the peak."""
    import torch
    from torch.profiler import profile

    torch.set_num_threads(1)
    BACKENDS[backend]()
    ways = _ways(backend, Shape(*shape))
    for way in ways.values():
        for _ in range(20):
            way()
    times: dict[str, list[int]] = {name: [] for name in ways}
    for _ in range(CALLS):
        for name, way in ways.items():
            begun = thread_time_ns()
            way()
            times[name].append(thread_time_ns() - begun)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        with profile() as ran:
            way()
        events = [event for event in ran.events() if event.name.startswith("aten::")]
        called = sum(event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::") for event in events)
        launching = sum(event.name.removeprefix("aten::") in LAUNCH for event in events)
        peak = peak_bytes(lambda k, way=way: way()) / 2**20  # type: ignore[misc]
        found[name] = median(times[name]) / 1000, called, launching, round(peak, 1)
    print(json.dumps(found))


def _ways(backend: str, shape: Shape) -> dict[str, Callable[[], object]]:
    """The measured calls, by name."""
    import torch
    from rnn_backends import LSTM, LayerWeights, LSTMModule, State
    from tensordict import TensorDict

    B, T, I, H = shape  # noqa: E741
    lstm = LSTM(I, H, lstm_backend=backend, device="cpu")
    keys = ["x", "hx", "cx"], ["y", ("next", "hx"), ("next", "cx")]
    module = LSTMModule(
        input_size=I, hidden_size=H, in_keys=keys[0], out_keys=keys[1], lstm_backend=backend, device="cpu",
        default_recurrent_mode=True,
    )  # fmt: skip
    x = torch.randn(T, B, I)
    is_init = torch.zeros(T, B, 1, dtype=torch.bool)
    is_init[T // 2, ::4] = True
    starts = is_init.squeeze(-1) | (torch.arange(T) == 0).unsqueeze(-1)
    entry = State(*[torch.zeros(1, 1, H).expand(T, B, H)] * 2)
    ones = torch.ones(T, B, 2 * H)
    batch = TensorDict({"x": x.transpose(0, 1).contiguous(), "is_init": is_init.transpose(0, 1).contiguous()}, [B, T])
    of = {"LSTM": list(lstm.parameters()), "LSTMModule": list(module.parameters())}
    leaves = [value.detach().requires_grad_() for value in of["LSTM"]]
    w_ih, w_hh, b_ih, b_hh = leaves
    weights = LayerWeights(w_ih, w_hh, b_ih, b_hh, None)

    plain = torch.nn.LSTM(I, H)
    of["nn.LSTM"] = list(plain.parameters())

    def dense() -> torch.Tensor:
        found: torch.Tensor = plain(x)[0]
        return found

    def layer() -> torch.Tensor:
        return lstm.backend.layer(weights, x, entry, starts).h

    def tensors() -> torch.Tensor:
        return lstm(x, is_init=is_init)[0]

    def keyed() -> torch.Tensor:
        found: torch.Tensor = module(batch.copy())["y"]
        return found

    def training(call: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> Callable[[], object]:
        def run() -> object:
            found = call()
            return torch.autograd.grad(found, parameters, grad if call is keyed else ones[..., : found.shape[2]])

        return run

    grad = ones[..., :H].transpose(0, 1).contiguous()
    calls = {"layer": layer, "LSTM": tensors, "LSTMModule": keyed}
    if backend == "cudnn":  # the number of operators depends on more
        calls = {"nn.LSTM": dense, **calls}
        deeper, both = LSTM(I, H, 2, lstm_backend=backend), LSTM(I, H, bidirectional=True, lstm_backend=backend)
        state = torch.ones(1, B, H), torch.ones(1, B, H)
        for what, other, hx in (
            ("2 layers", deeper, None),
            ("2 directions", both, None),
            ("from a state", lstm, state),
        ):
            calls[f"LSTM {what}"] = lambda other=other, hx=hx: other(x, hx, is_init=is_init)[0]  # type: ignore[misc]
            of[f"LSTM {what}"] = list(other.parameters())
    found: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        parameters = of.get(name, leaves)
        found[f"{name}, training"] = training(call, parameters)
        found[f"{name}, no gradient"] = torch.no_grad()(call)
    return found


def show(backend: str, shape: Shape, rounds: int, tree: Path | None, say: Callable[[str], None]) -> None:
    """The lines of a table of :func:`measure`.

    Args:
        backend: of ``BACKENDS``.
        shape: of the calls.
        rounds: processes, of each checkout in turn.
        tree: another checkout, measured beside this one.
        say: takes the lines.
    """
    about = {"shape": list(shape), "backend": backend}
    found = [[in_a_process("host", about, where) for where in (None, tree)[: 2 if tree else 1]] for _ in range(rounds)]
    heads = [f"{backend}, {name_of(shape)}", "us", "operators", "of which launch", "peak, MiB"]
    heads += [f"us of {tree}", "operators", "of which launch", "peak, MiB", "times as long there"] if tree else []
    say("| " + " | ".join(heads) + " |")
    say("| --- |" + " ---: |" * (len(heads) - 1))
    for name in found[0][0]:
        sides = [[one[k][name] for one in found] for k in range(len(found[0]))]
        us = [median(one[0] for one in side) for side in sides]
        cells = chain.from_iterable(
            (f"{value:.0f}", *map(str, side[0][1:])) for value, side in zip(us, sides, strict=True)
        )
        ratios = [median(there[0] / here[0] for here, there in zip(*sides, strict=True))] if tree else []
        say("| " + " | ".join([name, *cells, *(f"{ratio:.2f}" for ratio in ratios)]) + " |")
