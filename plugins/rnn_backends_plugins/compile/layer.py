"""What the loops of the ``compile`` backend share. Letters as in :mod:`rnn_backends.contract`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from rnn_backends import InputError
from torch import Tensor

ROWS_PER_CHUNK = 1024


class Layer(NamedTuple):
    """What a layer reads: the arguments of :data:`rnn_backends.LayerFunction`, flat, with one summed bias."""

    x: Tensor  # [T, B, I]
    w_ih: Tensor  # [4H, I]
    w_hh: Tensor  # [4H, P]
    bias: Tensor | None  # [4H]
    w_hr: Tensor | None  # [P, H]
    entry_h: Tensor  # [T, B, P]
    entry_c: Tensor  # [T, B, H]
    starts: Tensor  # [T, B] bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, H, P."""
        return self.x.shape[0], self.x.shape[1], self.w_hh.shape[0] // 4, self.w_hh.shape[1]

    def checked(self) -> "Layer":
        """Raise where a shape, dtype or device does not fit: the generated code reads memory without looking."""
        T, B, H, P = self.sizes
        shapes = ((T, B, self.x.shape[2]), (4 * H, self.x.shape[2]), (4 * H, P), (4 * H,), (P, H), (T, B, P), (T, B, H))
        for name, value, shape in zip(self._fields, self, (*shapes, (T, B)), strict=True):
            dtype = torch.bool if name == "starts" else self.x.dtype
            if value is None or (value.shape == shape and value.dtype == dtype and value.device == self.x.device):
                continue
            came = f"{tuple(value.shape)}, {value.dtype}, {value.device}"
            raise InputError(f"{name} must be {shape}, {dtype}, {self.x.device}; got {came}")
        return self

    def chunks(self) -> list[tuple[int, int]]:
        """Consecutive ``(begin, end)`` over time.

        The products that need no recurrence (inputs to gates; gradients of weights and inputs) take a chunk at
        once: large enough to run at full speed, small enough to stay in the cache and to need little memory.
        """
        T, B = self.x.shape[:2]
        steps = max(1, ROWS_PER_CHUNK // max(B, 1))
        return [(t, min(t + steps, T)) for t in range(0, T, steps)]

    def next_starts(self) -> Tensor:
        """``[T, B]``: whether a sequence starts at the next step; past the end, true."""
        return torch.cat([self.starts[1:], torch.ones_like(self.starts[:1])])


@contextmanager
def plain_tensors(device: torch.device) -> Iterator[None]:
    """One state of torch's switches, whatever the caller's: code is compiled anew for each state it is met in.

    Below autograd and its bookkeeping of views, a slice is a tensor like any other: compiled code takes it without
    asking for its base, its base's strides, or whether that wants a gradient.
    """
    views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(views),
    ):
        yield
