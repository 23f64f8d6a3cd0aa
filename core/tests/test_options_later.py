"""Options assigned after construction: those that determine the weights are refused with a message, the others take
effect."""

import copy
import pickle

import numpy as np
import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, LSTMModule, LSTMNet, LSTMSpec, UnsupportedError
from rnn_backends.contract import Trait
from rnn_backends.unroll import unroll
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
FIXED = {
    "mode": "GRU",
    "input_size": 4,
    "hidden_size": 5,
    "num_layers": 1,
    "bias": False,
    "bidirectional": True,
    "proj_size": 2,
}
MODULES = {
    "LSTM": lambda: LSTM(3, 4, 2),
    "from_torch": lambda: LSTM.from_torch(nn.LSTM(3, 4, 2)),
    "with_backend": lambda: LSTM(3, 4, 2).with_backend("vmap"),
    "copy": lambda: copy.copy(LSTM(3, 4, 2)),
    "deepcopy": lambda: copy.deepcopy(LSTM(3, 4, 2)),
    "pickle": lambda: pickle.loads(pickle.dumps(LSTM(3, 4, 2))),
    "parametrized": lambda: parametrizations.weight_norm(LSTM(3, 4, 2), "weight_hh_l0"),
    "compiled": lambda: torch.compile(LSTM(3, 4, 2, lstm_backend="vmap"), backend="eager"),
    "LSTMModule": lambda: LSTMModule(3, 4, 2, in_key="x", out_key="y").lstm,
    "LSTMNet": lambda: LSTMNet(2, {"input_size": 3, "hidden_size": 4, "num_layers": 2}, {"out_features": 3}).lstm,
}


def test_every_option_of_the_constructor_is_fixed_or_followed():
    assert {*LSTMSpec.__dataclass_fields__, "mode"} == {*FIXED, "dropout"}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_an_option_that_made_the_weights_cannot_change(make, name):
    lstm = make()
    before, output = getattr(lstm, name), lstm(X)[0]
    with pytest.raises(
        InputError, match=f"{name} cannot change after construction .from {before!r} to {FIXED[name]!r}"
    ):
        setattr(lstm, name, FIXED[name])
    with pytest.raises(InputError, match=f"{name} is an option of .* cannot be deleted"):
        delattr(lstm, name)
    assert getattr(lstm, name) == before
    assert torch.equal(lstm(X)[0], output)
    setattr(lstm, name, before)  # tools that copy attributes assign the current value


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_dropout_counts_from_the_next_call_on(make):
    lstm = make().train()
    lstm.dropout = 1.0  # the upper layer reads zeros, whatever the input
    assert lstm.spec.dropout == 1.0
    assert torch.equal(lstm(X)[0], lstm(X * 2 + 1)[0])
    assert torch.equal(lstm.step(X[0], None)[0], lstm.step(X[0] * 2 + 1, None)[0])
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))) if type(lstm) is LSTM else ():
        assert (other.dropout, other.spec) == (1.0, lstm.spec)
    lstm.dropout = 0.0
    assert not torch.equal(lstm(X)[0], lstm(X * 2 + 1)[0])


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), "0.5", None, True], ids=str)
def test_a_dropout_that_is_no_probability_is_refused_when_it_is_set(wrong):
    lstm = LSTM(3, 4, 2, dropout=0.25)
    with pytest.raises(InputError, match="dropout must be a probability between 0 and 1, got"):
        lstm.dropout = wrong
    assert lstm.dropout == lstm.spec.dropout == 0.25


def test_a_backend_is_asked_about_the_new_dropout():
    asked = []

    def rejects(spec, device, dtype):
        asked.append(spec.dropout)
        return "it has no random numbers" if spec.dropout else None

    lstm = LSTM(3, 4, 2, lstm_backend=LSTMBackend("mine", unroll, rejects))
    with pytest.raises(UnsupportedError, match="it has no random numbers"):
        lstm.dropout = 0.5
    assert lstm.dropout == lstm.spec.dropout == 0.0
    assert 0.5 in asked
    on_meta = LSTM(3, 4, 2, device="meta", lstm_backend=LSTMBackend("mine", unroll, rejects))
    on_meta.dropout = 0.5  # without weights the backend is asked at the first call, as at construction
    with pytest.raises(UnsupportedError, match="it has no random numbers"):
        on_meta.to_empty(device="cpu")(X)


def test_batch_first_counts_from_the_next_call_on(eager_backend):
    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    expected = lstm(X)[0]
    lstm.batch_first = True
    assert_close(lstm(X.transpose(0, 1))[0], expected.transpose(0, 1))
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=eager_backend).set_recurrent_mode(True)
    td = TensorDict({"x": X, "is_init": torch.zeros(5, 2, 1, dtype=torch.bool)}, [5, 2])
    expected = module(td.clone())["y"]
    module.lstm.batch_first = False  # a TensorDict has its batch first in any case
    assert_close(module(td.clone())["y"], expected)
    for wrong in ("no", None, 2):
        with pytest.raises(InputError, match="batch_first must be True or False, got"):
            lstm.batch_first = wrong
    assert lstm.batch_first is True


def test_hidden_output_of_a_module_cannot_change():
    module = LSTMModule(3, 4, in_key="x", out_key="y")
    with pytest.raises(InputError, match="hidden_output cannot change after construction"):
        module.hidden_output = "all"
    assert copy.deepcopy(module).set_recurrent_mode(True).hidden_output == "ends"


def test_states_of_every_step_are_refused_where_the_backend_has_none():
    """Also for an LSTM that is put into the module later: the constructor checks only its own."""
    backend = LSTMBackend("ends alone", unroll)
    assert Trait.CELL_STATES not in backend.traits
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap", hidden_output="all").set_recurrent_mode(
        True
    )
    module.lstm = LSTM(3, 4, lstm_backend=backend)
    td = TensorDict({"x": X, "is_init": torch.zeros(5, 2, 1, dtype=torch.bool)}, [5, 2])
    with pytest.raises(UnsupportedError, match="the states after every step"):
        module(td)
    assert set(td.keys()) == {"x", "is_init"}


def test_an_assignment_in_a_compiled_call_and_before_it_is_followed():
    lstm = LSTM(3, 4, 2, lstm_backend="vmap")
    run = torch.compile(lstm, backend="eager", fullgraph=True)
    assert_close(run(X), lstm(X))
    lstm.dropout = 1.0
    assert torch.equal(run(X)[0], run(X * 2 + 1)[0])


@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional"])
def test_a_switch_is_a_bool_whatever_it_was_given_as(name):
    for kind in (LSTM, LSTMModule):
        keys = {"in_key": "x", "out_key": "y"} if kind is LSTMModule else {}
        for value in (True, 1, np.True_):
            lstm = kind(3, 4, **{name: value}, **keys)
            assert getattr(getattr(lstm, "lstm", lstm), name) is True
        for wrong in ("no", 2, -1, 1.0, None, torch.tensor(True), [True]):
            if kind is LSTM or name != "batch_first":
                with pytest.raises(InputError, match=f"{name} must be True or False, got"):
                    kind(3, 4, **{name: wrong}, **keys)
    assert LSTM(3, 4, **{name: np.False_}).state_dict().keys() == LSTM(3, 4, **{name: False}).state_dict().keys()
