"""``rowwise``: torch's LSTM over each sequence separately, from its own stored state.

It is slow with many sequences, and easy to trust: no sequence can affect another, because no call has two of them.
"""

from itertools import pairwise

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, hookimpl
from torch import Tensor

contract_version = 1


def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Cut every row where a sequence starts, and run the pieces one by one.

    Args:
        weights: the layer's weights.
        x: ``[T, B, I]``.
        entry: ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
        starts: ``[T, B]`` bool, true everywhere at ``t = 0``.

    Returns:
        ``State(h [T, B, P], c [T, B, H])``; ``c`` is right where a sequence ends, and zero elsewhere.
    """
    T, B = x.shape[:2]
    rows = []
    for b in range(B):
        row = slice(b, b + 1)
        cuts = [*starts[:, b].nonzero().flatten().tolist(), T]
        pieces = [
            sequence(weights, x[begin:end, row], State(entry.h[begin, row], entry.c[begin, row]))
            for begin, end in pairwise(cuts)
        ]
        rows.append(join(pieces, 0))
    return join(rows, 1) if rows else sequence(weights, x, State(entry.h[0], entry.c[0]))


def sequence(weights: LayerWeights, x: Tensor, state: State) -> State:
    """Run one sequence, or several at once that start and end together.

    Args:
        weights: the layer's weights.
        x: ``[N, B, I]``.
        state: ``State([B, P], [B, H])``, the state before the first step.

    Returns:
        ``State(h [N, B, P], c [N, B, H])``; all but the last ``c`` are zero.
    """
    flat = [w for w in weights if w is not None]
    # Arguments after the weights: has biases, layers, dropout, train, bidirectional, batch first.
    h, _, c = torch.lstm(x, (state.h[None], state.c[None]), flat, weights.b_ih is not None, 1, 0.0, False, False, False)
    return State(h, torch.cat([c.new_zeros(len(x) - 1, *c.shape[1:]), c]))


def join(parts: list[State], dim: int) -> State:
    """Concatenate states in time (0) or in the batch (1)."""
    return State(torch.cat([part.h for part in parts], dim), torch.cat([part.c for part in parts], dim))


def rejects(spec: object, device: torch.device, dtype: torch.dtype) -> str | None:
    """Reject what has not been tested: a reason instead of wrong results."""
    return None if device.type == "cpu" else f"it has been tried on cpu only, not on {device.type}"


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The hook; rnn-backends calls it once, when this backend is first requested."""
    return LSTMBackend("rowwise", layer, rejects)
