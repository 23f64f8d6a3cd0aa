"""One call in each of its ways, with its tensors replaced by other kinds of tensors: for the laws of ``tensors.py``."""

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
"""Options of a law about kinds of tensors: one small shape in a process of its own, as a kernel may crash."""

IN_FULL: dict[str, Any] = {"profiles": ("full",)}
"""Of those that the quick profile leaves out: each starts an interpreter, some seconds."""

NO_FUNCTIONALIZE_RULE = "NYI: Functionalize rule for custom_function_call"
"""What torch itself says of every torch.autograd.Function under functionalize: its author cannot say it better."""

WAYS = ("without resets", "with resets", "one step", "one step with resets")


class Given(NamedTuple):
    """The tensors of one call: ``x [T, B, I]``, ``is_init [T, B]``, the state before it, weights by name."""

    x: Tensor
    is_init: Tensor
    state: State
    weights: dict[str, Tensor]

    def each(self, make: Callable[[Tensor], Tensor], gradients: bool = False) -> Given:
        """Every tensor replaced; ``gradients``: the weights require them."""
        weights = {name: make(value.detach()) for name, value in self.weights.items()}
        weights = {name: nn.Parameter(value, requires_grad=gradients) for name, value in weights.items()}
        return Given(make(self.x), make(self.is_init), State(*map(make, self.state)), weights)

    def installed(self, lstm: LSTM) -> LSTM:
        """The LSTM with these weights in place of its own."""
        for name, value in self.weights.items():
            setattr(lstm, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value, False))
        return lstm


class Kind(NamedTuple):
    """A kind of tensors, or of surroundings, of a call.

    Attributes:
        name: in words.
        make: the call's tensors, of this kind. It may change the LSTM.
        mode: around the call.
        taken: what is made of the input as the call takes it: of the first step, where there is one alone.
    """

    name: str
    make: Callable[[Given], Given]
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    taken: Callable[[Tensor], Tensor] = lambda x: x


def given(trial: Trial, lstm: LSTM) -> Given:
    """The case's tensors, fresh, for a call that starts from the state stored at the first step."""
    inputs = trial.fresh()
    state = State(inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    return Given(inputs.x, trial.is_init, state, dict(lstm.named_parameters()))


def run(lstm: LSTM, values: Given, way: str, make: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
    """One call: the output and the state after it. ``make`` is applied to the input as the call takes it."""
    if way.startswith("one step"):
        reset = values.is_init[0] if way == "one step with resets" else None
        output, state = lstm.step(make(values.x[0]), values.state, reset)
        return [output, *state]
    output, (h, c) = lstm(make(values.x), values.state, is_init=values.is_init if way == "with resets" else None)
    return [output, h, c]


def expected(trial: Trial, way: str, weights: dict[str, Tensor] | None = None) -> list[Tensor]:
    """The reference's answer to :func:`run` with plain tensors; with other ``weights``, to differentiate."""
    steps = 1 if way.startswith("one step") else trial.case.T
    resets = trial.is_init[:steps] if way.endswith("with resets") else torch.zeros_like(trial.is_init[:steps])
    return of_stream(trial, trial.inputs.x[:steps], resets, squeeze=way.startswith("one step"), weights=weights)


def of_stream(
    trial: Trial, x: Tensor, resets: Tensor, squeeze: bool = False, weights: dict[str, Tensor] | None = None
) -> list[Tensor]:
    """The reference's output and last state of ``x [T, B, I]`` from the case's first stored state."""
    starts, steps = resets.clone(), len(x)
    starts[0] = True
    entries = [torch.zeros_like(v[:, :1]).repeat(1, steps, 1, 1) for v in (trial.inputs.h, trial.inputs.c)]
    for entry, stored in zip(entries, (trial.inputs.h, trial.inputs.c), strict=True):
        entry[:, 0] = torch.where(resets[0].unsqueeze(-1), 0, stored[:, 0])
    inputs = trial.inputs._replace(x=x, h=entries[0], c=entries[1], starts=starts)
    found = trial.reference(inputs if weights is None else inputs._replace(weights=weights))
    return [found.output[0] if squeeze else found.output, found.end_h[:, -1], found.end_c[:, -1]]


def attempt(kind: str, way: str, call: Callable[[], T]) -> T | None:
    """The call's result, or ``None`` where it is refused in words.

    Raises:
        LawBroken: another error, with the kind's name: it says nothing to who gave the tensor.
    """
    try:
        with naming(f"{kind}, {way}"):
            return call()
    except UnsupportedError as error:
        if not error.reason.strip():
            raise LawBroken(f"{kind}, {way}: refused without a reason") from error
    except InputError as error:
        if not str(error).strip():
            raise LawBroken(f"{kind}, {way}: refused without a word") from error
    except KindError as error:
        if NO_FUNCTIONALIZE_RULE in error.said:
            return None
        raise LawBroken(
            f"{kind}, {way}: neither a result nor a refusal in words, but {error.said}"
        ) from error.__cause__
    return None


class KindError(RuntimeError):
    """An error that is no refusal, with the kind that it is about; ``said`` is what the error itself says."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what}: {said}")
        self.said = said


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Whatever goes wrong within names what was tried: a broken law, an error, the end of the process."""
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
    """Each kind in each way: the right numbers, once ``plain`` has made plain tensors of them, or a refusal.

    Raises:
        Declined: every one is refused.
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
        raise Declined("every kind is refused in words")


def compare(trial: Trial, what: str, found: list[Tensor], right: list[Tensor]) -> None:
    """Output and state of a call are the reference's."""
    with naming(what):
        for name, value, wanted in zip(("output", "h", "c"), found, right, strict=True):
            trial.agree(name, value, wanted, None, "")
