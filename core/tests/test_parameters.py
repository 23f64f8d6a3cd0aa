"""All weights are checked on every path: a kernel that reads memory by its address cannot check it."""

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, LSTMModule
from tensordict import TensorDict
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.testing import assert_close

X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
NEVER = torch.zeros(5, 2, dtype=torch.bool)
NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0", "weight_ih_l1", "bias_hh_l1"]
CALLS = {
    "a row": {"input": X},
    "a row with resets": {"input": X, "is_init": NEVER},
    "a step": {"input": X[0], "form": "step"},
    "a step with resets": {"input": X[0], "is_init": NEVER[0], "form": "step"},
    "sequences": {"input": X, "is_init": NEVER, "form": "sequences"},
    "the output": {"input": X, "is_init": NEVER, "form": "output"},
}


def freed(value):
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


@pytest.fixture
def lstm(eager_backend):
    return LSTM(3, 4, 2, proj_size=2, lstm_backend=eager_backend)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("graph", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.to("meta"), "meta"),
        (lambda v: v.double(), "float64"),
        (lambda v: v[1:], "must have shape"),
        (lambda v: v.unsqueeze(0), "must have shape"),
        (lambda v: v.new_empty(0), "must have shape"),
        (lambda v: freed(v), "its memory was freed"),
    ],
    ids=["on meta", "in float64", "a row short", "a dimension more", "empty", "freed"],
)
def test_a_weight_that_does_not_fit_is_refused_by_name(lstm, name, call, graph, change, words):
    given = {**dict(lstm.named_parameters()), name: change(getattr(lstm, name).detach())}
    with torch.set_grad_enabled(graph), pytest.raises((InputError, ValueError), match=words) as caught:
        functional_call(lstm, given, (), call)
    if name != "weight_ih_l0":
        assert name in str(caught.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_backend_is_never_given_a_weight_without_memory(call, mode):
    """Some operators of torch read such memory without a check, and the process ends."""

    def layer(w, x, entry, starts):
        raise AssertionError("it was called")

    lstm = LSTM(3, 4, 2, lstm_backend=LSTMBackend("mine", layer)).requires_grad_(False)
    lstm.weight_hh_l1.untyped_storage().resize_(0)
    with mode(), pytest.raises(InputError, match="weight_hh_l1 spans 64 elements, and its storage holds 0"):
        lstm(**call)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_weight_that_is_none_is_not_taken_for_no_bias(lstm, call):
    lstm.bias_ih_l0 = None
    with pytest.raises(InputError, match=r"bias_ih_l0 must be a tensor .* got NoneType"):
        lstm(**call)


def test_a_parametrization_that_changes_the_dtype_is_refused(eager_backend):
    class Doubled(nn.Module):
        def forward(self, value):
            return value.double()

    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    nn.utils.parametrize.register_parametrization(lstm, "bias_hh_l0", Doubled(), unsafe=True)
    with pytest.raises(InputError, match="bias_hh_l0 has dtype"):
        lstm(X)


class Counted(nn.Module):
    """A parametrization with a state, as that of ``spectral_norm``: one step of it belongs to one call."""

    calls = 0

    def forward(self, value):
        self.calls += 1
        return value.clone()


def count_calls(lstm):
    """Parametrize all weights; the function tells how often each was computed since it was last called."""
    names = [name for name, _ in lstm.named_parameters()]
    counted = {name: Counted() for name in names}
    for name in names:
        nn.utils.parametrize.register_parametrization(lstm, name, counted[name])

    def tell():
        found = {counter.calls for counter in counted.values()}
        for counter in counted.values():
            counter.calls = 0
        return found

    tell()
    return tell


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("call", [*CALLS.values(), {"input": X[:1]}], ids=[*CALLS.keys(), "a row of one step"])
def test_a_call_computes_a_parametrized_weight_once(eager_backend, call, layers, autocast):
    lstm = LSTM(3, 4, layers, lstm_backend=eager_backend)
    tell = count_calls(lstm)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lstm(**call)
    assert tell() == {1}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lstm(**call)
    assert tell() == {1}
    if call["input"].ndim == 2:
        lstm.step(call["input"], None, call.get("is_init"))
        assert tell() == {1}


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_module_computes_a_parametrized_weight_once(eager_backend, recurrent, autocast):
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=eager_backend, default_recurrent_mode=recurrent)
    tell = count_calls(module.lstm)
    td = TensorDict({"x": X, "is_init": ~NEVER.unsqueeze(-1)}, [5, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        module(td if recurrent else td.reshape(10))
    assert tell() == {1}


def test_a_compiled_call_computes_a_parametrized_weight_once():
    found = []

    def count(graph, _):
        found.append(sum(node.target is torch.erf for node in graph.graph.nodes))
        return graph

    class Bent(nn.Module):
        def forward(self, value):
            return torch.erf(value)

    lstm = LSTM(3, 4, lstm_backend="vmap")
    nn.utils.parametrize.register_parametrization(lstm, "weight_ih_l0", Bent())
    torch.compile(lstm, backend=count)(X)
    assert found == [1]


def test_a_module_refuses_in_both_modes_and_writes_nothing(eager_backend):
    for recurrent in (True, False):
        module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=eager_backend, default_recurrent_mode=recurrent)
        td = TensorDict({"x": X, "is_init": NEVER.unsqueeze(-1)}, [5, 2])
        given = {**dict(module.named_parameters()), "lstm.bias_ih_l0": torch.empty(16, device="meta")}
        with torch.no_grad(), pytest.raises(InputError, match="bias_ih_l0 is on meta"):
            functional_call(module, given, (td if recurrent else td.reshape(10),))
        assert set(td.keys()) == {"x", "is_init"}


def test_an_ensemble_over_a_base_on_meta_equals_its_members(eager_backend):
    """torch's own recipe: a base without memory, called with the members' stacked parameters under vmap."""
    if eager_backend in ("cudnn", "torchscript"):
        pytest.skip("they decline torch.vmap")
    members = [LSTM(3, 4, lstm_backend=eager_backend) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    base = LSTM(3, 4, lstm_backend=eager_backend).to("meta")
    for call in ({"input": X}, {"input": X, "is_init": NEVER}, {"input": X[0], "form": "step"}):

        def run(p, b, call=call):
            return functional_call(base, (p, b), (), call)[0]

        found = torch.vmap(run)(parameters, buffers)
        assert_close(found, torch.stack([member(**call)[0] for member in members]))
