"""The memory of a training call of ``triton``, without a GPU: its tensors have sizes and no memory (``meta``)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from rnn_backends.authoring import Arguments, Needs, Run
from torch.utils._python_dispatch import TorchDispatchMode

from ..cases import Shape
from .settings import DTYPES, name_of, precision


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that torch's operators make within it, while they are there.

    Attributes:
        now: bytes at present.
        most: bytes at the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {value.untyped_storage()._cdata for value in args if isinstance(value, torch.Tensor)}
        self._known |= given  # a view is no new memory
        found = operator(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else [found]:
            storage = value.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


def least_of_dense(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes that ``torch.nn.LSTM`` takes at least on a GPU, from before its forward to after its backward pass.

    The output, what cuDNN keeps (four gates and the cell state of each step: with less it would have to compute them
    again), and the gradients of the input and of the weights with two biases. torch keeps bfloat16 weights in no chunk,
    so it copies them in every call. cuDNN's workspace comes on top.
    """
    B, T, I, H = shape  # noqa: E741
    of_weights = 4 * H * (I + H + 2) * (2 if dtype == torch.bfloat16 else 1)
    return dtype.itemsize * (6 * T * B * H + T * B * I + of_weights)


def _nothing(*given: Any) -> None:
    """In place of a launch."""


def of_triton(shape: Shape, which: str, launched: Callable[..., None] = _nothing) -> int:
    """Bytes of the layer's training call at the peak, above those of its arguments and of the output's gradient.

    Args:
        shape: of the call.
        which: the precision.
        launched: called in place of each launch, with its launcher and what that gets.
    """
    from rnn_backends_plugins.triton import device, launch, products, run
    from rnn_backends_plugins.triton.plan import CARDS

    (B, T, I, H), dtype = shape, DTYPES[which]  # noqa: E741

    def make(*sizes: int) -> torch.Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    zeros = make(1, 1, H).expand(T, B, H)
    starts = torch.empty(T, B, dtype=torch.bool, device="meta")
    given = Arguments(make(T, B, I), make(4 * H, I), make(4 * H, H), make(4 * H), None, zeros, zeros, starts)
    grad_h, needs = make(T, B, H), Needs(True, True, True, True, False, False, False)

    with ExitStack() as within, precision(which), Peak() as counted:
        for module in (device, run, products):
            within.enter_context(mock.patch.object(module, "card_of", return_value=CARDS["H100"]))
        within.enter_context(mock.patch.object(run, "compile_together", return_value=None))
        within.enter_context(
            mock.patch.object(launch.Launcher, "__call__", launched)
        )  # a mock would keep its arguments
        h, c, gates = run.forward(given, True)
        run.backward(given, Run(h, c, gates, grad_h, None, True), needs)
    most: int = counted.most
    return most


def show(shapes: Sequence[Shape], precisions: Sequence[str], say: Callable[[str], None]) -> None:
    """The lines of a table of :func:`of_triton` beside :func:`least_of_dense`, in MiB, and the ratio.

    Args:
        shapes: of the calls.
        precisions: names of :data:`~.settings.PRECISIONS`.
        say: takes the lines.
    """
    say("| " + " | ".join(["MiB, ratio", *precisions]) + " |")
    say("| --- |" + " ---: |" * len(precisions))
    for shape in shapes:
        cells = []
        for which in precisions:
            ours, least = of_triton(shape, which), least_of_dense(shape, DTYPES[which])
            cells.append(f"{ours / 2**20:.1f} / {least / 2**20:.1f} = {ours / least:.2f}")
        say("| " + " | ".join([name_of(shape), *cells]) + " |")
