"""A new interpreter that has imported everything and run nothing: each isolated law runs in a fork of it.

The imports of torch and the suite take seconds, longer than most of these laws. A fork of the checking process would
save them too, but that has used OpenMP's threads, which a fork does not inherit and would wait for.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_started: dict[int, _Interpreter] = {}
"""By process, because a fork of this process must not use its pipes."""


class _Interpreter:
    def __init__(self) -> None:
        command = [sys.executable, "-m", "rnn_conformance.laws"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.answers: queue.SimpleQueue[dict[str, int] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End the interpreter; the processes that it started end with their own laws."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def start() -> _Interpreter:
    """This process's interpreter; a new one if there is none. It imports while this process goes on."""
    here = os.getpid()
    if here not in _started or _started[here].process.poll() is not None:
        _started.clear()
        _started[here] = _Interpreter()
        atexit.register(_end, here)
    return _started[here]


def run_in_a_fork(arguments: list[str], errors: Path, seconds: float) -> int | None:
    """Run one law with the arguments of ``rnn_conformance.laws``; its exit status, ``None`` if its time is up.

    Args:
        arguments: the arguments of :mod:`rnn_conformance.laws.__main__`.
        errors: the file for standard error.
        seconds: the time limit, without the interpreter's own start.

    Raises:
        OSError: the interpreter is gone.
    """
    interpreter = start()
    interpreter.ask({"arguments": arguments, "errors": str(errors), "environment": dict(os.environ)})
    begun = interpreter.answers.get()
    if begun is None:
        raise ChildProcessError("the interpreter for laws ended")
    late = False
    try:
        ended = interpreter.answers.get(timeout=seconds)
    except queue.Empty:
        late = True
    finally:
        _stop(begun["process"])
    if late:
        ended = interpreter.answers.get()
    if ended is None:
        raise ChildProcessError("the interpreter for laws ended")
    return None if late else ended["status"]


def run_alone(arguments: list[str], errors: Path, seconds: float) -> int | None:
    """Run one law in a separate interpreter; the time limit includes its start."""
    command = [sys.executable, "-m", "rnn_conformance.laws", *arguments]
    with errors.open("w") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if hasattr(os, "killpg"):
            _stop(process.pid)
        else:
            process.kill()
        process.wait()


def _stop(process: int) -> None:
    """Kill the process, a group leader, and all its children."""
    with contextlib.suppress(ProcessLookupError):  # all have ended already
        os.killpg(process, signal.SIGKILL)


def _end(here: int) -> None:
    if here == os.getpid() and here in _started:
        _started.pop(here).end()


def serve(run: Callable[[list[str]], None]) -> None:
    """Fork for each request on standard input, one after the other; write the process, and its status when it ends.

    What a fork imports of torch, such as a compiler, is then imported and prepared here too, once for all later forks.
    """
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        before, imported = set(sys.modules), Path(request["errors"]).with_suffix(".imported")
        process = os.fork()
        if process == 0:
            _become(request)
            status = 1
            try:
                run(request["arguments"])
                status = 0
                imported.write_text("\n".join(name for name in sys.modules if name not in before))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        print(json.dumps({"process": process}), file=answers, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        names = imported.read_text().split() if imported.exists() else []
        print(json.dumps({"status": status}), file=answers, flush=True)
        for name in names:
            if name.startswith("torch."):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        if "torch._inductor.codecache" in names:
            with contextlib.suppress(Exception):
                _prepare_inductor()


def _prepare_inductor() -> None:
    """Let Inductor find the processor's vector instructions and hash its own sources, which takes it 1.5 seconds.

    It keeps both for as long as a process lives.
    """
    from torch._inductor.codecache import torch_key
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    valid_vec_isa_list()
    torch_key()


def _become(request: dict[str, Any]) -> None:
    """Start a new session, so that a compiler's workers can be killed too, and close the interpreter's pipes."""
    os.setsid()
    os.closerange(3, 64)
    nowhere = os.open(os.devnull, os.O_RDWR)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT, 0o600)
    for source, target in ((nowhere, 0), (nowhere, 1), (errors, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(request["environment"])
