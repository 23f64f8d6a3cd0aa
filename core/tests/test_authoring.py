"""``rnn_backends.authoring``: everything that a backend's author needs besides the contract, used from outside."""

import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint
import torch.utils.flop_counter
from rnn_backends import LSTM, LSTMBackend, State, UnsupportedError, _torch, authoring
from rnn_backends.authoring import refuse_double_backward
from torch import Tensor
from torch.testing import assert_close


class Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return refuse_double_backward("mine", (grad * y, grad * x if ctx.needs_input_grad[1] else None), (x, y))


@pytest.fixture
def pair():
    return torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)


def test_every_name_of_the_door_is_there():
    assert sorted(authoring.__all__) == authoring.__all__
    assert all(hasattr(authoring, name) for name in authoring.__all__)


def test_first_gradients_pass_unchanged(pair):
    x, y = pair
    assert_close(torch.autograd.grad(Product.apply(x, y).sum(), (x, y)), (y, x))
    assert_close(torch.func.grad(lambda v: Product.apply(v, y).sum())(x), y)
    assert_close(torch.vmap(torch.func.grad(lambda v, w: Product.apply(v, w)))(x, y), y)


@pytest.mark.parametrize("loss", [lambda out: out.sum(), lambda out: out.square().sum()], ids=["linear", "square"])
def test_a_gradient_of_a_gradient_is_refused_by_the_backends_name(pair, loss):
    x, y = pair
    (grad,) = torch.autograd.grad(loss(Product.apply(x, y)), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="'mine' does not support a gradient of a gradient"):
        grad.square().sum().backward()


def test_a_second_gradient_with_torch_func_is_refused_too(pair):
    x, y = pair
    with pytest.raises(UnsupportedError, match="gradient of a gradient"):
        torch.func.grad(lambda v: torch.func.grad(lambda w: Product.apply(w, y).sum())(v).sum())(x)


def forward(given: authoring.Arguments, keep: bool):
    weights = (given.w_ih, given.w_hh, given.bias, None, given.w_hr)
    h, c = authoring.unroll(type_of(weights), given.x, State(given.entry_h, given.entry_c), given.starts)
    T, B, H, _ = given.sizes
    return h, c, given.x.new_zeros(T, B, H) if keep else given.x.new_empty(0)


def type_of(values):
    from rnn_backends import LayerWeights

    return LayerWeights(*values)


def backward(given: authoring.Arguments, run: authoring.Run, needs: authoring.Needs):
    values = [None if v is None else v.detach().requires_grad_(v.is_floating_point()) for v in given]
    with torch.enable_grad():
        h, c, _ = forward(authoring.Arguments(*values), False)
        loss = sum((out * grad).sum() for out, grad in ((h, run.grad_h), (c, run.grad_c)) if grad is not None)
        wanted = [v for v, need in zip(values, needs, strict=False) if need and v is not None]
        found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    return [next(found) if need and v is not None else None for v, need in zip(values, needs, strict=False)]


def test_a_third_partys_layer_is_made_with_the_same_function_as_the_built_in_ones():
    layer = authoring.make_layer("test_authoring", forward, backward, lambda H, dtype: (H,), ("cpu",))
    lstm = LSTM(3, 4, bias=False, dtype=torch.float64, lstm_backend=LSTMBackend("test_authoring", layer))
    x, is_init = torch.randn(5, 2, 3, dtype=torch.float64), torch.rand(5, 2) < 0.4
    expected = lstm.with_backend("vmap")
    found, wanted = (
        torch.autograd.grad(one(x, is_init=is_init)[0].square().sum(), list(lstm.parameters()))
        for one in (lstm, expected)
    )
    assert_close(lstm(x, is_init=is_init), expected(x, is_init=is_init))
    assert_close(found, wanted)
    with pytest.raises(UnsupportedError):
        LSTM(3, 4, lstm_backend=LSTMBackend("elsewhere", layer, lambda *_: "gpu only"))


def told(name):
    """An LSTM whose backward pass writes down whether it is the last."""
    seen = []

    def noted(given, run, needs):
        seen.append(run.last)
        return [torch.zeros_like(v) if need and v is not None else None for v, need in zip(given, needs, strict=False)]

    layer = authoring.make_layer(name, forward, noted, lambda H, dtype: (H,), ("cpu",))
    return LSTM(3, 4, bias=False, lstm_backend=LSTMBackend(name, layer)), seen


def test_a_backward_pass_is_the_last_where_the_graph_is_not_kept_and_nobody_else_has_the_gates():
    lstm, seen = told("test_last")
    x, weights = torch.randn(5, 2, 3), list(lstm.parameters())

    def last(call=lambda: lstm(x)[0], **options):
        before = len(seen)
        output = call().sum()
        if options:
            torch.autograd.grad(output, weights, **options)
        else:
            output.backward()
        return seen[before:]

    assert last() == [True]
    assert last(retain_graph=True) == [False]
    assert last(create_graph=True) == [False]
    again = lstm(x)[0].sum()
    for retain_graph in (True, False):
        torch.autograd.grad(again, weights, retain_graph=retain_graph)
    assert seen[-2:] == [False, True]
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value):
        assert last() == [False]
    checkpointed = torch.utils.checkpoint.checkpoint
    assert last(lambda: checkpointed(lambda v: lstm(v)[0], x, use_reentrant=False)) == [False]
    before = len(seen)
    torch.func.grad(lambda v: lstm(v)[0].sum())(x)
    with torch.utils.flop_counter.FlopCounterMode(display=False):  # through the operators, which change no argument
        last()
    assert seen[before:] == [False, False]


@pytest.mark.parametrize("name", ["_keeps_graph", "_default_hooks"])
def test_no_backward_pass_is_known_to_be_the_last_without_the_private_name(monkeypatch, name):
    monkeypatch.setattr(_torch, name, _torch._unknown)
    lstm, seen = told("test_unknown")
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert seen == [False]


def test_an_exported_graph_loads_where_core_alone_is_imported(tmp_path):
    lstm, x = LSTM(3, 4, lstm_backend="cpp"), torch.randn(5, 2, 3)
    with torch.no_grad():
        torch.export.save(torch.export.export(lstm, (x,), strict=False), tmp_path / "lstm.pt2")
        torch.save((x, lstm(x)[0]), tmp_path / "expected.pt")
    program = (
        "import sys, torch, rnn_backends; folder = sys.argv[1]\n"
        "x, expected = torch.load(folder + '/expected.pt')\n"
        "torch.testing.assert_close(torch.export.load(folder + '/lstm.pt2').module()(x)[0], expected)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
