"""The measured calls: a callable for each backend and peer, all with the same weights and inputs.

asv runs this checkout's cases, timing, groups and figures over older commits of core, so these four modules import only
names that core has always had, within the functions that use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

DENSE = "nn.LSTM"
"""torch's own LSTM in one dense call. It has no resets: it ignores a case's share of resets."""
PACKED = "nn.LSTM-packed"
"""torch's own LSTM over a packed sequence of rows of equal length, for which cuDNN has a different kernel."""
TORCHRL = {"torchrl-pad": "pad", "torchrl-scan": "scan", "torchrl-triton": "triton"}
PEERS = (*TORCHRL, DENSE, PACKED)
MODES = ("forward", "train", "step")
READS = ("output", "ends", "stored", "module")
MASKS = 32
"""The number of reset masks that successive calls alternate: more than any backend has cached plans."""


class Shape(NamedTuple):
    """Batch, time, features, hidden size."""

    B: int
    T: int
    I: int  # noqa: E741
    H: int

    def __str__(self) -> str:
        return f"B{self.B}-T{self.T}-I{self.I}-H{self.H}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``"64,128,64,256"``, ``"B64-T128-I64-H256"``, or a name such as ``"S1"``."""
        if text in SHAPES:
            return SHAPES[text]
        parts = [part.strip("BTIH ") for part in text.replace("-", ",").split(",")]
        if len(parts) != 4 or not all(part.isdigit() and int(part) for part in parts):
            raise ValueError(f"a shape is four numbers B,T,I,H or one of {', '.join(SHAPES)}; got {text!r}")
        return cls(*map(int, parts))


SHAPES = {
    "S1": Shape(64, 128, 64, 256),
    "S2": Shape(32, 128, 64, 128),
    "S3": Shape(256, 128, 32, 512),  # the shape of TorchRL's own benchmark, with 3 % resets
    "S4": Shape(1024, 32, 64, 128),
    "S5": Shape(8, 64, 16, 64),
}
OPTIONS: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "": lambda shape: {},
    "2 layers": lambda shape: {"num_layers": 2},
    "3 layers": lambda shape: {"num_layers": 3},
    "2 layers, dropout 0.2": lambda shape: {"num_layers": 2, "dropout": 0.2},
    "projection to H / 2": lambda shape: {"proj_size": shape.H // 2},
    "bfloat16": lambda shape: {"dtype": torch.bfloat16},
}
"""Variants of the LSTM for the tensor interface, by their name in tables: torch.nn.LSTM's arguments at a shape."""
STEPS = {f"B{B}-H{H}": Shape(B, 1, 64, H) for B in (1, 32) for H in (64, 256)}
RESETS = ("0", "0.01", "0.03", "0.10", "0.20", "once")


@dataclass(frozen=True)
class Contestant:
    """One call to measure.

    Attributes:
        backend: a backend's name or one of ``PEERS``.
        shape: the input's shape.
        resets: the share of steps at which a sequence starts, or ``"once"``: one start in the middle of every row.
        mode: ``forward`` (no gradients), ``train`` (forward and backward) or ``step`` (one step, for acting).
        reads: ``output``: the tensor interface, outputs only; ``ends``: also the state at every sequence's end;
            ``stored``: the same from stored states that are not zero; ``module``: an LSTMModule over a TensorDict.
        device: a device for ``torch.device``.
        option: one of ``OPTIONS``, for the tensor interface.
    """

    backend: str
    shape: Shape
    resets: str = "0.03"
    mode: str = "train"
    reads: str = "output"
    device: str = "cpu"
    option: str = ""


Call = Callable[[int], Any]
"""A call with its index as the argument. An optional ``prepare(calls)`` does the untimed setup of the next calls."""


def build(contestant: Contestant) -> Call:
    """The callable of a contestant. A tiny case of the same kind runs here first, for imports and compilation.

    Raises:
        NotImplementedError: it cannot be measured here, with the reason.
    """
    try:
        tiny = replace(contestant, shape=contestant.shape._replace(B=2, T=min(contestant.shape.T, 3)), resets="once")
        for which in (tiny, contestant):
            call = _synchronised(_make(which), which.device)
            if which is tiny:
                call(0)
        return call
    except (ImportError, ValueError) as error:  # not installed, broken, or without support for these sizes
        raise NotImplementedError(f"{contestant.backend}: {error}") from error


def _synchronised(call: Call, device: str) -> Call:
    if torch.device(device).type != "cuda":
        return call

    def run(k: int) -> Any:
        value = call(k)
        torch.cuda.synchronize()
        return value

    if hasattr(call, "prepare"):
        run.prepare = call.prepare  # type: ignore[attr-defined]
    return run


def _make(contestant: Contestant) -> Call:
    if contestant.mode == "step":
        return _step(contestant)
    over_time = _module if contestant.reads == "module" and contestant.backend not in (DENSE, PACKED) else _tensor
    run, inputs = over_time(contestant)
    if contestant.mode == "forward":
        return torch.no_grad()(run)
    grad = torch.ones(1, device=contestant.device, dtype=inputs[0].dtype) / contestant.shape.H

    def train(k: int) -> Any:
        y = run(k)
        return torch.autograd.grad(y, inputs, grad.expand_as(y))

    return train


def masks(shape: Shape, resets: str, device: str = "cpu", count: int = MASKS) -> list[Tensor]:
    """``count`` different masks ``is_init [T, B]``, the same ones in every run."""
    B, T = shape.B, shape.T
    make = torch.Generator().manual_seed(0)
    if resets == "once":
        at = [torch.randint(min(1, T - 1), T, (B,), generator=make) for _ in range(count)]
        found = [torch.arange(T).unsqueeze(-1) == step for step in at]
    else:
        found = [torch.rand(T, B, generator=make) < float(resets) for _ in range(count)]
    return [mask.to(device) for mask in found]


def weights(shape: Shape, option: str = "") -> dict[str, Tensor]:
    """The weights of every contestant, by torch.nn.LSTM's names."""
    torch.manual_seed(1)
    return nn.LSTM(shape.I, shape.H, **OPTIONS[option](shape)).state_dict()


def _input(contestant: Contestant) -> Tensor:
    make = torch.Generator().manual_seed(2)
    shape = contestant.shape
    return torch.randn(shape.T, shape.B, shape.I, generator=make).to(contestant.device)


def _tensor(contestant: Contestant) -> tuple[Call, list[Tensor]]:
    from rnn_backends import LSTM

    shape, arguments = contestant.shape, OPTIONS[contestant.option](contestant.shape)
    x = _input(contestant).to(arguments.get("dtype", torch.float32)).requires_grad_(contestant.mode == "train")
    is_torchs = contestant.backend in (DENSE, PACKED)
    if not is_torchs:
        arguments["lstm_backend"] = contestant.backend
    lstm: Any = (nn.LSTM if is_torchs else LSTM)(shape.I, shape.H, device=contestant.device, **arguments)
    lstm.load_state_dict(weights(shape, contestant.option))
    inputs = [x, *lstm.parameters()]
    if contestant.backend == DENSE:
        return (lambda k: lstm(x)[0]), inputs
    if contestant.backend == PACKED:
        lengths = torch.full((shape.B,), shape.T)
        return (lambda k: lstm(pack_padded_sequence(x, lengths))[0].data), inputs
    starts = masks(shape, contestant.resets, contestant.device)
    if contestant.reads == "output":
        return (lambda k: lstm(x, is_init=starts[k % MASKS])[0]), inputs
    if not hasattr(lstm, "replay"):
        raise NotImplementedError("this version has no LSTM.replay")
    stored = None
    if contestant.reads == "stored":
        from rnn_backends import State

        stored = State(*torch.full((2, 1, shape.T, shape.B, shape.H), 0.25, device=contestant.device))
    return (lambda k: lstm.replay(x, starts[k % MASKS], stored)[0]), inputs


def module_named(backend: str, shape: Shape, device: str = "cpu", recurrent: bool = False) -> nn.Module:
    """Our ``LSTMModule`` or TorchRL's, with the same weights."""
    keys: dict[str, Any] = {"in_key": "observation", "out_key": "features", "device": device}
    keys["default_recurrent_mode"] = recurrent
    if backend in TORCHRL:
        from torchrl.modules import LSTMModule as TorchRLModule

        module = TorchRLModule(shape.I, shape.H, recurrent_backend=TORCHRL[backend], **keys)
    else:
        from rnn_backends import LSTMModule

        module = LSTMModule(shape.I, shape.H, lstm_backend=backend, **keys)
    module.lstm.load_state_dict(weights(shape))
    made: nn.Module = module
    return made


def _module(contestant: Contestant) -> tuple[Call, list[Tensor]]:
    from tensordict import TensorDict

    module: Any = module_named(contestant.backend, contestant.shape, contestant.device, recurrent=True)
    x = _input(contestant).transpose(0, 1).contiguous().requires_grad_(contestant.mode == "train")
    starts = masks(contestant.shape, contestant.resets, contestant.device)
    starts = [mask.t().unsqueeze(-1).contiguous() for mask in starts]
    tds = [TensorDict({"observation": x, "is_init": is_init}, x.shape[:2]) for is_init in starts]
    return (lambda k: module(tds[k % MASKS].copy())["features"]), [x, *module.parameters()]


def _step(contestant: Contestant) -> Call:
    from tensordict import TensorDict

    shape, device = contestant.shape, contestant.device
    x = _input(contestant)[0]
    state = torch.full((2, shape.B, 1, shape.H), 0.25, device=device)
    if contestant.backend == PACKED:
        raise NotImplementedError(f"{PACKED} is measured over whole rows")
    if contestant.backend == DENSE:
        lstm = nn.LSTM(shape.I, shape.H, device=device)
        row, hx = x.unsqueeze(0), tuple(state.transpose(1, 2).contiguous())
        return torch.no_grad()(lambda k: lstm(row, hx))
    module = module_named(contestant.backend, shape, device)
    is_init = torch.zeros(shape.B, 1, dtype=torch.bool, device=device)
    hidden = {"recurrent_state_h": state[0], "recurrent_state_c": state[1]}
    td = TensorDict({"observation": x, "is_init": is_init, **hidden}, [shape.B])
    return _ModuleStep(module, td)


class _ModuleStep:
    """A step over a fresh copy of a TensorDict, without ``"next"``, as in a rollout."""

    def __init__(self, module: nn.Module, td: Any) -> None:
        self.module, self.td = module, td
        self.ready: list[Any] = []

    def prepare(self, calls: int) -> None:
        """Make the copies for the next ``calls`` calls, untimed; a call without one makes its own."""
        self.ready = [self.td.copy() for _ in range(calls)]

    @torch.no_grad()
    def __call__(self, k: int) -> Any:
        return self.module(self.ready.pop() if self.ready else self.td.copy())
