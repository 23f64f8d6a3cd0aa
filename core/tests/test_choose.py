"""The choice of the backend: by name, by default, by environment variable, or by `auto`; never silently another one."""

import copy
import pickle

import pytest
import rnn_backends
import torch
from rnn_backends import (
    LSTM,
    InputError,
    LSTMBackend,
    LSTMModule,
    LSTMSpec,
    State,
    Trait,
    UnknownBackendError,
    UnsupportedError,
    explain,
)
from rnn_backends.choose import AUTO_ORDER, DEFAULT_VARIABLE, alternatives, resolve
from rnn_backends.registry import DISABLE_VARIABLE
from rnn_backends.unroll import unroll
from tensordict import TensorDict

SPEC = LSTMSpec(3, 4, proj_size=2)


def verdict(name, spec=SPEC, device="cpu", dtype=torch.float32):
    return next(v for v in explain(spec, device, dtype) if v.name == name)


@pytest.fixture
def add():
    """Register backends for one test."""
    added = []

    def register(name, rejects=lambda *_: None):
        added.append(rnn_backends.register(LSTMBackend(name, unroll, rejects=rejects)))
        return added[-1]

    yield register
    for backend in added:
        rnn_backends.unregister(backend.name)


@pytest.fixture(autouse=True)
def no_default(monkeypatch):
    monkeypatch.delenv(DEFAULT_VARIABLE, raising=False)


def disable_all_but(monkeypatch, *kept):
    others = [row.name for row in rnn_backends.list_backends() if row.distribution != "this process"]
    monkeypatch.setenv(DISABLE_VARIABLE, ",".join(set(others) - set(kept)))


def test_a_named_backend_is_the_one_that_runs(add):
    mine = add("mine")
    assert LSTM(3, 4, lstm_backend="mine").backend is mine
    assert LSTM(3, 4, lstm_backend="torchrl").lstm_backend == "vmap"


def test_a_backend_value_is_taken_as_it_is_and_asked_too():
    value = LSTMBackend("nowhere", unroll)
    assert LSTM(3, 4, lstm_backend=value).backend is value
    picky = LSTMBackend("picky", unroll, rejects=lambda *_: "not today")
    with pytest.raises(UnsupportedError, match=r"'picky' does not support .*: not today"):
        LSTM(3, 4, lstm_backend=picky)


def test_the_environment_variable_sets_the_default_only(add, monkeypatch):
    add("mine")
    monkeypatch.setenv(DEFAULT_VARIABLE, "mine")
    assert LSTM(3, 4).lstm_backend == "mine"
    assert LSTM(3, 4, lstm_backend="vmap").lstm_backend == "vmap"
    assert LSTM(3, 4, lstm_backend="auto").lstm_backend != "mine"
    monkeypatch.setenv(DEFAULT_VARIABLE, "torchrl")
    assert LSTM(3, 4).lstm_backend == "vmap"
    monkeypatch.setenv(DEFAULT_VARIABLE, "")
    assert LSTM(3, 4).lstm_backend == LSTM(3, 4, lstm_backend="auto").lstm_backend


def test_an_unknown_value_in_the_environment_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv(DEFAULT_VARIABLE, "vmapp")
    with pytest.raises(UnknownBackendError) as caught:
        LSTM(3, 4)
    assert f"'vmapp' (from the environment variable {DEFAULT_VARIABLE})" in str(caught.value)
    assert "Did you mean 'vmap'?" in str(caught.value)
    with pytest.raises(UnknownBackendError) as caught:
        LSTM(3, 4, lstm_backend="vmapp")
    assert DEFAULT_VARIABLE not in str(caught.value)


def test_the_choice_is_made_once_at_construction(add, monkeypatch):
    asked = []
    add("mine", lambda *request: asked.append(request))
    lstm = LSTM(3, 4, lstm_backend="mine")
    assert asked == [(lstm.spec, torch.device("cpu"), torch.float32)]
    monkeypatch.setenv(DEFAULT_VARIABLE, "vmap")
    lstm(torch.zeros(5, 2, 3))
    assert lstm.lstm_backend == "mine"
    assert len(asked) == 1


def test_a_named_backend_that_cannot_raises_with_its_reason_and_those_that_can(add):
    add("narrow", lambda spec, device, dtype: "it has no projection" if spec.proj_size else None)
    assert LSTM(3, 4, lstm_backend="narrow").lstm_backend == "narrow"
    with pytest.raises(UnsupportedError) as caught:
        LSTM(3, 4, 2, proj_size=2, dtype=torch.float64, lstm_backend="narrow")
    assert caught.value.feature == "LSTM(3, 4), 2 layers, proj_size 2 on cpu in float64"
    assert caught.value.reason == "it has no projection"
    assert "vmap" in caught.value.alternatives
    assert "narrow" not in caught.value.alternatives
    with pytest.raises(UnsupportedError):
        LSTM(3, 4, proj_size=2, lstm_backend="vmap").with_backend("narrow")


def test_auto_takes_its_order_then_the_others_by_name(add, monkeypatch):
    disable_all_but(monkeypatch)
    add("zebra")
    assert LSTM(3, 4).lstm_backend == "zebra"
    add("apple")
    assert LSTM(3, 4).lstm_backend == "apple"
    with monkeypatch.context() as patch:
        patch.setattr("rnn_backends.choose.AUTO_ORDER", ("zebra", "apple"))
        assert LSTM(3, 4).lstm_backend == "zebra"
    disable_all_but(monkeypatch, *AUTO_ORDER)
    assert LSTM(3, 4).lstm_backend == next(n for n in AUTO_ORDER if verdict(n, LSTMSpec(3, 4)).accepted)
    disable_all_but(monkeypatch, "vmap")
    assert LSTM(3, 4).lstm_backend == "vmap"


def test_auto_passes_over_those_that_decline_and_says_why(add, monkeypatch):
    disable_all_but(monkeypatch)
    add("a", lambda spec, device, dtype: "no projection" if spec.proj_size else None)
    add("b", lambda spec, device, dtype: "no float64" if dtype == torch.float64 else None)
    assert LSTM(3, 4, proj_size=2).lstm_backend == "b"
    with pytest.raises(UnsupportedError) as caught:
        LSTM(3, 4, proj_size=2, dtype=torch.float64)
    assert "a: no projection" in str(caught.value)
    assert "b: no float64" in str(caught.value)


def test_auto_without_any_backend_is_an_error(monkeypatch):
    disable_all_but(monkeypatch)
    with pytest.raises(UnsupportedError, match=f"disabled by {DISABLE_VARIABLE}"):
        LSTM(3, 4)


def test_explain_answers_for_every_backend_and_marks_the_choice(add):
    add("narrow", lambda spec, device, dtype: "it has no projection")
    verdicts = explain(SPEC)
    assert [v.name for v in verdicts] == sorted(row.name for row in rnn_backends.list_backends())
    assert (verdict("narrow").accepted, verdict("narrow").reason) == (False, "it has no projection")
    chosen = [v for v in verdicts if v.chosen]
    assert [v.name for v in chosen] == [LSTM(3, 4, proj_size=2).lstm_backend]
    assert chosen[0].accepted
    assert chosen[0].reason
    assert all(v.reason for v in verdicts if not v.accepted)


def test_explain_asks_about_the_device_and_dtype_given(add):
    add("picky", lambda spec, device, dtype: f"{device.type} {dtype}")
    assert verdict("picky", SPEC, "meta", torch.bfloat16).reason == "meta torch.bfloat16"
    with torch.device("meta"):
        assert next(v for v in explain(SPEC) if v.name == "picky").reason == "meta torch.float32"


def test_explain_shows_disabled_backends_with_that_reason(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "vmap")
    assert verdict("vmap").reason == f"disabled by {DISABLE_VARIABLE}"
    assert not verdict("vmap").accepted


@pytest.mark.parametrize(
    ("rejects", "reason"),
    [
        (lambda *_: 1 / 0, "its rejects() raised ZeroDivisionError: division by zero"),
        (lambda *_: False, "its rejects() must return a reason or None, and returned bool"),
    ],
)
def test_a_backend_whose_refusal_is_broken_hides_itself_only(add, rejects, reason):
    add("aaa", rejects)
    assert verdict("aaa").reason == reason
    assert verdict("vmap").accepted
    with pytest.raises(UnsupportedError) as caught:
        LSTM(3, 4, lstm_backend="aaa")
    assert caught.value.reason == reason


def test_alternatives_are_those_that_accept_and_have_the_traits(add):
    add("plain")
    add("unable", lambda *_: "never")
    request = (SPEC, torch.device("cpu"), torch.float32)
    others = alternatives(*request, "plain")
    assert {"plain", "unable"}.isdisjoint(others)
    assert "vmap" in others
    assert "plain" in alternatives(*request, "vmap")
    traits = frozenset({Trait.VMAP})
    able = alternatives(*request, "", traits)
    assert able == [name for name in able if Trait.VMAP in rnn_backends.get_backend(name).traits]
    with pytest.raises(UnsupportedError, match="support the trait vmap") as caught:
        resolve("plain", *request, traits)
    assert caught.value.alternatives == tuple(able)
    assert Trait.VMAP in resolve("auto", *request, traits).traits


def test_anything_but_a_name_or_a_backend_is_refused():
    with pytest.raises(InputError, match="lstm_backend must be a name or an LSTMBackend, got function"):
        LSTM(3, 4, lstm_backend=unroll)


@pytest.mark.parametrize("arrive", ["assign", "to_empty", "deepcopy", "pickle"])
def test_auto_on_the_meta_device_chooses_again_once_the_weights_are_there(arrive):
    plain = LSTM(3, 4)
    with torch.device("meta"):
        lstm = LSTM(3, 4)
    if arrive == "deepcopy":
        lstm = copy.deepcopy(lstm)
    if arrive == "pickle":
        lstm = pickle.loads(pickle.dumps(lstm))
    if arrive == "to_empty":
        lstm = lstm.to_empty(device="cpu")
    lstm.load_state_dict(plain.state_dict(), assign=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(lstm(x), plain(x), rtol=0, atol=0)
    assert lstm.lstm_backend == plain.lstm_backend


def arrived(lstm, how):
    """Weights on the CPU, by one of the methods of deferred initialisation."""
    weights = LSTM(3, 4, batch_first=lstm.batch_first).state_dict()
    if how == "to_empty":
        lstm.to_empty(device="cpu").load_state_dict(weights)
    elif how == "pickle":
        lstm = pickle.loads(pickle.dumps(lstm))
        lstm.load_state_dict(weights, assign=True)
    else:
        lstm.load_state_dict(weights, assign=True)
    return lstm


@pytest.mark.parametrize("how", ["assign", "to_empty", "pickle"])
@pytest.mark.parametrize("form", ["row", "step", "module"])
def test_a_backend_named_on_the_meta_device_is_asked_once_the_weights_are_there(how, form):
    def only_cpu(spec, device, dtype):
        return None if device.type == "cpu" else f"it cannot run on {device.type}"

    def calls(lstm):
        where = lstm.weight_ih_l0.device
        x, state = torch.ones(2, 3, device=where), State(*torch.zeros(2, 1, 2, 4, device=where))
        td = TensorDict({"x": x, "is_init": torch.ones(2, 1, dtype=torch.bool, device=where)}, [2])
        made = {"row": lambda: lstm(x), "step": lambda: lstm.step(x, state)}
        return made.get(form, lambda: LSTMModule(lstm=lstm, in_key="x", out_key="y")(td))()

    prepared = []
    backend = rnn_backends.register(
        LSTMBackend("fussy", unroll, rejects=only_cpu, prepare=lambda *given: prepared.append(given[1].type))
    )
    try:
        with torch.device("meta"):
            lstm = LSTM(3, 4, batch_first=True, lstm_backend="fussy")
            assert lstm.with_backend("fussy").lstm_backend == lstm.lstm_backend == "fussy"
            with pytest.raises(UnsupportedError, match=r"on meta in float32: it cannot run on meta"):
                calls(lstm)
        lstm = arrived(lstm, how)
        calls(lstm)
        assert (lstm.backend, prepared) == (backend, ["cpu"])
        with pytest.raises(UnsupportedError, match="it cannot run on meta"):
            calls(lstm.to("meta"))
    finally:
        rnn_backends.unregister("fussy")


@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_where_the_weights_arrive_on_a_device_that_a_named_backend_declines_the_call_says_so(how, add):
    add("elsewhere", lambda spec, device, dtype: "it runs on toasters")
    lstm = arrived(LSTM(3, 4, device="meta", lstm_backend="elsewhere"), how)
    with pytest.raises(UnsupportedError, match=r"LSTM\(3, 4\) on cpu in float32: it runs on toasters"):
        lstm(torch.ones(5, 2, 3))


@pytest.mark.parametrize("named", ["vmap", None])
def test_a_backend_that_was_named_on_the_meta_device_stays(named, monkeypatch):
    if named is None:
        monkeypatch.setenv(DEFAULT_VARIABLE, "vmap")
    with torch.device("meta"):
        lstm = LSTM(3, 4, lstm_backend=named)
    monkeypatch.delenv(DEFAULT_VARIABLE, raising=False)
    lstm.load_state_dict(LSTM(3, 4).state_dict(), assign=True)
    assert lstm.lstm_backend == "vmap"
