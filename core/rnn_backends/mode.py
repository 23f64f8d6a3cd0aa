"""Recurrent or sequential: the context manager that overrides every module's own mode."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal

import torch

from ._torch import torchrl_recurrent_mode
from .errors import InputError

Mode = bool | Literal["recurrent", "sequential"] | None

_context: ContextVar[tuple[bool | None, ...]] = ContextVar("rnn_backends_recurrent_mode", default=())


class _Mirror(threading.local):
    """The same stack where Dynamo can read and guard it: it traces thread-locals, not ContextVars."""

    def __init__(self) -> None:  # for each thread: an attribute of the class would break Dynamo's guard
        self.stack: tuple[bool | None, ...] = ()


_mirror = _Mirror()


def as_mode(mode: Mode) -> bool | None:
    """``True``/``"recurrent"``, ``False``/``"sequential"`` or ``None`` (each module's own) -> bool or ``None``."""
    if isinstance(mode, str):
        if mode.lower() not in ("recurrent", "sequential"):
            raise InputError(f"a recurrent mode is True, False, 'recurrent' or 'sequential', got {mode!r}")
        return mode.lower() == "recurrent"
    return mode if mode is None else bool(mode)


class set_recurrent_mode(ContextDecorator):
    """Context manager and decorator: within it every module runs in this mode, whatever its own is.

    Safe across threads and tasks, nested, and restored after an exception.

    Args:
        mode: ``True`` or ``"recurrent"``, ``False`` or ``"sequential"``; ``None`` gives each module its own mode back.

    Examples:
        >>> from rnn_backends import recurrent_mode, set_recurrent_mode
        >>> with set_recurrent_mode("recurrent"):
        ...     recurrent_mode()
        True
    """

    def __init__(self, mode: Mode = True) -> None:
        self.mode = as_mode(mode)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[override]
        """Decorate a function or a coroutine function."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InputError("a generator would leave its mode to its consumer at each yield: decorate what it calls")
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return run

    def __enter__(self) -> None:
        self._set((*_stack(), self.mode))

    def __exit__(self, *exc_info: object) -> None:
        self._set(_stack()[:-1])

    @staticmethod
    def _set(stack: tuple[bool | None, ...]) -> None:
        _mirror.stack = stack
        if not torch.compiler.is_compiling():
            _context.set(stack)


def _stack() -> tuple[bool | None, ...]:
    return _mirror.stack if torch.compiler.is_compiling() else _context.get()


def recurrent_mode() -> bool | None:
    """The mode in force: ours, else TorchRL's if TorchRL is loaded (its losses and GAE set it), else ``None``."""
    stack = _stack()
    if stack and stack[-1] is not None:
        return stack[-1]
    return torchrl_recurrent_mode()
