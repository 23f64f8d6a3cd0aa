"""The plain unroll: an LSTM layer as a step and a loop, in operations that every torch transform knows.

It runs unchanged in eager mode, under TorchScript, ``torch.vmap``, forward AD, double backward and fullgraph
``torch.compile``. No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

from typing import List, Optional

import torch
from torch import Tensor
from torch.nn.functional import linear

from .contract import LayerWeights, State


def sum_of_biases(b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """``b_ih + b_hh``, whose gradients have memory of their own: those of a sum are one tensor, twice.

    Who edits the results of ``torch.autograd.grad`` in place, to clip them or in ``all_reduce``, would edit it twice.
    """
    return b_ih - (-b_hh) if b_hh.requires_grad else b_ih + b_hh  # the same bits; TorchScript leaves out `b_hh * 1`


def cell(gates: Tensor, c: Tensor, w_hr: Optional[Tensor]) -> State:
    """The LSTM cell after its matrix products (Hochreiter & Schmidhuber 1997, with forget gate and projection).

    With i, f, g, o the four blocks of ``gates``: ``c' = sigmoid(f) c + sigmoid(i) tanh(g)`` and
    ``h' = W_hr (sigmoid(o) tanh(c'))``; as written in :class:`torch.nn.LSTM`.

    Args:
        gates: ``[B, 4H]``, pre-activations.
        c: ``[B, H]``, the previous cell state.
        w_hr: ``[P, H]`` or ``None``.

    Returns:
        ``State(h [B, P], c [B, H])``.
    """
    # Not `chunk`: TorchScript's own derivative of it fails where a gate has no gradient (a loss of c alone).
    i, f, g, o = gates.split(gates.shape[-1] // 4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if w_hr is not None:
        h = linear(h, w_hr)
    return State(h, c)


def accumulation_views(weight: Tensor, number: int) -> List[Tensor]:
    """``weight`` as the given number of views, so that the sum of their gradients has the dtype's precision.

    Autograd adds gradients one by one in their dtype. In bfloat16, with eight bits, a sum stops growing after 256
    similar terms: at ``T = 1024`` half of a weight's gradient was missing. Gradients of views of views are added in
    pairs, so the error grows with the logarithm of their number (Higham 1993, "The accuracy of floating point
    summation").
    """
    found = [weight]
    while len(found) < number:
        twice: List[Tensor] = []
        for view in found:
            twice.append(view.view_as(view))
            twice.append(view.view_as(view))
        found = twice
    return found


def unroll(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Run one layer over time, step by step: a :data:`~rnn_backends.contract.LayerFunction`.

    Args:
        weights: the layer's weights.
        x: ``[T, B, I]``.
        entry: ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
        starts: ``[T, B]`` bool, true everywhere at ``t = 0``.

    Returns:
        ``State(h [T, B, P], c [T, B, H])``, both right at every step.
    """
    bias, b_hh = weights.b_ih, weights.b_hh
    if bias is not None and b_hh is not None:
        bias = sum_of_biases(bias, b_hh)
    from_input = linear(x, weights.w_ih, bias).unbind(0)  # one large product for all steps
    begin = starts.unsqueeze(-1).unbind(0)
    entry_h, entry_c = entry.h.unbind(0), entry.c.unbind(0)
    h, c = entry_h[0], entry_c[0]
    sums = len(from_input) if torch.is_grad_enabled() and x.element_size() == 2 else 1
    w_hh, w_hr = accumulation_views(weights.w_hh, sums), weights.w_hr
    w_hrs = accumulation_views(w_hr, sums) if w_hr is not None else []
    hs: List[Tensor] = []
    cs: List[Tensor] = []
    for t in range(len(from_input)):
        if t > 0:  # every row starts at t = 0; `where`, because NaN times zero is NaN
            h = torch.where(begin[t], entry_h[t], h)
            c = torch.where(begin[t], entry_c[t], c)
        if len(w_hrs) > 0:
            w_hr = w_hrs[t % len(w_hrs)]
        h, c = cell(from_input[t] + linear(h, w_hh[t % len(w_hh)]), c, w_hr)
        hs.append(h)
        cs.append(c)
    return State(torch.stack(hs), torch.stack(cs))


def unroll_step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step of :func:`unroll`, without the loop: a :data:`~rnn_backends.contract.StepFunction`.

    Args:
        weights: the layer's weights.
        x: ``[B, I]``.
        state: ``State([B, P], [B, H])``.

    Returns:
        The next state, shaped like ``state``.
    """
    bias, b_hh = weights.b_ih, weights.b_hh
    if bias is not None and b_hh is not None:
        bias = sum_of_biases(bias, b_hh)
    return cell(linear(x, weights.w_ih, bias) + linear(state.h, weights.w_hh), state.c, weights.w_hr)
