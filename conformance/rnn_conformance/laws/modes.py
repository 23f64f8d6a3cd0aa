"""Modes: which mode applies, within contexts and copies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from rnn_backends import InputError, LSTMModule, recurrent_mode, set_recurrent_mode
from torch import Tensor

from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken

SMALL: dict[str, Any] = {"T": (2,), "B": (2,), "L": (1,)}
NAMES = {True: "Recurrent", False: "sequential"}
"""The modes in words; capitals do not matter."""
Context = Callable[[Any], AbstractContextManager[Any]]


class _Stop(Exception):
    """Raised and caught by the law itself."""


def _runs_in(module: LSTMModule, expected: bool, where: str) -> None:
    if module.recurrent_mode != expected:
        raise LawBroken(f"{where} recurrent_mode is {module.recurrent_mode}, expected {expected}")


def _torchrls() -> Any:
    """TorchRL's modules, or ``None`` if they are not loaded."""
    return sys.modules.get("torchrl.modules")


def _with_and_without_torchrl() -> Iterator[AbstractContextManager[Any]]:
    """Contexts to test in: the present one and, if TorchRL is loaded, one in which it seems not to be."""
    yield nullcontext()
    if _torchrls() is not None:
        yield mock.patch.dict(sys.modules, {"torchrl.modules": None})


@law(**SMALL)
def contexts_of_a_mode_nest(trial: Trial) -> None:
    """The innermost context, ours or TorchRL's, decides until its end; ``None`` restores each module's own mode."""
    for surroundings in _with_and_without_torchrl():
        with surroundings:
            for own in (False, True):
                _nest(trial.module().set_recurrent_mode(own), own)
                if _torchrls() is not None:
                    _nest_with_torchrls(trial.module().set_recurrent_mode(own), own)


def _nest(module: LSTMModule, own: bool) -> None:
    with set_recurrent_mode(not own):
        _runs_in(module, not own, "within a context")
        with set_recurrent_mode(None):
            _runs_in(module, own, "within None in a context")
            with set_recurrent_mode(NAMES[not own]):  # type: ignore[arg-type]
                _runs_in(module, not own, f"within {NAMES[not own]!r} in None")
        try:
            with set_recurrent_mode(own):
                _runs_in(module, own, "within a context in a context")
                raise _Stop
        except _Stop:
            _runs_in(module, not own, "after an error in an inner context")
    _runs_in(module, own, "after all contexts")


def _nest_with_torchrls(module: LSTMModule, own: bool) -> None:
    theirs: Context = _torchrls().set_recurrent_mode
    contexts: list[tuple[str, Context]] = [("TorchRL's", theirs), ("a", set_recurrent_mode)]
    for (outside, outer), (inside, inner) in (contexts, contexts[::-1]):
        with outer(not own):
            _runs_in(module, not own, f"within {outside} context")
            with inner(own):
                _runs_in(module, own, f"within {inside} context in {outside}")
                with outer(not own):
                    _runs_in(module, not own, f"within {outside} context in {inside} context in {outside}")
                _runs_in(module, own, f"after {outside} context in {inside}")
            _runs_in(module, not own, f"after {inside} context in {outside}")
        _runs_in(module, own, f"after {outside} context")
    left = _torchrls().recurrent_mode()
    if left is not None:
        raise LawBroken(f"after all contexts TorchRL's mode is {left}, expected None")


@law(**SMALL)
def a_context_may_be_entered_within_itself(trial: Trial) -> None:
    """One ``set_recurrent_mode`` object can be re-entered, as by a recursive decorated function or a coroutine."""
    module, mode = trial.module(), set_recurrent_mode(True)

    @mode
    def recursive(depth: int) -> None:
        _runs_in(module, True, "within a decorated function")
        if depth:
            recursive(depth - 1)
        _runs_in(module, True, "after a decorated function called itself")

    recursive(2)
    _runs_in(module, False, "after a recursive decorated function")
    with set_recurrent_mode(False), mode, mode:
        _runs_in(module, True, "within one context twice")
    _runs_in(module, False, "after one context twice")

    @mode
    async def waits() -> None:
        _runs_in(module, True, "within a decorated coroutine")
        await asyncio.sleep(0)
        _runs_in(module, True, "within a decorated coroutine after it waited")

    asyncio.run(waits())
    mode.__exit__(None, None, None)  # as where another thread entered it
    _runs_in(module, False, "after a context that was not entered is left")
    for generator in (_generator, _async_generator):
        try:
            mode(generator)
        except InputError:
            continue
        raise LawBroken("a decorated generator, which would leave its mode to its consumer, is not refused")


def _generator() -> Any:
    yield


async def _async_generator() -> Any:
    yield


CODE = {None: 3.0, True: 1.0, False: 2.0}
"""A mode as a number in a graph."""


def _coded(x: Tensor) -> Tensor:
    return x * 0 + CODE[recurrent_mode()]


@law(costly=True, once=True, profiles=("quick", "full"), **SMALL)
def a_mode_within_compiled_code_acts_there_alone(trial: Trial) -> None:
    """Contexts within compiled code nest as in Python, with graph breaks and without, TorchRL's too.

    Without a ``with`` statement too, as ``ExitStack`` enters and leaves them.
    """
    for surroundings in _with_and_without_torchrl():
        with surroundings, torch.no_grad():
            other: Context = set_recurrent_mode if _torchrls() is None else _torchrls().set_recurrent_mode
            _nest_in_compiled_code(torch.ones(1), other)
            if recurrent_mode() is not None:
                raise LawBroken(f"compiled code leaves the mode {recurrent_mode()} behind")


def _nest_in_compiled_code(x: Tensor, other: Context) -> None:
    @partial(torch.compile, fullgraph=True, backend="eager")
    def whole(x: Tensor) -> Tensor:
        first = _coded(x)
        with other(True):
            with set_recurrent_mode(False):
                with other(True):
                    within = [first, _coded(x)]
                within.append(_coded(x))
            with set_recurrent_mode(None):
                within.append(_coded(x))
            within.append(_coded(x))
        return torch.cat([*within, _coded(x)])

    @partial(torch.compile, backend="eager")
    def broken(x: Tensor) -> Tensor:
        with set_recurrent_mode(True):
            _out_of_the_graph()
            within = _coded(x)
        return torch.cat([within, _coded(x)])

    @partial(torch.compile, backend="eager")
    def by_hand(x: Tensor) -> Tensor:
        context = set_recurrent_mode(True)
        context.__enter__()
        _out_of_the_graph()
        within = _coded(x)
        context.__exit__(None, None, None)
        return torch.cat([within, _coded(x)])

    @partial(torch.compile, backend="eager")
    def left(x: Tensor, entered: set_recurrent_mode) -> Tensor:
        entered.__exit__(None, None, None)
        return _coded(x)

    torch.compiler.reset()
    for mode, around in ((None, set_recurrent_mode), (False, other)):
        with around(mode):
            _are("contexts in one graph", whole(x), [CODE[mode], 1.0, 2.0, 3.0, 1.0, CODE[mode]])
    with other(True):  # which no other thread sees
        found = _in_a_thread(lambda: whole(x))
    _are("contexts in one graph, in another thread", found, [3.0, 1.0, 2.0, 3.0, 1.0, 3.0])
    with other(False):
        _are("contexts around a graph break", broken(x), [1.0, 2.0])
        _are("a context without a with statement", by_hand(x), [1.0, 2.0])
        entered = set_recurrent_mode(True)
        entered.__enter__()
        _are("a context that compiled code leaves", left(x, entered), [2.0])


def _in_a_thread(call: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.no_grad()(call)).result(timeout=60)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _out_of_the_graph() -> None:
    """A call of it breaks the graph."""


def _are(what: str, found: Tensor, expected: list[float]) -> None:
    names = {code: mode for mode, code in CODE.items()}
    modes, wanted = ([names[code] for code in codes] for codes in (found.tolist(), expected))
    if modes != wanted:
        raise LawBroken(f"{what}: the modes are {modes}, expected {wanted}")


@law(**SMALL)
def a_copy_has_its_mode_wherever_it_is_made(trial: Trial) -> None:
    """``module.set_recurrent_mode(mode)`` returns a module of that mode, whatever the context of the call."""
    for mode in (True, False):
        module = trial.module().set_recurrent_mode(not mode)
        for context in (True, False, None):
            with set_recurrent_mode(context):
                twin = module.set_recurrent_mode(mode)
            _runs_in(twin, mode, f"of a copy made by set_recurrent_mode({mode}) within a context of {context},")
