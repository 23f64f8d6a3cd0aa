"""Shared parts of the loops of the ``compile`` backend. Letters as in :mod:`rnn_backends.contract`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rnn_backends.authoring import Arguments
from torch import Tensor

from .._torch import below_autograd

ROWS_PER_CHUNK = 1024


class Layer(Arguments):
    """The arguments, and values derived from them for the loops."""

    def chunks(self) -> list[tuple[int, int]]:
        """Consecutive ``(begin, end)`` over time.

        The products that need no recurrence (inputs to gates; gradients of weights and inputs) take a chunk at
        once: large enough to run at full speed, small enough to stay in the cache and to need little memory.
        """
        T, B = self.x.shape[:2]
        steps = max(1, ROWS_PER_CHUNK // max(B, 1))
        return [(t, min(t + steps, T)) for t in range(0, T, steps)]

    def next_starts(self) -> Tensor:
        """``[T, B]``: whether a sequence starts at the next step; true at the last step."""
        return torch.cat([self.starts[1:], torch.ones_like(self.starts[:1])])


def by_step(values: Tensor) -> Sequence[Tensor]:
    """``[T, ...]`` as a list of tensors, one per step; if it is expanded over time, one contiguous tensor for all."""
    if len(values) > 1 and values.stride(0) == 0:
        return (values[0].contiguous(),) * len(values)
    return values.unbind(0)


@contextmanager
def plain_tensors(device: torch.device) -> Iterator[None]:
    """A fixed state of torch's switches, independent of the caller's, because each state would be compiled for.

    Below autograd and its bookkeeping of views, a slice is a tensor like any other: compiled code
    accepts it without a guard on its base, the base's strides, or whether the base requires a gradient.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        below_autograd(),
    ):
        yield
