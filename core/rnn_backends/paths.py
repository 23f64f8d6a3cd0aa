"""This machine's cache folder, and files that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path | None:
    """This machine's cache folder, which may not exist yet; ``None`` if there is no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "rnn_backends"
    except RuntimeError:
        return None


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8 so that a reader gets the old file or the new one, never a part of either.

    The text is written to a new file in the same folder, which then replaces ``path``: processes that write the same
    path at the same time cannot mix their texts. A symbolic link stays a link and its target is replaced; an existing
    file keeps its permissions. A path that is not a regular file, such as ``/dev/stdout``, is written directly.

    Raises:
        OSError: the folder does not exist, is not writable or is full; ``path`` is then as before.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    fresh = target.with_name(f".{target.name[:64]}-{secrets.token_hex(8)}.part")
    try:
        with fresh.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        if target.exists():
            fresh.chmod(target.stat().st_mode & 0o7777)
        fresh.replace(target)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
