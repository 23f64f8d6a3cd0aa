"""The rule for ``torch.vmap`` of a hand-written layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def one_by_one(
    run: Callable[..., tuple[Tensor, ...]], number: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for ``torch.vmap``: a loop over the batched dimension, because one call keeps all cores busy."""
    batched = [isinstance(dim, int) for dim in in_dims]

    def of(n: int) -> list[Any]:
        return [v.select(dim, n) if b else v for v, dim, b in zip(args, in_dims, batched, strict=True)]

    if number:
        found = tuple(torch.stack(values) for values in zip(*(run(*of(n)) for n in range(number)), strict=True))
    else:  # no elements: one call with zeros gives the shapes
        shapes = [
            v.shape[:dim] + v.shape[dim + 1 :] if b else () for v, dim, b in zip(args, in_dims, batched, strict=True)
        ]
        made = run(*(v.new_zeros(s) if b else v for v, s, b in zip(args, shapes, batched, strict=True)))
        found = tuple(v.new_empty(0, *v.shape) for v in made)
    return found, (0,) * len(found)
