"""``LSTMNet``: an MLP, an LSTM and a linear layer over tensors of one, two and three dimensions."""

import copy

import pytest
import torch
from rnn_backends import LSTM, LSTMNet
from torch import nn
from torch.testing import assert_close

OPTIONS = [{}, {"num_layers": 2}, {"proj_size": 2}, {"bidirectional": True}, {"bias": False, "num_layers": 2}]


def make(backend=None, **options):
    return LSTMNet(
        10,
        {"input_size": 5, "hidden_size": 6, **options},
        {"in_features": 4, "out_features": 5},
        lstm_backend=backend,
    )


def hidden(net, *lead):
    spec = net.lstm.spec
    return torch.randn(*lead, spec.num_states, spec.output_size), torch.randn(*lead, spec.num_states, spec.hidden_size)


def by_hand(net, x, h, c):
    """The same on torch's LSTM: ``x [B, T, F]``, ``h`` and ``c`` ``[B, K, N]``, before the first step."""
    spec = net.lstm.spec
    lstm = nn.LSTM(5, 6, spec.num_layers, spec.bias, True, 0.0, spec.bidirectional, spec.proj_size)
    lstm.load_state_dict(net.lstm.state_dict())
    y, (h, c) = lstm(net.mlp(x), (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
    return net.linear(y), h.transpose(0, 1), c.transpose(0, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_steps(eager_backend, options):
    net, x = make(eager_backend, **options), torch.randn(3, 7, 4)
    h, c = hidden(net, 3, 7)
    y, h_in, c_in, h_out, c_out = net(x, h, c)
    expected = by_hand(net, x, h[:, 0], c[:, 0])
    assert h_in is h
    assert c_in is c
    assert_close((y, h_out[:, -1], c_out[:, -1]), expected)
    assert not h_out[:, :-1].any(), "hidden states are padded with zeros"
    assert not c_out[:, :-1].any()
    assert (h_out.shape, c_out.shape) == (h.shape, c.shape)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lead", [(3,), (1,), ()], ids=str)
def test_two_dimensions_are_a_batch_of_one_step_and_one_dimension_is_one_row(eager_backend, options, lead):
    net, x = make(eager_backend, **options), torch.randn(*lead, 4)
    h, c = hidden(net, *lead)
    y, h_in, c_in, h_out, c_out = net(x, h, c)
    expected = by_hand(net, x.reshape(-1, 1, 4), h.reshape(-1, *h.shape[-2:]), c.reshape(-1, *c.shape[-2:]))
    assert_close(y, expected[0].reshape(*lead, 10))
    assert_close((h_out, c_out), tuple(v.reshape(*lead, *v.shape[-2:]) for v in expected[1:]))
    assert h_in is h
    assert c_in is c


@pytest.mark.parametrize("lead", [(), (3,), (3, 7), (3, 1), (1, 7), (0,), (0, 7)], ids=str)
def test_absent_states_are_zeros_of_the_size_to_be_stored(lead):
    net = make(num_layers=2, proj_size=2)
    x = torch.randn(*lead, 4)
    y, h_in, c_in, h_out, c_out = net(x)
    assert y.shape == (*lead, 10)
    assert h_in.shape == h_out.shape == (*lead, 2, 2)
    assert c_in.shape == c_out.shape == (*lead, 2, 6)
    assert not h_in.any()
    assert not c_in.any()
    assert_close(net(x, h_in, c_in)[0], y)


def test_steps_one_by_one_are_many_steps(eager_backend):
    net, x = make(eager_backend, num_layers=2), torch.randn(3, 5, 4)
    y, _, _, h_out, _ = net(x)
    h = c = None
    for t in range(5):
        step, _, _, h, c = net(x[:, t], h, c)
        assert_close(step, y[:, t])
    assert_close(h, h_out[:, -1])


def test_the_arguments_are_not_changed():
    lstm, mlp = {"input_size": 5, "hidden_size": 6}, {"out_features": 5, "num_cells": [3]}
    before = copy.deepcopy((lstm, mlp))
    LSTMNet(10, lstm, mlp, lstm_backend="vmap")
    assert (lstm, mlp) == before


def test_device_dtype_and_backend_may_be_in_lstm_kwargs():
    net = LSTMNet(2, {"input_size": 5, "hidden_size": 6, "lstm_backend": "vmap"}, {"out_features": 5}, device="meta")
    assert net.lstm.lstm_backend == "vmap"
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert isinstance(net.lstm, LSTM)


def test_mlp_options_build_what_they_say():
    options = {
        "in_features": 4,
        "out_features": 5,
        "num_cells": [8, 9],
        "activation_class": nn.ReLU,
        "norm_class": nn.LayerNorm,
        "norm_kwargs": {"normalized_shape": (1,)},
        "dropout": 0.1,
        "bias_last_layer": False,
        "activate_last_layer": True,
    }
    mlp = LSTMNet(10, {"input_size": 5, "hidden_size": 6}, options).mlp
    assert [type(m) for m in mlp] == [nn.Linear, nn.Dropout, nn.LayerNorm, nn.ReLU] * 3
    assert [(m.in_features, m.out_features, m.bias is not None) for m in mlp[::4]] == [
        (4, 8, True),
        (8, 9, True),
        (9, 5, False),
    ]


def test_everything_trains(eager_backend):
    net = make(eager_backend)
    h, c = (v.requires_grad_() for v in hidden(net, 3, 7))
    y, _, _, h_out, c_out = net(torch.randn(3, 7, 4), h, c)
    (y.sum() + h_out.sum() + c_out.sum()).backward()
    assert all(p.grad.any() for p in net.parameters())
    assert h.grad[:, 0].all()
    assert not h.grad[:, 1:].any(), "of many steps only the first stored state is read"
