"""What the commands share: help that ends with examples, and refusals that name the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    import torch


class Examples(click.Command):
    """A command whose help ends with its examples as they were written."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog unwrapped: a wrapped command line cannot be pasted."""
        formatter.write(f"\n{self.epilog}\n" if self.epilog else "")


def refuse(option: str, why: str) -> NoReturn:
    """Exit with status 2 and the reason."""
    raise click.BadParameter(why, param_hint=f"'{option}'")


@contextmanager
def refusals(*which: tuple[type[Exception], str]) -> Iterator[None]:
    """Turn errors into refusals: pairs of an error's type and the option that it is about, the most special first."""
    try:
        yield
    except tuple(kind for kind, _ in which) as error:
        option = next(option for kind, option in which if isinstance(error, kind))
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def device_called(name: str) -> torch.device:
    """A device by its name, whether it is there or not."""
    import torch

    try:
        return torch.device(name)
    except RuntimeError as error:
        refuse("--device", str(error).splitlines()[0])


def device_named(name: str) -> torch.device:
    """A device that is there."""
    import torch

    device = device_called(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        refuse("--device", "no CUDA device is available here")
    return device


def writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A file that can be written at the end of a long run: found out at its beginning."""
    if value is not None and str(value) != "-" and not value.resolve().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent}")
    return value
