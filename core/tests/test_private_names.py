"""Core without a private name of torch, tensordict or TorchRL: it imports, and its answers stay right."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import rnn_backends
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, UnsupportedError, _torch, recurrent_mode
from rnn_backends.transforms import traits_needed
from rnn_backends.unroll import unroll
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.testing import assert_close

NAMES = {
    "_are_functorch_transforms_active",
    "_current_level",
    "_functorch",
    "_C",
    "_parameters",
    "out_keys_source",
}
"""The names that ``_torch.py`` reads; each is removed below."""


def test_this_file_knows_every_private_name_of_the_fence():
    tree = ast.parse(Path(_torch.__file__).read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {"_functorch_is_active"}
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        words |= set((node.module or "").split(".")) if isinstance(node, ast.ImportFrom) else set()
    private = {word for word in words if re.fullmatch("_[^_].*", word) and word.isidentifier()} - own
    assert private | {"out_keys_source"} == NAMES


IMPORT_WITHOUT = """
import sys, importlib, torch, tensordict
from torch.autograd import forward_ad
owner, name = {owner}, {name!r}
value = getattr(owner, name)
delattr(owner, name)
import rnn_backends  # noqa: E402
setattr(owner, name, value)  # torch itself cannot run without it
lstm, x = rnn_backends.LSTM(3, 4, lstm_backend="vmap"), torch.randn(5, 2, 3)
expected = torch.func.functional_call(torch.nn.LSTM(3, 4), dict(lstm.named_parameters()), (x,))
torch.testing.assert_close(lstm(x), expected)
"""


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("torch._C", "_are_functorch_transforms_active"),
        ("torch._C._functorch", "TransformType"),
        ("importlib.import_module('torch._functorch.pyfunctorch')", "retrieve_all_functorch_interpreters"),
        ("forward_ad", "_current_level"),
        ("tensordict.nn.TensorDictModuleBase", "out_keys_source"),
    ],
)
def test_core_imports_and_runs_without_a_private_name(owner, name):
    program = IMPORT_WITHOUT.format(owner=owner, name=name)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without(monkeypatch):
    """``without(name)``: core sees torch without that name."""

    def remove(name):
        if name == "_current_level":
            monkeypatch.setattr(_torch, "forward_ad", SimpleNamespace())
        elif name == "_are_functorch_transforms_active":
            monkeypatch.setattr(_torch, "_functorch_is_active", _torch._unknown)
        else:  # the import inside the function fails
            monkeypatch.setitem(sys.modules, name, None)

    return remove


GONE = ["_current_level", "_are_functorch_transforms_active", "torch._functorch.pyfunctorch", "torch._C._functorch"]


@pytest.mark.parametrize("name", GONE)
def test_transforms_are_refused_and_allowed_as_before_without_the_name(without, name):
    lstm = LSTM(3, 4, lstm_backend=LSTMBackend("plain", unroll))
    x, many = torch.randn(5, 2, 3), torch.randn(2, 5, 2, 3)
    expected = lstm(x)[0].detach()
    without(name)
    assert_close(lstm(x)[0].detach(), expected)
    assert_close(vmap(lambda s: lstm(x)[0].detach() * s)(torch.ones(2)), torch.stack([expected, expected]))
    with torch.no_grad(), forward_ad.dual_level():
        assert_close(lstm(x)[0], expected)
    with pytest.raises(UnsupportedError, match=r"torch\.vmap"):
        vmap(lambda v: lstm(v)[0])(many)
    with pytest.raises(UnsupportedError, match="forward-mode AD"):
        jvp(lambda v: lstm(v)[0], (x,), (x,))


@pytest.mark.parametrize("name", ["torch._functorch.pyfunctorch", "torch._C._functorch"])
def test_where_neither_way_can_tell_both_traits_count_as_needed(without, name, monkeypatch):
    without(name)
    without("_current_level")
    found = []
    torch.func.functionalize(lambda v: found.append(traits_needed([v])) or v)(torch.ones(2))
    assert {trait.value for trait in found[0]} == {"vmap", "forward_ad"}


def test_parameters_are_found_without_the_registry(monkeypatch):
    lstm, x = LSTM(3, 4, 2, bidirectional=True, proj_size=2, lstm_backend="vmap"), torch.randn(5, 2, 3)
    expected = lstm(x)
    monkeypatch.setattr("rnn_backends.lstm.registered_parameters", lambda module: {})
    assert_close(lstm(x), expected)
    assert _torch.registered_parameters(SimpleNamespace()) == {}


def test_selected_outputs_are_written_without_tensordicts_list_of_all(rows, monkeypatch):
    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap")
    td = rows((4,))
    expected = module(td.clone())["next", "recurrent_state_c"]
    monkeypatch.setattr("rnn_backends.module.all_out_keys", lambda module, constructed: constructed)
    module.select_out_keys(("next", "recurrent_state_c"))
    assert_close(module(td.clone())["next", "recurrent_state_c"], expected)
    assert _torch.all_out_keys(SimpleNamespace(), ["y"]) == ["y"]


@pytest.mark.parametrize("modules", [None, SimpleNamespace()])
def test_without_torchrls_mode_there_is_none(monkeypatch, modules):
    monkeypatch.setitem(sys.modules, "torchrl.modules", modules)
    assert recurrent_mode() is None


def test_torchrls_mode_is_read_by_its_public_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl.modules", SimpleNamespace(recurrent_mode=lambda: True))
    assert recurrent_mode() is True
    assert rnn_backends.LSTMModule(3, 4, in_key="x", out_key="y").recurrent_mode is True
