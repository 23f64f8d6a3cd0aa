"""The error family: one base class, the built-in type that a caller would expect, and pickling."""

import pickle

import pytest
from rnn_backends import (
    BrokenBackendError,
    ContractError,
    InputError,
    MissingKeyError,
    RNNBackendsError,
    UnknownBackendError,
    UnsupportedError,
)

EXAMPLES = [
    (InputError("is_init must be a bool tensor"), ValueError),
    (MissingKeyError("'is_init' is missing: add InitTracker()"), KeyError),
    (ContractError("two hooks"), TypeError),
    (BrokenBackendError("no such library"), ImportError),
    (UnknownBackendError("vmp", ["vmap"], "from the environment"), ValueError),
    (UnsupportedError("cudnn", "float16 on cpu", "it has no such kernel", ["vmap"]), NotImplementedError),
]


@pytest.mark.parametrize(("error", "kind"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_each_error_is_of_the_family_and_of_a_built_in_type(error, kind):
    assert isinstance(error, RNNBackendsError)
    assert isinstance(error, kind)


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda value: type(value).__name__)
def test_errors_come_back_whole_from_a_worker_process(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_a_missing_key_prints_its_message_and_not_its_repr():
    assert str(MissingKeyError("'h' is missing")) == "'h' is missing"


def test_unknown_backend_says_what_came_what_is_there_and_what_was_meant():
    error = UnknownBackendError("Vmp", ("cudnn", "vmap"), "from X")
    assert str(error) == "unknown LSTM backend 'Vmp' (from X): installed are cudnn, vmap. Did you mean 'vmap'?"
    assert "Did you mean 'MyGPU'?" in str(UnknownBackendError("mygpu", ["MyGPU"]))
    assert str(UnknownBackendError("a", ())) == "unknown LSTM backend 'a': installed are none."


def test_unsupported_has_backend_feature_reason_and_alternatives():
    error = UnsupportedError("a", "dropout", "no kernel", ["b", "c"])
    assert str(error) == "LSTM backend 'a' does not support dropout: no kernel. Backends that can: b, c."
    assert (error.backend, error.feature, error.reason, error.alternatives) == ("a", "dropout", "no kernel", ("b", "c"))
    assert str(UnsupportedError("a", "dropout", "no kernel")).endswith("Backends that can: none of the installed ones.")
