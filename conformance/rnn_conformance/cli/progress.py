"""Progress: one bar for all commands, on a terminal only; elsewhere `check` prints one line per backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..report.terminal import printable


def _bar(console: Console) -> Progress:
    """A bar that disappears at the end; its task has a ``label`` before the bar and a description after it."""
    return Progress(
        TextColumn("{task.fields[label]}", style="bold", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def steps(total: int, label: str = "") -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar of ``total`` steps on stderr: ``tick(text)`` shows the current step, ``done()`` ends it."""
    with _bar(Console(stderr=True)) as bar:
        task = bar.add_task("", label=label, total=total)
        yield lambda text: bar.update(task, description=text), lambda: bar.advance(task)


class RunProgress:
    """A context manager around the run of all backends.

    Args:
        backends: how many there are.
        console: where to show it.
    """

    def __init__(self, backends: int, console: Console) -> None:
        self._console, self._backends, self._begun = console, backends, 0
        self._bar = _bar(console)
        self._task = self._bar.add_task("", label="", total=None)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def backend(self, name: str) -> None:
        """The next backend begins."""
        self._begun += 1
        label = printable(f"{name} ({self._begun} of {self._backends})", line=True)
        self._bar.reset(self._task, total=None, description="", label=label)
        if not self._console.is_terminal:
            self._console.print(f"checking {label} ...", highlight=False, markup=False, emoji=False)

    def law(self, law: str, done: int, total: int) -> None:
        """``done`` of the backend's ``total`` laws are finished and ``law`` begins."""
        self._bar.update(self._task, completed=done, total=total, description=law)

    def say(self, what: str) -> None:
        """A step that is not a law begins."""
        self._bar.update(self._task, description=what)
