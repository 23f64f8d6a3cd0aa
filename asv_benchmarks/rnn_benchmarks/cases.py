"""What is measured: one callable for each backend and peer, all over the same weights and inputs.

The asv benchmarks load this file by its path, so that an older commit is measured by today's method: it imports
nothing of the suite's, and of the core only what its first version had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

DENSE = "nn.LSTM"
"""The peer without resets: what one dense call of torch's costs, whatever resets are asked for."""
PACKED = "nn.LSTM-packed"
"""The same over a packed sequence of rows of equal length: another kernel of cuDNN's, faster at some sizes."""
TORCHRL = {"torchrl-pad": "pad", "torchrl-scan": "scan", "torchrl-triton": "triton"}
PEERS = (*TORCHRL, DENSE, PACKED)
MODES = ("forward", "train", "step")
READS = ("output", "ends", "stored", "module")
MASKS = 32
"""Every call sees other resets, in turn: more of them than any backend keeps plans for."""


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
    "S3": Shape(256, 128, 32, 512),  # TorchRL's own benchmark has this one, with 3 % resets
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
"""What the tensor interface may be asked for beside the plain LSTM, in torch.nn.LSTM's words."""
STEPS = {f"B{B}-H{H}": Shape(B, 1, 64, H) for B in (1, 32) for H in (64, 256)}
RESETS = ("0", "0.01", "0.03", "0.10", "0.20", "once")


@dataclass(frozen=True)
class Asked:
    """One thing to measure.

    Attributes:
        who: a backend's name or one of ``PEERS``.
        shape: of the input.
        resets: the share of steps at which a sequence starts, or ``"once"``: one in the middle of every row.
        mode: ``forward`` (no gradients), ``train`` (forward and backward) or ``step`` (one step, for acting).
        reads: the tensor interface with the ``output`` only, with the states at every sequence's end (``ends``), the
            same from non-zero ``stored`` states; or an LSTM ``module`` over a TensorDict.
        device: where.
        option: one of ``OPTIONS``, for the tensor interface.
    """

    who: str
    shape: Shape
    resets: str = "0.03"
    mode: str = "train"
    reads: str = "output"
    device: str = "cpu"
    option: str = ""


Call = Callable[[int], Any]
"""Told the number of the call. Its ``prepare(calls)``, if it has one, does before what is no part of the figure."""


def build(asked: Asked) -> Call:
    """A function of the call's number that does it once; warmed up at a tiny size, so that nothing compiles later.

    Raises:
        NotImplementedError: with the reason why it cannot be measured here.
    """
    try:
        tiny = replace(asked, shape=asked.shape._replace(B=2, T=min(asked.shape.T, 3)), resets="once")
        for which in (tiny, asked):
            call = _synchronised(_make(which), which.device)
            if which is tiny:
                call(0)
        return call
    except (ImportError, ValueError) as error:  # not installed, broken, or it declines these sizes
        raise NotImplementedError(f"{asked.who}: {error}") from error


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


def _make(asked: Asked) -> Call:
    if asked.mode == "step":
        return _step(asked)
    over_time = _module if asked.reads == "module" and asked.who not in (DENSE, PACKED) else _tensor
    run, wanted = over_time(asked)
    if asked.mode == "forward":
        return torch.no_grad()(run)
    down = torch.ones(1, device=asked.device, dtype=wanted[0].dtype) / asked.shape.H

    def train(k: int) -> Any:
        y = run(k)
        return torch.autograd.grad(y, wanted, down.expand_as(y))

    return train


def masks(shape: Shape, resets: str, device: str = "cpu", count: int = MASKS) -> list[Tensor]:
    """``count`` times ``is_init [T, B]``, each with other resets, the same ones in every run."""
    B, T = shape.B, shape.T
    make = torch.Generator().manual_seed(0)
    if resets == "once":
        at = [torch.randint(min(1, T - 1), T, (B,), generator=make) for _ in range(count)]
        found = [torch.arange(T).unsqueeze(-1) == step for step in at]
    else:
        found = [torch.rand(T, B, generator=make) < float(resets) for _ in range(count)]
    return [mask.to(device) for mask in found]


def weights(shape: Shape, option: str = "") -> dict[str, Tensor]:
    """What every contestant computes with, by torch.nn.LSTM's names."""
    torch.manual_seed(1)
    return nn.LSTM(shape.I, shape.H, **OPTIONS[option](shape)).state_dict()


def _input(asked: Asked) -> Tensor:
    make = torch.Generator().manual_seed(2)
    shape = asked.shape
    return torch.randn(shape.T, shape.B, shape.I, generator=make).to(asked.device)


def _tensor(asked: Asked) -> tuple[Call, list[Tensor]]:
    from rnn_backends import LSTM

    shape, more = asked.shape, OPTIONS[asked.option](asked.shape)
    x = _input(asked).to(more.get("dtype", torch.float32)).requires_grad_(asked.mode == "train")
    torchs_own = asked.who in (DENSE, PACKED)
    if not torchs_own:
        more["lstm_backend"] = asked.who
    lstm: Any = (nn.LSTM if torchs_own else LSTM)(shape.I, shape.H, device=asked.device, **more)
    lstm.load_state_dict(weights(shape, asked.option))
    wanted = [x, *lstm.parameters()]
    if asked.who == DENSE:
        return (lambda k: lstm(x)[0]), wanted
    if asked.who == PACKED:
        lengths = torch.full((shape.B,), shape.T)
        return (lambda k: lstm(pack_padded_sequence(x, lengths))[0].data), wanted
    starts = masks(shape, asked.resets, asked.device)
    if asked.reads == "output":
        return (lambda k: lstm(x, is_init=starts[k % MASKS])[0]), wanted
    if not hasattr(lstm, "replay"):
        raise NotImplementedError("this version has no LSTM.replay")
    stored = None
    if asked.reads == "stored":
        from rnn_backends import State

        stored = State(*torch.full((2, 1, shape.T, shape.B, shape.H), 0.25, device=asked.device))
    return (lambda k: lstm.replay(x, starts[k % MASKS], stored)[0]), wanted


def module_named(who: str, shape: Shape, device: str = "cpu", recurrent: bool = False) -> nn.Module:
    """Ours or TorchRL's ``LSTMModule``, with the common weights."""
    keys: dict[str, Any] = {"in_key": "observation", "out_key": "features", "device": device}
    keys["default_recurrent_mode"] = recurrent
    if who in TORCHRL:
        from torchrl.modules import LSTMModule as TheirModule

        made = TheirModule(shape.I, shape.H, recurrent_backend=TORCHRL[who], **keys)
    else:
        from rnn_backends import LSTMModule

        made = LSTMModule(shape.I, shape.H, lstm_backend=who, **keys)
    made.lstm.load_state_dict(weights(shape))
    return made


def _module(asked: Asked) -> tuple[Call, list[Tensor]]:
    from tensordict import TensorDict

    module: Any = module_named(asked.who, asked.shape, asked.device, recurrent=True)
    x = _input(asked).transpose(0, 1).contiguous().requires_grad_(asked.mode == "train")
    starts = [mask.t().unsqueeze(-1).contiguous() for mask in masks(asked.shape, asked.resets, asked.device)]
    tds = [TensorDict({"observation": x, "is_init": is_init}, x.shape[:2]) for is_init in starts]
    return (lambda k: module(tds[k % MASKS].copy())["features"]), [x, *module.parameters()]


def _step(asked: Asked) -> Call:
    from tensordict import TensorDict

    shape, device = asked.shape, asked.device
    x = _input(asked)[0]
    state = torch.full((2, shape.B, 1, shape.H), 0.25, device=device)
    if asked.who == PACKED:
        raise NotImplementedError(f"{PACKED} is measured over whole rows")
    if asked.who == DENSE:
        lstm = nn.LSTM(shape.I, shape.H, device=device)
        row, hx = x.unsqueeze(0), tuple(state.transpose(1, 2).contiguous())
        return torch.no_grad()(lambda k: lstm(row, hx))
    module = module_named(asked.who, shape, device)
    is_init = torch.zeros(shape.B, 1, dtype=torch.bool, device=device)
    hidden = {"recurrent_state_h": state[0], "recurrent_state_c": state[1]}
    td = TensorDict({"observation": x, "is_init": is_init, **hidden}, [shape.B])
    return _ModuleStep(module, td)


class _ModuleStep:
    """A step over a TensorDict of its own, which has no ``"next"`` yet, as in a rollout."""

    def __init__(self, module: nn.Module, td: Any) -> None:
        self.module, self.td = module, td
        self.ready: list[Any] = []

    def prepare(self, calls: int) -> None:
        """Copy the TensorDict so often, while no clock runs; a call that finds no copy makes one."""
        self.ready = [self.td.copy() for _ in range(calls)]

    @torch.no_grad()
    def __call__(self, k: int) -> Any:
        return self.module(self.ready.pop() if self.ready else self.td.copy())
