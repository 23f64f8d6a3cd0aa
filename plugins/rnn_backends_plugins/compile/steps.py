"""The compiled half of the ``compile`` backend: a step without its matrix products.

Formulas: the LSTM cell as written in :class:`torch.nn.LSTM` (gate order i, f, g, o) and its gradient by
backpropagation through time, with ``tanh' = 1 - tanh^2`` and ``sigmoid' = sigmoid (1 - sigmoid)``; the equations of
both are in Greff et al. 2017, "LSTM: A Search Space Odyssey", section II (ours without peepholes).
"""

import torch
from torch import Tensor


def forward_step(
    input_gates: Tensor,
    recurrent_gates: Tensor,
    c_before: Tensor,
    starts: Tensor,
    entry_c: Tensor,
    next_starts: Tensor,
    next_entry: Tensor,
    gates: Tensor,
    m: Tensor,
    c: Tensor,
    next_h: Tensor,
) -> None:
    """From gates to states, and to the ``h`` before the next step. Writes its last four arguments.

    Args:
        input_gates: ``[B, 4, H]``, the inputs' part of the pre-activations, and the bias.
        recurrent_gates: ``[B, 4, H]``, the part of the previous ``h``.
        c_before: ``[B, H]``, the cell state of the previous step.
        starts: ``[B]`` bool: true where a sequence starts here, from ``entry_c``.
        entry_c: ``[B, H]``.
        next_starts: ``[B]`` bool: true where one starts at the next step, from ``next_entry``.
        next_entry: ``[B, H]``.
        gates: out, ``[B, 4, H]``, activations.
        m: out, ``[B, H]``: ``sigmoid(o) tanh(c)``, which is ``h`` without a projection.
        c: out, ``[B, H]``.
        next_h: out, ``[B, H]``: ``m``, or ``next_entry`` where ``next_starts``.
    """
    i, f, g, o = (input_gates + recurrent_gates).unbind(1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    after = f * torch.where(starts.unsqueeze(1), entry_c, c_before) + i * g
    out = o * torch.tanh(after)
    gates.copy_(torch.stack([i, f, g, o], 1))
    m.copy_(out)
    c.copy_(after)
    next_h.copy_(torch.where(next_starts.unsqueeze(1), next_entry, out))


def backward_step(
    gates: Tensor,
    c: Tensor,
    c_before: Tensor,
    starts: Tensor,
    entry_c: Tensor,
    next_starts: Tensor,
    grad_m: Tensor,
    next_grad_h: Tensor,
    grad_c: Tensor,
    next_grad_c: Tensor,
    grad_gates: Tensor,
    grad_c_before: Tensor,
) -> None:
    """The gradient of :func:`forward_step`. Writes its last two arguments.

    No gradient crosses a start: ``next_grad_h`` and ``next_grad_c`` are not read where ``next_starts``.

    Args:
        gates: ``[B, 4, H]``, activations.
        c: ``[B, H]``.
        c_before: ``[B, H]``, as in the forward step; so are ``starts [B]``, ``entry_c`` and ``next_starts [B]``.
        starts: bool.
        entry_c: ``[B, H]``.
        next_starts: bool.
        grad_m: ``[B, H]``, from the output at this step.
        next_grad_h: ``[B, H]``, of the ``m`` before the next step.
        grad_c: ``[B, H]``, from the returned cell state at this step.
        next_grad_c: ``[B, H]``, of the ``c`` before the next step.
        grad_gates: out, ``[B, 4, H]``, of the pre-activations.
        grad_c_before: out, ``[B, H]``, of the ``c`` before this step.
    """
    i, f, g, o = gates.unbind(1)
    cut = next_starts.unsqueeze(1)
    before = torch.where(starts.unsqueeze(1), entry_c, c_before)
    squashed = torch.tanh(c)
    dm = grad_m + torch.where(cut, 0, next_grad_h)
    dc = grad_c + torch.where(cut, 0, next_grad_c) + dm * o * (1 - squashed * squashed)
    di, df = dc * g * i * (1 - i), dc * before * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dm * squashed * o * (1 - o)
    grad_gates.copy_(torch.stack([di, df, dg, do], 1))
    grad_c_before.copy_(dc * f)
