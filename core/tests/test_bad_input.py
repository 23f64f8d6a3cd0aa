"""Bad input to an ``LSTMModule``: the class of the error, its message, and an unchanged TensorDict."""

import pytest
import torch
from rnn_backends import (
    InputError,
    LSTMBackend,
    LSTMModule,
    MissingKeyError,
    UnknownBackendError,
    UnsupportedError,
    register,
    unregister,
)
from rnn_backends.unroll import unroll
from tensordict import TensorDict
from torch import nn
from torch.masked import masked_tensor

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"


def replace(**changes):
    """Entries by key: a function of the old value gives the new one; ``None`` takes the entry away."""

    def change(td):
        for key, make in changes.items():
            old = td.pop(key)
            if make is not None:
                td[key] = make(old)

    return change


def to_int(value):
    return value.int()


def meta(value):
    return value.to("meta")


BAD = {
    "no is_init": (replace(is_init=None), MissingKeyError, "InitTracker"),
    "no value": (replace(x=None), MissingKeyError, "input key 'x' is not in the TensorDict, which has 'is_init'"),
    "is_init no tensor": (
        replace(is_init=lambda v: TensorDict(batch_size=[2, 5])),
        InputError,
        "'is_init' must be a bool tensor, got TensorDict",
    ),
    "is_init of integers": (replace(is_init=to_int), InputError, r"'is_init' must be bool, got torch.int32: use .bool"),
    "is_init of floats": (replace(is_init=torch.Tensor.float), InputError, "'is_init' must be bool, got torch.float32"),
    "is_init with two features": (
        replace(is_init=lambda v: v.expand(2, 5, 2)),
        InputError,
        r"'is_init' must .* \(2, 5\) or \(2, 5, 1\)",
    ),
    "is_init of another rank": (replace(is_init=lambda v: v.unsqueeze(-1)), InputError, r"got \(2, 5, 1, 1\)"),
    "no hidden h": (replace(**{H_IN: None}), InputError, f"'{C_IN}' is in the TensorDict and '{H_IN}' is not"),
    "no hidden c": (replace(**{C_IN: None}), InputError, f"'{H_IN}' is in the TensorDict and '{C_IN}' is not"),
    "too many features": (replace(x=lambda v: torch.cat([v, v], -1)), InputError, r"= \(2, 5, 3\), got \(2, 5, 6\)"),
    "value without features": (replace(x=lambda v: v[..., 0]), InputError, r"\(2, 5, 3\), got \(2, 5\)"),
    "hidden h without layers": (replace(**{H_IN: lambda v: v.squeeze(-2)}), InputError, r"\(2, 5, 1, 4\), got"),
    "hidden c of another size": (replace(**{C_IN: lambda v: v[..., :3]}), InputError, r"\(2, 5, 1, 4\), got"),
    "hidden h of more layers": (replace(**{H_IN: lambda v: v.expand(2, 5, 2, 4)}), InputError, "layers"),
    "value in float64": (replace(x=torch.Tensor.double), InputError, "'x' has dtype torch.float64, the weights"),
    "hidden c in float64": (replace(**{C_IN: torch.Tensor.double}), InputError, f"'{C_IN}' has dtype torch.float64"),
    "value of integers": (replace(x=torch.Tensor.long), InputError, "'x' must be floating point"),
    "hidden h of integers": (replace(**{H_IN: to_int}), InputError, f"'{H_IN}' must be floating point"),
    "value elsewhere": (replace(x=meta), InputError, "'x' is on meta, the weights on cpu"),
    "hidden h elsewhere": (replace(**{H_IN: meta}), InputError, f"'{H_IN}' is on meta"),
    "is_init elsewhere": (replace(is_init=meta), InputError, "'is_init' is on meta"),
    "is_init without features": (replace(is_init=lambda v: v[..., :0]), InputError, r"got \(2, 5, 0\)"),
    "complex value": (replace(x=lambda v: v + 0j), InputError, "'x' must be floating point"),
}


@pytest.mark.parametrize("recurrent", [True, False], ids=["over time", "one step"])
@pytest.mark.parametrize(("change", "error", "says"), BAD.values(), ids=BAD)
def test_bad_entries(rows, unchanged, change, error, says, recurrent):
    module = LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=recurrent)
    td = rows((2, 5))
    change(td)
    before = dict(td.items(True, True))
    with pytest.raises(error, match=says):
        module(td)
    assert dict(td.items(True, True)).keys() == before.keys()
    assert all(td[key] is value for key, value in before.items())


@pytest.mark.parametrize("recurrent", [True, False], ids=["over time", "one step"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (torch.Tensor.double, "'x' has dtype torch.float64"),
        (meta, "'x' is on meta"),
        (lambda v: torch.cat([v, v], -1), r"'x' must have .* got \(2, 5, 6\)"),
        (lambda v: v[..., :-1], r"'x' must have .* got \(2, 5, 2\)"),
        (lambda v: TensorDict(batch_size=v.shape[:2]), "'x' must be a tensor, got TensorDict"),
    ],
    ids=["float64", "elsewhere", "too large", "too small", "no tensor"],
)
def test_every_entry_wrong_in_the_same_way(rows, change, says, recurrent):
    td = rows((2, 5))
    replace(**dict.fromkeys(td.keys(), change))(td)
    with pytest.raises(InputError, match=says):
        LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=recurrent)(td)


NOT_DENSE = {
    "has the layout sparse_coo": torch.Tensor.to_sparse,
    "is a nested tensor": lambda v: torch.nested.nested_tensor(list(v)),
    "is a MaskedTensor": lambda v: masked_tensor(v, torch.ones_like(v, dtype=torch.bool)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of (MaskedTensors|nested tensors):UserWarning")
@pytest.mark.parametrize("recurrent", [True, False], ids=["over time", "one step"])
@pytest.mark.parametrize("keys", [["x"], ["is_init"], [H_IN], [C_IN], ["x", "is_init", H_IN, C_IN]], ids="-".join)
@pytest.mark.parametrize(("says", "change"), NOT_DENSE.items(), ids=["sparse", "nested", "masked"])
def test_an_entry_that_is_not_dense(rows, keys, says, change, recurrent):
    module, td = LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=recurrent), rows((2, 5))
    for key in keys:
        td[key] = change(td[key])
    with pytest.raises(InputError, match=f"'{keys[0]}' {says}"):
        module(td)
    assert set(td.keys()) == {"x", "is_init", H_IN, C_IN}


def test_a_missing_entry_is_told_with_the_nested_keys_that_are_there():
    td = TensorDict({"agents": TensorDict({"x": torch.zeros(2, 3)}, [2])}, [2])
    for given, there in ((td, r"\('agents', 'x'\)"), (td.empty(), "no entries")):
        with pytest.raises(MissingKeyError, match=f"the input key 'x' .*, which has {there}$"):
            LSTMModule(3, 4, in_key="x", out_key="y")(given)


@pytest.mark.parametrize("batch", [(3, 3), (1, 5), (5, 1), (1, 1), (2, 5)], ids=str)
def test_the_reset_mask_with_and_without_its_trailing_one(rows, batch):
    """``[B, T]`` is never taken for ``[B, 1]`` or the other way round, whatever sizes are equal."""
    module = LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=True)
    td = rows(batch, resets=0.5)
    bare = td.clone()
    bare["is_init"] = bare["is_init"].squeeze(-1)
    assert torch.equal(module(bare)["y"], module(td)["y"])


def test_a_tensordict_without_dimensions_has_no_time(rows, unchanged):
    td = rows(())
    before = td.clone()
    with pytest.raises(InputError, match="needs a time dimension"):
        LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=True)(td)
    unchanged(before, td)


KEYS = {"in_key": "x", "out_key": "y"}
THREE = ["x", "h", "c"]
WRONG = {
    "both in": ({"in_key": "x", "in_keys": THREE, "out_key": "y"}, "either in_key or in_keys, got both"),
    "neither in": ({"out_key": "y"}, "either in_key or in_keys, got neither"),
    "both out": ({"in_key": "x", "out_key": "y", "out_keys": THREE}, "either out_key or out_keys, got both"),
    "neither out": ({"in_key": "x"}, "either out_key or out_keys, got neither"),
    "two in": ({"in_keys": ["x", "h"], "out_key": "y"}, "in_keys must be 3 keys"),
    "five in": ({"in_keys": [*THREE, "is_init", "z"], "out_key": "y"}, "in_keys must be 3 keys"),
    "two out": ({"in_key": "x", "out_keys": ["x", "h"]}, "out_keys must be 3 keys"),
    "four out": ({"in_key": "x", "out_keys": [*THREE, "z"]}, "out_keys must be 3 keys"),
    "a number for a key": ({"in_key": 3, "out_key": "y"}, "in_key takes keys, strings or tuples of strings, got "),
    "a number for the keys": ({"in_keys": 3, "out_key": "y"}, "in_keys takes keys, .* got 3"),
    "a number in a key": ({"in_key": "x", "out_keys": ["y", ("next", 3), "c"]}, "out_keys takes keys, "),
    "an empty key": ({"in_key": (), "out_key": "y"}, "in_key takes keys, "),
    "a number for the reset key": ({"in_key": "x", "out_key": "y", "is_init_key": 3}, "is_init_key takes keys, "),
    "a string for a list": ({"in_keys": "xhc", "out_key": "y"}, "in_keys is a list of keys"),
    "two reset keys": ({"in_keys": [*THREE, "a"], "out_key": "y", "is_init_key": "b"}, "says 'b'"),
    "the same out key twice": ({"in_key": "x", "out_keys": ["y", "y", "c"]}, "out_keys must differ"),
    "the same in key twice": ({"in_keys": ["x", "h", "h"], "out_key": "y"}, "in_keys must differ"),
    "time first": ({**KEYS, "batch_first": False}, "batch_first=True"),
    "lstm and sizes": ({**KEYS, "lstm": nn.LSTM(3, 4, batch_first=True)}, "not both"),
    "unknown mode": ({**KEYS, "default_recurrent_mode": "sometimes"}, "got 'sometimes'"),
    "unknown hidden output": ({**KEYS, "hidden_output": "last"}, "'ends' or 'all'"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG)
def test_bad_arguments(options, says):
    with pytest.raises(InputError, match=says):
        LSTMModule(3, 4, **options)


WRAPPED = {
    "time first": ({"lstm": nn.LSTM(3, 4)}, "batch_first=True"),
    "input size alone": ({"lstm": nn.LSTM(3, 4, batch_first=True), "input_size": 3}, "not both"),
    "layers": ({"lstm": nn.LSTM(3, 4, batch_first=True), "num_layers": 2}, "not both"),
    "dropout": ({"lstm": nn.LSTM(3, 4, batch_first=True), "dropout": 0.5}, "not both"),
    "dtype": ({"lstm": nn.LSTM(3, 4, batch_first=True), "dtype": torch.float64}, "not both"),
    "device": ({"lstm": nn.LSTM(3, 4, batch_first=True), "device": "meta"}, "device='meta'.*on cpu"),
    "no lstm": ({"lstm": nn.GRU(3, 4, batch_first=True)}, "got GRU"),
    "no sizes": ({}, "input_size and hidden_size"),
    "one size": ({"input_size": 3}, "input_size and hidden_size"),
}


@pytest.mark.parametrize(("options", "says"), WRAPPED.values(), ids=WRAPPED)
def test_bad_wrapping(options, says):
    with pytest.raises(InputError, match=says):
        LSTMModule(**options, **KEYS)


def test_an_option_that_does_not_exist():
    with pytest.raises(TypeError, match="recurent_backend"):
        LSTMModule(3, 4, **KEYS, recurent_backend="pad")


def test_an_unknown_backend_is_named_with_the_nearest():
    with pytest.raises(UnknownBackendError, match=r"'vmapp'.*Did you mean 'vmap'"):
        LSTMModule(3, 4, **KEYS, lstm_backend="vmapp")


def test_a_backend_that_cannot_says_why_and_who_can():
    register(LSTMBackend("no projection", unroll, rejects=lambda spec, *_: "no projection" if spec.proj_size else None))
    try:
        with pytest.raises(UnsupportedError, match=r"proj_size 2 .*: no projection. Backends that can: .*vmap"):
            LSTMModule(3, 4, proj_size=2, **KEYS, lstm_backend="no projection")
        assert LSTMModule(3, 4, **KEYS, lstm_backend="no projection").lstm_backend == "no projection"
    finally:
        unregister("no projection")
