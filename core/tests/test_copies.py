"""Copies and twins run themselves: nothing that they take over from the original runs the original."""

import copy
import pickle

import pytest
import torch
from rnn_backends import LSTM, LSTMModule
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)


def rows():
    return TensorDict({"x": X, "is_init": torch.zeros(5, 2, 1, dtype=torch.bool)}, [5, 2])


def compiled(module):
    module.compile(backend="eager")


def patched(module):
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


def patched_with_a_bound_method(module):
    module.forward = module.forward


BEFORE = [compiled, patched, patched_with_a_bound_method]
COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "another mode": lambda m: m.set_recurrent_mode(True)}
COPIES["another backend"] = lambda m: m.with_backend("cudnn")
TWINS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "another backend": lambda m: m.with_backend("cudnn"),
    "from_torch": lambda m: LSTM.from_torch(m, "cudnn"),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES.keys())
def test_a_copy_of_a_module_runs_itself_in_its_own_mode(before, change):
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap")
    expected = change(module)(rows())
    before(module)
    other = change(module)
    assert not {"forward", "_compiled_call_impl"} & set(vars(other))
    assert_close(other(rows())["y"], expected["y"])
    assert_close(other.set_recurrent_mode(True)(rows())["y"], module.lstm(X)[0])  # batch first


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS.keys())
@pytest.mark.parametrize("kind", [nn.LSTM, LSTM])
def test_a_twin_has_its_own_call(before, twin, kind):
    lstm = kind(3, 4)
    before(lstm)
    if not hasattr(lstm, "with_backend"):
        twin = lambda m: LSTM.from_torch(m, "cudnn")  # noqa: E731
    other = twin(lstm)
    assert not {"forward", "_compiled_call_impl"} & set(vars(other))
    assert other(X, is_init=torch.zeros(5, 2, dtype=torch.bool))[0].shape == (5, 2, 4)


@pytest.mark.parametrize("kind", [LSTM, LSTMModule])
def test_a_compiled_module_pickles(kind):
    keys = {"in_key": "x", "out_key": "y"} if kind is LSTMModule else {}
    module = kind(3, 4, **keys)
    compiled(module)
    other = pickle.loads(pickle.dumps(module))
    assert "_compiled_call_impl" not in vars(other)


def by_with_backend():
    lstm = LSTM(3, 4)
    return lstm, lstm.with_backend("vmap")


def by_from_torch():
    lstm = nn.LSTM(3, 4)
    return LSTM.from_torch(lstm, "vmap"), lstm


def by_module():
    module = LSTMModule(3, 4, in_key="x", out_key="y")
    return module, module.with_backend("vmap")


def by_copy():
    lstm = LSTM(3, 4)
    return lstm, copy.copy(lstm)


def moved(module):
    return module.to(torch.float64)


def loaded(module):
    module.load_state_dict({name: v.double() + 1 for name, v in module.state_dict().items()}, assign=True)


def moved_twice(module):
    return module.double().float().double()


@pytest.mark.parametrize("pair", [by_with_backend, by_from_torch, by_module, by_copy])
@pytest.mark.parametrize("change", [moved, loaded, moved_twice])
@pytest.mark.parametrize("swap", ["swap", "overwrite", "plain"])
@pytest.mark.parametrize("second", [False, True])
def test_twins_follow_each_other_however_torch_changes_parameters(pair, change, swap, second):
    if (pair, change, swap) == (by_from_torch, loaded, "swap"):
        pytest.skip("torch.nn.LSTM holds weak references to its weights, so torch cannot load it by swapping")
    one, other = pair()
    switch = {
        "swap": torch.__future__.set_swap_module_params_on_conversion,
        "overwrite": torch.__future__.set_overwrite_module_params_on_conversion,
        "plain": lambda on: None,
    }[swap]
    switch(True)
    try:
        change(other if second else one)
    finally:
        switch(False)
    for module in (one, other):
        assert {v.dtype for v in module.parameters()} == {torch.float64}
    assert all(a is b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    lstms = [getattr(module, "lstm", module) for module in (one, other)]
    x = X.double()
    assert_close(*(lstm(x)[0] for lstm in lstms))


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("pair", [by_with_backend, by_copy])
def test_a_parametrization_of_one_twin_is_the_others(pair, second):
    one, other = pair()
    changed, follower = (other, one) if second else (one, other)
    parametrizations.weight_norm(changed, "weight_hh_l0")
    assert_close(follower(X)[0], changed(X)[0])
    parametrizations.weight_norm(follower, "weight_ih_l0")
    with torch.no_grad():
        changed.parametrizations.weight_ih_l0.original0.mul_(2)
    assert_close(follower(X)[0], changed(X)[0])
    assert_close(follower.weight_ih_l0, changed.weight_ih_l0)
    assert parametrize.is_parametrized(follower, "weight_hh_l0")
    assert not parametrize.is_parametrized(LSTM(3, 4))
    assert LSTM(3, 4)(X)[0].shape == (5, 2, 4)  # the class itself is as it was
    parametrize.remove_parametrizations(changed, "weight_hh_l0")
    assert_close(follower(X)[0], changed(X)[0])


def test_a_twin_made_after_a_parametrization_has_it():
    lstm = LSTM(3, 4)
    parametrizations.spectral_norm(lstm.eval(), "weight_hh_l0")
    assert_close(lstm.with_backend("vmap")(X)[0], lstm(X)[0])


class WithArguments(LSTM):
    def __new__(cls, *sizes):
        assert sizes
        return super().__new__(cls)


def test_a_twin_is_made_without_the_class_s_own_new():  # that of FSDP2 makes an object of another class
    lstm = WithArguments(3, 4)
    twin = lstm.with_backend("vmap")
    assert type(twin) is WithArguments
    assert_close(twin(X)[0], lstm(X)[0])
