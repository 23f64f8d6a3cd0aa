"""``nn_lstm`` and ``nn_lstm_masked``: torch.nn.LSTM in its two most common uses."""

import torch
from rnn_backends import LayerWeights, LSTMBackend, State, hookimpl
from torch import Tensor, nn
from torch.func import functional_call

contract_version = 1
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0")


def call(weights: LayerWeights, x: Tensor, state: State) -> tuple[Tensor, State]:
    """torch.nn.LSTM with these weights.

    Args:
        weights: used in place of the module's parameters, so that gradients reach them.
        x: ``[T, B, I]``.
        state: ``State([B, P], [B, H])``, before the first step.

    Returns:
        ``h [T, B, P]`` at every step, and the last state ``State([B, P], [B, H])``.
    """
    proj_size = 0 if weights.w_hr is None else state.h.shape[-1]
    bias = weights.b_ih is not None
    lstm = nn.LSTM(x.shape[-1], state.c.shape[-1], bias=bias, proj_size=proj_size, device="meta")
    swapped = {name: weight for name, weight in zip(NAMES, weights, strict=True) if weight is not None}
    output, (h, c) = functional_call(lstm, swapped, (x, (state.h[None], state.c[None])))
    return output, State(h[0], c[0])


def dense(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """The whole row in one call, across all episodes: ``starts`` is not read."""
    output, last = call(weights, x, State(entry.h[0], entry.c[0]))
    return State(output, torch.cat([torch.zeros_like(entry.c[1:]), last.c[None]]))


def masked(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """One call per step, the state multiplied by one minus the reset: the loop of many training scripts."""
    state, hs, cs = State(entry.h[0], entry.c[0]), [], []
    for x_t, entry_h, entry_c, begin in zip(x, *entry, starts.unsqueeze(-1).to(x), strict=True):
        state = State((1 - begin) * state.h + begin * entry_h, (1 - begin) * state.c + begin * entry_c)
        _, state = call(weights, x_t[None], state)
        hs.append(state.h)
        cs.append(state.c)
    return State(torch.stack(hs), torch.stack(cs))


MASKED = LSTMBackend("nn_lstm_masked", masked)


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The hook."""
    return LSTMBackend("nn_lstm", dense)
