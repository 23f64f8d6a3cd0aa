"""Precisions and shapes of the figures on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..cases import SHAPES, Shape

GPU_SHAPES = {**SHAPES, "G1": Shape(4096, 32, 64, 256)}
ACTING_SHAPES = (Shape(1, 1, 64, 64), Shape(32, 1, 64, 256), Shape(4096, 1, 64, 256))
PRECISIONS = {"TF32": "", "float32": "", "bfloat16": "bfloat16"}
"""By name: the option of the contestants. TF32 is float32 as torch has it by default: TF32 in cuDNN's recurrent
networks, whose switch ``triton``'s kernels follow, and not in torch's own products. float32 has it nowhere."""
DTYPES = {"TF32": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


def shape_called(text: str) -> Shape:
    """A shape by its name or numbers.

    Raises:
        ValueError: it is neither.
    """
    if text in GPU_SHAPES:
        return GPU_SHAPES[text]
    try:
        return Shape.parse(text)
    except ValueError:
        raise ValueError(f"a shape is four numbers B,T,I,H or one of {', '.join(GPU_SHAPES)}; got {text!r}") from None


def name_of(shape: Shape | str) -> str:
    """``S1`` and its like for the known shapes, else its numbers."""
    return next((name for name, known in GPU_SHAPES.items() if str(known) == str(shape)), str(shape))


def chosen(texts: Iterable[str], usual: Iterable[Shape]) -> list[Shape]:
    """The shapes of these texts; the usual ones where there are none."""
    return [shape_called(text) for text in texts] or list(usual)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """TF32 allowed in recurrent networks alone, or nowhere; torch's products are in full float32, torch's default."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = name == "TF32"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
