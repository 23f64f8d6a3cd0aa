"""The C++ compiler: its command, and a run with a time limit, a notice, and an error message."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TIME_LIMIT = 90.0
"""In seconds, some twenty times the time of GCC. The environment variable :data:`LIMIT_VARIABLE` overrides it."""
LIMIT_VARIABLE = "RNN_BACKENDS_COMPILE_SECONDS"
CAUSES = ("No space left", "Disk quota exceeded", "Read-only file system", "Cannot allocate memory", "error")
"""Words that mark the line of a compiler's output with the cause, most specific first."""

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernel is unavailable; the message has the reason."""


def command() -> list[str]:
    """The compiler's command: ``CXX``, which may have arguments (``ccache g++``), or ``g++``.

    Raises:
        BuildError: its quotes do not match.
    """
    given = os.environ.get("CXX", "").strip() or "g++"
    if shutil.which(given):  # a path that contains blanks
        return [given]
    try:
        return shlex.split(given) or ["g++"]
    except ValueError as error:
        raise BuildError(f"its kernel needs a C++ compiler, and CXX={given!r} cannot be read: {error}") from error


def time_limit() -> float:
    """The compiler's time limit in seconds: :data:`LIMIT_VARIABLE`, or :data:`TIME_LIMIT` if that is unset or empty.

    Raises:
        BuildError: the variable is not a finite number above zero.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not given:
        return TIME_LIMIT
    with suppress(ValueError):
        seconds = float(given)
        if 0 < seconds < math.inf:
            return seconds
    raise BuildError(f"its kernel cannot be compiled: {LIMIT_VARIABLE}={given!r} is no number of seconds above zero")


def missing() -> str | None:
    """The reason why there is no compiler, or ``None``; nothing is run."""
    try:
        words = command()
    except BuildError as error:
        return str(error)
    if shutil.which(words[0]) is None:
        return f"its kernel needs a C++ compiler, and {words[0]!r} is not on the path (CXX names another)"
    return None


def identity() -> str:
    """A digest that changes with the command and when its programs are replaced; nothing is run."""
    described = []
    for word in command():
        found = shutil.which(word)
        real = os.path.realpath(found) if found else ""
        status = os.stat(real) if found else None
        described += [word, real, f"{status.st_size} {status.st_mtime_ns}" if status else ""]
    return hashlib.sha256("\0".join(described).encode()).hexdigest()[:8]


def run(arguments: Sequence[str], folder: Path) -> None:
    """Run the compiler with ``folder`` for its temporary files.

    Raises:
        BuildError: it cannot be run, fails or takes longer than :func:`time_limit`.
    """
    words, limit = command(), time_limit()
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        process = subprocess.Popen(
            [*words, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that its child processes can be killed with it
        )
    except OSError as error:
        raise BuildError(f"its kernel cannot be compiled: {error}") from error
    notice = Notice("rnn-backends: compiling the LSTM kernel for this processor, once")
    try:
        errors = _wait(process, limit, notice)
    finally:
        notice.end()
        if process.poll() is None:
            _end(process)
        if process.stderr is not None:
            process.stderr.close()
    if process.returncode:
        raise BuildError(f"its kernel cannot be compiled: {words[0]} {_words(errors, process.returncode)}")


def _wait(process: subprocess.Popen[bytes], limit: float, notice: Notice) -> str:
    """Wait for the process for ``limit`` seconds at most, and return its stderr."""
    began = time.monotonic()
    while True:
        ended = process.poll() is not None
        try:
            return process.communicate(timeout=0.2)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            if ended:  # a child process still has its stderr open
                return ""
        passed = time.monotonic() - began
        if passed > limit:
            _end(process)
            reason = f"{command()[0]} took longer than {limit:g} s ({LIMIT_VARIABLE} sets the limit)"
            raise BuildError(f"its kernel cannot be compiled: {reason}")
        notice.update(passed)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children; no wait is without a limit."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=5)


def _words(errors: str, status: int) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    line = next((line for cause in CAUSES for line in lines if cause in line), lines[0] if lines else "")
    if line:
        return f"says {line!r}"
    if status < 0:
        return f"was ended by signal {-status} ({signal.strsignal(-status)})"
    return f"says nothing, with exit status {status}"


class Notice:
    """One line about slow work: on a terminal with the elapsed time, else logged. Never on stdout."""

    def __init__(self, words: str) -> None:
        self.words, self.passed = words, 0.0
        stream = sys.stderr
        self.stream = stream if stream is not None and not stream.closed and stream.isatty() else None
        if self.stream is None:
            log.warning("%s (some seconds)", words)
        self.update(0.0)

    def update(self, passed: float, end: str = "") -> None:
        """Rewrite the line."""
        if self.stream is not None:
            with suppress(OSError, ValueError):  # the terminal may be gone
                self.stream.write(f"\r{self.words} ... {passed:.0f} s{end}")
                self.stream.flush()
                self.passed = passed

    def end(self) -> None:
        """End the line."""
        if self.stream is not None:
            self.update(self.passed, "\n")
