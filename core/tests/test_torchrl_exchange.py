"""Code and weights written for TorchRL: state dicts both ways, wrapping, positional arguments."""

import copy
import inspect

import pytest
import torch
import torchrl.modules
from rnn_backends import LSTM, LSTMModule, LSTMNet
from torch.testing import assert_close
from torchrl.testing.modules import LSTMNet as TheirNet

KEYS = {"in_key": "x", "out_key": "y"}


@pytest.mark.parametrize("python_based", [False, True])
def test_module_state_dicts_both_ways(rows, python_based):
    theirs = torchrl.modules.LSTMModule(3, 4, 2, python_based=python_based, **KEYS)
    ours = LSTMModule(3, 4, 2, python_based=python_based, **KEYS)
    td = rows((5,), K=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(td.clone())["y"], theirs(td.clone())["y"])
    other = LSTMModule(3, 4, 2, **KEYS)
    theirs.load_state_dict(other.state_dict())
    assert_close(other(td.clone())["y"], theirs(td.clone())["y"])


@pytest.mark.parametrize("name", ["torch", "torchrl"])
def test_net_state_dicts_both_ways(name):
    arguments = 10, {"input_size": 5, "hidden_size": 6}, {"out_features": 5, "num_cells": [8]}
    ours = LSTMNet(*copy.deepcopy(arguments), lstm_backend=name)
    theirs = TheirNet(*copy.deepcopy(arguments), lstm_backend=name)
    x = torch.randn(3, 7, 4)
    theirs(x), ours(x)  # lazy layers
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for give, take in ((theirs, ours), (ours, theirs)):
        for value in give.parameters():
            torch.nn.init.normal_(value)
        take.load_state_dict(give.state_dict())
        for given in (x, x[:, 0], x[0, 0]):
            assert_close(ours(given), theirs(given))


def test_net_arguments_are_theirs():
    assert list(inspect.signature(LSTMNet).parameters) == list(inspect.signature(TheirNet).parameters)


def test_module_arguments_are_theirs():
    ours, theirs = (inspect.signature(m.__init__).parameters for m in (LSTMModule, torchrl.modules.LSTMModule))
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    for name in theirs:
        expected = None if name.startswith("recurrent_") else theirs[name].default  # not given: `auto` chooses
        assert ours[name].default == expected, name


@pytest.mark.parametrize("python", [False, True])
def test_wrapping_their_lstm(rows, python):
    lstm = (torchrl.modules.LSTM if python else torch.nn.LSTM)(3, 4, num_layers=2, batch_first=True)
    ours = LSTMModule(lstm=lstm, **KEYS, default_recurrent_mode=True)
    theirs = torchrl.modules.LSTMModule(lstm=lstm, **KEYS, default_recurrent_mode=True)
    td = rows((3, 6), K=2)
    assert_close(ours(td.clone()), theirs(td.clone()))
    assert ours.lstm.weight_ih_l0 is lstm.weight_ih_l0


@pytest.mark.parametrize("recurrent", [False, True])
def test_our_lstm_in_their_module(eager_backend, rows, recurrent):
    """Without resets within a row, because TorchRL's pad requires a mask argument of any other LSTM than torch's."""
    lstm = LSTM(3, 4, 2, batch_first=True, lstm_backend=eager_backend)
    theirs = torchrl.modules.LSTMModule(lstm=lstm, **KEYS, default_recurrent_mode=recurrent)
    ours = LSTMModule(lstm=lstm, **KEYS, default_recurrent_mode=recurrent)
    td = rows((3, 6), K=2, resets=0 if recurrent else 0.5)
    assert_close(theirs(td.clone()), ours(td.clone()))


def test_a_users_subclass_keeps_working(rows):
    class Mine(LSTMModule):
        def __init__(self, size):
            super().__init__(3, size, 1, True, True, 0.0, 0, False, True, in_keys=["x", "h", "c"], out_key="y")
            self.head = torch.nn.Linear(size, 1)

        def forward(self, tensordict):
            tensordict = super().forward(tensordict)
            return tensordict.set("value", self.head(tensordict["y"]))

    mine, td = Mine(4), rows((2, 5), stored=False)
    assert mine(td.clone())["value"].shape == (2, 5, 1)
    training = mine.set_recurrent_mode(True)
    assert isinstance(training, Mine)
    assert training.head is mine.head
    assert training(td)["value"].shape == (2, 5, 1)
