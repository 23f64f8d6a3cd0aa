"""``vmap``: plain Python over time, for ``torch.func``: ensembles, per-sample gradients, double backward, jvp.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, Trait, hookimpl
from rnn_backends.authoring import cell, check_call, check_steps, make_unrolled_steps, unroll
from torch import Tensor
from torch.nn.functional import linear

from . import _torch

contract_version = 1

Pair = tuple[Tensor, Tensor]

TRAITS = frozenset(
    {
        Trait.VMAP,
        Trait.FULLGRAPH,
        Trait.SCRIPT,
        Trait.EXPORT,
        Trait.DOUBLE_BACKWARD,
        Trait.FORWARD_AD,
        Trait.CELL_STATES,
    }
)


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The plain unroll: a :data:`rnn_backends.LayerFunction`."""
    if not torch.jit.is_scripting():
        check_call("vmap", weights, x, entry, starts)
        check_steps("vmap", x)
        scan = _torch.scan_of_exports(x)
        if scan is not None:
            return _scanned(scan, weights, x, entry, starts)
    return unroll(weights, x, entry, starts)


def _scanned(scan: _torch.Scan, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The unroll as a loop in the exported program, for any number of steps."""
    w_ih, w_hh, bias, b_hh, w_hr = weights
    if bias is not None and b_hh is not None:
        bias = bias + b_hh
    B = x.shape[1]

    def one(before: Pair, now: tuple[Tensor, ...]) -> tuple[Pair, Pair]:
        from_input, begin, entry_h, entry_c = now
        # `view`, because torch's compiler finds the batch size among the inputs of the loop's body
        h, c = torch.where(begin, entry_h, before[0]).view(B, -1), torch.where(begin, entry_c, before[1])
        h, c = cell(from_input + linear(h, w_hh), c, w_hr)
        return (h, c), (h.clone(), c.clone())

    first = torch.zeros_like(entry.h[0]), torch.zeros_like(entry.c[0])  # not read: every row starts at t = 0
    _, (h, c) = scan(one, first, (linear(x, w_ih, bias), starts.unsqueeze(-1), entry.h, entry.c))
    return State(h, c)


step, act = make_unrolled_steps("vmap")


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The plain unroll."""
    return LSTMBackend("vmap", layer, traits=TRAITS, step=step, act=act)
