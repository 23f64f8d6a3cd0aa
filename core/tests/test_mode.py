"""Recurrent mode: a module's own, overridden by the context manager, across threads and tasks."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rnn_backends import InputError, LSTMModule, recurrent_mode, set_recurrent_mode


def make(mode=None):
    return LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=mode, lstm_backend="vmap")


def test_there_is_none_by_default():
    assert recurrent_mode() is None


@pytest.mark.parametrize(("mode", "means"), [(True, True), ("recurrent", True), ("Sequential", False), (False, False)])
def test_words_and_bools(mode, means):
    with set_recurrent_mode(mode):
        assert recurrent_mode() is means
        assert make().recurrent_mode is means
    assert make().set_recurrent_mode(mode).recurrent_mode is means
    assert make(mode).recurrent_mode is means


@pytest.mark.parametrize("wrong", ["sometimes", "", "true"])
def test_other_words_are_refused(wrong):
    for ask in (set_recurrent_mode, make().set_recurrent_mode, make):
        with pytest.raises(InputError, match=r"True, False, 'recurrent' or 'sequential'"):
            ask(wrong)


def test_the_default_of_both_forms_is_recurrent():
    assert make().set_recurrent_mode().recurrent_mode
    with set_recurrent_mode():
        assert recurrent_mode() is True


@pytest.mark.parametrize("own", [True, False, None])
def test_it_overrides_a_modules_own_mode_both_ways(own):
    module = make(own)
    for mode in (True, False):
        with set_recurrent_mode(mode):
            assert module.recurrent_mode is mode
    assert module.recurrent_mode is bool(own)


def test_it_decides_what_forward_does(rows):
    td = rows((2, 5), stored=False, resets=0)
    with set_recurrent_mode(True):
        over_time = make()(td.clone())
    one_step = make()(td.clone())
    assert not over_time["next", "recurrent_state_h"][:, :-1].any()
    assert one_step["next", "recurrent_state_h"].all()


def test_nested_and_none_gives_each_module_its_own_back():
    with set_recurrent_mode(True):
        with set_recurrent_mode(False):
            assert recurrent_mode() is False
            with set_recurrent_mode(None):
                assert recurrent_mode() is None
                assert make(True).recurrent_mode
                assert not make(False).recurrent_mode
            assert recurrent_mode() is False
        assert recurrent_mode() is True
    assert recurrent_mode() is None


def test_restored_after_an_exception():
    with set_recurrent_mode(False):
        with pytest.raises(ZeroDivisionError), set_recurrent_mode(True):
            raise ZeroDivisionError
        assert recurrent_mode() is False
    assert recurrent_mode() is None


def test_one_object_may_be_used_again_and_within_itself():
    context = set_recurrent_mode(True)
    with context, set_recurrent_mode(False), context:
        assert recurrent_mode() is True
    assert recurrent_mode() is None
    with context:
        assert recurrent_mode() is True


def test_as_a_decorator_also_of_a_recursive_function():
    @set_recurrent_mode("sequential")
    def falls(n):
        assert recurrent_mode() is False
        return falls(n - 1) + 1 if n else 0

    with set_recurrent_mode(True):
        assert falls(3) == 3
        assert recurrent_mode() is True


def test_a_decorated_coroutine_runs_in_the_mode():
    @set_recurrent_mode(True)
    async def ask():
        await asyncio.sleep(0)
        return recurrent_mode()

    assert asyncio.run(ask()) is True
    assert recurrent_mode() is None
    assert ask.__name__ == "ask"


def test_a_generator_cannot_be_decorated_its_consumer_would_run_in_the_mode():
    def ask():
        yield recurrent_mode()

    class Asks:
        def __call__(self):
            yield recurrent_mode()

    for asked in (ask, Asks()):
        with pytest.raises(InputError, match="decorate what it calls"):
            set_recurrent_mode(True)(asked)


def test_an_object_with_a_coroutine_as_its_call_runs_in_the_mode():
    class Asks:
        async def __call__(self):
            await asyncio.sleep(0)
            return recurrent_mode()

    assert asyncio.run(set_recurrent_mode(True)(Asks())()) is True


def test_a_class_cannot_be_decorated_its_methods_would_not_run_in_the_mode():
    with pytest.raises(InputError, match="Module is a class, and would only be constructed in this mode"):
        set_recurrent_mode(True)(torch.nn.Module)


@pytest.mark.parametrize("mode", [3, "train", "", 1.0, [], {}, torch.tensor(True)])
def test_a_mode_that_is_none_is_an_error_wherever_it_is_given(mode):
    for give in (set_recurrent_mode, make().set_recurrent_mode, make):
        with pytest.raises(InputError, match=r"a recurrent mode (is|must be) True"):
            give(mode)


def test_a_decorator_without_parentheses_is_an_error_that_says_so():
    with pytest.raises(InputError, match=r"write @set_recurrent_mode\(True\)"):

        @set_recurrent_mode
        def asks():
            return recurrent_mode()


def test_threads_do_not_see_each_others():
    barrier, seen = threading.Barrier(2, timeout=10), {}

    def work(mode):
        with set_recurrent_mode(mode):
            barrier.wait()
            seen[mode] = recurrent_mode(), make().recurrent_mode
            barrier.wait()
        return recurrent_mode()

    with ThreadPoolExecutor(2) as pool, set_recurrent_mode(True):
        assert list(pool.map(work, [True, False])) == [None, None]
    assert seen == {True: (True, True), False: (False, False)}


def test_tasks_do_not_see_each_others():
    async def work(mode):
        with set_recurrent_mode(mode):
            await asyncio.sleep(0)
            inside = recurrent_mode()
            await asyncio.sleep(0)
        return inside, recurrent_mode()

    async def main():
        return await asyncio.gather(work(True), work(False), work("recurrent"))

    assert asyncio.run(main()) == [(True, None), (False, None), (True, None)]


def test_it_cannot_be_set_as_an_attribute():
    with pytest.raises(InputError, match="returns a copy"):
        make().recurrent_mode = True


@pytest.mark.parametrize("fullgraph", [True, False])
def test_under_compile_inside_and_around(rows, fullgraph):
    module, td = make(), rows((2, 5))
    recurrent, sequential = (module.set_recurrent_mode(mode)(td.clone()) for mode in (True, False))

    @torch.compile(backend="eager", fullgraph=fullgraph)
    def inside(td):
        with set_recurrent_mode(True):
            td = module(td)
        return td

    around = torch.compile(lambda td: module(td), backend="eager", fullgraph=fullgraph)
    torch.testing.assert_close(inside(td.clone())["y"], recurrent["y"])
    torch.testing.assert_close(around(td.clone())["y"], sequential["y"])
    with set_recurrent_mode(True):
        torch.testing.assert_close(around(td.clone())["y"], recurrent["y"])
    torch.testing.assert_close(around(td.clone())["y"], sequential["y"])
    assert recurrent_mode() is None


@pytest.mark.parametrize("mode", [True, False])
def test_a_copy_of_a_compiled_module_does_not_run_the_original(mode):
    module = make(not mode)
    module.compile(backend="eager")
    copies = module.set_recurrent_mode(mode), module.with_backend("cudnn")
    assert all(copy._compiled_call_impl is None for copy in copies)
    assert module._compiled_call_impl is not None
