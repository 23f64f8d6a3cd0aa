"""Recurrent and sequential mode: the context manager that overrides every module's own mode."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from ._torch import (
    CAN_INLINE_ONLY,
    break_the_graph,
    only_inlined,
    torchrl_mode_in_traces,
    torchrl_mode_outside,
    torchrl_mode_set_in_trace,
    torchrl_recurrent_mode,
    torchrl_set_recurrent_mode,
    with_is_traced,
)
from .checks import as_switch
from .errors import InputError

Mode = bool | Literal["recurrent", "sequential"] | None


Function = TypeVar("Function", bound=Callable[..., Any])
_DECORATE = "write @set_recurrent_mode(True) above a function, with the parentheses"


class _Entry(NamedTuple):
    """An open context: its mode and its surroundings."""

    mode: bool | None
    torchrl: bool | None
    """TorchRL's mode at entry: if it differs now, a context of TorchRL's is open within this one."""
    torchrl_context: Any
    """TorchRL's own context manager, entered with this one, so that TorchRL's modules follow."""
    outer: _Entry | None


_context: ContextVar[_Entry | None] = ContextVar("rnn_backends_recurrent_mode", default=None)


class _Traced(threading.local):
    """The innermost context that was entered within a trace: Dynamo traces thread-locals, not ``ContextVar.set``.

    Dynamo allows no graph break within a ``with`` statement: a ``with`` statement that has one runs as plain Python and
    uses the ``ContextVar``. So only the trace itself ever sees an entry here.
    """

    def __init__(self) -> None:  # runs in each thread: an attribute of the class would break Dynamo's guard
        self.entry: _Entry | None = None


class _Around(NamedTuple):
    """The modes that are set outside of a trace."""

    mode: bool | None
    torchrl_in_traces: bool | None


class _Outside:
    """Access to the surrounding modes from traced code.

    Dynamo cannot trace ``ContextVar.get``. But at trace time it evaluates a property with a builtin as its getter, and
    its guards evaluate the property again at every call, in the thread and task of that call.
    """

    __slots__ = ()

    def __call__(self) -> _Around:
        return _Around(_decided(_context.get(), torchrl_mode_outside()), torchrl_mode_in_traces())

    around = property(operator.call)


_traced, _outside = _Traced(), _Outside()


def as_mode(mode: Mode) -> bool | None:
    """``True``/``"recurrent"``, ``False``/``"sequential"`` or ``None`` (each module's own) -> bool or ``None``."""
    if isinstance(mode, str) and mode.lower() in ("recurrent", "sequential"):
        return mode.lower() == "recurrent"
    if isinstance(mode, str) or callable(mode):
        hint = f": {_DECORATE}" if callable(mode) else ""
        raise InputError(f"a recurrent mode is True, False, 'recurrent' or 'sequential', got {mode!r}{hint}")
    return mode if mode is None else as_switch("a recurrent mode", mode)


class set_recurrent_mode(ContextDecorator):
    """Context manager and decorator: within it every module runs in this mode instead of its own.

    It is safe across threads and tasks and in compiled code, can be nested, and restores the mode after an exception.
    If TorchRL is loaded, this and its context manager of the same name act as one: the innermost sets the mode of
    TorchRL's modules and of ours.

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

    def __call__(self, function: Function) -> Function:
        """Decorate a function or a coroutine function.

        Raises:
            InputError: it is a class or a generator, whose later calls would not run in this mode.
        """
        if inspect.isclass(function):
            raise InputError(
                f"{function.__name__} is a class, and would only be constructed in this mode: decorate its methods"
            )
        kinds = (function, getattr(function, "__call__", None))  # noqa: B004 - for an object, its method
        if any(inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind) for kind in kinds):
            raise InputError("a generator would leave its mode to its consumer at each yield: decorate what it calls")
        if not any(map(inspect.iscoroutinefunction, kinds)):
            return super().__call__(function)

        @wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return run  # type: ignore[return-value]

    @only_inlined
    def __enter__(self) -> None:
        set_torchrl = torchrl_set_recurrent_mode()
        context = None if set_torchrl is None else set_torchrl(self.mode)
        if context is not None:
            context.__enter__()
        if torch.compiler.is_compiling():
            if not (CAN_INLINE_ONLY and with_is_traced(set_recurrent_mode)):
                break_the_graph()
            _traced.entry = _Entry(self.mode, torchrl_recurrent_mode(), context, _traced.entry)
        else:
            _context.set(_Entry(self.mode, torchrl_recurrent_mode(), context, _context.get()))

    @only_inlined
    def __exit__(self, *exc_info: object) -> None:
        entry = _traced.entry if torch.compiler.is_compiling() else None
        if entry is not None:
            _traced.entry = entry.outer
        else:
            if torch.compiler.is_compiling():  # entered outside of the trace, which cannot set a ContextVar
                break_the_graph()
            entry = _context.get()
            if entry is None:
                return
            _context.set(entry.outer)
        if entry.torchrl_context is not None:
            entry.torchrl_context.__exit__(*exc_info)


@only_inlined
def recurrent_mode() -> bool | None:
    """The mode of the innermost context, ours or TorchRL's (its losses set one); ``None`` outside of all contexts."""
    if torch.compiler.is_compiling():
        return _traced_mode()
    entry, torchrl = _context.get(), torchrl_recurrent_mode()
    return torchrl if entry is None else _decided(entry, torchrl)


def _decided(entry: _Entry | None, torchrl: bool | None) -> bool | None:
    return torchrl if entry is None or torchrl is not entry.torchrl else entry.mode


def _traced_mode() -> bool | None:
    """The mode within a trace. Each read adds a guard, so a value is read only where it can matter."""
    if _traced.entry is not None:
        return _decided(_traced.entry, torchrl_recurrent_mode())
    around: _Around = _outside.around
    if not torchrl_mode_set_in_trace():
        return around.mode
    torchrl = torchrl_recurrent_mode()
    if torchrl is not around.torchrl_in_traces:
        return torchrl
    # another thread may have set the same mode, which TorchRL shares between threads where it is traced
    return torchrl if with_is_traced(torchrl_set_recurrent_mode()) else around.mode
