"""Calls of an LSTM with other kinds of tensors, in rows and in steps, with and without resets, for ``tensors.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from rnn_backends import LSTM, InputError, State, UnsupportedError
from torch import Tensor, nn

from ..suite.isolation import note
from ..suite.trial import Trial
from ..suite.verdict import Declined, LawBroken

T = TypeVar("T")

KINDS: dict[str, Any] = {
    "time_limit": 120.0, "once": True, "profiles": ("quick", "full"),
    "dtype": ("f32",), "T": (4,), "B": (3,), "I": (3,),
    "H": (4,), "L": (2,), "P": (0,), "bias": (True,), "bidirectional": (False,), "layout": ("contiguous",),
}  # fmt: skip
"""Options of a law about kinds of tensors: one small shape in its own process, because a kernel may crash."""

IN_FULL: dict[str, Any] = {"profiles": ("full",)}
"""For laws that the quick profile leaves out, because each takes seconds to start an interpreter."""

NO_FUNCTIONALIZE_RULE = "NYI: Functionalize rule for custom_function_call"
"""torch's error for every torch.autograd.Function under functionalize, which its author cannot replace."""

WAYS = ("without resets", "with resets", "one step", "one step with resets")


class Given(NamedTuple):
    """The tensors of one call: ``x [T, B, I]``, ``is_init [T, B]``, the state before it, weights by name."""

    x: Tensor
    is_init: Tensor
    state: State
    weights: dict[str, Tensor]

    def each(self, make: Callable[[Tensor], Tensor], gradients: bool = False) -> Given:
        """The same call with ``make`` applied to every tensor; ``gradients``: whether the weights require them."""
        weights = {name: make(value.detach()) for name, value in self.weights.items()}
        weights = {name: nn.Parameter(value, requires_grad=gradients) for name, value in weights.items()}
        return Given(make(self.x), make(self.is_init), State(*map(make, self.state)), weights)

    def installed(self, lstm: LSTM) -> LSTM:
        """The LSTM, with its weights replaced by these."""
        for name, value in self.weights.items():
            setattr(lstm, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value, False))
        return lstm


class Kind(NamedTuple):
    """A kind of tensors, or a mode of torch, for a call.

    Attributes:
        name: its name in the messages.
        make: converts the call's tensors to this kind. It may change the LSTM.
        mode: a context manager around the call.
        taken: converts the input just before the call: the whole row, or its first step for a call of one step.
    """

    name: str
    make: Callable[[Given], Given]
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    taken: Callable[[Tensor], Tensor] = lambda x: x


def given(trial: Trial, lstm: LSTM) -> Given:
    """New tensors of the case, for a call that starts from the state stored at the first step."""
    inputs = trial.fresh()
    state = State(inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    return Given(inputs.x, trial.is_init, state, dict(lstm.named_parameters()))


def run(lstm: LSTM, values: Given, way: str, make: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
    """The output of one call and the state after it. ``make`` is applied to the input just before the call."""
    if way.startswith("one step"):
        reset = values.is_init[0] if way == "one step with resets" else None
        output, state = lstm.step(make(values.x[0]), values.state, reset)
        return [output, *state]
    output, (h, c) = lstm(make(values.x), values.state, is_init=values.is_init if way == "with resets" else None)
    return [output, h, c]


def expected(trial: Trial, way: str, weights: dict[str, Tensor] | None = None) -> list[Tensor]:
    """The reference's result of :func:`run` with plain tensors; with other ``weights``, for gradients."""
    steps = 1 if way.startswith("one step") else trial.case.T
    resets = trial.is_init[:steps] if way.endswith("with resets") else torch.zeros_like(trial.is_init[:steps])
    return of_stream(trial, trial.inputs.x[:steps], resets, squeeze=way.startswith("one step"), weights=weights)


def of_stream(
    trial: Trial, x: Tensor, resets: Tensor, squeeze: bool = False, weights: dict[str, Tensor] | None = None
) -> list[Tensor]:
    """The reference's output and last state for ``x [T, B, I]`` from the case's first stored state."""
    starts, steps = resets.clone(), len(x)
    starts[0] = True
    entries = [torch.zeros_like(v[:, :1]).repeat(1, steps, 1, 1) for v in (trial.inputs.h, trial.inputs.c)]
    for entry, stored in zip(entries, (trial.inputs.h, trial.inputs.c), strict=True):
        entry[:, 0] = torch.where(resets[0].unsqueeze(-1), 0, stored[:, 0])
    inputs = trial.inputs._replace(x=x, h=entries[0], c=entries[1], starts=starts)
    found = trial.reference(inputs if weights is None else inputs._replace(weights=weights))
    return [found.output[0] if squeeze else found.output, found.end_h[:, -1], found.end_c[:, -1]]


def attempt(kind: str, way: str, call: Callable[[], T]) -> T | None:
    """The call's result, or ``None`` if it is rejected with a reason.

    Raises:
        LawBroken: any other error, with the name of the kind, because the error has no reason for a user.
    """
    try:
        with naming(f"{kind}, {way}"):
            return call()
    except UnsupportedError as error:
        if not error.reason.strip():
            raise LawBroken(f"{kind}, {way}: rejected without a reason") from error
    except InputError as error:
        if not str(error).strip():
            raise LawBroken(f"{kind}, {way}: rejected without a message") from error
    except KindError as error:
        if NO_FUNCTIONALIZE_RULE in error.said:
            return None
        raise LawBroken(
            f"{kind}, {way}: neither a result nor a rejection with a reason, but {error.said}"
        ) from error.__cause__
    return None


class KindError(RuntimeError):
    """An error other than a rejection, with the kind of tensor; ``said`` is the error's own message."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what}: {said}")
        self.said = said


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Context manager: add ``what`` to the message of a broken law, an error, or the end of the process."""
    note(what)
    try:
        yield
    except LawBroken as broken:
        raise LawBroken(f"{what}: {broken}", broken.error_ratio) from broken
    except (UnsupportedError, InputError, Declined):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise KindError(what, f"{type(error).__name__}: {first}") from error


def every_kind(trial: Trial, kinds: Iterable[Kind], plain: Callable[[Tensor], Tensor]) -> None:
    """Check each kind in each form of call: right results, after ``plain`` has converted them, or a rejection.

    Raises:
        Declined: every kind is rejected.
    """
    answers = 0
    for kind in kinds:
        for way in WAYS:

            def call(kind: Kind = kind, way: str = way) -> list[Tensor]:
                lstm = trial.lstm().requires_grad_(False)
                values = kind.make(given(trial, lstm))
                values.installed(lstm)
                with torch.no_grad(), kind.mode():
                    found = run(lstm, values, way, kind.taken)
                return [plain(v) for v in found]

            found = attempt(kind.name, way, call)
            if found is not None:
                answers += 1
                compare(trial, f"{kind.name}, {way}", found, expected(trial, way))
    if not answers:
        raise Declined("every kind is rejected with a reason")


def compare(trial: Trial, what: str, found: list[Tensor], right: list[Tensor]) -> None:
    """Check that output and state of a call equal the reference's."""
    with naming(what):
        for name, value, wanted in zip(("output", "h", "c"), found, right, strict=True):
            trial.agree(name, value, wanted, None, "")
