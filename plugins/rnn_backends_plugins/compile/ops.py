"""The ``compile`` backend's layer."""

from collections.abc import Sequence

from rnn_backends.authoring import Arguments, Needs, Run, make_layer
from torch import Tensor

from .backward import run_backward
from .forward import run_forward
from .layer import Layer, plain_tensors


def _forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    with plain_tensors(given.x.device):
        return run_forward(Layer(*given), keep)


def _backward(given: Arguments, run: Run, needs: Needs) -> Sequence[Tensor | None]:
    with plain_tensors(given.x.device):
        return run_backward(Layer(*given), run, needs)


layer = make_layer("compile", _forward, _backward, lambda H, dtype: (4, H), ("cpu", "cuda"))
