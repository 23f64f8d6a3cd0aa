"""The ``compile`` backend alone: one compilation for all sizes, and the reason if it cannot compile. test_operators.py
tests its results.
"""

import shutil
from unittest import mock

import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, UnsupportedError
from rnn_backends_plugins import compile as plugin
from rnn_backends_plugins.compile import compiler, steps

reason = plugin.rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float64)
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def test_no_compilation_for_other_sizes(case, run, no_new_code):
    for T, B, H in [(16, 4, 5), (33, 1, 5), (512, 2, 3), (1, 64, 64), (5, 8, 8), (3, 0, 5)]:
        run("compile", case(T=T, B=B, H=H))
        run("compile", case(T=T, B=B, H=H, P=1))


def test_the_generated_code_is_called_directly():
    both = steps.forward_step, steps.backward_step
    found = [compiler.compiled(step, torch.device("cpu"), torch.float64) for step in both]
    assert all(f.__qualname__.startswith("_direct") for f in found), "this torch returns its code in another form"


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("mps", torch.float32, "not for mps"), ("cpu", torch.complex64, "computes in float64")],
)
def test_rejects(device, dtype, words):
    assert words in plugin.rejects(LSTMSpec(3, 5), torch.device(device), dtype)


def test_without_a_compiler_it_says_so():
    says = pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler.*Backends that can: .*vmap")
    with mock.patch.object(shutil, "which", return_value=None), says:
        LSTM(3, 5, lstm_backend="compile")


@pytest.mark.parametrize("switch", plugin.SWITCHES)
def test_it_declines_where_torch_compile_is_switched_off(monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    with pytest.raises(UnsupportedError, match=f"{switch}=1 switches"):
        LSTM(3, 4, lstm_backend="compile")


@pytest.mark.parametrize(
    ("by", "off"),
    [
        ("torch.compiler.set_stance", lambda: torch.compiler.set_stance("force_eager")),
        ("torch._dynamo.config.disable", lambda: torch._dynamo.config.patch(disable=True)),
    ],
)
def test_it_does_not_compute_uncompiled_in_silence_and_compiles_once_it_may(by, off):
    """Switched off while the process runs, which `rejects` cannot know."""
    lstm = LSTM(3, 4, lstm_backend="compile")
    compiler._compiled.cache_clear()
    with off(), pytest.raises(UnsupportedError, match=f"switched off here \\({by}\\)"):
        lstm(torch.randn(2, 1, 3))
    assert lstm(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
