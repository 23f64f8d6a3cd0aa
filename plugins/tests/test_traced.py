"""Traced, exported, functionalized: the graph follows its inputs, or tracing is refused with a reason."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch.utils.checkpoint
from rnn_backends import LSTM, LSTMSpec, UnsupportedError, get_backend
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(params=["cpp", "compile", "cudnn", "vmap", "torchscript"])
def name(request):
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return request.param


class Resets(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(3, 4, batch_first=True, lstm_backend=name)

    def forward(self, x, is_init):
        return self.lstm(x, is_init=is_init)[0]


class Dense(Resets):
    def forward(self, x, is_init):
        return self.lstm(x)[0]


class Acting(Resets):
    def forward(self, x, is_init):
        return self.lstm.step(x[:, 0], None, is_init[:, 0])[0]


def scripted(module, *example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.TracerWarning: each check of a shape
        return torch.jit.trace(module, example, check_trace=False)


def exported(module, *example):
    return torch.export.export(module, example, strict=False).module()


def functionalized(module, *example):
    return torch.func.functionalize(module)


def recorded(module, *example):
    return make_fx(module)(*example)


def recorded_before_dispatch(module, *example):
    """torch's fused functions are one operator in this graph, and no dispatch mode is on while it is made."""
    return make_fx(module, pre_dispatch=True)(*example)


TRACERS = [scripted, recorded, recorded_before_dispatch, exported, functionalized]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", [Resets, Dense, Acting])
@pytest.mark.parametrize("trace", TRACERS, ids=lambda trace: trace.__name__)
def test_what_is_traced_follows_its_inputs(name, trace, kind, gradients):
    module = kind(name).requires_grad_(gradients)
    x, is_init = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    others, resets = torch.randn(2, 5, 3), torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 1]]).bool()
    try:
        traced = trace(module, x, is_init)
        found = traced(others, resets)
    except UnsupportedError as error:
        refused = kind is Resets or trace is recorded
        if name == "cudnn" and kind is not Acting and refused and error.reason:
            return
        raise
    assert_close(found, module(others, resets))
    try:
        longer = traced(torch.cat([others, x], 1), torch.cat([resets, is_init], 1))
    except (RuntimeError, AssertionError):  # a graph of fixed length raises
        return
    assert_close(longer, module(torch.cat([others, x], 1), torch.cat([resets, is_init], 1)))


@pytest.mark.parametrize("kind", [Resets, Dense, Acting])
def test_jit_trace_checks_the_graph_of_trainable_parameters(name, kind):
    """``check_trace=True``, the default: torch records a second graph, without gradients, which must be the same."""
    module, x, is_init = kind(name), torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.TracerWarning
        if name == "cudnn" and kind is Resets:
            with pytest.raises(UnsupportedError, match="a trace would keep those of the example"):
                torch.jit.trace(module, (x, is_init))
            return
        traced = torch.jit.trace(module, (x, is_init))
    found, expected = (run(2 * x, is_init) for run in (traced, module))
    assert_close(found, expected)
    gradients = (torch.autograd.grad(v.square().sum(), list(module.parameters())) for v in (found, expected))
    assert_close(*gradients)


def test_make_fx_before_any_other_call(name):
    """A kernel that compiles at its first call compiles while ``make_fx`` records its caller."""
    if name == "compile":
        from rnn_backends_plugins.compile import compiler

        compiler._compiled.cache_clear()
    module, x, is_init = Resets(name).double(), torch.randn(2, 5, 3).double(), torch.zeros(2, 5, dtype=torch.bool)
    if name == "cudnn":
        with pytest.raises(UnsupportedError):
            make_fx(module)(x, is_init)
        return
    assert_close(make_fx(module)(x, is_init)(2 * x, is_init), module(2 * x, is_init))


@pytest.mark.parametrize("inside", [False, True])
def test_a_gradient_and_functionalize_in_one_another(name, inside):
    module, x, is_init = Dense(name), torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)

    def loss(v):
        return module(v, is_init).square().sum()

    grad, functionalize = torch.func.grad, torch.func.functionalize
    run = functionalize(grad(loss)) if inside else grad(functionalize(loss))
    if name in ("cpp", "compile"):
        with pytest.raises(UnsupportedError, match="functionalize together with a gradient"):
            run(x)
        return
    assert_close(run(x), grad(loss)(x))


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
def test_one_graph_for_all_sizes(name):
    module, auto = Resets(name), torch.export.Dim.AUTO
    sizes = ({0: auto, 1: auto},) * 2
    example = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    program = torch.export.export(module, example, dynamic_shapes=sizes, strict=False)
    x, is_init = torch.randn(3, 9, 3), torch.rand(3, 9) < 0.4
    assert_close(program.module()(x, is_init), module(x, is_init))
    assert_close(scripted(module, *example)(x, is_init), module(x, is_init))


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
def test_an_exported_file_loads_where_rnn_backends_is_imported_and_no_backend(name, tmp_path):
    module, x, is_init = Resets(name), torch.randn(2, 5, 3), torch.rand(2, 5) < 0.4
    torch.export.save(torch.export.export(module, (x, is_init), strict=False), tmp_path / "m.pt2")
    torch.save((x, is_init, module(x, is_init).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, rnn_backends\n"
        "program = torch.export.load(sys.argv[1] + '/m.pt2')\n"
        "assert not any(name.startswith('rnn_backends_plugins') for name in sys.modules)\n"
        "x, is_init, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "torch.testing.assert_close(program.module()(x, is_init), expected)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
def test_a_graph_traced_without_gradients_says_so_when_one_is_asked_for(name):
    x, is_init = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    with torch.no_grad():
        traced = scripted(Resets(name).requires_grad_(False), x, is_init)
    out = traced(x.requires_grad_(), is_init)
    with pytest.raises(RuntimeError, match="the forward pass saved nothing for it"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_traced_graph_keeps_gates_where_parameters_require_gradients_alone(name, gradients):
    """Also under ``no_grad``, where torch records the graph with which it compares the first one."""
    module = Resets(name).requires_grad_(gradients)
    with torch.no_grad():
        graph = scripted(module, torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)).inlined_graph
    (layer,) = (node for node in graph.nodes() if node.kind() == "rnn_backends::layer")
    assert list(layer.inputs())[-1].toIValue() is gradients


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_flops_are_counted_like_those_of_torchs_own_products(name, proj_size):
    def counted(backend, gradients):
        lstm = LSTM(3, 4, num_layers=2, proj_size=proj_size, lstm_backend=backend)
        x, state = torch.randn(5, 2, 3, requires_grad=True), torch.zeros(2, 2, proj_size or 4, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            output = lstm(x, (state, torch.zeros(2, 2, 4)), is_init=torch.zeros(5, 2, dtype=torch.bool))[0]
            if gradients:
                output.sum().backward()
        return counter.get_total_flops()

    assert counted(name, False) == counted("vmap", False) > 0
    assert counted(name, True) == counted("vmap", True)


def test_checkpointing_gives_the_same_gradients(name):
    module, x = Resets(name), torch.randn(2, 5, 3, requires_grad=True)
    is_init = torch.rand(2, 5) < 0.4
    run = torch.utils.checkpoint.checkpoint
    found = torch.autograd.grad(run(module, x, is_init, use_reentrant=False).square().sum(), [x, *module.parameters()])
    assert_close(found, torch.autograd.grad(module(x, is_init).square().sum(), [x, *module.parameters()]))


def test_torch_fx_is_told_to_make_it_a_leaf(name):
    with pytest.raises(RuntimeError, match="is_leaf_module"):
        torch.fx.symbolic_trace(Resets(name))


@pytest.mark.parametrize("kind", [Resets, Dense])
def test_a_graph_of_symbolic_sizes_is_right_over_other_lengths_or_refused(name, kind):
    module = kind(name).requires_grad_(False)
    x, is_init = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    try:
        traced = make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, is_init)
    except UnsupportedError as error:
        expected = {"cudnn": "resets' positions", "vmap": "loop over time", "torchscript": "loop over time"}[name]
        assert expected in error.reason  # noqa: PT017 - cudnn refuses resets alone
        return
    for steps in (5, 8, 1):
        others, resets = torch.randn(2, steps, 3), torch.rand(2, steps) < 0.5
        assert_close(traced(others, resets), module(others, resets))


def test_a_step_is_recorded_with_symbolic_sizes(name):
    module = Acting(name).requires_grad_(False)
    x, is_init = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    traced = make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, is_init)
    assert_close(traced(-x, ~is_init), module(-x, ~is_init))
