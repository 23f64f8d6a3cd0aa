"""Shared by the commands: help that ends with examples, and usage errors that name the option."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    import torch


class Examples(click.Command):
    """A command with help that ends with its examples, unwrapped."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog without wrapping: a wrapped command line cannot be pasted."""
        formatter.write(f"\n{self.epilog}\n" if self.epilog else "")


def refuse(option: str, why: str) -> NoReturn:
    """Exit with status 2 and the reason."""
    raise click.BadParameter(why, param_hint=f"'{option}'")


@contextmanager
def refusals(*which: tuple[type[Exception], str]) -> Iterator[None]:
    """Turn errors into usage errors. ``which``: (exception type, option) pairs, most specific first."""
    try:
        yield
    except tuple(kind for kind, _ in which) as error:
        option = next(option for kind, option in which if isinstance(error, kind))
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def device_called(name: str) -> torch.device:
    """A device by its name, present or not."""
    import torch

    try:
        return torch.device(name)
    except RuntimeError as error:
        refuse("--device", str(error).splitlines()[0])


def device_named(name: str) -> torch.device:
    """A device by its name; a usage error if this machine does not have it."""
    import torch

    device = device_called(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        refuse("--device", "no CUDA device is available here")
    return device


def writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A file to write at the end of a long run; checked at its beginning."""
    if value is None or str(value) == "-":
        return value
    target = value.resolve()
    if not target.parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent}")
    if target.exists() and not os.access(target, os.W_OK):
        raise click.BadParameter(f"{value} cannot be written")
    if not target.exists() or target.is_file():  # a device file needs no room in its folder
        _try_folder(target.parent)
    return value


def writable_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A folder to write files in at the end; it need not exist yet."""
    if value is not None:
        target = value.resolve()
        there = next(path for path in (target, *target.parents) if path.exists())
        if not there.is_dir():
            raise click.BadParameter(f"{there} is not a folder")
        _try_folder(there)
    return value


def _try_folder(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        raise click.BadParameter(f"{folder} cannot be written to: {error.strerror}") from None
