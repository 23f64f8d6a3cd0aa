"""The type of a planted defect: a small named value that puts one error into a backend or into core.

A defect is a function and a decorator: its name is the function's, its sentence the docstring's first line, its subject
the file it is in. Its decorator names the laws that must kill it, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

from rnn_backends import LSTM, LayerFunction, LSTMBackend, StepFunction, Trait, mode

from ..suite.law import sentence_of
from ..suite.torch_settings import restored_settings
from .right import Reset, layer, restart, right, step

Plant = Callable[[], Any]
Rounds = int | tuple[int, ...]

FULLGRAPH, SCRIPT = frozenset({Trait.FULLGRAPH}), frozenset({Trait.SCRIPT})


@dataclass(frozen=True)
class Defect:
    """One planted defect.

    Attributes:
        name: short and descriptive.
        subject: the file it is in, which is the subject of the first law that it names.
        sentence: the error, in one sentence.
        plant: a context manager, which yields the wrong backend.
        killed_by: names of the laws that must fail, each with every seed.
        why_not: the reason, if no law can kill it.
        by_numbers: whether it shows only in numbers, so that other failures may be compared with it.
        rounds: numbers of the rounds (see :mod:`.rounds`) in which it was invented; empty for the catalogue.
        survived: the rounds that it survived; the laws it names were written or widened since.
        patches: replaced attributes, made again for each planting; none if only a backend is wrong.
        in_kernel: whether it is in the numbers of one layer (``in_step``, ``in_reset``, ``in_layer``, ``made``), so
            that it can be planted under a restricted backend too.
        dtypes: the dtypes in which it is an error, as in tokens; none for all.
    """

    name: str
    subject: str
    sentence: str
    plant: Plant
    killed_by: tuple[str, ...]
    why_not: str = ""
    by_numbers: bool = True
    rounds: tuple[int, ...] = ()
    survived: tuple[int, ...] = ()
    patches: Callable[[], list[Patch]] = list
    in_kernel: bool = False
    dtypes: tuple[str, ...] = ()


class Patch(NamedTuple):
    """``owner.name`` is ``value`` while the defect is planted."""

    owner: object
    name: str
    value: object


def in_place_of_ready(value: Callable[[LSTM], Any]) -> list[Patch]:
    """``LSTM._ready`` is ``value``, also in calls whose weights core knows already."""
    return [
        Patch(LSTM, "_ready", lambda self, weights=None: value(self)),
        Patch(LSTM, "_cached_info", lambda self, weights: None),
    ]


_KERNEL: dict[str, Any] = {"in_kernel": True}


def in_step(*laws: str, **more: Any) -> Callable[[StepFunction], Defect]:
    """The step is wrong; the loop and its resets are right."""
    return lambda written: _defect(written, lambda: LSTMBackend("defect", layer(written)), laws, _KERNEL | more)


def in_reset(*laws: str, **more: Any) -> Callable[[Reset], Defect]:
    """The reset rule is wrong; the step is right."""
    return lambda written: _defect(written, lambda: LSTMBackend("defect", layer(step, written)), laws, _KERNEL | more)


def in_layer(*laws: str, traits: frozenset[Trait] = frozenset(), **more: Any) -> Callable[[LayerFunction], Defect]:
    """The layer function is wrong."""
    return lambda written: _defect(written, lambda: LSTMBackend("defect", written, traits=traits), laws, _KERNEL | more)


def made(
    *laws: str, traits: frozenset[Trait] = frozenset(), **more: Any
) -> Callable[[Callable[[], LayerFunction]], Defect]:
    """The layer function has state between calls, so each planting makes a new one."""
    return lambda make: _defect(make, lambda: LSTMBackend("defect", make(), traits=traits), laws, _KERNEL | more)


def backend(*laws: str, **more: Any) -> Callable[[Callable[[], LSTMBackend]], Defect]:
    """The whole backend is wrong: its claims, its step, its stack."""
    return lambda make: _defect(make, make, laws, more)


def in_core(*laws: str, on: LSTMBackend | None = None, **more: Any) -> Callable[[Callable[[], list[Patch]]], Defect]:
    """Core, or a plugin's code, is wrong; the backend is right."""

    def decorate(make: Callable[[], list[Patch]]) -> Defect:
        chosen = on or LSTMBackend("defect", right)
        return _defect(make, lambda: chosen, laws, {"by_numbers": False} | more, make)

    return decorate


def _defect(
    written: Any,
    make: Callable[[], LSTMBackend],
    laws: tuple[str, ...],
    more: dict[str, Any],
    patches: Callable[[], list[Patch]] = list,
) -> Defect:
    @contextmanager
    def plant() -> Iterator[LSTMBackend]:
        with ExitStack() as stack:
            stack.enter_context(restored_settings())
            stack.callback(_restore_mode, mode._context.get(), mode.torchrl_recurrent_mode())
            for patch in patches():
                stack.enter_context(mock.patch.object(patch.owner, patch.name, patch.value))
            yield make()

    subject = written.__module__.rpartition(".")[2]
    sentence = sentence_of(written)
    rounds, survived = _numbers(more.pop("round", ())), _numbers(more.pop("survived", ()))
    return Defect(
        written.__name__, subject, sentence, plant, laws, **more, rounds=rounds, survived=survived, patches=patches
    )


def _restore_mode(entry: Any, torchrl: bool | None) -> None:
    """Restore the recurrent mode, ours and TorchRL's: a wrong context may leave its mode behind."""
    mode._context.set(entry)
    set_torchrl = mode.torchrl_set_recurrent_mode()
    if set_torchrl is not None and mode.torchrl_recurrent_mode() is not torchrl:
        set_torchrl(torchrl).__enter__()


def _numbers(rounds: Rounds) -> tuple[int, ...]:
    return (rounds,) if isinstance(rounds, int) else rounds


__all__ = [
    "FULLGRAPH", "SCRIPT", "Defect", "Patch", "backend", "in_core", "in_layer", "in_reset", "in_step", "made", "restart"
]  # fmt: skip
