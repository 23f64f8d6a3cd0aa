"""Dispatch: the requested backend does all of the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rnn_backends import LSTM, BrokenBackendError, LSTMBackend, LSTMModule, Trait, get_backend, names

from ..suite.law import law
from ..suite.trial import Trial, differentiate
from ..suite.verdict import LawBroken

FUNCTIONS = ("layer", "step", "stack", "layer_last", "act", "act_stack")


@law(dtype=("f64", "f32"), profiles=("quick", "full"))
def only_the_named_backend_works(trial: Trial) -> None:
    """A backend delegates no work to another: calling any other one while it runs is an error."""
    lstm, inputs = trial.lstm(), trial.inputs
    hx = (inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    caught: list[str] = []
    with _traps(trial.backend, caught):
        try:
            ran = trial.run(lstm)
            differentiate(trial.loss(ran), dict(lstm.named_parameters()))
            trial.stream(lstm, inputs.x, hx)
            trial.stream(lstm, inputs.x, hx, trial.is_init)
            lstm.step(inputs.x[0], None)
        except _HandedOver:
            pass
    if caught:
        raise LawBroken(
            f"{trial.backend.name!r} was requested, and {caught[0]} did work in its place; "
            f"a backend rejects unsupported cases"
        )


class _HandedOver(Exception):
    """Another backend was called."""


@contextmanager
def _traps(tested: LSTMBackend, caught: list[str]) -> Iterator[None]:
    """Replace the functions of all other backends by traps, in place, as references to them may exist."""
    own = {id(getattr(tested, name)) for name in FUNCTIONS}
    replaced: list[tuple[LSTMBackend, str, object]] = []
    for other in _others(tested):
        for name in FUNCTIONS:
            function = getattr(other, name)
            if function is not None and id(function) not in own:
                replaced.append((other, name, function))
    try:
        for other, name, _ in replaced:
            object.__setattr__(other, name, _trap(f"{name} of {other.name!r}", caught))
        yield
    finally:
        for other, name, function in replaced:
            object.__setattr__(other, name, function)


def _others(tested: LSTMBackend) -> Iterator[LSTMBackend]:
    for name in names():
        try:
            other = get_backend(name)
        except BrokenBackendError:
            continue
        if other is not tested and other.name != tested.name:
            yield other


def _trap(what: str, caught: list[str]) -> Callable[..., Any]:
    def called(*args: object, **kwargs: object) -> Any:
        caught.append(what)  # recorded even if the backend catches the error
        raise _HandedOver(what)

    return called


def _counted(backend: LSTMBackend, counts: Counter[str]) -> LSTMBackend:
    """The same backend, its functions counting the calls that they answer: ``act_stack`` may leave a step to others."""

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)
            counts[name] += result is not None
            return result

        return run

    found = {name: getattr(backend, name) for name in FUNCTIONS}
    changed: dict[str, Any] = {name: counting(name, f) for name, f in found.items() if f is not None}
    return replace(backend, **changed)


@law()
def the_backend_runs_every_layer_and_step(trial: Trial) -> None:
    """Each layer in each direction is one call of the backend's function, or all are, over a sequence and in a step."""
    counts: Counter[str] = Counter()
    lstm = trial.lstm().with_backend(_counted(trial.backend, counts))
    layers = trial.case.spec.num_states
    trial.run(lstm)
    _demand(counts, "a sequence with resets", {"layer": layers})
    lstm.step(trial.inputs.x[0], None)
    whole = {"act_stack": 1} if counts["act_stack"] else {"step" if trial.backend.step else "layer": layers}
    _demand(counts, "a step", whole)
    trial.stream(lstm, trial.inputs.x)
    if trial.backend.stack:
        _demand(counts, "a sequence without resets", {"stack": 1})
    else:
        calls = counts["layer"] + counts["layer_last"]
        _demand(Counter({"layer": calls}), "a sequence without resets", {"layer": layers})


def _demand(counts: Counter[str], what: str, expected: dict[str, int]) -> None:
    actual = {name: n for name, n in counts.items() if n}
    counts.clear()
    if actual != expected:
        raise LawBroken(f"{what} called {actual or 'nothing'} of the backend, expected {expected}")


@law()
def the_module_names_its_backend(trial: Trial) -> None:
    """``lstm_backend`` of the LSTM and of the module is the name of the requested backend."""
    module = trial.module()
    made: list[LSTM | LSTMModule] = [
        trial.lstm(),
        module,
        module.set_recurrent_mode(True),
        module.with_backend(trial.backend),
    ]
    if Trait.CELL_STATES in trial.backend.traits and not trial.case.bidirectional:
        made.append(trial.module("all"))
    for actual in (one.lstm_backend for one in made):
        if actual != trial.backend.name:
            raise LawBroken(f"the module reports the backend {actual!r}, and {trial.backend.name!r} was requested")
