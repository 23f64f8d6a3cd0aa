"""``torch.export`` with free sizes: one program for every batch size and number of steps, the smallest ones too."""

import sys

import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, UnsupportedError, get_backend
from rnn_backends_plugins import _torch
from torch import nn
from torch.export import Dim
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

SIZES = [(B, T) for B in (1, 2, 3) for T in (1, 2, 3, 7)]
FORMS = {"two layers": {"num_layers": 2}, "bidirectional": {"bidirectional": True, "proj_size": 3}}


class Deployed(nn.Module):
    def __init__(self, name, **form):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(3, 8, batch_first=True, lstm_backend=name, **form)

    def forward(self, x, h, c, is_init):
        output, (h, c) = self.lstm(x, (h, c), is_init=is_init)
        return output, h, c

    def inputs(self, B, T):
        K = self.lstm.spec.num_states
        states = torch.randn(K, B, self.lstm.proj_size or 8), torch.randn(K, B, 8)
        return torch.randn(B, T, 3), *states, torch.rand(B, T) < 0.4


class WithoutResets(Deployed):
    def forward(self, x, h, c, is_init):
        output, (h, c) = self.lstm(x, (h, c))
        return output, h, c


def exported(module, hint=Dim.DYNAMIC):
    shapes = {0: hint, 1: hint}, {1: hint}, {1: hint}, {0: hint, 1: hint}
    return torch.export.export(module.eval(), module.inputs(2, 6), dynamic_shapes=shapes)


@torch.no_grad()
def check_every_size(program, module, sizes=SIZES):
    for B, T in sizes:
        given = module.inputs(B, T)
        assert_close(program(*given), module(*given))


@pytest.fixture(params=["cpp", "vmap"])
def name(request):
    """A backend with an operator as its layer, and the one with a loop in torch's operators."""
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize(("kind", "form"), [(Deployed, "bidirectional"), (WithoutResets, "two layers")])
def test_one_saved_program_serves_every_size(name, kind, form, tmp_path):
    module = kind(name, **FORMS[form])
    torch.export.save(exported(module), tmp_path / "m.pt2")
    check_every_size(torch.export.load(tmp_path / "m.pt2").module(), module)


def test_the_hint_auto_leaves_both_sizes_free():
    module = Deployed("vmap")
    check_every_size(exported(module, Dim.AUTO).module(), module, SIZES[::5])


def test_an_exported_program_of_any_size_has_gradients_or_an_error():
    module = Deployed("vmap", num_layers=2)
    program, given = exported(module).module(), module.inputs(3, 5)
    if not _torch.SCAN_HAS_GRADIENTS:
        with pytest.raises(NotImplementedError, match="nextafter"):
            program(*given)[0].sum().backward()
        return
    found, expected = (
        torch.autograd.grad(call(*given)[0].square().sum(), list(call.parameters())) for call in (program, module)
    )
    assert_close(found, expected)


class Of(nn.Module):
    """``find(lstm, x)``, with the LSTM as a part of the module."""

    def __init__(self, lstm, find):
        super().__init__()
        self.lstm, self.find = lstm, find

    def forward(self, x):
        return self.find(lambda x: self.lstm(x)[0], x)


drafts = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""``torch.export.draft_export`` leaves its log file open."""

TRANSFORMS = {
    "grad": lambda call, x: grad(lambda x: call(x).sum())(x),
    "jvp": lambda call, x: jvp(call, (x,), (x,))[1],
    "vmap of grad": lambda call, x: vmap(grad(lambda x: call(x).sum()))(x.expand(2, *x.shape)),
}


@drafts
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("backend", ["compile", "cpp", "cudnn", "torchscript", "vmap"])
@pytest.mark.parametrize("export", [torch.export.export, torch.export.draft_export])
def test_a_derivative_within_an_export_is_declined_with_every_backend(backend, transform, export):
    """torch's own errors are about views and constants; a program of ``jvp`` would even give fake tensors."""
    lstm = LSTM(3, 4, lstm_backend=backend)
    reason = r"within torch\.export|forward-mode AD" if transform == "jvp" else r"within torch\.export|torch\.vmap"
    with pytest.raises(UnsupportedError, match=reason):
        export(Of(lstm, TRANSFORMS[transform]), (torch.randn(5, 2, 3),))


def test_vmap_within_an_export_is_declined_by_a_backend_without_a_rule():
    with pytest.raises(UnsupportedError, match="its kernel has no batching rule"):
        torch.export.export(
            Of(LSTM(3, 4, lstm_backend="cudnn"), lambda call, x: vmap(call)(x)), (torch.randn(3, 5, 2, 3),)
        )


@drafts
@pytest.mark.parametrize("form", [{}, {"proj_size": 2}, {"bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_a_draft_has_an_operator_without_bias_or_projection(name, form):
    """torch's check of what an operator changes takes an argument ``None`` for a changed one."""
    lstm = LSTM(3, 4, lstm_backend=name, **form)
    x, is_init = torch.randn(5, 2, 3), torch.rand(5, 2) < 0.4
    program = torch.export.draft_export(lstm, (x,), {"is_init": is_init}).module()
    assert_close(program(-x, is_init=~is_init), lstm(-x, is_init=~is_init))


def test_where_torchs_loop_has_wrong_gradients_its_results_are_the_same_without_a_derivative(monkeypatch):
    monkeypatch.setattr(_torch, "SCAN_HAS_GRADIENTS", False)
    module = Deployed("vmap")
    program = exported(module)
    operators = [str(node.target) for node in program.graph.nodes]
    assert operators.count("aten.nextafter.default") == 2
    check_every_size(program.module(), module, SIZES[::5])


def test_a_fixed_number_of_steps_is_a_program_of_torchs_plain_operators():
    module = Deployed("vmap")
    program = torch.export.export(module.eval(), module.inputs(2, 6))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in function getitem>")) for target in targets), targets


def test_without_torchs_loop_a_free_number_of_steps_is_an_error_that_names_the_size(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops", None)
    with pytest.raises(torch._dynamo.exc.UserError, match=r"marked.*dynamic but your code specialized.*constant \(6\)"):
        exported(Deployed("vmap"))
