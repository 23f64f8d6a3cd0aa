"""The hand-written kernels that :func:`rnn_backends.authoring.make_layer` registered, by their backend's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Arguments, Needs, Run
from .errors import UnsupportedError
from .plain import OTHERS
from .registry import get_backend

Forward = Callable[[Arguments, bool], tuple[Tensor, Tensor, Tensor]]
"""``forward(arguments, keep) -> h [T, B, P], c [T, B, H], gates``; ``gates`` is ``[0]`` unless ``keep``."""
Backward = Callable[[Arguments, Run, Needs], Sequence[Tensor | None]]
"""``backward(arguments, run, needs)``: the gradients in the order of :class:`Needs`, ``None`` where there is none."""


class Kernel(NamedTuple):
    """A backend's hand-written layer.

    Attributes:
        forward: the forward pass. Its tensors have memory and their sizes fit.
        backward: the backward pass, likewise.
        gates_of: ``gates_of(H, dtype)``: the gates' shape after ``[T, B]``.
        devices: the device types that it runs on.
        checks_memory: whether it raises by itself if a storage is too small.
    """

    forward: Forward
    backward: Backward
    gates_of: Callable[[int, torch.dtype], Sequence[int]]
    devices: tuple[str, ...]
    checks_memory: bool = False

    def run(self, read: Sequence[Any], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Check the arguments and run the forward pass."""
        return self.forward(Arguments(*read).checked(memory=not self.checks_memory), keep)

    def run_backward(self, name: str, read: Sequence[Any], last: bool = False) -> list[Tensor | None]:
        """Check the arguments and run the backward pass.

        Args:
            name: the backend's.
            read: the arguments of ``layer_backward``.
            last: as in :class:`~.arguments.Run`.
        """
        grad_h, grad_c, x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, h, c, gates, needs = read
        memory = not self.checks_memory
        given = Arguments(x, w_ih, w_hh, None, w_hr, entry_h, entry_c, starts).checked(memory)
        if not gates.numel() and x.shape[0] * x.shape[1] and w_hh.shape[0]:
            raise UnsupportedError(
                name,
                "a backward pass here",
                "the forward pass saved nothing for it, because it was traced or exported without gradients: trace it "
                "with gradients enabled and parameters that require them",
                OTHERS,
            )
        run = Run(h.contiguous(), c.contiguous(), gates.contiguous(), grad_h, grad_c, last)
        kept = self.gates_of(w_hh.shape[0] // 4, x.dtype)
        found = self.backward(given, run.checked(given, kept, memory), Needs(*needs))
        return [v if v is None or v.dtype == x.dtype else v.to(x.dtype) for v in found]


KERNELS: dict[str, Kernel] = {}
"""The kernels of the loaded backends, by the backend's name."""


def kernel_named(name: str, device: torch.device) -> Kernel:
    """A backend's kernel. The backend is loaded here if it is not yet, as in a process that runs an exported graph."""
    if name not in KERNELS:
        get_backend(name)
    if name not in KERNELS:
        raise UnsupportedError(name, "calls of its operator", "it registered no kernel of this name", OTHERS)
    kernel = KERNELS[name]
    if device.type not in (*kernel.devices, "meta"):
        reason = f"its kernel is made for {', '.join(kernel.devices)}, not for {device.type}"
        raise UnsupportedError(name, f"tensors on {device.type}", reason, OTHERS)
    return kernel
