"""Core without a private name of torch, tensordict or TorchRL: it imports, and its results stay right."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import rnn_backends
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, State, UnsupportedError, _torch, plain, recurrent_mode
from rnn_backends.authoring import torch_step
from rnn_backends.plain import is_plain
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
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
    "_get_function_stack_at",
    "_get_tracing_state",
    "_dispatch_keys",
    "_is_functional_tensor",
    "_is_zerotensor",
    "_any_requires_grad",
    "_autograd",
    "_get_current_graph_task_keep_graph",
    "_top_saved_tensors_default_hooks",
    "_device",
    "out_keys_source",
    "_modules",
    "_compiled_call_impl",
    "_flat_weights_names",
    "_flat_weight_refs",
    "_wrapped",
    "_dynamo",
    "_mode",
    "_context_mode",
}
"""The names that ``_torch.py`` reads; each is removed below."""


def test_this_file_knows_every_private_name_of_the_fence():
    tree = ast.parse(Path(_torch.__file__).read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} - {"_any_requires_grad"}
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        words |= set((node.module or "").split(".")) if isinstance(node, ast.ImportFrom) else set()
    private = {word for word in words if re.fullmatch("_[^_].*", word) and word.isidentifier()} - own
    assert private | {"out_keys_source"} == NAMES


REMOVED = [
    ("torch._C", "_are_functorch_transforms_active"),
    ("torch._C._functorch", "TransformType"),
    ("torch._functorch.pyfunctorch", "retrieve_all_functorch_interpreters"),
    ("torch.autograd.forward_ad", "_current_level"),
    ("torch._C", "_len_torch_dispatch_stack"),
    ("torch._C", "_len_torch_function_stack"),
    ("torch._C", "_get_function_stack_at"),
    ("torch._C", "_get_tracing_state"),
    ("torch._C", "_dispatch_keys"),
    ("torch._C", "_any_requires_grad"),
    ("torch._C._autograd", "_get_current_graph_task_keep_graph"),
    ("torch._C._autograd", "_top_saved_tensors_default_hooks"),
    ("torch", "_is_functional_tensor"),
    ("torch.utils._device", "DeviceContext"),
    ("torch._C._dynamo.eval_frame", "set_code_exec_strategy"),
]
IMPORT_WITHOUT = """
import importlib, operator, os, sys, traceback
import tensordict.nn, torch, torch._dynamo, torch._functorch.pyfunctorch, torch.utils._device
expected = torch.nn.LSTM(3, 4)
for owner, name in {removed}:
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            sys.exit(f"core fails without {{owner}}.{{name}}")
        continue
    try:
        owner = operator.attrgetter(owner[6:])(torch) if "._C." in owner else importlib.import_module(owner)
        value = getattr(owner, name)
        delattr(owner, name)
        import rnn_backends
        setattr(owner, name, value)  # torch itself cannot run without it
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(rnn_backends.LSTM.from_torch(expected, "vmap")(x), expected(x))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""


def test_core_imports_and_runs_without_any_one_private_name():
    program = IMPORT_WITHOUT.format(removed=REMOVED)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without(monkeypatch):
    """``without(name)``: core runs with a torch that lacks that name."""

    def remove(name):
        if name == "_current_level":
            monkeypatch.setattr(_torch, "forward_ad", SimpleNamespace())
        elif name == "_are_functorch_transforms_active":
            monkeypatch.setattr(_torch, "_transforms_active", _torch._unknown)
        else:  # the import inside the function fails
            monkeypatch.setitem(sys.modules, name, None)

    return remove


GONE = ["_current_level", "_are_functorch_transforms_active", "torch._functorch.pyfunctorch"]


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


def test_where_neither_way_can_tell_both_traits_count_as_needed(without):
    without("torch._functorch.pyfunctorch")
    without("_current_level")
    found = []
    torch.func.functionalize(lambda v: found.append(traits_needed([v])) or v)(torch.ones(2))
    assert {trait.value for trait in found[0]} == {"vmap", "forward_ad"}


KEPT = {
    "_transforms_active": _torch._unknown,
    "_dispatch_modes": _torch._unknown,
    "_function_modes": _torch._unknown,
    "_function_mode_at": None,
    "_tracing_state": _torch._unknown,
    "dispatch_keys": _torch._no_dispatch_keys,
}
"""The private functions of torch that core reads at import, and the fallback for each."""


@pytest.mark.parametrize("name", KEPT)
def test_without_the_name_a_kernel_goes_through_the_dispatcher_and_computes_the_same(name, monkeypatch):
    lstm, x, is_init = LSTM(3, 4, lstm_backend="cpp"), torch.randn(5, 2, 3), torch.rand(5, 2) < 0.4
    expected = lstm(x, is_init=is_init)
    wanted = torch.autograd.grad(expected[0].square().sum(), list(lstm.parameters()))
    assert is_plain([x])
    monkeypatch.setattr(_torch, name, KEPT[name])
    plain.plain_keys.cache_clear()
    try:
        assert is_plain([x]) == (name == "_function_mode_at")  # which matters only under a function mode
        with torch.device("cpu"):
            assert is_plain([x]) is False
        found = lstm(x, is_init=is_init)
        assert_close(found, expected)
        assert_close(torch.autograd.grad(found[0].square().sum(), list(lstm.parameters())), wanted)
    finally:
        plain.plain_keys.cache_clear()


def test_a_tracer_that_hides_counts_as_at_work(monkeypatch):
    assert not _torch.is_traced()
    monkeypatch.setattr(_torch, "_tracing_state", _torch._unknown)
    assert _torch.is_traced()
    monkeypatch.undo()
    monkeypatch.setattr(_torch, "_dispatch_modes", _torch._unknown)
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.proxy_tensor", None)
    assert _torch.is_traced()


def test_gradients_are_asked_for_by_the_same_tensors_without_the_private_name():
    plain_tensor, wants = torch.ones(2), torch.ones(2, requires_grad=True)
    for ask in (_torch.any_requires_grad, _torch._any_requires_grad):
        assert not ask(plain_tensor, None)
        assert ask(plain_tensor, None, wants)


def test_a_step_without_lstm_cell_is_the_plain_one(monkeypatch):
    x, state = torch.randn(2, 3), State(torch.randn(2, 4), torch.randn(2, 4))
    weights = LSTM(3, 4, lstm_backend="vmap").layer_weights()[0]
    expected = torch_step(weights, x, state)
    with monkeypatch.context() as narrow:
        narrow.setattr(_torch, "lstm_cell", lambda *args: (state.h, state.c))
        assert torch_step(weights, x, state).h is state.h  # it is used if it exists
    monkeypatch.setattr(_torch, "lstm_cell", None)
    assert_close(torch_step(weights, x, state), expected)


def test_parameters_are_found_without_the_registry(monkeypatch):
    lstm, x = LSTM(3, 4, 2, bidirectional=True, proj_size=2, lstm_backend="vmap"), torch.randn(5, 2, 3)
    expected = lstm(x)
    monkeypatch.setattr("rnn_backends.binding.registered_parameters", lambda module: {})
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


@pytest.mark.parametrize("name", ["_mode", "_context_mode", "recurrent_mode_state_manager"])
@pytest.mark.parametrize("theirs", [True, False])
def test_the_mode_is_right_in_one_thread_without_torchrls_private_names(name, theirs, monkeypatch):
    set_theirs = pytest.importorskip("torchrl.modules", reason="TorchRL is an extra").set_recurrent_mode
    from torchrl.modules.tensordict_module import rnn

    compiled = torch.compile(lambda x: (x, recurrent_mode()), backend="eager", fullgraph=True)
    manager = rnn.recurrent_mode_state_manager
    names = {key: value for key, value in vars(manager).items() if key != name}
    hidden = SimpleNamespace(**names) if name.startswith("_") else None
    monkeypatch.setattr(_torch, "_torchrl_manager", lambda: hidden)
    for set_mode in (set_theirs, rnn_backends.set_recurrent_mode):
        with set_mode(theirs):
            assert recurrent_mode() is theirs
            assert compiled(torch.ones(1))[1] is theirs
            with set_theirs(not theirs):
                assert compiled(torch.ones(1))[1] is not theirs


def test_a_context_that_dynamo_would_compile_by_itself_breaks_the_graph(monkeypatch):
    monkeypatch.setattr("rnn_backends.mode.CAN_INLINE_ONLY", False)

    @torch.compile(backend="eager")
    def call(x):
        with rnn_backends.set_recurrent_mode(True):
            return x, recurrent_mode()

    assert call(torch.ones(1))[1] is True
    assert recurrent_mode() is None
