"""The kernel as a shared library: compiled once for a machine's processor, with its own compiler, and cached.

The cache is ``$XDG_CACHE_HOME/rnn_backends`` (or ``~/.cache/rnn_backends``), or, if that cannot hold the library, a
folder of this user among the temporary files. The file name changes with the sources, the flags, the processor, torch's
OpenMP library and the compiler; all but the last are read without a compiler, so that a cached kernel works after the
compiler is removed. No library is loaded that differs from its digest file or that another user could have written.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from rnn_backends.authoring import cache_folder

from . import compiler
from .compiler import BuildError
from .lock import locked
from .trust import why_untrusted

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp")
FUNCTIONS = ("rnn_lanes", "rnn_scratch", "rnn_forward", "rnn_backward", "rnn_step", "rnn_step_backward", "rnn_message")
PROCESSOR = {"vendor_id", "cpu family", "model", "flags"} | {  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # ARM
    *("cpu", "isa", "features"),
}
"""Fields of /proc/cpuinfo that ``-march=native`` depends on."""
PROBE = 1 << 20
"""In bytes: a folder without space for this much cannot hold a kernel."""

log = logging.getLogger(__name__)
_one_at_a_time = Lock()


def _unlock() -> None:
    global _one_at_a_time
    _one_at_a_time = Lock()  # at a fork another thread may hold the lock, and the child has no such thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class FolderError(Exception):
    """A folder cannot hold the kernel; another folder may."""


class UnusableError(Exception):
    """A cached kernel must not or cannot be loaded."""


def library() -> ctypes.CDLL:
    """The loaded kernel; compiled first if necessary (some four seconds).

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    found = unable() or _once()
    if isinstance(found, str):
        raise BuildError(found)
    return found


def why_not() -> str | None:
    """The reason why there is no kernel, or ``None``. The first call loads or compiles it."""
    found = unable() or _once()
    return found if isinstance(found, str) else None


def unable() -> str | None:
    """The reason why there can be no kernel, known without running anything; a failure is remembered."""
    if sys.platform != "linux":
        return f"its kernel is compiled on Linux, with GCC, and this is {sys.platform}"
    if _built.cache_info().currsize:
        found = _built()
        return found if isinstance(found, str) else None
    reason = compiler.missing()
    if reason is None or next(_kept(), None):
        return None
    unusable = [f"{file} is kept, but {_why_unusable(file)}" for file in _files(f"lstm-{_machine()}-*.so")]
    return "; ".join([reason, *unusable])


def what_remains() -> str | None:
    """A description of the first use, which loads a cached kernel or compiles one; ``None`` after it."""
    if _built.cache_info().currsize:
        return None
    kept = next(_kept(), None)
    if kept is not None:
        return f"its kernel is on disk ({kept}), and its first use loads it"
    return "its kernel is not on disk for this machine, and its first use compiles it, which takes seconds"


def _once() -> ctypes.CDLL | str:
    with _one_at_a_time:
        return _built()


@lru_cache(maxsize=1)
def _built() -> ctypes.CDLL | str:
    """The library, or the reason why there is none; tried once per process."""
    try:
        return _load()
    except BuildError as error:
        return str(error)
    except OSError as error:
        if not _is_of_the_system(error):
            raise
        return f"its kernel is unavailable: {error}"


def _is_of_the_system(error: OSError) -> bool:
    """Whether the operating system reported it; a handler of a signal raises a ``TimeoutError`` without a number."""
    return error.errno is not None


def _load() -> ctypes.CDLL:
    for file in _kept():
        try:
            return _open(file)
        except UnusableError as error:
            log.info("%s is not loaded: %s", file, error)
    reason = compiler.missing()
    if reason is not None:
        raise BuildError(reason)
    causes: list[str] = []
    for folder in _folders():
        try:
            found = _build(folder)
        except FolderError as error:
            causes.append(f"{folder} cannot hold it ({error})")
            continue
        if causes:
            log.warning("The LSTM kernel is kept in %s: %s", folder, "; ".join(causes))
        return found
    try:
        with tempfile.TemporaryDirectory(prefix="rnn_backends-") as alone:  # a loaded library does not need its file
            found = _build(Path(alone))
    except (FolderError, OSError) as error:
        raise BuildError(
            f"no folder can hold its kernel: {'; '.join([*causes, str(error)])} (set XDG_CACHE_HOME to another folder)"
        ) from error
    log.warning("The LSTM kernel is compiled for this process alone: %s", "; ".join(causes))
    return found


def _folders() -> Iterator[Path]:
    """The folders for a kernel, the preferred one first."""
    folder = cache_folder()
    if folder is not None:
        yield folder
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    of = hashlib.sha256(os.fsencode(str(folder))).hexdigest()[:8]
    try:
        yield Path(tempfile.gettempdir()) / f"rnn_backends-{user}-{of}"
    except OSError as error:  # no folder for temporary files is writable
        log.info("%s", error)


def _kept() -> Iterator[Path]:
    """The usable cached kernels for this machine, by this compiler, or by any if there is none now."""
    name = f"lstm-{_machine()}-*.so" if compiler.missing() else _name()
    yield from (file for file in _files(name) if _why_unusable(file) is None)


def _files(pattern: str) -> Iterator[Path]:
    """The matching files, those of the preferred folder first, the newest first within a folder."""
    for folder in _folders():
        with suppress(OSError):  # removed or not readable
            yield from sorted(folder.glob(pattern), key=lambda file: file.lstat().st_mtime, reverse=True)


def _why_unusable(file: Path) -> str | None:
    """The reason why a cached kernel must not be loaded, or ``None``: its owner, mode or digest."""
    beside = _digest_file(file)
    reason = why_untrusted(file.parent) or why_untrusted(file) or why_untrusted(beside)
    if reason is not None:
        return reason
    try:
        written = beside.read_text(encoding="ascii", errors="replace") if beside.is_file() else None
        whole = file.is_file() and written == _digest(file)
    except OSError as error:
        return str(error)
    if written is None:
        return "it has no digest beside it"
    return None if whole else "it is damaged: its digest differs"


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _digest(file: Path, name: str | None = None) -> str:
    """The digest in the format of ``sha256sum``, for ``sha256sum --check``."""
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name or file.name}\n"


def _open(file: Path) -> ctypes.CDLL:
    """Verify and load a kernel.

    Raises:
        UnusableError: it must not or cannot be loaded.
    """
    reason = _why_unusable(file)
    if reason is not None:
        raise UnusableError(reason)
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:
        raise UnusableError(f"it cannot be loaded: {error}") from error
    absent = [name for name in FUNCTIONS if not hasattr(found, name)]
    if absent:
        raise UnusableError(f"it is not a kernel: it lacks the function {absent[0]}")
    return found


def _build(folder: Path) -> ctypes.CDLL:
    """Compile the kernel into a folder and load it, or load it if another process has compiled it meanwhile.

    Raises:
        FolderError: the folder cannot hold it.
        BuildError: it cannot be compiled into any folder.
    """
    _prepare(folder)
    file, logged = folder / _name(), False

    def tell(passed: float) -> None:
        nonlocal logged
        if passed > 1 and not logged:
            logged = True
            log.info("waiting for another process that compiles the LSTM kernel into %s", folder)

    try:
        with locked(folder / "lstm.lock", compiler.time_limit() + 30, tell) as lock:
            try:
                if file.exists() or file.is_symlink():
                    return _open(file)
            except UnusableError as error:
                log.warning("The LSTM kernel %s is compiled again: %s", file, error)
            name, _, failure = lock.note().partition("\n")
            if name == file.name and failure:
                raise BuildError(failure)
            if lock.held:
                _clean(folder)
            try:
                _compile(file)
                found = _open(file)
            except UnusableError as error:
                for left in (file, _digest_file(file)):
                    left.unlink(missing_ok=True)
                if re.search("failed to map|not permitted|denied", str(error)):
                    raise FolderError(str(error)) from error
                failure = f"its kernel was compiled and cannot be used: {error}"
                raise BuildError(failure) from error
            except BuildError as error:
                failure = str(error)
                raise
            finally:
                lock.leave(f"{file.name}\n{failure}" if failure else "")
            return found
    except OSError as error:
        if not _is_of_the_system(error):
            raise
        raise FolderError(str(error)) from error


def _prepare(folder: Path) -> None:
    """Make the folder, for this user alone.

    Raises:
        FolderError: the folder cannot be created, another user could write to it, or nothing can be loaded from it.
    """
    reason = why_untrusted(folder) if not folder.is_dir() else None
    if reason is not None:
        raise FolderError(reason)
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        _shut(folder)
    except OSError as error:
        raise FolderError(str(error)) from error
    reason = why_untrusted(folder)
    if reason is None and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        reason = "it is mounted noexec"
    if reason is not None:
        raise FolderError(reason)


def _shut(folder: Path) -> None:
    """Remove other users' permission to write to a folder of this user; an older version relied on the umask."""
    if folder.is_symlink():
        return  # its target is used and left unchanged
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(opened)
        if status.st_uid == os.geteuid() and status.st_mode & 0o022:
            os.fchmod(opened, status.st_mode & 0o755)
    finally:
        os.close(opened)


def _clean(folder: Path) -> None:
    """Remove the files of killed compilations; the lock is held, so no compilation runs."""
    for left in folder.glob("building-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob("tmp????????.so"):  # of version 0.1.0 before locks
        if left.stat().st_mtime < time.time() - 3600:
            left.unlink(missing_ok=True)


def _compile(file: Path) -> None:
    """Compile in a temporary folder and move the result, so that no process loads an incomplete kernel.

    Raises:
        BuildError: the compiler fails.
        FolderError: there is no space.
    """
    with tempfile.TemporaryDirectory(prefix="building-", dir=file.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        made = folder / "lstm.so"
        _probe(folder)
        try:
            compiler.run([*FLAGS, str(SOURCES / "lstm.cpp"), *_openmp(), "-Wl,--as-needed", "-o", str(made)], folder)
            if not made.is_file() or not made.stat().st_size:
                raise BuildError(f"its kernel cannot be compiled: {compiler.command()[0]} succeeded and wrote nothing")
        except BuildError:
            _probe(folder)
            raise
        made.chmod(0o644)  # independent of linker and umask; the folder's mode decides who may read it
        beside = folder / "digest"
        beside.write_text(_digest(made, file.name), encoding="ascii")
        beside.chmod(0o644)
        os.replace(made, file)
        os.replace(beside, _digest_file(file))


def _probe(folder: Path) -> None:
    """Raise :class:`FolderError` if there is no space, because compilers have many messages for that."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FolderError(str(error)) from error


def _openmp() -> list[str]:
    """torch's own OpenMP library, if it has one: a second library in a process would have its own threads."""
    package = Path(torch.__file__).parent
    return [str(f) for folder in (package / "lib", package.parent / "torch.libs") for f in folder.glob("libgomp*.so*")]


def _name() -> str:
    return f"lstm-{_machine()}-{compiler.identity()}.so"


def _machine() -> str:
    """A digest of the sources, the flags, the processor, and the name of torch's OpenMP library."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(SOURCES.glob("*.[ch]*"))]
    described = "\0".join([*texts, *FLAGS, *(Path(file).name for file in _openmp()), _processor()])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _processor() -> str:
    """The processor's features behind ``-march=native``, read without a compiler; else the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {line for line in lines if line.partition(":")[0].strip() in PROCESSOR}
    return "\n".join([platform.machine(), *(sorted(fields) or [platform.node()])])
