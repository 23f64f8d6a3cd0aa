"""Dropout: between layers only, in training only, the same mask on every backend for the same seed."""

import pytest
import torch
from rnn_backends import LSTM, LSTMModule
from torch import nn
from torch.testing import assert_close


def two_layers(backend, p, **options):
    return LSTM(3, 4, 2, dropout=p, dtype=torch.float64, lstm_backend=backend, **options)


def seeded(lstm, *args, **kwargs):
    torch.manual_seed(7)
    return lstm(*args, **kwargs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_the_same_seed_draws_the_same_mask_on_every_backend(backend, bidirectional, resets):
    lstm = two_layers(backend, 0.4, bidirectional=bidirectional)
    other = lstm.with_backend("vmap")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    is_init = (torch.rand(5, 2) < 0.4) if resets else None
    result = seeded(lstm, x, is_init=is_init)
    assert_close(result, seeded(other, x, is_init=is_init))
    assert not torch.equal(result[0], lstm(x, is_init=is_init)[0]), "the next mask must differ"


def test_none_in_evaluation(eager_backend):
    lstm = two_layers(eager_backend, 0.9).eval()
    theirs = nn.LSTM(3, 4, 2, dropout=0.9, dtype=torch.float64).eval()
    theirs.load_state_dict(lstm.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    assert_close(lstm(x), theirs(x))


def test_it_falls_on_the_input_of_upper_layers_alone(eager_backend):
    """With probability 1 the upper layer reads zeros, and the lower one is as without dropout."""
    lstm = two_layers(eager_backend, 1.0)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y, (h, _) = lstm(x)
    upper = nn.LSTM(4, 4, dtype=torch.float64)
    upper.load_state_dict({k.replace("l1", "l0"): v for k, v in lstm.state_dict().items() if "l1" in k})
    assert_close(y, upper(torch.zeros(5, 2, 4, dtype=torch.float64))[0])
    assert_close(h[0], lstm.eval()(x)[1][0][0])


def transparent_upper_layer(lstm):
    """Weights with which the upper layer's output is nearly a small multiple of its input, step by step."""
    H = lstm.hidden_size
    with torch.no_grad():
        lstm.weight_ih_l1.zero_()[2 * H : 3 * H] = 1e-3 * torch.eye(H)
        lstm.weight_hh_l1.zero_()
        lstm.bias_hh_l1.zero_()
        lstm.bias_ih_l1.copy_(torch.tensor([40.0, -40.0, 0.0, 40.0]).repeat_interleave(H))
    return lstm


def test_rate_and_scale(eager_backend):
    """A share p of the entries is dropped, independently by step and row, and the others are scaled by 1 / (1 - p)."""
    p, T, B = 0.3, 60, 60
    lstm = transparent_upper_layer(two_layers(eager_backend, p))
    x = torch.randn(T, B, 3, dtype=torch.float64)
    dropped = lstm(x)[0]
    kept = dropped.abs() > 1e-12
    n = kept.numel()
    assert abs(kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / n) ** 0.5
    assert_close(dropped[kept], lstm.eval()(x)[0][kept] / (1 - p), rtol=1e-4, atol=0)
    assert kept[:, 0].any(0).all(), "an entry that is dropped at every step: the mask must not be shared over time"


@pytest.mark.parametrize("recurrent", [False, True])
def test_in_a_module_it_is_on_in_training_in_both_modes(rows, recurrent):
    module = LSTMModule(3, 4, 2, dropout=0.5, in_key="x", out_key="y", default_recurrent_mode=recurrent)
    td = rows((3, 5), K=2)
    assert not torch.equal(module(td.clone())["y"], module(td.clone())["y"])
    module.eval()
    assert torch.equal(module(td.clone())["y"], module(td.clone())["y"])


def test_with_one_layer_there_is_nothing_to_drop_and_torch_says_so():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        lstm = LSTM(3, 4, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert torch.equal(lstm(x)[0], lstm(x)[0])
