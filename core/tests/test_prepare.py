"""``prepare``: slow work is done once, for the chosen backend; a refusal prepares nothing."""

import subprocess
import sys
import threading

import pytest
import rnn_backends
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, LSTMSpec, UnsupportedError, explain, refresh
from rnn_backends.choose import alternatives
from rnn_backends.prepare import Preparations
from rnn_backends.registry import DISABLE_VARIABLE
from rnn_backends.unroll import unroll

SPEC, CPU = LSTMSpec(3, 4), torch.device("cpu")


class Prepare:
    """A ``prepare`` function that records its calls and returns a fixed reason."""

    def __init__(self, reason=None):
        self.calls, self.reason = [], reason

    def __call__(self, *request):
        self.calls.append(request)
        if isinstance(self.reason, Exception):
            raise self.reason
        return self.reason


@pytest.fixture
def add(monkeypatch):
    """``add(name, reason)`` registers a backend and returns its ``prepare``."""
    added = []

    def register(name, reason=None):
        prepare = Prepare(reason)
        added.append(rnn_backends.register(LSTMBackend(name, unroll, prepare=prepare)))
        return prepare

    yield register
    for backend in added:
        rnn_backends.unregister(backend.name)


@pytest.fixture
def only_ours(monkeypatch):
    installed = [row.name for row in rnn_backends.list_backends() if row.distribution != "this process"]
    monkeypatch.setenv(DISABLE_VARIABLE, ",".join(installed))


def test_it_is_called_once_for_the_backend_that_was_chosen(add):
    chosen, other = add("chosen"), add("other")
    for _ in range(2):
        LSTM(3, 4, lstm_backend="chosen")
        LSTM(3, 4, lstm_backend="vmap").with_backend("chosen")
        LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="chosen")
    assert chosen.calls == [(SPEC, CPU, torch.float32)]
    LSTM(3, 4, lstm_backend="chosen")(torch.zeros(2, 1, 3))
    assert len(chosen.calls) == 1
    assert other.calls == []


def test_another_spec_device_or_dtype_is_prepared_too(add):
    prepare = add("mine")
    lstm = LSTM(3, 4, lstm_backend="mine")
    lstm.double()(torch.zeros(2, 1, 3, dtype=torch.float64))
    LSTM(3, 5, lstm_backend="mine")
    with torch.autocast("cpu", torch.bfloat16):
        lstm = LSTM(3, 4, lstm_backend="mine")
        lstm(torch.zeros(2, 1, 3))
        lstm(torch.zeros(2, 1, 3))
    assert [(spec.hidden_size, dtype) for spec, _, dtype in prepare.calls] == [
        (4, torch.float32),
        (4, torch.float64),
        (5, torch.float32),
        (4, torch.bfloat16),
    ]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("the compiler fails", "the compiler fails"),
        (OSError("no space left"), r"its prepare\(\) raised OSError: no space left"),
        (7, r"its prepare\(\) must return a reason or None, and returned int"),
    ],
)
def test_a_failure_is_an_error_with_its_reason_and_is_remembered(add, result, reason):
    prepare = add("mine", result)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=reason):
            LSTM(3, 4, lstm_backend="mine")
    assert len(prepare.calls) == 1
    verdict = next(v for v in explain(SPEC) if v.name == "mine")
    assert not verdict.accepted
    assert verdict.prepared
    assert "mine" not in alternatives(SPEC, CPU, torch.float32, "")
    refresh()
    with pytest.raises(UnsupportedError, match=reason):
        LSTM(3, 4, lstm_backend="mine")
    assert len(prepare.calls) == 2


def test_auto_goes_on_to_the_next_and_reports_it_once(add, only_ours):
    broken, works = add("a", "the compiler fails"), add("b")
    with pytest.warns(RuntimeWarning, match="'auto' passes over 'a': the compiler fails"):
        assert LSTM(3, 4).lstm_backend == "b"
    assert LSTM(3, 4).lstm_backend == "b"
    assert LSTM(3, 5).lstm_backend == "b"
    assert (len(broken.calls), len(works.calls)) == (2, 2)


def test_auto_with_nothing_left_gives_every_reason(add, only_ours):
    add("c", "no compiler here")
    with pytest.warns(RuntimeWarning), pytest.raises(UnsupportedError, match="c: no compiler here"):
        LSTM(3, 4)


def test_explanations_and_error_messages_prepare_nothing(add):
    prepare = add("mine")
    verdict = next(v for v in explain(SPEC) if v.name == "mine")
    assert verdict.accepted
    assert not verdict.prepared
    assert "mine" in alternatives(SPEC, CPU, torch.float32, "")
    narrow = LSTMBackend("narrow", unroll, rejects=lambda *_: "never")
    with pytest.raises(UnsupportedError, match="mine"):
        LSTM(3, 4, lstm_backend=narrow)
    with pytest.raises(UnsupportedError, match="vmap"):
        torch.vmap(LSTM(3, 4, lstm_backend=LSTMBackend("plain", unroll)))(torch.zeros(2, 5, 1, 3))
    assert prepare.calls == []
    LSTM(3, 4, lstm_backend="mine")
    assert next(v for v in explain(SPEC) if v.name == "mine").prepared


def test_explain_says_what_the_first_use_will_do_and_does_not_do_it(add):
    def broken(*_):
        raise OSError("no disk")

    expected = {
        "words": (lambda *_: "it compiles", "it compiles"),
        "nothing": (lambda *_: None, None),
        "raises": (broken, "its preparation() raised OSError: no disk"),
        "a number": (lambda *_: 7, "its preparation() must return words or None, and returned int"),
        "untold": (None, None),
    }
    done = []
    for name, (preparation, words) in expected.items():
        backend = LSTMBackend(name, unroll, prepare=lambda *_: done.append(_), preparation=preparation)
        rnn_backends.register(backend)
        try:
            verdict = next(v for v in explain(SPEC) if v.name == name)
            assert (verdict.prepared, verdict.preparation) == (False, words)
            assert not done
            LSTM(3, 4, lstm_backend=name)
            verdict = next(v for v in explain(SPEC) if v.name == name)
            assert verdict.preparation is None
        finally:
            rnn_backends.unregister(name)
        done.clear()


def test_a_prepare_without_a_hash_is_called_each_time():
    class NoHash(Prepare):
        __hash__ = None

    prepare = NoHash()
    for _ in range(2):
        LSTM(3, 4, lstm_backend=LSTMBackend("mine", unroll, prepare=prepare))
    assert len(prepare.calls) == 2


def test_threads_prepare_a_backend_once():
    calls, gate = [], threading.Barrier(4)

    def slow(*request):
        calls.append(request)
        threading.Event().wait(0.05)

    backend, preparations = LSTMBackend("mine", unroll, prepare=slow), Preparations()

    def run():
        gate.wait()
        preparations.run(backend, SPEC, CPU, torch.float32)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


REFUSED = """
import subprocess, sys
def run(*args, **kwargs):
    raise AssertionError(f"a process was started: {args}")
subprocess.Popen.__init__ = run
import torch
from rnn_backends import LSTM, LSTMModule, LSTMSpec, UnsupportedError, explain, get_backend
lstm, x = LSTM(3, 4, lstm_backend="cudnn"), torch.randn(2, 5, 2, 3)
for program in (
    lambda: torch.vmap(lambda v: lstm(v)[0])(x),
    lambda: torch.jit.script(lstm),
    lambda: LSTM(3, 4, device="meta", lstm_backend="cpp")(x[0].to("meta")),
    lambda: LSTMModule(3, 4, in_key="x", out_key="y", hidden_output="all", lstm_backend="cudnn"),
):
    try:
        program()
    except UnsupportedError as error:
        print(error)
    else:
        raise SystemExit("not refused")
cpp = next(v for v in explain(LSTMSpec(3, 4)) if v.name == "cpp")
print(cpp.accepted, cpp.prepared, cpp.reason)
"""


def test_a_refusal_starts_no_process_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_explain_says_where_there_is_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = (
        "from rnn_backends import *; v = [v for v in explain(LSTMSpec(3, 4)) if v.name == 'cpp'][0]; "
        "print(v.accepted, v.reason)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False its kernel needs a C++ compiler")
