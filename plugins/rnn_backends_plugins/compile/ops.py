"""The ``compile`` backend's layer as operators."""

from collections.abc import Sequence

from torch import Tensor

from ..operators import Arguments, Needs, Run, make_operators
from .backward import run_backward
from .forward import run_forward
from .layer import Layer, plain_tensors


def _forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    with plain_tensors(given.x.device):
        return run_forward(Layer(*given), keep)


def _backward(given: Arguments, run: Run, needs: Needs) -> Sequence[Tensor | None]:
    with plain_tensors(given.x.device):
        return run_backward(Layer(*given), run, needs)


operators = make_operators("compile", _forward, _backward, lambda H, dtype: (4, H))
