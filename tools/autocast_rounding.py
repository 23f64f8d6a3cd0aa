"""The rounding of an LSTM under bfloat16 autocast, and its effect on training: ``python tools/autocast_rounding.py``.

Each way of rounding is modelled in float64 here, and compared with nn.LSTM and the backends: the share of the output's
numbers that are equal to the last bit. Then all of them train, and so does float64.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from rnn_backends import LSTM
from torch import Tensor, nn

T, B, I, H = 40, 4, 8, 64  # noqa: E741 - the project's letters
NAMES = ("nn.LSTM", "cudnn", "cpp", "compile", "vmap", "torchscript")
UPDATES = (1, 5, 20, 50)
Round = Callable[[Tensor], Tensor]


def rounded(value: Tensor) -> Tensor:
    """To bfloat16's eight bits, as float64."""
    return value.to(torch.bfloat16).double()


def kept(value: Tensor) -> Tensor:
    """Nothing is rounded."""
    return value


def made(base: nn.LSTM, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An LSTM with the base's weights, on a backend or torch's own."""
    lstm = copy.deepcopy(base).to(dtype)
    return lstm if name == "nn.LSTM" else LSTM.from_torch(lstm, name)


def called(lstm: nn.Module, x: Tensor, cast: bool = True) -> tuple[Tensor, Tensor]:
    """Output ``[T, B, H]`` and last cell state ``[1, B, H]``, from zeros."""
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        output, (_, c) = lstm(x)
    return output, c


def written_out(base: nn.LSTM, x: Tensor, one_bias: bool, each: bool, carried: Round, h_in: Round) -> Tensor:
    """The output in float64, with weights and input rounded.

    Args:
        base: its weights.
        x: ``[T, B, I]``.
        one_bias: whether the sum of both biases is rounded.
        each: whether every operator's result is rounded.
        carried: a function of the cell state that the next step reads.
        h_in: the same for the hidden state.
    """
    w_ih, w_hh, b_ih, b_hh = (rounded(p.detach()) for p in base.parameters())
    bias, result = rounded(b_ih + b_hh) if one_bias else b_ih + b_hh, rounded if each else kept
    h = c = torch.zeros(x.shape[1], H, dtype=torch.float64)
    outputs = []
    for x_t in rounded(x):
        gates = result(result(x_t @ w_ih.T + bias) + result(h @ w_hh.T)).chunk(4, -1)
        i, f, o = (result(gates[k].sigmoid()) for k in (0, 1, 3))
        c = result(result(f * c) + result(i * result(gates[2].tanh())))
        h = result(o * result(c.tanh()))
        outputs.append(rounded(h))
        h, c = h_in(h), carried(c)
    return torch.stack(outputs)


WAYS: dict[str, tuple[bool, bool, Round, Round]] = {
    "nothing within": (False, False, kept, kept),
    "h": (False, False, kept, rounded),
    "biases' sum, h, c": (True, False, rounded, rounded),
    "every operator": (True, True, kept, kept),
}
"""The rounding within a step, besides weights, input and output."""


def rms(value: Tensor) -> float:
    """The root of the mean square."""
    return float(value.detach().double().square().mean().sqrt())


def ways() -> None:
    """The way of rounding of each LSTM, and its errors against float64."""
    torch.manual_seed(0)
    base, x = nn.LSTM(I, H), torch.randn(T, B, I)
    reference = made(base, "nn.LSTM", torch.float64)
    right, c_right = called(reference, x.double(), False)
    gradients = torch.autograd.grad(right.square().sum(), list(reference.parameters()))
    print(f"{'numbers of the output with the same bits, %':46}" + "".join(f"{way:>19}" for way in WAYS))
    for name in NAMES:
        lstm = made(base, name)
        output, c = called(lstm, x)
        found = torch.autograd.grad(output.float().square().sum(), list(lstm.parameters()))
        off = max(float((g - r).norm() / r.norm()) for g, r in zip(found, gradients, strict=True))
        same = [float((written_out(base, x, *way) == output.double()).double().mean()) for way in WAYS.values()]
        errors = f"{rms(output - right):.1e}, c {rms(c - c_right):.1e}, gradient {100 * off:.2f} %"
        print(f"{name:12}{errors:34}" + "".join(f"{100 * share:19.0f}" for share in same))


def trained(name: str, cast: bool, dtype: torch.dtype, seed: int, rate: float) -> list[Tensor]:
    """How far Adam has moved the weights after some updates over five batches."""
    torch.manual_seed(seed)
    base, x, target = nn.LSTM(I, H), torch.randn(5, T, B, I), 0.3 * torch.randn(5, T, B, H)
    lstm, found = made(base, name, dtype), []
    optimizer = torch.optim.Adam(lstm.parameters(), rate)
    start = nn.utils.parameters_to_vector(lstm.parameters()).detach().double()
    for update in range(1, max(UPDATES) + 1):
        output = called(lstm, x[update % 5].to(dtype), cast)[0].to(dtype)
        optimizer.zero_grad()
        (output - target[update % 5].to(dtype)).square().mean().backward()
        optimizer.step()
        if update in UPDATES:
            found.append(nn.utils.parameters_to_vector(lstm.parameters()).detach().double() - start)
    return found


def trainings(rate: float) -> None:
    """The error of the weights' change against float64's, in percent of it: the median of three seeds."""
    print(f"\nAdam, {rate:g}: the weights' way, % off float64's, and off nn.LSTM's under autocast, after {UPDATES}")
    rights = [trained("nn.LSTM", False, torch.float64, seed, rate) for seed in range(3)]
    theirs = [trained("nn.LSTM", True, torch.float32, seed, rate) for seed in range(3)]
    for name, cast in (*((name, True) for name in NAMES[2:5]), ("nn.LSTM", True), ("nn.LSTM", False)):
        found = [trained(name, cast, torch.float32, seed, rate) for seed in range(3)]
        columns = []
        for others in (rights, theirs):
            for k in range(len(UPDATES)):
                off = [float((a[k] - b[k]).norm() / b[k].norm()) for a, b in zip(found, others, strict=True)]
                columns.append(f"{100 * statistics.median(off):10.2g}")
        print(f"{name if cast else name + ' in float32':22}" + "".join(columns))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    ways()
    for rate in (1e-3, 1e-2):
        trainings(rate)
