"""The ``torchscript`` backend: scripted, saved, and right in a process without this project."""

import subprocess
import sys

import pytest
import torch
from rnn_backends import LSTM
from rnn_backends_plugins import torchscript

DEPRECATION = (DeprecationWarning, FutureWarning)  # until torch 2.13, since 2.14
SIZES = [(7, 3, 0.3), (1, 1, 0.0), (12, 2, 1.0), (5, 4, None)]  # T, B, rate of resets

RUN_ELSEWHERE = """
import sys, warnings
import torch
warnings.simplefilter("ignore", DeprecationWarning)
model = torch.jit.load(sys.argv[1])
cases = torch.load(sys.argv[2])
assert not [name for name in sys.modules if name.startswith("rnn_backends")], "the project was imported"
found = []
for input, hx, is_init in cases:
    model.zero_grad()
    output, (h, c) = model(input, hx, is_init)
    (output.sum() + c.sum()).backward()
    found.append((output.detach(), h.detach(), c.detach(), [p.grad.clone() for p in model.parameters()]))
torch.save(found, sys.argv[3])
"""


def scripted(lstm: LSTM) -> torch.jit.ScriptModule:
    with pytest.warns(DEPRECATION, match=r"torch\.jit\.script"):
        return torch.jit.script(lstm)


def cases(lstm: LSTM) -> list[tuple]:
    torch.manual_seed(1)
    spec, found = lstm.spec, []
    for T, B, rate in SIZES:
        lead = (B, T) if lstm.batch_first else (T, B)
        sizes = (spec.output_size, spec.hidden_size)
        hx = tuple(torch.randn(spec.num_states, B, n, dtype=torch.float64) for n in sizes)
        is_init = None if rate is None else torch.rand(lead) < rate
        found.append((torch.randn(*lead, spec.input_size, dtype=torch.float64), hx, is_init))
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"proj_size": 2, "bias": False}, {"num_layers": 2, "bidirectional": True, "batch_first": True}],
    ids=str,
)
def test_saved_and_loaded_where_the_project_is_not(options, tmp_path):
    torch.manual_seed(0)
    lstm = LSTM(3, 5, dtype=torch.float64, lstm_backend="torchscript", **options)
    given, model, results = cases(lstm), tmp_path / "model.pt", tmp_path / "results.pt"
    with pytest.warns(DEPRECATION, match=r"torch\.jit\.save"):
        torch.jit.save(scripted(lstm), model)
    torch.save(given, tmp_path / "cases.pt")
    subprocess.run([sys.executable, "-c", RUN_ELSEWHERE, model, tmp_path / "cases.pt", results], check=True)
    reference = lstm.with_backend("vmap")
    for (input, hx, is_init), (output, h, c, grads) in zip(given, torch.load(results), strict=True):
        want, ends = reference(input, hx, is_init=is_init)
        torch.testing.assert_close((output, (h, c)), (want, ends))
        total = want.sum() + ends[1].sum()
        wanted = torch.autograd.grad(total, [w for layer in lstm.layer_weights() for w in layer if w is not None])
        torch.testing.assert_close(grads, list(wanted))


def test_a_scripted_module_shares_the_parameters():
    lstm = LSTM(3, 5, lstm_backend="torchscript")
    model, x = scripted(lstm), torch.randn(4, 2, 3)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    torch.testing.assert_close(model(x)[0], lstm(x)[0])


def test_the_layer_is_one_scripted_function_for_every_size(monkeypatch):
    assert isinstance(torchscript.scripted, torch.jit.ScriptFunction)
    called = []
    monkeypatch.setattr(torchscript, "scripted", lambda *args, run=torchscript.scripted: called.append(1) or run(*args))
    lstm = LSTM(3, 5, dtype=torch.float64, lstm_backend="torchscript")
    for input, hx, is_init in cases(lstm):
        called.clear()
        got, want = (module(input, hx, is_init=is_init) for module in (lstm, lstm.with_backend("vmap")))
        assert called == [1]
        torch.testing.assert_close(got, want)


def test_losses_may_leave_gates_without_gradient():
    """TorchScript's derivative of ``chunk`` failed from the second call on if a loss reads only ``c``."""
    lstm = LSTM(3, 4, lstm_backend="torchscript", dtype=torch.float64)
    plain = lstm.with_backend("vmap")
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for read in (lambda y, h, c: y, lambda y, h, c: c, lambda y, h, c: h) * 2:
        losses = [read(y, h, c).pow(2).sum() for y, (h, c) in (lstm(x), plain(x))]
        got, expected = (torch.autograd.grad(loss, list(lstm.parameters())) for loss in losses)
        torch.testing.assert_close(got, expected)


def test_the_import_warns_of_no_deprecation():
    """``auto`` and the command's list import every plugin."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import rnn_backends_plugins.torchscript"], check=False)
    assert done.returncode == 0
