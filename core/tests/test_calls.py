"""The ways to call an ``LSTMModule``: by TensorDict, by keyword, by position; the written keys and their places."""

import pytest
import torch
from rnn_backends import LSTMModule, MissingKeyError
from tensordict import TensorDict
from tensordict.nn import set_skip_existing
from torch.testing import assert_close

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"
H_OUT, C_OUT = ("next", H_IN), ("next", C_IN)


def make(*args, recurrent=False, **kwargs):
    if not args and "lstm" not in kwargs:
        args = (3, 4)
    return LSTMModule(*args, **{"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent, **kwargs})


@pytest.mark.parametrize("recurrent", [False, True])
def test_select_out_keys_writes_those_only(eager_backend, rows, recurrent):
    td = rows((2, 5))
    full = make(recurrent=recurrent, lstm_backend=eager_backend)
    expected = full(td.clone())
    for chosen in (["y"], [C_OUT], ["y", H_OUT]):
        module = make(lstm=full.lstm, recurrent=recurrent).select_out_keys(*chosen)
        out = module(td.clone())
        assert set(out.keys(True, True)) - set(td.keys(True, True)) == set(chosen)
        assert all(torch.equal(out[key], expected[key]) for key in chosen)


@pytest.mark.parametrize("recurrent", [False, True])
def test_tensordict_out_takes_the_results(rows, unchanged, recurrent):
    td, out = rows((2, 5)), TensorDict(batch_size=[2, 5])
    before = td.clone()
    module = make(recurrent=recurrent)
    assert module(td, tensordict_out=out) is out
    assert set(out.keys(True, True)) == {"y", H_OUT, C_OUT}
    unchanged(before, td)
    assert_close(out["y"], module(td)["y"])


def test_skip_existing(rows):
    module, td = make(), rows((5,))
    module(td)
    td["y"] = torch.zeros(5, 4)
    with set_skip_existing(True):
        assert not module(td)["y"].any()
    assert module(td)["y"].any()


BATCHES = [((5,), False), ((), False), ((2, 5), False), ((2, 5), True), ((1, 1), True), ((5,), True)]


@pytest.mark.parametrize(("batch", "recurrent"), BATCHES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 4, 1), (1, 4, 1), (3, 1, 2), (1, 1, 1)], ids=str)
def test_calls_by_keyword_and_by_position_give_the_outputs_as_a_tuple(rows, batch, recurrent, sizes):
    I, H, K = sizes  # noqa: E741
    module = make(I, H, K, recurrent=recurrent)
    td = rows(batch, I, K, H)
    expected = module(td.clone())
    expected = tuple(expected[key] for key in module.out_keys)
    by_keyword = module(x=td["x"], recurrent_state_h=td[H_IN], recurrent_state_c=td[C_IN], is_init=td["is_init"])
    by_position = module(td["x"], td[H_IN], td[C_IN], td["is_init"])
    for outputs in (by_keyword, by_position):
        assert isinstance(outputs, tuple)
        for value, other in zip(outputs, expected, strict=True):
            assert_close(value, other)


def test_a_call_by_keyword_may_leave_the_hidden_states_out(rows):
    module, td = make(), rows((5,), stored=False)
    y, h, c = module(x=td["x"], is_init=td["is_init"])
    assert (y.shape, h.shape, c.shape) == ((5, 4), (5, 1, 4), (5, 1, 4))


def test_nested_keys_are_joined_by_underscores_in_a_call_by_keyword(rows):
    module = make(in_key=("agents", "x"), is_init_key=("agents", "is_init"))
    td = rows((5,), stored=False)
    y, _, _ = module(agents_x=td["x"], agents_is_init=td["is_init"])
    assert y.shape == (5, 4)


def test_a_call_without_the_reset_mask_or_the_value_says_which_is_missing(rows):
    td = rows((5,))
    with pytest.raises(MissingKeyError, match="reset key 'is_init'"):
        make()(x=td["x"])
    with pytest.raises(MissingKeyError, match="input key 'x'"):
        make()(is_init=td["is_init"])


def test_selected_outputs_of_a_call_by_keyword(rows):
    td = rows((2, 5), stored=False)
    module = make(recurrent=True).select_out_keys("y")
    out = module(x=td["x"], is_init=td["is_init"])
    assert out.shape == (2, 5, 4)


@pytest.mark.parametrize("recurrent", [False, True])
def test_forward_hooks_see_the_call(rows, recurrent):
    module, seen = make(recurrent=recurrent), []
    module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    copy = module.set_recurrent_mode(not recurrent)
    td = rows((2, 5))
    assert seen == []
    out = module(td)
    assert seen[0] is out
    copy(rows((2, 5)))
    assert len(seen) == 2, "the copy keeps the existing hooks"
    copy.register_forward_hook(lambda *_: seen.append("copy's"))
    module(rows((2, 5)))
    assert seen[-1] != "copy's", "and later ones belong to one module only"


def test_no_gradient_is_recorded_under_no_grad(rows):
    with torch.no_grad():
        assert not make()(rows((5,)))["y"].requires_grad
    assert make()(rows((5,)))["y"].requires_grad
