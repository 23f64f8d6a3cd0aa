"""Whether another user could have written a file: its owner and mode, and those of each folder and link on its path."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

LINKS = 40
"""The most symbolic links on one path, as in Linux."""


def why_untrusted(path: Path) -> str | None:
    """The reason why another user could write or replace the file or folder at ``path``, or ``None``.

    A file or folder is trusted if it belongs to this user or root, nobody else may write it, and the same is true of
    the folders on its path. Those may be open to all if they have the sticky bit (``/tmp``), because nobody can replace
    another user's entry there. A path that does not exist is trusted.
    """
    parts = list(Path(os.path.abspath(path)).parts)
    at, todo, links = Path(parts[0]), parts[1:], 0
    try:
        reason = _reason(at, at.lstat(), last=not todo)
        while todo and reason is None:
            part = todo.pop(0)
            if part == "..":  # of a link's target
                at = at.parent
                continue
            entry = at / part
            status = entry.lstat()
            reason = _reason(entry, status, last=not todo)
            if not stat.S_ISLNK(status.st_mode):
                at = entry
                continue
            target, links = Path(os.readlink(entry)), links + 1
            if links > LINKS:
                return f"{path} goes through more than {LINKS} symbolic links"
            if target.is_absolute():
                at = Path(target.parts[0])
            todo = [*target.parts[target.is_absolute() :], *todo]
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error)
    return reason


def _reason(path: Path, status: os.stat_result, last: bool) -> str | None:
    others = {_nobody()} if not last else set()
    if status.st_uid not in {0, os.geteuid(), *others}:
        return f"{path} belongs to another user (uid {status.st_uid})"
    if stat.S_ISLNK(status.st_mode):
        return None  # a link has no mode of its own; its target is checked next
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and not last
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        return f"{path} can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


@lru_cache(maxsize=1)
def _nobody() -> int:
    """The owner that a user namespace shows for root's folders outside of it (Apptainer, bubblewrap); else root."""
    try:
        mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        if mapped == ["0", "0", "4294967295"]:
            return 0
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
