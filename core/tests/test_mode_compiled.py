"""The mode and ``torch.compile``: across graph breaks, exceptions, threads and tasks, with and without TorchRL."""

import asyncio
import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rnn_backends import LSTM, LSTMModule, recurrent_mode, set_recurrent_mode
from tensordict import TensorDict

try:
    import torchrl.modules
except ImportError:
    torchrl = None

needs_torchrl = pytest.mark.skipif(torchrl is None, reason="TorchRL is an extra")
CODE = {True: 1.0, False: 2.0, None: 3.0}
"""What a compiled function returns for each mode."""


@pytest.fixture(autouse=True)
def _dynamo_starts_anew():
    torch._dynamo.reset()


@pytest.fixture(params=[pytest.param("torchrl", marks=needs_torchrl), "no torchrl"])
def _loaded(request, monkeypatch):
    if request.param == "no torchrl":
        monkeypatch.setitem(sys.modules, "torchrl.modules", None)


without_gradients = torch.no_grad()  # at a graph break Dynamo reads .grad of tensors, which makes torch warn
with_and_without_torchrl = pytest.mark.usefixtures("_loaded")


@pytest.fixture(autouse=True)
def _nothing_is_left_open():
    yield
    assert recurrent_mode() is None
    assert torchrl is None or torchrl.modules.recurrent_mode() is None


def code_of_the_mode(x):
    return x * 0 + CODE[recurrent_mode()]


ONE = torch.ones(1)


def make(backend="vmap"):
    return LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=backend)


def broken(td):
    torch._dynamo.graph_break()
    return td


@without_gradients
@pytest.mark.parametrize("backend", ["vmap", "cudnn"])  # cudnn breaks the graph by itself
def test_a_graph_break_keeps_the_mode(rows, backend):
    module, td = make(backend), rows((2, 5))
    expected = module.set_recurrent_mode(True)(td.clone())["y"]

    def call(td):
        with set_recurrent_mode(True):
            broken(td)
            y = module(td)["y"]
            with set_recurrent_mode(False):
                broken(td)
                assert recurrent_mode() is False
        return y

    compiled = torch.compile(call, backend="eager")
    for around in (None, True, False, None):
        with set_recurrent_mode(around):
            torch.testing.assert_close(compiled(td.clone()), expected)
            assert recurrent_mode() is around
    assert recurrent_mode() is None


@without_gradients
def test_a_graph_break_keeps_a_decorators_mode(rows):
    module, td = make(), rows((2, 5))
    expected = module.set_recurrent_mode(True)(td.clone())["y"]

    @torch.compile(backend="eager")
    @set_recurrent_mode(True)
    def call(td):
        broken(td)
        return module(td)["y"]

    torch.testing.assert_close(call(td.clone()), expected)
    assert recurrent_mode() is None


def test_what_reads_and_sets_the_mode_is_never_compiled_by_itself():
    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(True):
            torch._dynamo.graph_break()
            return x + CODE[recurrent_mode()]

    for mode in (True, False):
        with set_recurrent_mode(mode):
            assert call(ONE) == 2.0
    for function in (recurrent_mode, set_recurrent_mode.__enter__, set_recurrent_mode.__exit__):
        assert not torch._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__)


@with_and_without_torchrl
def test_an_exception_after_a_graph_break_ends_the_mode():
    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(True):
            torch._dynamo.graph_break()
            raise ZeroDivisionError
        return x

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            call(torch.zeros(1))
        assert recurrent_mode() is None
    with set_recurrent_mode(False):
        assert recurrent_mode() is False


@torch.compiler.disable
def fails():
    assert recurrent_mode() is True
    raise ZeroDivisionError


@with_and_without_torchrl
def test_an_exception_of_what_is_not_compiled_ends_the_mode():
    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(True):
            x = x + 1
            fails()
        return x

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            call(torch.zeros(1))
        assert recurrent_mode() is None


@without_gradients
@pytest.mark.parametrize("leaves", [print, lambda: torch._dynamo.graph_break(), lambda: ONE.item()])
def test_a_graph_break_of_any_kind_keeps_the_mode(rows, leaves, capsys):
    module, td = make(), rows((2, 5))
    expected = module.set_recurrent_mode(True)(td.clone())["y"]

    @torch.compile(backend="eager")
    def call(td):
        with set_recurrent_mode(True):
            leaves()
            first = module(td.clone())["y"]
            leaves()
        return first, module(td.clone())["next", "recurrent_state_h"]

    first, state = call(td)
    torch.testing.assert_close(first, expected)
    assert state[:, :-1].any()  # sequential: a state at every step


@with_and_without_torchrl
def test_fullgraph_nests_and_counts_from_around():
    @torch.compile(backend="eager", fullgraph=True)
    def call(x):
        found = [code_of_the_mode(x)]
        with set_recurrent_mode(True):
            found.append(code_of_the_mode(x))
            with set_recurrent_mode(None):
                found.append(code_of_the_mode(x))
            with set_recurrent_mode(False):
                found.append(code_of_the_mode(x))
            found.append(code_of_the_mode(x))
        return torch.cat([*found, code_of_the_mode(x)])

    for around in (None, True, False, None):
        with set_recurrent_mode(around):
            assert call(ONE).tolist() == [CODE[around], 1.0, 3.0, 2.0, 1.0, CODE[around]]


def test_depth_of_nesting_alone_does_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()
    call = torch.compile(code_of_the_mode, backend=counter, fullgraph=True)
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(set_recurrent_mode(True))
            assert call(ONE).item() == 1.0
    assert counter.frame_count == 1


def test_a_context_entered_outside_and_closed_within_compiled_code():
    @torch.compile(backend="eager")
    def call(stack, x):
        x = x + 1
        stack.close()
        return code_of_the_mode(x)

    with set_recurrent_mode(False):
        stack = contextlib.ExitStack()
        stack.enter_context(set_recurrent_mode(True))
        assert call(stack, ONE).item() == 2.0
        assert recurrent_mode() is False


@with_and_without_torchrl
def test_what_is_not_compiled_enters_and_reads_contexts_inside_compiled_code():
    @torch.compiler.disable
    def eager(x):
        before = recurrent_mode()
        with set_recurrent_mode(False):
            return CODE[before], recurrent_mode(), compiled(x).item()

    compiled = torch.compile(code_of_the_mode, backend="eager", fullgraph=True)

    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(True):
            found = eager(x)
            return found, code_of_the_mode(x)

    found, after = call(ONE)
    assert found == (1.0, False, 2.0)
    assert after.item() == 1.0


@with_and_without_torchrl
def test_a_caught_exception_inside_the_trace_restores_the_mode():
    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(True):
            try:
                with set_recurrent_mode(False):
                    raise ZeroDivisionError
            except ZeroDivisionError:
                return code_of_the_mode(x)

    assert call(ONE).item() == 1.0


@pytest.fixture(params=["function", "fullgraph", "module", "broken"])
def compiled(request):
    if request.param in ("function", "fullgraph"):
        return torch.compile(code_of_the_mode, backend="eager", fullgraph=request.param == "fullgraph")
    if request.param == "module":
        module = torch.nn.Module()
        module.forward = code_of_the_mode
        module.compile(backend="eager")
        return module
    return torch.compile(lambda x: code_of_the_mode(broken(x)), backend="eager")


MODES = [True, None, False, None, True]


@with_and_without_torchrl
@pytest.mark.parametrize("first", MODES[:3])
def test_a_task_keeps_its_mode_while_others_wait_in_theirs(compiled, first):
    async def one(mode):
        context = contextlib.nullcontext() if mode is None else set_recurrent_mode(mode)
        with context:
            found = [compiled(ONE).item()]
            for _ in range(3):
                await asyncio.sleep(0)
                found += [compiled(ONE).item(), (await asyncio.to_thread(compiled, ONE)).item()]
        return set(found)

    async def all_of_them():
        return await asyncio.gather(*map(one, [first, *MODES]))

    assert asyncio.run(all_of_them()) == [{CODE[mode]} for mode in [first, *MODES]]


@with_and_without_torchrl
def test_a_thread_keeps_its_mode_while_others_are_in_theirs(compiled):
    barrier = threading.Barrier(len(MODES), timeout=30)

    def one(mode):
        context = contextlib.nullcontext() if mode is None else set_recurrent_mode(mode)
        barrier.wait()
        with context:
            barrier.wait()
            found = compiled(ONE).item()
            barrier.wait()
        return found

    for mode in CODE:  # compiled in this thread for each mode first: Dynamo compiles in one thread at a time
        with set_recurrent_mode(mode):
            compiled(ONE)
    with set_recurrent_mode(True), ThreadPoolExecutor(len(MODES)) as pool:
        assert list(pool.map(one, MODES)) == [CODE[mode] for mode in MODES]


@with_and_without_torchrl
def test_tasks_inside_a_graph_break_do_not_see_each_others():
    async def one(mode):
        with set_recurrent_mode(mode):
            await asyncio.sleep(0)
            return recurrent_mode()

    async def both():
        return await asyncio.gather(one(True), one(False))

    @torch.compile(backend="eager")
    def call(x):
        with set_recurrent_mode(None):
            x = x + 1
            torch._dynamo.graph_break()
            return x, asyncio.run(both())

    assert call(ONE)[1] == [True, False]


@needs_torchrl
def test_torchrls_modules_follow_the_innermost_context_and_so_do_ours():
    theirs = torchrl.modules.LSTMModule(3, 4, in_key="x", out_key="y")
    ours, set_theirs = make(), torchrl.modules.set_recurrent_mode
    for outer, inner in ((set_theirs, set_recurrent_mode), (set_recurrent_mode, set_theirs)):
        for first, second in ((True, False), (False, True), (True, True), (None, True)):
            with outer(first):
                with inner(second):
                    assert (theirs.recurrent_mode, ours.recurrent_mode) == (second, second)
                assert (theirs.recurrent_mode, ours.recurrent_mode) == (bool(first), bool(first))
    with set_theirs(True), set_recurrent_mode(None), set_theirs(None):
        assert (theirs.recurrent_mode, ours.recurrent_mode) == (False, False)


@needs_torchrl
def test_torchrls_contexts_and_ours_are_one_in_a_trace_too():
    theirs, ours = torchrl.modules.set_recurrent_mode, set_recurrent_mode

    @torch.compile(backend="eager", fullgraph=True)
    def call(x):
        found = []
        with theirs(True):
            found.append(code_of_the_mode(x))
            with ours(False):
                found.append(code_of_the_mode(x))
                with theirs(True):
                    found.append(code_of_the_mode(x))
                found.append(code_of_the_mode(x))
            found.append(code_of_the_mode(x))
        return torch.cat([*found, code_of_the_mode(x)])

    for around in (None, True, False):
        for set_mode in (theirs, ours):
            with set_mode(around):
                assert call(ONE).tolist() == [1.0, 2.0, 1.0, 2.0, 1.0, CODE[around]]


@needs_torchrl
def test_a_graph_break_inside_torchrls_context_keeps_its_mode_for_ours():
    make()

    @torch.compile(backend="eager")
    def call(x):
        with torchrl.modules.set_recurrent_mode(True):
            x = x + 1
            torch._dynamo.graph_break()
            return CODE[eager()], code_of_the_mode(x)

    eager = torch.compiler.disable(recurrent_mode)
    with set_recurrent_mode(False):
        assert call(ONE) == (1.0, torch.ones(1))


@needs_torchrl
def test_torchrls_context_in_another_task_is_not_seen_by_compiled_code():
    compiled = torch.compile(code_of_the_mode, backend="eager", fullgraph=True)

    async def one(context):
        with context:
            await asyncio.sleep(0)
            found = compiled(ONE).item()
            await asyncio.sleep(0)
        return found

    async def all_of_them():
        theirs = torchrl.modules.set_recurrent_mode
        return await asyncio.gather(one(theirs(True)), one(contextlib.nullcontext()), one(set_recurrent_mode(False)))

    assert asyncio.run(all_of_them()) == [1.0, 3.0, 2.0]
    torchrl.modules.set_recurrent_mode(None).__enter__()  # TorchRL's own mode, unchanged


@needs_torchrl
def test_torchrls_context_in_compiled_code_counts_where_another_thread_is_in_the_same_mode():
    theirs = torchrl.modules.set_recurrent_mode

    @torch.compile(backend="eager", fullgraph=True)
    def call(x):
        with theirs(True):
            within = code_of_the_mode(x)
        return torch.cat([within, code_of_the_mode(x)])

    with theirs(True), ThreadPoolExecutor(1) as pool:
        assert pool.submit(call, ONE).result().tolist() == [1.0, 3.0]


@needs_torchrl
def test_torchrl_that_is_imported_within_our_context(monkeypatch):
    modules = torchrl.modules
    monkeypatch.setitem(sys.modules, "torchrl.modules", None)
    with set_recurrent_mode(False):
        monkeypatch.setitem(sys.modules, "torchrl.modules", modules)
        assert recurrent_mode() is False
        with modules.set_recurrent_mode(True):
            assert recurrent_mode() is True
        assert recurrent_mode() is False


def test_a_context_that_no_with_statement_enters_holds_across_a_graph_break():
    eager = torch.compiler.disable(recurrent_mode)

    @torch.compile(backend="eager")
    def call(x):
        context = set_recurrent_mode(True)
        context.__enter__()
        x = x + 1
        torch._dynamo.graph_break()
        found = eager(), code_of_the_mode(x)
        context.__exit__(None, None, None)
        return found

    for _ in range(2):
        assert call(ONE) == (True, torch.ones(1))
        assert recurrent_mode() is None


@with_and_without_torchrl
def test_a_module_is_made_within_a_graph():
    """TorchRL's context manager, if it is loaded, is prepared when a module is made."""
    lstm = LSTM(3, 4, batch_first=True, lstm_backend="vmap")
    td = TensorDict({"x": torch.randn(2, 3), "is_init": torch.ones(2, 1, dtype=torch.bool)}, [2])

    def features(td):
        return LSTMModule(lstm=lstm, in_key="x", out_key="y")(td)["y"]

    compiled = torch.compile(features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(td.copy()), features(td.copy()))
