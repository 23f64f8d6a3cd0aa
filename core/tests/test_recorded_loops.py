"""A backend with a loop that ignores tracers: its graph is right for other sizes than the example's, or raises."""

import warnings

import pytest
import torch
from rnn_backends import LSTM, LSTMBackend, State
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close


def step(w, x, state):
    i, f, g, o = (x @ w.w_ih.T + state.h @ w.w_hh.T + w.b_ih + w.b_hh).chunk(4, -1)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    return State(o.sigmoid() * c.tanh(), c)


def layer(w, x, entry, starts):
    """A loop by index: a tracer records the example's indices, and ``x[3]`` exists in every longer input."""
    state, found = State(entry.h[0], entry.c[0]), []
    for t in range(len(x)):
        at = starts[t].unsqueeze(-1)
        state = step(w, x[t], State(torch.where(at, entry.h[t], state.h), torch.where(at, entry.c[t], state.c)))
        found.append(state)
    return State(torch.stack([s.h for s in found]), torch.stack([s.c for s in found]))


def row_by_row(w, x, entry, starts):
    rows = [
        layer(w, x[:, b : b + 1], State(entry.h[:, b : b + 1], entry.c[:, b : b + 1]), starts[:, b : b + 1])
        for b in range(x.shape[1])
    ]
    return State(torch.cat([s.h for s in rows], 1), torch.cat([s.c for s in rows], 1))


def stack(weights, x, state, spec):
    last = []
    for k, w in enumerate(weights):
        entry = State(*(v[k].expand(len(x), -1, -1) for v in state))
        first = torch.cat([torch.ones_like(x[:1, :, 0]), torch.zeros_like(x[1:, :, 0])]).bool()
        h, c = layer(w, x, entry, first)
        last.append(State(h[-1], c[-1]))
        x = h
    return x, State(torch.stack([s.h for s in last]), torch.stack([s.c for s in last]))


BACKENDS = {
    "a layer": LSTMBackend("mine", layer),
    "row by row": LSTMBackend("mine", row_by_row),
    "the last states": LSTMBackend("mine", row_by_row, layer_last=layer),
    "all layers": LSTMBackend("mine", layer, stack=stack),
}


class Part(nn.Module):
    """One of the results: a tracer drops the operations of the others."""

    def __init__(self, backend, layers, resets, part):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(3, 4, layers, lstm_backend=backend).requires_grad_(False)
        self.resets, self.part = resets, part

    def forward(self, x, is_init):
        output, state = self.lstm(x, is_init=is_init if self.resets else None)
        return (output, *state)[self.part]


def scripted(module, *example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.TracerWarning: each check of a shape
        return torch.jit.trace(module, example, check_trace=False)


def recorded(module, *example):
    return make_fx(module)(*example)


def recorded_with_symbols(module, *example):
    return make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)


CALLS = [(1, 1, True, 0), (1, 1, False, 2), (2, 1, False, 1), (2, 2, True, 1), (2, 2, False, 0)]
"""Layers, steps of the example, whether with resets, the index of the result."""


@pytest.mark.parametrize("trace", [scripted, recorded, recorded_with_symbols])
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_graph_of_one_length_is_right_over_another_or_an_error(trace, backend):
    for layers, steps, resets, part in CALLS:
        module = Part(backend, layers, resets, part)
        traced = trace(module, torch.randn(steps, 2, 3), torch.zeros(steps, 2, dtype=torch.bool))
        for T, B in ((steps, 2), (3, 2), (steps, 1), (steps, 4)):
            x, is_init = torch.randn(T, B, 3), torch.rand(T, B) < 0.4
            try:
                found = traced(x, is_init)
            except (RuntimeError, AssertionError, IndexError):
                assert (steps, 2) != (T, B)
                continue
            assert_close(found, module(x, is_init), msg=lambda words: f"{T=} {B=} {resets=} {part=}: {words}")  # noqa: B023


def test_a_tracer_changes_no_gradient():
    module = Part(BACKENDS["a layer"], 2, True, 0).requires_grad_()
    x, is_init = torch.randn(4, 2, 3), torch.rand(4, 2) < 0.4
    traced = scripted(module, x, is_init)
    read = [x.requires_grad_(), *module.parameters()]
    assert_close(*(torch.autograd.grad(run(x, is_init).square().sum(), read) for run in (traced, module)))
