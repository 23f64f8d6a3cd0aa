"""Random bad calls of the public interface, each in its own process: ``make fuzz``.

A call is a good one with one or two errors in it. It may raise an error with a message, or run; if it runs on two
backends they must agree. It may never end the process, hang, or raise an error that only a bug raises.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, LSTMModule, RNNBackendsError, State
from tensordict import TensorDict

BACKENDS = ("cpp", "cudnn", "vmap", "torchscript")
SECONDS = 60
ON_PURPOSE = (RNNBackendsError, TypeError, ValueError, RuntimeError, NotImplementedError, KeyError)
"""Errors that a caller may get: ours, and Python's and torch's for a wrong type, number or name."""

T, B, I, H = 3, 2, 4, 5  # noqa: E741 - the project's letters


def spoilt(draw: random.Random, x: Any) -> Any:
    """A faulty tensor, or another value in its place."""
    ways: list[Callable[[], Any]] = [
        lambda: x[:-1],
        lambda: x[..., :-1],
        lambda: x[0],
        lambda: x.unsqueeze(0),
        lambda: x.new_empty((0, *x.shape[1:])),
        lambda: x.new_empty((*x.shape[:-1], 0)),
        lambda: x.double(),
        lambda: x.half(),
        lambda: x.to(torch.complex64),
        lambda: x.to(torch.int64),
        lambda: x.to(torch.bool),
        lambda: x.to("meta"),
        lambda: x.to_sparse(),
        lambda: x.float().to_mkldnn(),
        lambda: torch.nested.nested_tensor([x.float(), x.float()]),
        lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
        lambda: x.transpose(0, -1),
        lambda: x.expand(2, *x.shape),
        lambda: freed(x),
        lambda: x * float("nan"),
        lambda: torch.full_like(x.float(), 1e38),
        lambda: x.numpy(),
        lambda: x.tolist(),
        lambda: torch.conj(x.to(torch.complex64)).imag,
        lambda: x.to(torch.float8_e4m3fn),
        lambda: None,
        lambda: "x",
        lambda: 3,
        lambda: (),
        lambda: {"x": x},
        lambda: (x, x, x),
    ]
    return draw.choice(ways)()


def freed(x: torch.Tensor) -> torch.Tensor:
    """A tensor with freed storage."""
    copy = x.clone()
    copy.untyped_storage().resize_(0)
    return copy


def number(draw: random.Random) -> Any:
    """A value that is not a size."""
    return draw.choice((0, -1, 1.5, True, None, "4", 2**31, 2**63, 10**30, float("nan"), [], torch.tensor(4)))


def construct(draw: random.Random, backend: Any) -> Any:
    """LSTM(...) with a wrong option."""
    options = {"input_size": I, "hidden_size": H, "lstm_backend": backend}
    for _ in range(draw.randint(1, 2)):
        name = draw.choice(
            ("input_size", "hidden_size", "num_layers", "proj_size", "dropout", "bias", "bidirectional", "lstm_backend",
             "device", "dtype", "batch_first", "nosuch")
        )  # fmt: skip
        wrong = draw.choice(
            ("", "nosuch", 3, torch.float16, torch.int32, torch.complex64, "cpu", "meta", "cuda:7", None)
        )
        options[name] = number(draw) if name.endswith("size") or name == "num_layers" else wrong
    if any(type(options.get(name)) is int and options[name] > 1 << 20 for name in options):
        raise ValueError("left out: it would only request more memory than there is")
    torch.manual_seed(0)
    lstm = LSTM(**options)
    return lstm(torch.randn(T, B, lstm.input_size))[0] if lstm.weight_ih_l0.device.type == "cpu" else None


def forward(draw: random.Random, backend: Any) -> Any:
    """LSTM.forward with a wrong argument."""
    options = draw.choice(({}, {"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}, {"batch_first": True}))
    torch.manual_seed(draw.randrange(1000))
    lstm = LSTM(I, H, lstm_backend=backend, **options)
    rows = lstm.spec.num_states
    time_major = (T, B) if not options.get("batch_first") else (B, T)
    given = {
        "x": torch.randn(*time_major, I),
        "h": torch.randn(rows, B, lstm.spec.output_size),
        "c": torch.randn(rows, B, H),
        "is_init": torch.rand(*time_major) < 0.3,
    }
    for name in draw.sample(sorted(given), draw.randint(1, 2)):
        given[name] = spoilt(draw, given[name])
    hx = draw.choice(((given["h"], given["c"]), (given["h"], given["c"]), (given["h"],), given["h"]))
    with torch.set_grad_enabled(draw.random() < 0.5):
        return lstm(given["x"], hx, is_init=given["is_init"])[0]


def weights(draw: random.Random, backend: Any) -> Any:
    """LSTM.forward or a step with a wrong weight."""
    torch.manual_seed(draw.randrange(1000))
    lstm = LSTM(I, H, lstm_backend=backend, **draw.choice(({}, {"bias": True}, {"proj_size": 2})))
    own = {name: value.detach().clone() for name, value in lstm.named_parameters()}
    name = draw.choice(sorted(own))
    own[name] = spoilt(draw, own[name])
    acting, x = draw.random() < 0.5, torch.randn(T, B, I)
    with torch.set_grad_enabled(draw.random() < 0.5):
        if not acting:
            return torch.func.functional_call(lstm, own, (x,))[0]
        return torch.func.functional_call(Step(lstm), {f"lstm.{key}": value for key, value in own.items()}, (x[0],))


class Step(torch.nn.Module):
    """A step as a module."""

    def __init__(self, lstm: LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, I]`` -> ``[B, P]``."""
        P = self.lstm.spec.output_size
        return self.lstm.step(x, State(x.new_zeros(1, B, P), x.new_zeros(1, B, H)))[0]


def module(draw: random.Random, backend: Any) -> Any:
    """LSTMModule over a wrong TensorDict."""
    from rnn_backends import set_recurrent_mode

    torch.manual_seed(draw.randrange(1000))
    made = LSTMModule(I, H, in_key="x", out_key="y", lstm_backend=backend)
    values: dict[Any, Any] = {
        "x": torch.randn(B, T, I),
        "is_init": torch.rand(B, T, 1) < 0.3,
        "recurrent_state_h": torch.randn(B, T, 1, H),
        "recurrent_state_c": torch.randn(B, T, 1, H),
    }
    name = draw.choice(sorted(values))
    if draw.random() < 0.3:
        del values[name]
    else:
        values[name] = spoilt(draw, values[name])
    if draw.random() < 0.2:
        values["next"] = draw.choice((torch.zeros(B, T), TensorDict({}, [B, T]).lock_(), "x"))
    td = TensorDict(values, [B, T][: draw.choice((0, 1, 2, 2, 2))])
    with set_recurrent_mode(draw.random() < 0.7):
        out = made(td)["y"]
    return out if isinstance(out, torch.Tensor) else None


KINDS = (construct, forward, weights, module)


def outcome(kind: Callable[[random.Random, Any], Any], seed: str, backend: str) -> tuple[str, Any]:
    """``("ran", result)``, ``("error", words)``, or ``("bug", words)`` for an error that nobody raises on purpose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind(random.Random(seed), backend)
        return "ran", found.detach() if isinstance(found, torch.Tensor) else None
    except ON_PURPOSE as error:
        return ("error" if str(error).strip() else "bug"), f"{type(error).__name__}: {error}"
    except Exception as error:
        return "bug", f"{type(error).__name__}: {error}"


def judged(number: int, seed: int) -> str:
    """One call; an empty text, or a description of the fault."""
    name = f"{seed}.{number}"
    draw = random.Random(name)
    kind, backend = draw.choice(KINDS), draw.choice(BACKENDS)
    verdict, found = outcome(kind, name, backend)
    if verdict == "bug":
        return f"{kind.__name__} on {backend} raises {found}"
    other, wanted = outcome(kind, name, "vmap") if verdict == "ran" else ("", None)
    if other == "ran" and found is not None and wanted is not None and found.device.type == "cpu":
        tolerance = 1e-4 if found.dtype in (torch.float32, torch.float64) else 3e-2
        if found.shape != wanted.shape or not torch.allclose(
            found.double(), wanted.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        ):
            return f"{kind.__name__} on {backend} gives other numbers than vmap"
    return ""


def in_a_process(number: int, seed: int) -> str:
    """The same in a fork: a signal and a hang are reported, too."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, f"{judged(number, seed)[:3000]}\0".encode(errors="replace"))
        os._exit(0)
    os.close(write)
    said = b""
    end = time.monotonic() + SECONDS
    while not said.endswith(b"\0") and select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        piece = os.read(read, 4096)
        if not piece:
            break
        said += piece
    os.close(read)
    if time.monotonic() >= end:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if said.endswith(b"\0"):
        return said[:-1].decode()
    return "it hangs" if os.WIFSIGNALED(status) and time.monotonic() >= end else f"its process ended: status {status}"


def main() -> int:
    """Run the calls; the exit status is 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one call, in this process: for a debugger")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        print(judged(options.only, options.seed) or "nothing is wrong")
        return 0
    for name in BACKENDS:  # all loading is done before the forks
        LSTM(I, H, lstm_backend=name)(torch.randn(T, B, I))
    wrong = 0
    for number in range(options.calls):
        said = in_a_process(number, options.seed)
        if said:
            wrong += 1
            print(f"call {number} of seed {options.seed}: {said}", flush=True)
    print(f"{options.calls} bad calls from seed {options.seed}, a process each: {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
