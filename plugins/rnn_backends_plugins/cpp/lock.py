"""A lock between processes, with a time limit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

POLL = 0.05
"""Seconds between two tries."""

log = logging.getLogger(__name__)


@dataclass
class Lock:
    """The state of a lock, for its holder.

    Attributes:
        held: whether this process holds it; ``False`` after the time limit, or if the file system has no locks.
        waited: whether another process held it first.
    """

    held: bool
    waited: bool
    file: int

    def leave(self, note: str) -> None:
        """Leave a note for waiting processes; an empty note removes it."""
        if self.held:
            with suppress(OSError):  # no space for it
                os.ftruncate(self.file, 0)
                os.pwrite(self.file, note.encode(), 0)

    def note(self) -> str:
        """The last holder's note, if this process waited for it."""
        return os.pread(self.file, 1 << 16, 0).decode(errors="replace") if self.held and self.waited else ""


@contextmanager
def locked(path: Path, limit: float, while_waiting: Callable[[float], object]) -> Iterator[Lock]:
    """Hold the lock file, or continue without it after ``limit`` seconds.

    The system releases the lock when its holder exits or is killed.

    Args:
        path: the lock file; it is created and stays.
        limit: the time limit in seconds.
        while_waiting: called with the seconds waited so far.

    Raises:
        OSError: the file cannot be created.
    """
    import fcntl  # absent on some systems, where this backend is too

    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        began, waited, held = time.monotonic(), False, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            except BlockingIOError:
                waited, passed = True, time.monotonic() - began
                if passed > limit:
                    log.warning("%s is held by another process for over %.0f s: continuing without it", path, limit)
                    break
                while_waiting(passed)
                time.sleep(POLL)
            except OSError as error:  # a file system without locks
                log.info("%s cannot be locked: %s", path, error)
                break
        yield Lock(held, waited, file)
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # not left to `close`: a fork may have the file, too
        os.close(file)
