"""The weights as cuDNN needs them: in one buffer, biases included, in cuDNN's own order. torch checks whether its
parameters already have this layout in the memory of the first one (``try_get_weight_buf`` in
aten/src/ATen/native/cudnn/RNN.cpp). If not, it warns and copies them in every call, with hundreds of calls of cuDNN's
library for each layer. If so, it passes the memory to cuDNN unchanged. Two gaps in that check silently give wrong
numbers:

- Without biases torch still describes a network with two of them; their values are read from the memory behind the last
  matrix. That memory holds zeros if ``flatten_parameters`` made the buffer for this network. In the buffer of a network
  with more layers or directions it holds the next layer's ``w_ih``: a call of the first layer alone finds its matrices
  at the right places, and reads the next layer's weights as biases. (cuDNN's order is all layers' matrices, then all
  biases; so with biases the check fails, and torch copies.) The same happens to ``torch.nn.LSTM(bias=False)`` whose
  parameters are views of one vector, as ``torch.nn.utils.vector_to_parameters`` makes them.
- Only the last parameter is checked for contiguity.

So cuDNN gets our own buffer, made in each call with one or two copies, and always with biases. Parameters with biases
that are contiguous and already have the layout (by ``flatten_parameters``) are passed unchanged. Only the offsets are
cached between calls: ``_version`` does not count writes through ``.data``, so a cache of weights could not be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from rnn_backends.authoring import are_exact
from torch import Tensor

from .. import _torch
from .functions import eager_or_functional


class Layout(NamedTuple):
    """The place of each weight in a buffer.

    Attributes:
        size: of the buffer, in elements.
        offsets: of the weights, biases included, in torch's order.
        order: the buffer from its begin to its end: which weight, -1 for memory that none uses.
        sizes: for each of them the number of elements.
        shapes: of the weights with their place in ``order``.
    """

    size: int
    offsets: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, size: int, offsets: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Layout:
        """The layout of weights with these offsets and shapes."""
        pieces, end = [], 0
        for offset, place in sorted((offset, place) for place, offset in enumerate(offsets)):
            pieces += [(-1, offset - end), (place, prod(shapes[place]))]
            end = offset + pieces[-1][1]
        pieces = [piece for piece in [*pieces, (-1, size - end)] if piece[1]]
        order = tuple(place for place, _ in pieces)
        places = tuple((order.index(place), shape) for place, shape in enumerate(shapes))
        return cls(size, tuple(offsets), order, tuple(length for _, length in pieces), places)


def flat_weights(params: list[Tensor], bias: bool, H: int, P: int, layers: int, bidirectional: bool) -> list[Tensor]:
    """The parameters of all layers in a form that cuDNN takes without a copy or warning, biases always included.

    Args:
        params: of all layers and directions, in torch's order.
        bias: whether there are biases among them; if not, zeros are added.
        H: hidden size.
        P: size of the projected output; 0 without a projection.
        layers: the number of layers.
        bidirectional: whether there is a reverse direction.

    Returns:
        Tensors with the same values and shapes in one buffer; gradients go to ``params``.
    """
    first = params[0]
    found = layout(first.shape[1], H, P, layers, bidirectional, first.dtype, first.device)
    if found is None:  # torch copies and warns; with biases and contiguous matrices its check is right
        return _with_biases([value.contiguous() for value in params], bias, H, P)
    if bias and is_flat(params, found):
        return params
    return list(_flatten(found, bias, H, P, layers, bidirectional, *params))


def is_flat(params: Sequence[Tensor], layout: Layout) -> bool:
    """Whether the parameters are in one block of memory with this layout; no tensor subclass shows its memory."""
    if not are_exact(params):
        return False
    params = [_torch.unwrapped(value) for value in params]
    start, step = params[0].untyped_storage().data_ptr(), params[0].element_size()
    return params[0].untyped_storage().nbytes() >= layout.size * step and all(
        value.data_ptr() == start + offset * step and value.is_contiguous()
        for value, offset in zip(params, layout.offsets, strict=True)
    )


@lru_cache(maxsize=256)
def layout(
    I: int,  # noqa: E741
    H: int,
    P: int,
    layers: int,
    bidirectional: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Layout | None:
    """The places of the weights by cuDNN; ``None`` if it does not report them. One layout for each device."""
    with _torch.outside_transforms(), torch.inference_mode(False), torch.no_grad():
        weights = [torch.empty(shape, dtype=dtype, device=device) for shape in _shapes(I, H, P, layers, bidirectional)]
        buffer = _torch.flatten_for_cudnn(weights, 5 if P else 4, I, H, P, layers, bidirectional)
        if buffer is None:
            return None
        offsets = [int(value.storage_offset()) for value in weights]
        return Layout.of(buffer.numel(), offsets, [tuple(value.shape) for value in weights])


def _shapes(I: int, H: int, P: int, layers: int, bidirectional: bool) -> list[tuple[int, ...]]:  # noqa: E741
    """The shapes of all weights, biases included, in torch's order."""
    directions = 2 if bidirectional else 1
    shapes: list[tuple[int, ...]] = []
    for k in range(layers * directions):
        width = I if k < directions else (P or H) * directions
        shapes += [(4 * H, width), (4 * H, P or H), (4 * H,), (4 * H,), *([(P, H)] if P else [])]
    return shapes


def _with_biases(params: list[Tensor], bias: bool, H: int, P: int) -> list[Tensor]:
    """The parameters, with zeros for absent biases."""
    if bias:
        return params
    zeros = params[0].new_zeros(4 * H)
    size = 3 if P else 2
    layers = [params[k : k + size] for k in range(0, len(params), size)]
    return [value for layer in layers for value in (*layer[:2], zeros, zeros, *layer[2:])]


def places_of(number: int, bias: bool, P: int) -> list[int]:
    """The indices of the ``number`` parameters among the weights with biases."""
    if bias:
        return list(range(number))
    size, kept = (5, (0, 1, 4)) if P else (4, (0, 1))
    return [layer * size + place for layer in range(number // len(kept)) for place in kept]


def joined(layout: Layout | None, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same numbers in one new buffer, by one concatenation; or each in memory of its own without a layout.

    Args:
        layout: the places.
        weights: of all layers, biases included, in torch's order; ``None`` for zeros.
    """
    if layout is None:
        return tuple(value.clone(memory_format=torch.contiguous_format) for value in weights)
    like = weights[0]
    rows = [value.reshape(-1) if value.ndim > 1 else value for value in weights]
    pieces = [
        rows[place] if place >= 0 else like.new_zeros(size)
        for place, size in zip(layout.order, layout.sizes, strict=True)
    ]
    cut = torch.cat(pieces).split_with_sizes(layout.sizes)
    return tuple([cut[k].view(shape) if len(shape) > 1 else cut[k] for k, shape in layout.shapes])


class _Flatten(torch.autograd.Function):
    """``(layout, bias, H, P, layers, bidirectional, *params)`` -> the weights, biases included, in a new buffer."""

    @staticmethod
    def forward(
        layout: Layout, bias: bool, H: int, P: int, layers: int, bidirectional: bool, *params: Tensor
    ) -> tuple[Tensor, ...]:
        return joined(layout, _with_biases(list(params), bias, H, P))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, bias, _, P, _, _, *params = inputs
        ctx.places = places_of(len(params), bias, P)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, None, None, None, *(grads[place] for place in ctx.places)


_flatten = eager_or_functional(_Flatten)
