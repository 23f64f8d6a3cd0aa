"""``LSTMBackend.act_stack``: one step of all layers in one call, and when core goes layer by layer instead."""

from __future__ import annotations

import pytest
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, State, Trait, register, unregister
from rnn_backends.authoring import make_act_stack, torch_step, unroll
from tensordict import TensorDict

B, I, H, L = 3, 4, 5, 2  # noqa: E741


def stack(infos, weights, x, state, is_init):
    """A step of all layers in torch's operators."""
    if is_init is not None:
        state = State(*(value.masked_fill(is_init[:, None, None], 0) for value in state))
    found = []
    for w, h, c in zip(weights, state.h.unbind(1), state.c.unbind(1), strict=True):
        found.append(torch_step(w, x, State(h, c)))
        x = found[-1].h
    return x.clone(), State(torch.stack([s.h for s in found], 1), torch.stack([s.c for s in found], 1))


@pytest.fixture
def calls():
    """The calls of the backend ``stacked``'s ``act_stack``."""
    found = []

    def counted(*given):
        found.append(given)
        return stack(*given)

    act_stack = make_act_stack(counted, ("cpu",))
    register(LSTMBackend("stacked", unroll, traits=frozenset({Trait.VMAP}), step=torch_step, act_stack=act_stack))
    yield found
    unregister("stacked")


def step(lstm, is_init=None, **kinds):
    g = torch.Generator().manual_seed(1)
    x, h, c = torch.randn(B, I, generator=g), *torch.randn(2, L * (1 + lstm.bidirectional), B, H, generator=g)
    x, h, c = (value.to(**kinds) for value in (x, h, c))
    return lstm.step(x, State(h, c), is_init=is_init)


@pytest.mark.parametrize("is_init", [None, torch.tensor([True, False, True])])
def test_it_takes_all_layers_with_their_resets_in_one_call(calls, is_init):
    lstm = LSTM(I, H, L, lstm_backend="stacked")
    with torch.no_grad():
        output, state = step(lstm, is_init)
        expected = step(lstm.with_backend("vmap"), is_init)
    assert len(calls) == 1
    torch.testing.assert_close((output, *state), (expected[0], *expected[1]))


def test_a_module_acts_with_it(calls):
    module = LSTMModule(I, H, num_layers=L, in_key="x", out_key="y", lstm_backend="stacked")
    td = TensorDict({"x": torch.randn(B, I), "is_init": torch.tensor([[True], [False], [False]])}, [B])
    td["recurrent_state_h"], td["recurrent_state_c"] = torch.randn(2, B, L, H)
    with torch.no_grad():
        found, expected = module(td.clone()), module.with_backend("vmap")(td.clone())
    assert len(calls) == 1
    torch.testing.assert_close(found["y"], expected["y"])


OTHERWISE = {
    "a gradient": ({}, {}, True),
    "two directions": ({"bidirectional": True}, {}, False),
    "active dropout": ({"dropout": 0.5}, {}, False),
}


@pytest.mark.parametrize("why", OTHERWISE)
def test_core_goes_layer_by_layer_with(calls, why):
    options, kinds, gradient = OTHERWISE[why]
    lstm = LSTM(I, H, L, lstm_backend="stacked", **options).train()
    with torch.set_grad_enabled(gradient):
        output, _ = step(lstm, **kinds)
    assert not calls
    assert output.shape == (B, H * (1 + lstm.bidirectional))


def test_dropout_in_evaluation_is_none(calls):
    with torch.no_grad():
        step(LSTM(I, H, L, dropout=0.5, lstm_backend="stacked").eval())
    assert len(calls) == 1


def test_under_vmap_core_goes_layer_by_layer(calls):
    lstm = LSTM(I, H, L, lstm_backend="stacked")
    x, h, c = torch.randn(6, B, I), torch.randn(6, L, B, H), torch.randn(6, L, B, H)
    with torch.no_grad():
        found = torch.vmap(lambda x, h, c: lstm.step(x, State(h, c))[0])(x, h, c)
        assert not calls
        expected = torch.stack([lstm.step(x[k], State(h[k], c[k]))[0] for k in range(6)])
    torch.testing.assert_close(found, expected)


def test_none_means_layer_by_layer():
    register(LSTMBackend("stacked", unroll, step=torch_step, act_stack=make_act_stack(lambda *given: None, ("cpu",))))
    try:
        lstm = LSTM(I, H, L, lstm_backend="stacked")
        with torch.no_grad():
            torch.testing.assert_close(step(lstm)[0], step(lstm.with_backend("vmap"))[0])
    finally:
        unregister("stacked")


def test_freed_weights_are_not_handed_over(calls):
    lstm = LSTM(I, H, L, lstm_backend="stacked")
    lstm.weight_hh_l1.data.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(ValueError, match="weight_hh_l1"):
        step(lstm)
    assert not calls
