"""The torch transforms that a call's tensors are part of, found with public functions only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._torch import forward_ad_may_be_open, vmap_may_be_open
from .contract import Trait


def traits_needed(tensors: Iterable[Tensor | None]) -> set[Trait]:
    """The traits that these tensors need: ``VMAP`` if one is batched, ``FORWARD_AD`` if one has a tangent.

    It works at any depth of nested transforms. A level around the call that none of the tensors is part of needs no
    trait. It takes 15 us: call :func:`._torch.transforms_may_be_open` first.
    """
    found: set[Trait] = set()
    try:
        _Probe.apply(found, *(v for v in tensors if v is not None))
    except (RuntimeError, AssertionError):  # functionalize and torch.export have no rule for any autograd.Function
        open_levels = {Trait.VMAP: vmap_may_be_open(), Trait.FORWARD_AD: forward_ad_may_be_open()}
        return {trait for trait, may_be_open in open_levels.items() if may_be_open}
    return found


class _Probe(torch.autograd.Function):
    """Records the rules by which torch takes it through its transforms. It computes nothing."""

    @staticmethod
    def forward(found: set[Trait], *tensors: Tensor) -> Tensor:
        return tensors[0].new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.found, ctx.read = inputs[0], len(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        return (None,) * ctx.read  # type: ignore[no-any-return]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        ctx.found.add(Trait.FORWARD_AD)
        return next(v for v in tangents if v is not None).new_empty(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], found: set[Trait], *tensors: Tensor) -> tuple[Tensor, None]:
        found.add(Trait.VMAP)
        return _Probe.apply(found, *tensors), None  # on to the levels below
