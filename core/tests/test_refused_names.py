"""Refusals at construction, with messages: colliding keys, invalid backends, invalid specs."""

import pytest
import rnn_backends
import torch
from rnn_backends import (
    LSTM,
    ContractError,
    InputError,
    LSTMBackend,
    LSTMModule,
    LSTMSpec,
    UnknownBackendError,
    explain,
    get_backend,
    names,
)
from rnn_backends.registry import DISABLE_VARIABLE
from rnn_backends.unroll import unroll
from tensordict import NonTensorData, TensorDict
from torch import nn

NEXT = [("next", "h"), ("next", "c")]
COLLIDING = {
    "the mask's key": ({"in_key": "x", "out_key": "is_init"}, "'is_init'.*would replace the mask"),
    "the mask's nested key": ({"in_key": "x", "out_key": ("a", "i"), "is_init_key": ("a", "i")}, "would replace"),
    "a hidden output is the mask": ({"in_key": "x", "out_keys": ["y", "is_init", ("next", "c")]}, "would replace"),
    "an output that holds the states": ({"in_key": "x", "out_key": "next"}, "'next' cannot be a tensor"),
    "an input that holds the states": ({"in_key": "next", "out_key": "y"}, "'next' cannot be a tensor"),
    "an output within the input": ({"in_key": "x", "out_key": ("x", "y")}, "'x' cannot be a tensor"),
    "an input within the output": ({"in_key": ("y", "x"), "out_key": "y"}, "'y' cannot be a tensor"),
    "inputs within each other": ({"in_keys": ["x", ("x", "h"), "c"], "out_keys": ["y", *NEXT]}, "'x' cannot be"),
    "deeply": ({"in_key": ("a", "b"), "out_key": ("a", "b", "c", "d")}, r"\('a', 'b'\) cannot be a tensor"),
    "the mask is the value": ({"in_key": "is_init", "out_key": "y"}, "same key 'is_init'"),
    "the mask is a state": ({"in_keys": ["x", "h", "c"], "out_key": "y", "is_init_key": "h"}, "same key 'h'"),
}


@pytest.mark.parametrize("name", COLLIDING)
def test_keys_that_collide_are_refused_at_construction(name):
    keys, words = COLLIDING[name]
    with pytest.raises(InputError, match=words):
        LSTMModule(3, 4, **keys)


def test_an_output_may_replace_the_value_or_a_state():
    td = TensorDict({"x": torch.randn(2, 3), "is_init": torch.ones(2, 1, dtype=torch.bool)}, [2])
    assert LSTMModule(3, 4, in_key="x", out_key="x")(td)["x"].shape == (2, 4)
    keys = ["x", "h", "c"]
    LSTMModule(3, 4, in_keys=keys, out_keys=["y", "h", "c"])


@pytest.mark.parametrize("name", ["", " ", None, 7, b"bytes"])
def test_a_backend_has_a_name(name):
    with pytest.raises(ContractError, match="name must be a string that is not empty"):
        LSTMBackend(name, unroll)


@pytest.mark.parametrize("field", ["layer", "rejects", "prepare", "step", "act", "stack", "layer_last"])
def test_what_a_backend_does_is_functions(field):
    fields = {"layer": unroll, field: "unroll"}
    with pytest.raises(ContractError, match=f"'mine': {field} must be a function, got 'unroll'"):
        LSTMBackend("mine", **fields)
    if field in ("layer", "rejects", "prepare"):
        with pytest.raises(ContractError, match=f"{field} must be a function, got None"):
            LSTMBackend("mine", **{**fields, field: None})


@pytest.mark.parametrize("traits", ["vmap", {"vmap"}, None, 3])
def test_traits_are_traits(traits):
    with pytest.raises(ContractError, match="traits must be a set of Trait"):
        LSTMBackend("mine", unroll, traits=traits)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_a_contract_version_is_one_there_is(version):
    with pytest.raises(ContractError, match="contract_version must be 1 to 1"):
        LSTMBackend("mine", unroll, contract_version=version)


SPECS = {
    "input_size": (0, -1, 2.5, "3", None, True),
    "hidden_size": (0, -4, 4.0),
    "num_layers": (0, 1.5),
    "proj_size": (-1, 4, 9, 0.5),
    "bias": (None, 1, "yes"),
    "bidirectional": (2,),
    "dropout": (-0.1, 1.5, float("nan"), "much", None, True),
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in SPECS.items() for value in values])
def test_an_impossible_spec_is_not_explained(option, value):
    options = {"input_size": 3, "hidden_size": 4, option: value}
    with pytest.raises(InputError, match=option):
        explain(LSTMSpec(**options))


@pytest.mark.parametrize("spec", ["LSTM(3, 4)", None, nn.LSTM(3, 4)])
def test_what_is_no_spec_is_not_explained(spec):
    with pytest.raises(InputError, match="the spec must be an LSTMSpec"):
        explain(spec)


@pytest.mark.parametrize("lstm", ["x", 3, nn.GRU(3, 4, batch_first=True), nn.Linear(3, 4), LSTM])
def test_what_is_no_lstm_is_not_wrapped(lstm):
    with pytest.raises(InputError, match=r"lstm must be a torch\.nn\.LSTM or rnn_backends\.LSTM, got"):
        LSTMModule(lstm=lstm, in_key="x", out_key="y")
    with pytest.raises(InputError, match=r"lstm must be a torch\.nn\.LSTM"):
        LSTM.from_torch(lstm)


@pytest.mark.parametrize("value", [NonTensorData("start", [2]), TensorDict({}, [2])], ids=["text", "TensorDict"])
@pytest.mark.parametrize("key", ["x", "is_init", "recurrent_state_h", "recurrent_state_c"])
def test_an_entry_that_is_no_tensor_is_named(rows, key, value):
    td = rows((2,))
    td[key] = value
    with pytest.raises(InputError, match=f"'{key}' must be a (bool )?tensor, got"):
        LSTMModule(3, 4, in_key="x", out_key="y")(td)


@pytest.mark.parametrize("is_init", [[True, False], "start", 1, True])
def test_a_mask_that_is_no_tensor_is_refused(is_init):
    with pytest.raises(InputError, match="is_init must be a bool tensor, got"):
        LSTM(3, 4)(torch.zeros(2, 1, 3), is_init=is_init)


def test_a_name_unlike_any_other_gets_a_way_on_and_no_guess():
    with pytest.raises(UnknownBackendError) as caught:
        get_backend("nosuch")
    assert "Did you mean" not in str(caught.value)
    assert str(caught.value).endswith("'auto' chooses one.")
    for typed, meant in (("cdnn", "cudnn"), ("VMAP", "vmap"), ("atuo", "auto"), ("tochscript", "torchscript")):
        with pytest.raises(UnknownBackendError, match=f"Did you mean '{meant}'"):
            get_backend(typed)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("auto", "it stands for the choice of one, when an LSTM is made"),
        ("pad", "TorchRL's name for 'cudnn'"),
        ("scan", "TorchRL's name for 'vmap'"),
    ],
)
def test_a_name_that_means_something_elsewhere_is_explained(name, note):
    with pytest.raises(UnknownBackendError, match=rf"unknown LSTM backend '{name}' \({note}\)") as caught:
        get_backend(name)
    assert f"Did you mean '{name}'" not in str(caught.value)


def test_a_disabled_name_that_is_not_installed_is_reported_once(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "surely-not-installed")
    with pytest.warns(UserWarning, match="names no installed backend"):
        names()
    for _ in range(3):  # warnings are errors
        names()
        get_backend("vmap")
        LSTM(3, 4)


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert rnn_backends.__version__ == version("rnn-backends")
