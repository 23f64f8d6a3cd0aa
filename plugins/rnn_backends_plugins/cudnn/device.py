"""One layer with resets on a GPU: one read of the inputs, a plan made on the device, torch's kernel, and no other wait.
flush.py describes the synthetic steps, widened.py how the weights drive them here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from rnn_backends import LayerWeights, State
from rnn_backends.authoring import unreadable
from torch import Tensor

from .. import _torch
from . import kernel, target
from .costs import costs_on_cuda
from .device_plan import DevicePlan, make_device_plan
from .flush import LOGIT
from .functions import eager_or_functional, gather_rows, pack_steps, put_rows, scatter_rows
from .inputs import CallInputs, LayerInputs, inspect_inputs, is_one_state
from .widened import widened, width_of

UNPROBED = 1 + math.exp(-LOGIT)
"""A cell state over the ``atanh`` of what a PROBE shows of it."""

_call: ContextVar[tuple[CallInputs, Iterator[int]] | None] = ContextVar("_call", default=None)


def survey(
    weights: Sequence[LayerWeights],
    x: Tensor,
    entry: Sequence[State],
    starts: Tensor,
    bidirectional: bool,
    dropout: float,
) -> AbstractContextManager[None]:
    """A :data:`~rnn_backends.contract.SurveyFunction`: reads for all layers at once, so that no layer waits again."""
    if len(weights) == 1 or not target.on_cuda(x):  # a single layer reads for itself
        return nullcontext()
    values = [x, starts, *(v for state in entry for v in state), *(v for layer in weights for v in layer)]
    if unreadable(values) is not None or not _has_cuts(x, starts):  # the layers refuse such values
        return nullcontext()
    return _surveyed(inspect_inputs(weights, x, entry, starts, bidirectional, dropout))


@contextmanager
def _surveyed(call: CallInputs) -> Iterator[None]:
    token = _call.set((call, iter(range(len(call.weights)))))
    try:
        yield
    finally:
        _call.reset(token)


def _has_cuts(x: Tensor, starts: Tensor) -> bool:
    """Whether there can be gradients, and this function makes them."""
    return target.on_cuda(x) and len(starts) > 1 and starts.numel() > 0


def _known(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> tuple[CallInputs, int]:
    """The call's facts and the layer's place in it: from the survey if this is its next layer, else read now."""
    surveyed = _call.get()
    if surveyed is not None:
        call, turn = surveyed
        k = next(turn, None)
        if k is not None and call.weights[k].w_ih is weights.w_ih and call.has(starts):
            return call, k
    return inspect_inputs([weights], x, [entry], starts), 0


def layer_on_device(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor, every_end: bool) -> State:
    """A :data:`~rnn_backends.contract.LayerFunction`; without ``every_end``, ``c`` is right at ``T - 1`` only."""
    T, B = starts.shape
    if _has_cuts(x, starts):
        call, k = _known(weights, x, entry, starts)
        if call.most > 1:
            known = call.layers[k]
            plan = _plan(call, starts, _must_head(weights, entry, every_end, known), known.is_zero, every_end, weights)
            return _run(plan, weights, x, entry, known, every_end)
    y, end = kernel.run([v for v in weights if v is not None], x, _firsts(entry), weights.b_ih is not None)
    return State(y, end.c.expand(T, B, -1))


def _must_head(weights: LayerWeights, entry: State, every_end: bool, known: LayerInputs) -> bool:
    """Whether all sequences must be the first of their row: see ``_must_head`` of the CPU's planner."""
    if every_end and (weights.w_hr is not None or weights.w_ih.dtype.itemsize < 4):
        return True
    differentiated = torch.is_grad_enabled() and (entry.h.requires_grad or entry.c.requires_grad)
    return differentiated or known.is_stored or not known.is_bounded


def _plan(
    call: CallInputs, starts: Tensor, must_head: bool, from_zeros: bool, every_end: bool, weights: LayerWeights
) -> DevicePlan:
    """One plan for each direction and each layout of a call: the layers share their starts."""
    key = (starts is call.starts, must_head, from_zeros, every_end)
    found = call.plans.get(key)
    if not isinstance(found, DevicePlan):
        costs = costs_on_cuda(weights.w_ih.shape[0] // 4)
        found = call.plans[key] = make_device_plan(call, starts, must_head, from_zeros, every_end, costs)
    return found


def _run(
    plan: DevicePlan, weights: LayerWeights, x: Tensor, entry: State, known: LayerInputs, every_end: bool
) -> State:
    T, B, I = x.shape  # noqa: E741
    params = widened(weights, plan.kinds, known.reach)
    cells = sum(block.steps * block.rows for block in plan.blocks)
    wide = pack_steps(x, plan.cell, cells, width_of(I, plan.kinds), plan.features)
    heads = _heads(entry, plan.heads, known.is_zero, B)
    if len(plan.blocks) == 1:
        y, c = kernel.run_flat(params, wide.view(plan.blocks[0].steps, plan.blocks[0].rows, -1), heads)
    else:
        y, c = _run_blocks(plan, params, wide, heads)
    h = gather_rows(y, plan.cell, T, B)
    if not every_end:
        return State(h, (c if plan.last is None else c.index_select(1, plan.last)).expand(T, B, -1))
    if plan.tails is not None:
        return State(h, scatter_rows(c.squeeze(0), plan.tails, T * B).view(T, B, -1))
    assert plan.shows is not None
    return State(h, torch.cat([_shown(y, plan.shows, T - 1, B), c]))


def _run_blocks(plan: DevicePlan, params: list[Tensor], wide: Tensor, heads: State) -> tuple[Tensor, Tensor]:
    """``wide [cells, .]`` -> ``y [cells, P]``, the final ``c [1, rows, H]``."""
    ys, cs, rows = [], [], [block.rows for block in plan.blocks]
    # not slices: each slice's gradient would be padded to all cells, and all of these added
    pieces = wide.split([block.steps * block.rows for block in plan.blocks])
    for block, piece, h, c in zip(plan.blocks, pieces, heads.h.split(rows, 1), heads.c.split(rows, 1), strict=True):
        y, c = kernel.run_flat(params, piece.view(block.steps, block.rows, -1), State(h, c))
        ys.append(y.flatten(0, 1))
        cs.append(c)
    return torch.cat(ys), torch.cat(cs, 1)


class _ShownStates(torch.autograd.Function):
    """``(y [..., H], shows [N], *shape)`` -> ``[*shape, H]``: cell states where a sequence ends; elsewhere any number.

    The backward pass computes what a PROBE gave from the state again, so nothing else is kept for it.
    """

    @staticmethod
    def forward(y: Tensor, shows: Tensor, *shape: int) -> Tensor:
        seen = y.reshape(-1, y.shape[-1]).index_select(0, shows)
        return seen.atanh_().mul_(UNPROBED).view(*shape, y.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, shows, *shape = inputs
        ctx.shape, ctx.nones = y.shape, (None,) * len(shape)
        ctx.save_for_backward(shows, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shows, states = ctx.saved_tensors
        slope = (1 - (states / UNPROBED).tanh().square()).clamp(min=0.1)  # less only where no sequence ends
        return put_rows(grad * UNPROBED / slope, shows, ctx.shape), None, *ctx.nones


_shown = eager_or_functional(_ShownStates)


def _heads(entry: State, heads: Tensor | None, from_zeros: bool, B: int) -> State:
    """``State([1, rows, P], [1, rows, H])``."""
    rows = B if heads is None else len(heads)
    if from_zeros and not _torch.in_transform() and not any(v.requires_grad for v in entry):  # nothing flows to them
        c = entry.c.new_zeros(1, rows, entry.c.shape[2])
        return State(c if entry.h.shape == entry.c.shape else entry.h.new_zeros(1, rows, entry.h.shape[2]), c)
    if heads is None:
        return _firsts(entry)
    if is_one_state(entry):
        return State(*(v[:1, :1].expand(-1, rows, -1) for v in entry))
    return State(*(v.reshape(-1, v.shape[-1]).index_select(0, heads).unsqueeze(0) for v in entry))


def _firsts(entry: State) -> State:
    """The states before the first step, ``State([1, B, P], [1, B, H])``; one tensor if the entry is."""
    h = entry.h[:1]
    return State(h, h if entry.c is entry.h else entry.c[:1])
