"""torch's transforms: functional_call, vmap over weights and data, per-sample gradients, jvp, compile, export."""

import itertools

import pytest
import torch
from rnn_backends import LSTM, LSTMModule, LSTMNet, Trait, UnsupportedError, get_backend
from tensordict import TensorDict
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.testing import assert_close


def make(backend="vmap", *args, **kwargs):
    return LSTM(*(args or (3, 4, 2)), dtype=torch.float64, lstm_backend=backend, **kwargs)


def data(*batch):
    """``x [*batch, T, B, I]`` and ``is_init [*batch, T, B]``."""
    return torch.randn(*batch, 5, 2, 3, dtype=torch.float64), torch.rand(*batch, 5, 2) < 0.4


def call(lstm, weights, x, is_init=None):
    return functional_call(lstm, weights, (x,), {"is_init": is_init})[0]


def test_functional_call_uses_the_given_parameters(eager_backend):
    lstm, other = make(eager_backend), make(eager_backend)
    x, is_init = data()
    before = lstm(x)[0]
    assert_close(call(lstm, dict(other.named_parameters()), x, is_init), other(x, is_init=is_init)[0])
    assert torch.equal(lstm(x)[0], before)


def test_an_ensemble_is_vmapped_over_its_weights():
    members = [make() for _ in range(3)]
    weights, _ = stack_module_state(members)
    x, is_init = data()
    together = vmap(lambda w: call(members[0], w, x, is_init))(weights)
    assert_close(together, torch.stack([m(x, is_init=is_init)[0] for m in members]))


def test_vmap_over_data_with_resets_and_over_both():
    members = [make() for _ in range(3)]
    weights, _ = stack_module_state(members)
    x, is_init = data(3)
    apart = [[m(x[k], is_init=is_init[k])[0] for k in range(3)] for m in members]
    over_data = vmap(lambda v, i: members[0](v, is_init=i)[0])(x, is_init)
    assert_close(over_data, torch.stack(apart[0]))
    over_both = vmap(lambda w, v, i: call(members[0], w, v, i))(weights, x, is_init)
    assert_close(over_both, torch.stack([apart[k][k] for k in range(3)]))


def test_per_sample_gradients():
    lstm = make()
    weights = dict(lstm.named_parameters())
    x, is_init = data()

    def loss(w, row, reset):
        return call(lstm, w, row, reset).square().sum()

    each = vmap(grad(loss), in_dims=(None, 1, 1))(weights, x, is_init)
    for b in range(2):
        lstm.zero_grad()
        loss(weights, x[:, b], is_init[:, b]).backward()
        for name, parameter in lstm.named_parameters():
            assert_close(each[name][b], parameter.grad)


def test_gradients_of_gradients_and_forward_mode():
    lstm, (x, is_init) = make("vmap", 3, 2), data()
    x = x[:3].requires_grad_()

    def run(value):
        return lstm(value, is_init=is_init[:3])[0].sum()

    assert torch.autograd.gradcheck(run, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, x)
    tangent = torch.randn_like(x)
    _, along = jvp(run, (x,), (tangent,))
    assert_close(along, (torch.autograd.grad(run(x), x)[0] * tangent).sum())


def test_a_backend_without_the_trait_declines_vmap_and_names_one_that_has_it():
    x, _ = data()
    for name in ("cudnn", "torchscript"):
        if Trait.VMAP in get_backend(name).traits:
            continue
        lstm = make(name)
        weights, _ = stack_module_state([lstm, lstm])
        with pytest.raises(UnsupportedError, match=rf"'{name}' does not support torch.vmap.*Backends that can: .*vmap"):
            vmap(lambda w, lstm=lstm: call(lstm, w, x))(weights)


@pytest.mark.parametrize("recurrent", [True, False])
def test_module_over_stacked_parameters(rows, recurrent):
    """An ensemble as in TorchRL's losses: stacked parameters in a TensorDict, vmapped over ``to_module``."""
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent, "lstm_backend": "vmap"}
    members = [LSTMModule(3, 4, 2, **options) for _ in range(3)]
    params = TensorDict.from_modules(*members, as_module=True)
    skeleton, td = members[0], rows((2, 5), K=2)
    expected = torch.stack([m(td.clone())["y"] for m in members])

    def run(params, td):
        with params.to_module(skeleton):
            return skeleton(td)["y"]

    together = vmap(run, (0, None))(params, td)
    assert_close(together, expected)
    together.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in params.parameters())
    alone = vmap(lambda params: run(params, td.select("x", "is_init")))(params)
    assert alone.shape == expected.shape


def test_net_over_stacked_parameters():
    sizes = (2, {"input_size": 3, "hidden_size": 4}, {"in_features": 3, "out_features": 3})
    nets = [LSTMNet(*sizes, lstm_backend="torchrl") for _ in range(2)]
    weights, _ = stack_module_state(nets)
    x = torch.randn(5, 7, 3)
    together = vmap(lambda w: functional_call(nets[0], w, (x,))[0])(weights)
    assert_close(together, torch.stack([net(x)[0] for net in nets]))


# Dynamo reads .grad of the tensors at a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_with_eager_graphs_it_computes_the_same(eager_backend):
    lstm, (x, is_init) = make(eager_backend), data()
    fullgraph = Trait.FULLGRAPH in get_backend(eager_backend).traits
    compiled = torch.compile(lstm, backend="eager", fullgraph=fullgraph)
    for reset in (None, is_init):
        assert_close(compiled(x, is_init=reset), lstm(x, is_init=reset))
    assert_close(compiled(x.transpose(0, 1).contiguous()[:, :3]), lstm(x.transpose(0, 1)[:, :3]))


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_compiled_module_computes_the_same_forward_and_backward(rows, recurrent):
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent, "lstm_backend": "vmap"}
    module, td = LSTMModule(3, 4, **options), rows((2, 4))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    gradients = []
    for run in (module, compiled):
        out = run(td.clone())
        (out["y"].sum() + out["next", "recurrent_state_c"].square().sum()).backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
        module.zero_grad()
    assert_close(out["y"], module(td.clone())["y"])
    assert_close(*gradients)


@torch.no_grad()
def test_acting_compiled_by_inductor(rows):
    module, td = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap"), rows((2,))
    assert_close(torch.compile(module, fullgraph=True)(td.clone())["y"], module(td.clone())["y"])


def test_exported_it_computes_the_same():
    lstm, (x, is_init) = make(), data()
    program = torch.export.export(lstm, (x,), {"is_init": is_init})
    other, reset = data()
    assert_close(program.module()(other, is_init=reset), lstm(other, is_init=reset))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", list(itertools.permutations(["cudnn", "vmap", "torchscript"])), ids="-".join)
def test_graphs_of_one_backend_are_not_run_for_another(order):
    """All share one code object, and Dynamo does not guard functions that it must not trace."""
    torch._dynamo.reset()
    lstm, x = LSTM(3, 4, 2), torch.randn(5, 2, 3)
    run = torch.no_grad()(torch.compile(lambda lstm: lstm(x)[0], backend="eager"))
    for name in order:
        torch.testing.assert_close(run(lstm.with_backend(name)), lstm(x)[0])
