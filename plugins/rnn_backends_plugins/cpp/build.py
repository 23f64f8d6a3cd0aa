"""The kernel as a shared library: compiled once for a machine's processor, by its own compiler, and kept.

Kept in ``$XDG_CACHE_HOME/rnn_backends`` (or ``~/.cache/rnn_backends``), under a name that changes with the sources, the
compiler and what ``-march=native`` means: a folder shared by different machines holds one for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from rnn_backends.crossovers import cache_folder

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp")

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernel cannot be had; the message says why."""


def library() -> ctypes.CDLL:
    """The loaded kernel; compiled first if need be (some four seconds).

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    found = unable() or _built()
    if isinstance(found, str):
        raise BuildError(found)
    return found


def why_not() -> str | None:
    """Why there is no kernel, or ``None``. Compiles it the first time."""
    found = unable() or _built()
    return found if isinstance(found, str) else None


@lru_cache(maxsize=1)
def _built() -> ctypes.CDLL | str:
    """The library, or why the compiler failed: it is not asked again for each LSTM that is made."""
    folder = cache_folder()
    try:
        name = f"lstm-{_key()}.so"
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                return _load(folder / name)
            except OSError:
                log.info("%s cannot hold the kernel: it is compiled for this process alone", folder)
        with tempfile.TemporaryDirectory() as alone:  # a loaded library stays when its file is gone
            return _load(Path(alone) / name)
    except BuildError as error:
        return str(error)


def unable() -> str | None:
    """Why it cannot be compiled, as far as can be seen without trying."""
    if sys.platform != "linux":
        return f"its kernel is compiled on Linux, with GCC, and this is {sys.platform}"
    if shutil.which(_compiler()) is None:
        return f"its kernel needs a C++ compiler, and {_compiler()!r} is not on the path (CXX names another)"
    return None


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _load(file: Path) -> ctypes.CDLL:
    if not file.exists():
        _compile(file)
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # not whole, or of another system
        _compile(file)
        return ctypes.CDLL(str(file))


def _compile(file: Path) -> None:
    """Into a file of another name first, so that nobody ever loads half of one."""
    log.info("compiling the LSTM kernel for this processor into %s", file)
    handle, made = tempfile.mkstemp(suffix=".so", dir=file.parent)
    try:
        _run([_compiler(), *FLAGS, str(SOURCES / "lstm.cpp"), *_openmp(), "-Wl,--as-needed", "-o", made])
        os.replace(made, file)
    finally:
        os.close(handle)
        Path(made).unlink(missing_ok=True)


def _openmp() -> list[str]:
    """torch's own OpenMP library, if it brings one: a second one in a process would have threads of its own."""
    package = Path(torch.__file__).parent
    return [str(f) for folder in (package / "lib", package.parent / "torch.libs") for f in folder.glob("libgomp*.so*")]


def _key() -> str:
    """Of the sources, the flags, and what the compiler predefines for this processor (its own version too)."""
    about = _run([_compiler(), *FLAGS, "-E", "-dM", "-x", "c++", os.devnull])
    texts = [file.read_text(encoding="utf-8") for file in sorted(SOURCES.glob("*.[ch]*"))]
    said = "\0".join([*texts, *FLAGS, *_openmp(), about])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"its kernel cannot be compiled: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        said = repr(lines[0].strip()) if lines[0].strip() else f"nothing, with exit status {done.returncode}"
        raise BuildError(f"its kernel cannot be compiled: {command[0]} says {said}")
    return done.stdout
