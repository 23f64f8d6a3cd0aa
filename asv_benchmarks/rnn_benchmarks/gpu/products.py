"""The products of ``triton`` that need no recurrence, beside torch's: which of the two ``products.py`` should take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any
from unittest import mock

import torch
from rnn_backends.authoring import Arguments
from torch import Tensor
from torch.nn.functional import linear

from ..cases import Shape
from ..tables import seconds as time_text
from ..timing import interleaved
from .by_shape import by_shape
from .settings import DTYPES, name_of, precision

FILE = "products.json"
BACKEND = "triton"
KINDS = ("inputs", "inputs' gradient", "weights' gradients")
LONGEST = 0.4
"""Seconds for one shape, once its kernels are compiled."""


def measure_products(
    device: str, folder: Path, seconds: float, shapes: Sequence[str] = (), say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure every product by our kernels and by torch's operators, into ``products.json`` after each shape.

    torch's may take TF32 where ours do, so that both compute the same. Its gradients of the weights are two products, a
    sum for the bias and a selection of the ``h`` that entered each step.

    Args:
        device: where.
        folder: of the file.
        seconds: no shape begins later.
        shapes: names or numbers; none for S1 to S5 and G1.
        say: takes a line for each product.

    Returns:
        What the file has: for each product its shape, precision and kind, and the seconds of ``ours`` and ``torch``.
    """

    def rows(shape: Shape, which: str) -> Iterator[dict[str, Any]]:
        return _measured(shape, which, DTYPES[which], device)

    return by_shape(BACKEND, rows, _line, DTYPES, device, folder / FILE, monotonic() + seconds, shapes, say)


def _measured(shape: Shape, which: str, dtype: torch.dtype, device: str) -> Iterator[dict[str, Any]]:
    calls = {
        f"{who}/{kind}": _synchronized(call, torch.device(device))
        for who, by_kind in _calls(shape, dtype, device).items()
        for kind, call in by_kind.items()
    }
    with precision(which):
        # torch's products have a switch of their own
        torch.backends.cuda.matmul.allow_tf32 = which == "TF32"
        times = interleaved(calls, LONGEST, (3, 31), slow=1.0)
    for kind in KINDS:
        row = {"shape": name_of(shape), "precision": which, "kind": kind}
        yield row | {who: median(times[f"{who}/{kind}"]) for who in ("ours", "torch")}


def _calls(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, dict[str, Callable[[], Any]]]:
    from rnn_backends_plugins.triton import products

    (B, T, I, H) = shape.B, shape.T, shape.I, shape.H  # noqa: E741

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=dtype)

    starts = torch.rand(T, B, device=device) < 0.03
    starts[0] = True
    zeros = draw(1, 1, H).expand(T, B, H)
    x, w_ih, bias, h, grad_gates = draw(T, B, I), draw(4 * H, I), draw(4 * H), draw(T, B, H), draw(T, B, 4, H)
    given = Arguments(x, w_ih, draw(4 * H, H), bias, None, zeros, zeros, starts)
    rows = grad_gates.view(T * B, 4 * H)

    def ours(function: Callable[..., Any], *arguments: Any) -> Any:
        with mock.patch.object(products, "torch_multiplies_alike", return_value=False):
            return function(*arguments)

    def of_weights() -> tuple[Tensor, ...]:
        entered = torch.where(starts.unsqueeze(-1), zeros, h.roll(1, 0))
        columns = rows.t()
        return columns.mm(x.view(T * B, I)), columns.mm(entered.view(T * B, H)), rows.sum(0)

    by_us = (
        lambda: ours(products.of_inputs, x, w_ih, bias),
        lambda: ours(products.of_grad_gates, grad_gates.view(T, B, 4 * H), w_ih),
        lambda: ours(products.of_weights, given, h, grad_gates),
    )
    by_torch = (lambda: linear(x.view(T * B, I), w_ih, bias), lambda: rows.mm(w_ih), of_weights)
    return {"ours": dict(zip(KINDS, by_us, strict=True)), "torch": dict(zip(KINDS, by_torch, strict=True))}


def _synchronized(call: Callable[[], Any], device: torch.device) -> Callable[[int], Any]:
    def run(k: int) -> Any:
        with torch.no_grad():
            found = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return run


def _line(row: dict[str, Any]) -> str:
    times = f"{time_text(row['ours'])}, torch {time_text(row['torch'])}"
    return f"{row['shape']:4} {row['precision']:9} {row['kind']:18}: {times}"
