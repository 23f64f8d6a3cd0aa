"""A lock between processes that cannot hang for ever."""

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
        held: whether nobody else has it; ``False`` after the time limit, or where the file system has no locks.
        waited: whether another process had it first.
    """

    held: bool
    waited: bool
    file: int

    def leave(self, note: str) -> None:
        """Leave a note for those who wait; the empty one removes it."""
        if self.held:
            with suppress(OSError):  # no room for it
                os.ftruncate(self.file, 0)
                os.pwrite(self.file, note.encode(), 0)

    def note(self) -> str:
        """The last holder's note, if this process waited for it."""
        return os.pread(self.file, 1 << 16, 0).decode(errors="replace") if self.held and self.waited else ""


@contextmanager
def locked(path: Path, limit: float, while_waiting: Callable[[float], object]) -> Iterator[Lock]:
    """Hold the lock file, or go on without it after ``limit`` seconds.

    The system gives the lock back when its holder ends, however it ends: a dead process holds none.

    Args:
        path: the lock file; it is created and stays.
        limit: in seconds.
        while_waiting: called with the seconds waited so far.

    Raises:
        OSError: the file cannot be created.
    """
    import fcntl  # not on every system, and neither is this backend

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
                    log.warning("%s is held by another process for more than %.0f s: going on without it", path, limit)
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
