"""The built-in backends on a torch that lacks a private name: they compute the same, or give a reason."""

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rnn_backends import LSTM, UnsupportedError
from rnn_backends_plugins import _torch
from rnn_backends_plugins.compile import compiler, products
from rnn_backends_plugins.cpp import memory
from rnn_backends_plugins.cudnn import kernel
from torch.testing import assert_close

# The backend that uses the name, or None if a separate test follows; and the dotted name below ``torch``.
REMOVED = [
    ("cudnn", "_C._are_functorch_transforms_active"),
    ("cudnn", "_functorch.pyfunctorch.temporarily_clear_interpreter_stack"),
    ("cudnn", "_C._functorch.is_gradtrackingtensor"),
    ("cudnn", "_foreach_norm"),
    ("cudnn", "ops.mkldnn._is_mkldnn_bf16_supported"),
    ("cudnn", "ops.mkldnn._is_mkldnn_fp16_supported"),
    (None, "_cudnn_rnn_flatten_weight"),
    ("torchscript", "_C._autograd._top_saved_tensors_default_hooks"),
    (None, "_flat_weights_names"),
    (None, "_flat_weights"),
    (None, "_VF"),
    ("cpp", "autograd._profiler_enabled"),
    ("compile", "_C._AutoDispatchBelowAutograd"),
    ("compile", "_C._ExcludeDispatchKeyGuard"),
    ("compile", "_C.DispatchKeySet"),
    ("compile", "ops.mkldnn._reorder_linear_weight"),
    ("compile", "ops.mkldnn._linear_pointwise"),
    ("compile", "_functorch.config"),
    ("compile", "_inductor.compile_fx"),
    ("compile", "_dynamo.decorators"),
    (None, "_higher_order_ops.scan"),  # test_export.py
]
NAMES = {part for _, name in REMOVED for part in name.split(".") if re.fullmatch("_[^_].*", part)} | {"_boxed_call"}
"""The names that ``_torch.py`` reads; it only sets ``_boxed_call``, which another torch may ignore."""


def test_this_file_knows_every_private_name_of_the_fence():
    tree = ast.parse(Path(_torch.__file__).read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {"_transforms_active"}
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        words |= set((node.module or "").split(".")) if isinstance(node, ast.ImportFrom) else set()
    assert {word for word in words if re.fullmatch("_[^_].*", word) and word.isidentifier()} - own == NAMES


class Without:
    """A module that lacks a name: ``Without(torch, "_C.name")``."""

    def __init__(self, inner, name):
        self._inner, (self._first, _, self._rest) = inner, name.partition(".")

    def __getattr__(self, name):
        if name != self._first:
            return getattr(self._inner, name)
        if not self._rest:
            raise AttributeError(f"removed: {name}")
        return Without(getattr(self._inner, name), self._rest)


IMPORTED = {
    "temporarily_clear_interpreter_stack": "outside_transforms",
    "config": "recording_backend",
    "compile_fx": "recording_backend",
    "decorators": "compiles_for_any_size",
}
"""The module that ``_torch.py`` imports, and the importing function: torch itself still finds the name."""


@pytest.fixture
def without(monkeypatch):
    """``without(name)``: the plugins run with a torch that lacks that name, with empty caches."""

    def remove(name):
        module, _, last = name.rpartition(".")
        if last in IMPORTED:
            function = getattr(_torch, IMPORTED[last])

            def hidden(*args):
                with monkeypatch.context() as narrow:
                    at = f"torch.{module}" if last.startswith("temporarily") else f"torch.{name}"
                    narrow.setitem(sys.modules, at, None)
                    if last == "config":  # imported as an attribute of its package
                        narrow.delattr("torch._functorch.config")
                    return function(*args)

            monkeypatch.setattr(_torch, IMPORTED[last], hidden)
        monkeypatch.setattr(_torch, "torch", Without(torch, name))
        if last == "_are_functorch_transforms_active":
            monkeypatch.setattr(_torch, "_transforms_active", _torch._true)
        forget()

    def forget():
        compiler._compiled.cache_clear()
        _torch.onednn_linear_works.cache_clear()
        kernel._onednn_knows.cache_clear()

    yield remove
    monkeypatch.undo()
    forget()


SIZES = {"compile": [(7, 4, 5), (3, 1, 1)]}  # a compiler may specialise sizes of 1
READ = {"cudnn": "h"}  # its cell state is right at the ends of sequences only


def dtypes(backend, name):
    """The dtypes for which the name matters; few, since ``compile`` compiles for each."""
    if backend == "compile":
        return [torch.float32 if "mkldnn" in name else torch.float64]  # oneDNN's products are float32's
    half = [torch.bfloat16] * ("bf16" in name) + [torch.float16] * ("fp16" in name)
    return [torch.float64, torch.float32, *half]


@pytest.mark.parametrize(("backend", "name"), [pair for pair in REMOVED if pair[0]])
def test_a_backend_computes_the_same_without_the_name(backend, name, without, case, run, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(memory, "SMALLEST", 0)
    without(name)
    for dtype in dtypes(backend, name):
        for T, B, H in SIZES.get(backend, [(7, 4, 5)]):
            given = case(T=T, B=B, H=H, dtype=dtype)
            read = READ.get(backend, "hc")
            actual, expected = run(backend, given, read), run("vmap", given, read)
            tolerance = {"rtol": 0.05, "atol": 0.05} if dtype.itemsize == 2 else {}
            for letter in read:
                assert_close(getattr(actual[0], letter), getattr(expected[0], letter), **tolerance)
            assert_close(actual[1], expected[1], **tolerance)


@pytest.mark.parametrize("name", ["_C._are_functorch_transforms_active", "_C._functorch.is_gradtrackingtensor"])
def test_cudnn_works_in_torch_func_grad_and_after_it_without_the_name(name, without):
    lstm, x, is_init = LSTM(3, 4, lstm_backend="cudnn"), torch.randn(5, 2, 3), torch.rand(5, 2) < 0.4
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(lstm(leaf, is_init=is_init)[0].square().sum(), leaf)
    without(name)
    assert_close(torch.func.grad(lambda v: lstm(v, is_init=is_init)[0].square().sum())(x), expected)
    (after,) = torch.autograd.grad(lstm(leaf, is_init=is_init)[0].square().sum(), leaf)
    assert_close(after, expected)


def test_cudnn_declines_torch_func_where_it_cannot_step_out_of_a_transform(without):
    lstm, x, is_init = LSTM(3, 4, lstm_backend="cudnn"), torch.randn(5, 2, 3), torch.rand(5, 2) < 0.4
    expected = lstm(x, is_init=is_init)[0]
    without("_functorch.pyfunctorch.temporarily_clear_interpreter_stack")
    with pytest.raises(UnsupportedError, match=r"torch\.func's transforms: .* lacks the function.*vmap"):
        torch.func.grad(lambda v: lstm(v, is_init=is_init)[0].square().sum())(x)
    assert_close(lstm(x, is_init=is_init)[0], expected)


@pytest.mark.parametrize("name", ["lstm", "lstm_cell"])
def test_cudnn_is_unavailable_with_a_reason_without_torchs_fused_kernel(name, without):
    without(name)
    with pytest.raises(UnsupportedError, match=r"cudnn.*it calls torch\.lstm.* does not have.*vmap"):
        LSTM(3, 4, lstm_backend="cudnn")


def test_what_goes_to_one_launch_on_a_gpu_is_the_same_one_by_one(without):
    values = [torch.tensor([1.0, -3.0]), torch.tensor([]), torch.tensor([float("nan")])]
    expected = _torch.largest(values)
    without("_foreach_norm")
    assert_close(_torch.largest(values), expected, equal_nan=True)


def test_cudnns_layout_is_unknown_without_the_name(without):
    without("_cudnn_rnn_flatten_weight")
    assert _torch.flatten_for_cudnn([torch.ones(4, 1)], 2, 1, 1, 0, 1, False) is None


def test_the_stand_in_leaves_the_parameters_as_they_are_without_the_names():
    lstm = torch.nn.LSTM(3, 4)
    assert len(_torch.flat_weights(lstm)) == 4
    assert _torch.flat_weights(SimpleNamespace(_flat_weights=lstm._flat_weights)) is None
    assert _torch.flat_weights(SimpleNamespace(_flat_weights_names=lstm._flat_weights_names)) is None


def test_the_fence_finds_the_names_that_this_torch_has(without):
    assert _torch.recording_backend([]) is not None
    assert _torch.compiles_for_any_size()
    without("_inductor.compile_fx")
    assert _torch.recording_backend([]) is None
    without("_dynamo.decorators")
    assert not _torch.compiles_for_any_size()


def test_a_torch_that_cannot_compile_within_a_trace_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("torch._dynamo.config", SimpleNamespace())
    with _torch.compiling_in_traces() as nothing:
        assert nothing is None


def test_products_that_multiply_wrongly_are_not_used(without, monkeypatch):
    without("nothing")
    monkeypatch.setattr(_torch, "onednn_linear", lambda rows, weight, bias=None: torch.tensor([[30.0]]))
    assert not _torch.onednn_linear_works()


def test_dynamo_counts_as_on_where_torch_does_not_show_its_switch(monkeypatch):
    with torch._dynamo.config.patch(disable=True):
        assert _torch.dynamo_is_off()
        monkeypatch.delitem(sys.modules, "torch._dynamo.config")
        assert not _torch.dynamo_is_off()
