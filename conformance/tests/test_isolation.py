"""Isolation: a law's result from another process; a missing result never passes."""

from __future__ import annotations

import os
import re
import time
import warnings

import torch
from rnn_backends import LSTMBackend, State, get_backend
from rnn_conformance import check
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.suite import interpreter, isolation
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.isolation import outcome_in_a_process
from rnn_conformance.suite.verdict import LawResult
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.cpu_vec_isa import valid_vec_isa_list

LAW, CASE = LAWS["output_equals_reference"], Case.parse("T2.B1.I1.H2.f64.s0")
right = get_backend("vmap").layer


def run(layer, seconds=60.0):
    return outcome_in_a_process(LAW, LSTMBackend("mine", layer), CASE, "cpu", seconds)


def test_an_installed_backend_answers_from_a_fresh_interpreter():
    found = outcome_in_a_process(LAW, get_backend("vmap"), CASE, "cpu", 120)
    assert found.verdict == "passed", found
    assert found.error_ratio is not None


def test_a_backend_of_this_process_answers_from_a_fork():
    assert run(right).verdict == "passed"
    wrong = run(lambda w, x, entry, starts: State(*(2 * v for v in right(w, x, entry, starts))))
    assert wrong.verdict == "failed"
    assert wrong.message.startswith("output differs first")


def test_a_fork_does_not_wait_for_the_compiler_threads_of_its_parent(monkeypatch):
    def compiles(*args):
        result = AsyncCompile.submit(int)
        if result != 0:  # a future of a pool
            result.result()
        return right(*args)

    monkeypatch.setattr(torch._inductor.config, "compile_threads", 2)
    AsyncCompile.pool.cache_clear()
    AsyncCompile.submit(int).result()  # a thread of the pool is idle now
    found = run(compiles, seconds=20)
    AsyncCompile.pool().shutdown()
    AsyncCompile.pool.cache_clear()
    assert found.verdict == "passed", found


def test_filters_of_warnings_stay_with_the_parent():
    def warns(*args):
        warnings.warn("seen by nobody", stacklevel=1)
        return right(*args)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(warns).verdict == "passed"


def test_a_hang_is_a_crash():
    found = run(lambda *args: time.sleep(60), seconds=1)
    assert found.verdict == "crashed"
    assert re.match(r"not done after 1 seconds, in test_isolation\.py:\d+ <lambda> < ", found.message)


def test_a_hang_in_a_fresh_interpreter_is_a_crash_too():
    """A tenth of a second is not enough for torch's compiler."""
    found = outcome_in_a_process(
        LAWS["inductor_in_one_graph"], get_backend("vmap"), Case.parse("T3.B2.I3.H4.f32.s0"), "cpu", 0.1
    )
    assert found.verdict == "crashed"
    assert found.message.startswith("not done after 0.1 seconds, in ")


def test_an_interpreter_that_dies_is_a_crash():
    found = run(lambda *args: os._exit(7))
    assert (found.verdict, found.message) == ("crashed", "its process ended with status 7")


def test_an_interpreter_alone_answers_too(monkeypatch):
    monkeypatch.setattr(isolation, "run_in_a_fork", isolation.run_alone)
    assert outcome_in_a_process(LAW, get_backend("vmap"), CASE, "cpu", 120).verdict == "passed"


def test_laws_fork_from_one_interpreter_that_is_started_anew_where_it_ended():
    here = os.getpid()
    outcome_in_a_process(LAW, get_backend("vmap"), CASE, "cpu", 120)
    first = interpreter._started[here]
    outcome_in_a_process(LAW, get_backend("vmap"), CASE, "cpu", 120)
    assert interpreter._started[here] is first
    first.end()
    assert outcome_in_a_process(LAW, get_backend("vmap"), CASE, "cpu", 120).verdict == "passed"
    assert interpreter._started[here] is not first


def test_the_interpreter_starts_with_the_check_if_a_law_forks_from_it():
    interpreter._end(os.getpid())
    short, isolated = LAW, LAWS["tensor_subclasses"]
    isolation.prepare([short], get_backend("vmap"), "cpu")
    isolation.prepare([short, isolated], LSTMBackend("mine", right), "cpu")  # it forks from this process
    isolation.prepare([short, isolated], get_backend("vmap"), "cuda")  # each law has an interpreter of its own
    assert os.getpid() not in interpreter._started
    isolation.prepare([short, isolated], get_backend("vmap"), "cpu")
    assert interpreter._started[os.getpid()].process.poll() is None


def test_a_check_starts_the_interpreter_before_its_first_law(monkeypatch):
    interpreter._end(os.getpid())
    started = []

    def first(law, options):
        started.append(os.getpid() in interpreter._started)
        return LawResult("vmap", law.name, "passed", cases=1)

    monkeypatch.setattr(check, "run_law", first)
    check.check_backend("vmap", laws=["tensor_subclasses"], rollouts=())
    assert started == [True]


def test_inductor_is_prepared():
    """The names are torch's private ones; without them the laws run, more slowly."""
    valid_vec_isa_list.cache_clear()
    interpreter._prepare_inductor()
    assert valid_vec_isa_list.cache_info().currsize == 1
