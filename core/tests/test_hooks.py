"""Hooks on the LSTM inside a module run in every mode, and torch's features that are built on hooks work."""

import warnings

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMModule, LSTMNet, State
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close


def rows(recurrent):
    shape = (2, 5) if recurrent else (2,)
    x = torch.linspace(-1, 1, 3 * torch.Size(shape).numel()).reshape(*shape, 3)
    td = TensorDict({"x": x, "is_init": torch.zeros(*shape, 1, dtype=torch.bool)}, shape)
    td["recurrent_state_h"] = td["recurrent_state_c"] = torch.full((*shape, 1, 4), 0.5)  # so that each weight is read
    return td


def module_in(recurrent, backend):
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=backend, default_recurrent_mode=recurrent)
    return module.lstm, lambda: module(rows(recurrent))["y"]


def output_alone(backend):
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=backend, default_recurrent_mode=True)
    module.select_out_keys("y")
    return module.lstm, lambda: module(rows(True))["y"]


def all_states(backend):
    keys = {"in_key": "x", "out_key": "y", "hidden_output": "all"}
    module = LSTMModule(3, 4, lstm_backend="vmap", default_recurrent_mode=True, **keys)
    return module.lstm, lambda: module(rows(True))["y"]


def net_in(recurrent, backend):
    net = LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3}, lstm_backend=backend)
    td = rows(recurrent)
    return net.lstm, lambda: net(td["x"], td["recurrent_state_h"], td["recurrent_state_c"])[0]


def step_of(backend):
    lstm = LSTM(3, 4, lstm_backend=backend)
    state = State(torch.full((1, 2, 4), 0.5), torch.full((1, 2, 4), 0.5))
    return lstm, lambda: lstm.step(rows(False)["x"], state)[0]


WAYS = {
    "a module in recurrent mode": lambda backend: module_in(True, backend),
    "a module in sequential mode": lambda backend: module_in(False, backend),
    "a module's output alone": output_alone,
    "the states after every step": all_states,
    "a net over time": lambda backend: net_in(True, backend),
    "a net over one step": lambda backend: net_in(False, backend),
    "a step": step_of,
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def called(request, eager_backend):
    """An LSTM inside a module, and a function that calls the module."""
    return request.param(eager_backend)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the input requires no gradient
def test_hooks_before_after_and_backward_run_once_a_call(called):
    lstm, call = called
    seen = []
    lstm.register_forward_pre_hook(lambda *a: seen.append("pre"))
    lstm.register_forward_hook(lambda *a: seen.append("forward"))
    lstm.register_full_backward_pre_hook(lambda *a: seen.append("backward pre"))
    lstm.register_full_backward_hook(lambda *a: seen.append("backward"))
    call().sum().backward()
    assert sorted(seen) == ["backward", "backward pre", "forward", "pre"]


def test_a_hook_sees_input_state_mask_and_form_and_a_pair(called):
    lstm, call = called
    seen = []
    lstm.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True)
    call()
    ((x, _hx), kwargs, (output, _)) = seen[0]
    assert x.shape[-1] == 3
    assert output.shape[:-1] == x.shape[:-1]
    assert kwargs["form"] in ("step", "sequences", "all_states", "output")


def test_what_a_hook_returns_is_used(called):
    lstm, call = called
    before = call()
    lstm.register_forward_hook(lambda m, args, out: (out[0] * 0, tuple(v * 0 for v in out[1]) if out[1] else None))
    assert before.any()
    after = call()
    assert not torch.equal(after, before)


def test_a_pre_hook_may_replace_the_arguments(called):
    lstm, call = called
    before = call()
    lstm.register_forward_pre_hook(lambda m, args: (args[0] + 1, args[1] and tuple(args[1])))
    assert not torch.equal(call(), before)


def old_spectral_norm(lstm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(lstm, "weight_hh_l0")
    return "weight_hh_l0_orig"


def old_weight_norm(lstm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(lstm, "weight_hh_l0")
    return "weight_hh_l0_v"


def pruned(lstm):
    prune.l1_unstructured(lstm, "weight_ih_l0", amount=0.5)
    return "weight_ih_l0_orig"


def new_weight_norm(lstm):
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    return "parametrizations.weight_hh_l0.original1"


def new_spectral_norm(lstm):
    nn.utils.parametrizations.spectral_norm(lstm, "weight_ih_l0")
    return "parametrizations.weight_ih_l0.original"


@pytest.mark.parametrize("change", [old_spectral_norm, old_weight_norm, pruned, new_weight_norm, new_spectral_norm])
def test_weights_that_are_computed_train(called, change):
    lstm, call = called
    name = change(lstm)
    trained = dict(lstm.named_parameters())[name]
    optimizer = torch.optim.SGD([trained], lr=1.0)
    outputs = []
    for _ in range(2):
        optimizer.zero_grad()
        y = call()
        (1 + y).pow(2).sum().backward()
        optimizer.step()
        outputs.append(y.detach())
    assert trained.grad.any()
    assert not torch.equal(*outputs)


def test_checkpointing_the_lstm_inside_gives_the_same_gradients(called):
    lstm, call = called
    call().sum().backward()
    expected = lstm.weight_ih_l0.grad.clone()
    lstm.zero_grad()
    plain = lstm.forward

    def recomputed(*args, **kwargs):
        return torch.utils.checkpoint.checkpoint(plain, *args, use_reentrant=False, **kwargs)

    lstm.forward = recomputed
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):  # an exception cannot leave TorchScript
        call().sum().backward()
    assert_close(lstm.weight_ih_l0.grad, expected)


class Scaled(nn.Module):
    """A tool's wrapper around an LSTM, which passes on arguments and, with ``attributes``, the LSTM's attributes."""

    def __init__(self, lstm, attributes):
        super().__init__()
        self.inner, self.attributes = lstm, attributes

    def forward(self, *args, **kwargs):
        output, state = self.inner(*args, **kwargs)
        return 2 * output, state

    def __getattr__(self, name):
        if name != "inner" and self.attributes:
            return getattr(self.inner, name)
        return super().__getattr__(name)


def inside(recurrent, kind):
    """A module or a net with its LSTM, and a call of it."""
    if kind is LSTMNet:
        net, td = LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3}), rows(recurrent)
        return net, lambda: net(td["x"], td["recurrent_state_h"], td["recurrent_state_c"])[3]
    module = LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=recurrent)
    return module, lambda: module(rows(recurrent))["y"]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("kind", [LSTMModule, LSTMNet])
@pytest.mark.parametrize("put", [lambda m: m.to_torch(), lambda m: Scaled(m, False), lambda m: nn.GRU(3, 4)])
def test_another_module_in_place_of_the_lstm_is_an_error_that_names_it(recurrent, kind, put):
    module, call = inside(recurrent, kind)
    module.lstm = put(module.lstm)
    with pytest.raises(InputError, match=rf"is now a {type(module.lstm).__name__}, and must be an rnn_backends.LSTM: "):
        call()


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_wrapper_with_the_attributes_of_the_lstm_runs_and_a_copy_never_leaves_it_out(recurrent):
    module, call = inside(recurrent, LSTMModule)
    before = call()
    module.lstm = Scaled(module.lstm, True)
    assert_close(call(), 2 * before)
    assert module.set_recurrent_mode(not recurrent).lstm is module.lstm
    with pytest.raises(InputError, match="would leave out the Scaled around the LSTM"):
        module.with_backend("vmap")
