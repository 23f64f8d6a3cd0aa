"""One set of parameters: wrapping, changing the backend, copying, pickling, moving, training."""

import copy
import io
import pickle

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, LSTMModule
from rnn_backends.unroll import unroll
from torch import nn
from torch.testing import assert_close

X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)


def same(one, other):
    """Whether two modules give the same output."""
    return torch.allclose(one(X)[0], other(X)[0], rtol=1e-5, atol=1e-6)


def test_wrapping_torchs_lstm_shares_its_parameters(backend):
    theirs = nn.LSTM(3, 4, 2, bidirectional=True)
    ours = LSTM.from_torch(theirs, backend)
    assert ours.lstm_backend == backend
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert_close(ours(X), theirs(X))
    with torch.no_grad():
        theirs.weight_hh_l0.mul_(3)
    assert same(ours, theirs)


def test_wrapping_ours_gives_it_back_or_another_backend():
    lstm = LSTM(3, 4, lstm_backend="torchscript")
    assert LSTM.from_torch(lstm) is lstm
    other = LSTM.from_torch(lstm, "vmap")
    assert (lstm.lstm_backend, other.lstm_backend) == ("torchscript", "vmap")


@pytest.mark.parametrize("wrong", [nn.GRU(3, 4), nn.Linear(3, 4), nn.LSTMCell(3, 4)], ids=lambda m: type(m).__name__)
def test_wrapping_something_else_is_refused(wrong):
    with pytest.raises(InputError, match=f"got {type(wrong).__name__}"):
        LSTM.from_torch(wrong)


def test_wrapping_a_parametrized_lstm_is_refused():
    lstm = nn.LSTM(3, 4)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    with pytest.raises(InputError, match="wrap it first"):
        LSTM.from_torch(lstm)


def test_a_parametrized_lstm_of_ours_uses_the_parametrization(eager_backend):
    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    before = lstm(X)[0]
    nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Tanh())
    assert not torch.equal(lstm(X)[0], before)


def change_by_load(lstm):
    lstm.load_state_dict({k: v + 1 for k, v in lstm.state_dict().items()})


def change_by_assignment(lstm):
    lstm.load_state_dict({k: v + 1 for k, v in lstm.state_dict().items()}, assign=True)


def change_by_optimizer(lstm):
    optimizer = torch.optim.SGD(lstm.parameters(), lr=1.0)
    lstm(X)[0].sum().backward()
    optimizer.step()


def change_by_hand(lstm):
    lstm.weight_ih_l0 = nn.Parameter(lstm.weight_ih_l0 + 1)


CHANGES = [change_by_load, change_by_assignment, change_by_optimizer, change_by_hand]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("other", [False, True], ids=["the first", "the second"])
def test_with_backend_shares_parameters_for_good(eager_backend, change, other):
    first = LSTM(3, 4, lstm_backend="vmap")
    second = first.with_backend(eager_backend)
    before = first(X)[0]
    change(second if other else first)
    assert not torch.equal(first(X)[0], before)
    assert same(first, second)


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrapped_lstm_follows_the_users(change):
    theirs = nn.LSTM(3, 4)
    ours = LSTM.from_torch(theirs)
    change(theirs)
    assert same(ours, theirs)


def test_with_backend_follows_a_move(eager_backend):
    first = LSTM(3, 4, lstm_backend="vmap")
    second = first.with_backend(eager_backend)
    first.double()
    assert second(X.double())[0].dtype == torch.float64
    assert_close(second(X.double()), first(X.double()))


def test_with_backend_keeps_mode_and_options():
    lstm = LSTM(3, 4, 2, batch_first=True, dropout=0.5).eval()
    other = lstm.with_backend("torchscript")
    assert not other.training
    assert other.batch_first
    assert other.spec == lstm.spec


def test_a_copy_is_independent_and_keeps_its_backend(backend):
    lstm = LSTM(3, 4, lstm_backend=backend)
    other = copy.deepcopy(lstm)
    assert other.lstm_backend == backend
    assert same(lstm, other)
    change_by_load(other)
    assert not same(lstm, other)


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [through_pickle, through_torch_save])
def test_pickling_keeps_the_backend_by_name(backend, through):
    lstm = LSTM(3, 4, lstm_backend=backend)
    lstm(X)
    other = through(lstm)
    assert other.lstm_backend == backend
    assert same(lstm, other)
    module = through(
        LSTMModule(lstm=LSTM.from_torch(nn.LSTM(3, 4, batch_first=True), backend), in_key="x", out_key="y")
    )
    assert module.lstm_backend == backend


def test_pickling_with_a_backend_value_that_is_not_registered():
    lstm = LSTM(3, 4, lstm_backend=LSTMBackend("mine", unroll))
    assert through_pickle(lstm).lstm_backend == "mine"


def test_state_dict_both_ways_with_torch():
    ours, theirs = LSTM(3, 4, 2, proj_size=2), nn.LSTM(3, 4, 2, proj_size=2)
    theirs.load_state_dict(ours.state_dict())
    assert same(ours, theirs)
    change_by_load(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert same(ours, theirs)


def test_meta_device_and_materialising(eager_backend):
    lstm = LSTM(3, 4, device="meta", lstm_backend=eager_backend).to_empty(device="cpu")
    lstm.reset_parameters()
    assert lstm(X)[0].isfinite().all()
