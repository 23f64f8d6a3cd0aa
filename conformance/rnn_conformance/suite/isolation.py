"""Isolation: one law over one case in a process of its own, stopped when its time is up.

A compiler can hang or crash the interpreter. Neither may end the run, and neither is a result: the verdict is
``crashed``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

import torch
from rnn_backends import LSTMBackend
from rnn_backends.paths import write_whole
from rnn_backends.registry import is_registered_value

from .case import Case
from .interpreter import run_alone, run_in_a_fork, start
from .judge import outcome_of
from .law import Law
from .verdict import Outcome

T = TypeVar("T")

_notes: Path | None = None
"""The file that stores the name of the next attempt, in a process that runs one law."""

GRACE = 10.0
"""Seconds for a process to write its stack after the time limit."""


def prepare(laws: Iterable[Law], backend: LSTMBackend, device: str) -> None:
    """Start the interpreter that isolated laws fork from, if any of these laws does: it imports for some seconds."""
    if any(law.time_limit is not None for law in laws) and _installed(backend) and _forks(device):
        start()


def _forks(device: str) -> bool:
    """Whether a law on the device can run in a fork: a driver of a GPU does not outlive one, and other systems'
    libraries may not."""
    return device == "cpu" and sys.platform == "linux"


def outcome_of_drawn(law: Law, backend: LSTMBackend, case: Case, device: str) -> Outcome:
    """One law over one drawn case: in this process, or in a process of its own if the law has a time limit."""
    if law.time_limit is None:
        return outcome_of(law, backend, case, device)
    return outcome_in_a_process(law, backend, case, device, law.time_limit)


def outcome_in_a_process(law: Law, backend: LSTMBackend, case: Case, device: str, seconds: float) -> Outcome:
    """One law over one case, in a process of its own.

    An installed backend is found again by its name, in a fork of an interpreter that has run nothing. For one that was
    made in this process the process is forked; one that holds a GPU cannot fork: the law runs in it, without a limit.

    Args:
        law: the law; a new interpreter finds it by its name.
        backend: the backend under test.
        case: the case.
        device: the device to run on.
        seconds: the time limit.
    """
    with tempfile.TemporaryDirectory(prefix="rnn-conformance-") as folder:
        answer = Path(folder, "answer.json")
        if _installed(backend):
            ended = _fresh([law.name, backend.name, case.token, device, str(answer), str(seconds)], seconds)
        elif device == "cpu" and not torch.cuda.is_initialized():
            ended = _forked(law, backend, case, device, answer, seconds)
        else:
            return outcome_of(law, backend, case, device)
        if answer.exists():
            return Outcome(**json.loads(answer.read_text()))
        stood = _stood(_stack_file(answer))
        tried = _notes_file(answer).read_text() if _notes_file(answer).exists() else ""
        ended = f"not done after {seconds:g} seconds, in {stood}" if stood else ended
        return Outcome("crashed", f"{tried}: {ended}" if tried else ended)


def in_a_fork(call: Callable[[], T]) -> T:
    """The call's result from a fork of this process, in which nothing of the call is left behind.

    From this process if it holds a GPU or the system cannot fork. The result is pickled.
    """
    if torch.cuda.is_initialized() or sys.platform != "linux":
        return call()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def send() -> None:
        there.send(call())

    process = context.Process(target=send)
    process.start()
    there.close()
    try:
        result: T = here.recv()
    except EOFError as error:
        raise ChildProcessError("a call in a fork gave no result") from error
    finally:
        process.join()
    return result


def note(what: str) -> None:
    """Store the name of a law's next attempt, for the verdict of a crash."""
    if _notes is not None:
        _notes.write_text(what)


def _notes_file(answer: Path) -> Path:
    return answer.with_suffix(".note")


def _stack_file(answer: Path) -> Path:
    return answer.with_suffix(".stack")


def _stood(stack: Path) -> str:
    """The main thread's frames when its time was up, innermost first; empty if the time was not up."""
    if not stack.exists() or not (text := stack.read_text()):
        return ""
    frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', text)
    return " < ".join(f"{Path(file).name}:{line} {function}" for file, line, function in frames[:4]) or "no Python"


def _installed(backend: LSTMBackend) -> bool:
    """Whether another interpreter finds this value by its name: values from ``register`` exist in this one only."""
    return is_registered_value(backend) and _found_by_entry_point(backend.name)


def _found_by_entry_point(name: str) -> bool:
    from importlib.metadata import entry_points

    return any(point.name == name for point in entry_points(group="rnn_backends"))


def _fresh(arguments: list[str], seconds: float) -> str:
    """Run :mod:`rnn_conformance.laws.__main__`, in a fork of a fresh interpreter if it can; how it ended, in words."""
    errors = Path(arguments[4]).with_suffix(".errors")
    run = run_in_a_fork if _forks(arguments[3]) else run_alone
    try:
        status = run(arguments, errors, seconds + GRACE)
    except OSError as error:
        return f"its interpreter ended: {error}"
    if status is None:
        return f"not done after {seconds:g} seconds"
    last = next(iter(reversed(errors.read_text(errors="replace").strip().splitlines())), "")
    return f"its process ended with status {status}: {last}"


def _forked(law: Law, backend: LSTMBackend, case: Case, device: str, answer: Path, seconds: float) -> str:
    """Run in a fork of this process; how it ended, in words."""
    process = multiprocessing.get_context("fork").Process(
        target=write_outcome, args=(law, backend, case, device, answer, seconds)
    )
    process.start()
    process.join(seconds + GRACE)
    if process.is_alive():
        process.kill()
        process.join()
        return f"not done after {seconds:g} seconds"
    return f"its process ended with status {process.exitcode}"


def write_outcome(law: Law, backend: LSTMBackend, case: Case, device: str, answer: Path, seconds: float) -> None:
    """Write the outcome to a file, completely or not at all; runs in its own process.

    After ``seconds`` the process writes its stack to another file and ends.
    """
    global _notes
    _notes = _notes_file(answer)
    _forget_the_parent()
    with _stack_file(answer).open("w") as stack, _limit(seconds, stack):
        outcome = outcome_of(law, backend, case, device)
    fields = {"verdict": outcome.verdict, "message": outcome.message, "error_ratio": outcome.error_ratio}
    write_whole(answer, json.dumps(fields))


@contextlib.contextmanager
def _limit(seconds: float, stack: TextIO) -> Iterator[None]:
    """End the process when the time is up; the main thread's stack goes into the file first.

    The alarm stops the main thread, which then writes its own frames. ``faulthandler.dump_traceback_later`` reads them
    from another thread while this one goes on, and sometimes crashes the process before a line is written.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, after the stack is written
    faulthandler.register(signal.SIGALRM, file=stack, all_threads=False, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)


def _forget_the_parent() -> None:
    """Let a fork compile and warn as a fresh interpreter does.

    Inductor keeps a pool of threads to compile in. A fork inherits the pool without its threads and would wait for
    them (torch._inductor.async_compile forgets its pool of processes after a fork, not this one). The parent's warning
    filters, pytest's above all, would turn torch's warnings while compiling into errors.
    """
    torch.set_num_threads(1)
    from torch._inductor import config

    config.compile_threads = 1
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
