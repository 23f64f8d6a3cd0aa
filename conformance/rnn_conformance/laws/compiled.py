"""Compiled: under torch.compile, torch.export and TorchScript, in a process of its own with a time limit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rnn_backends import Trait, UnsupportedError, set_recurrent_mode
from tensordict import TensorDict
from torch import Tensor
from torch.func import functional_call, grad, jvp

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import Declined, LawBroken
from ._kinds import naming
from ._shared import COMPILED

SMALL: dict[str, Any] = COMPILED | {"T": (3,)}
BRIEF: dict[str, Any] = COMPILED | {"T": (2,), "time_limit": None, "profiles": ("quick", "full")}
"""For laws that compile little: in this process, where Dynamo and the backend's own kernels are compiled already."""


def _from_zeros(trial: Trial, x: Tensor, is_init: Tensor) -> Tensor:
    """The reference's output for a call without a state."""
    starts = is_init.clone()
    starts[0] = True
    T, B = starts.shape
    rows, case = trial.case.spec.num_states, trial.case
    h, c = torch.zeros(rows, T, B, case.spec.output_size), torch.zeros(rows, T, B, case.H)
    return trial.reference(Inputs(x, h, c, starts, trial.inputs.weights)).output


@law(trait=Trait.FULLGRAPH, **SMALL)
def inductor_in_one_graph(trial: Trial) -> None:
    """torch.compile(fullgraph=True) with the real compiler follows changed resets, weights, B and T, and gradients."""
    lstm, x, is_init = trial.lstm(), trial.inputs.x, trial.is_init

    @torch.compile(fullgraph=True)
    def run(x: Tensor, is_init: Tensor) -> Tensor:
        return lstm(x, is_init=is_init)[0]

    for starts in (is_init, ~is_init, torch.zeros_like(is_init)):
        trial.agree("output", run(x, starts), _from_zeros(trial, x, starts))
    actual = differentiate((run(x, is_init) ** 2).sum(), dict(lstm.named_parameters()))
    eager = differentiate((lstm(x, is_init=is_init)[0] ** 2).sum(), dict(lstm.named_parameters()))
    trial.agree_gradients(actual, {n: v.double() for n, v in eager.items()}, scale=2)
    for few, fewer in ((2, 2), (3, 1)):
        trial.agree(
            f"output of {few} steps of {fewer} rows",
            run(x[:few, :fewer], is_init[:few, :fewer]),
            _from_zeros(trial, x[:few, :fewer], is_init[:few, :fewer]),
        )
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        trial.agree("output after the weights were zeroed", run(x, is_init), torch.zeros_like(run(x, is_init)).double())


@law(trait=Trait.FULLGRAPH, **SMALL)
def a_compiled_result_outlives_the_next_call(trial: Trial) -> None:
    """The results of a compiled call do not change with the next call."""
    lstm, x = trial.lstm(), trial.inputs.x
    run = torch.compile(lambda x: lstm(x), fullgraph=True)
    with torch.no_grad():
        once, (h, c) = run(x)
        before = [value.clone() for value in (once, h, c)]
        run(-x)
    for name, value, expected in zip(("output", "h_n", "c_n"), (once, h, c), before, strict=True):
        trial.agree(name, value, expected.double(), None, "")


@law(trait=Trait.FULLGRAPH, **SMALL)
def a_compiled_module_follows_its_mode(trial: Trial) -> None:
    """A compiled LSTMModule changes between modes as it does eagerly."""
    module, td = trial.module(), trial.tensordict()

    @torch.compile(fullgraph=True)
    def run(td: TensorDict) -> Tensor:
        features: Tensor = module(td)["features"]
        return features

    for _ in range(2):
        step = run(td[:, 0].clone())
        trial.agree("features of a step", step, module(td[:, 0].clone())["features"].double(), 0, "b unit")
        with set_recurrent_mode(True):
            whole = run(td.clone())
        trial.agree("features over time", whole.transpose(0, 1), trial.expected.output)


@law(
    costly=True,
    time_limit=300.0,
    profiles=("full",),
    dtype=("f32",),
    T=(3,),
    B=(2,),
    L=(1, 2),
    P=(0,),
    layout=("contiguous",),
)
def compiled_with_graph_breaks(trial: Trial) -> None:
    """torch.compile without fullgraph gives the right values and gradients on every backend, claimed or not."""
    lstm, inputs = trial.lstm(), trial.inputs
    run = torch.compile(lambda x, starts: lstm.sequences(x, inputs.entry, starts))
    for starts in (inputs.starts, torch.ones_like(inputs.starts)):
        expected = trial.reference(inputs._replace(starts=starts))
        output, states = run(inputs.x, starts)
        trial.agree("output", output, expected.output)
    output, states = run(inputs.x, inputs.starts)
    ran = Ran(output, torch.stack([s.h for s in states]), torch.stack([s.c for s in states]))
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)
    right = trial.expected_gradients(trial.loss)
    trial.agree_gradients(differentiate(trial.loss(ran), dict(lstm.named_parameters())), {
        name: value for name, value in right.items() if name in trial.inputs.weights
    }, scale=2)  # fmt: skip


@law(costly=True, once=True, **BRIEF)
def a_gradient_of_torch_func_and_a_compiled_call(trial: Trial) -> None:
    """torch.func.grad within torch.compile, and of a compiled call, gives the right gradients or is declined."""
    loss, (x, weights) = _loss(trial), (trial.inputs.x, trial.inputs.weights)
    own = {n: v.clone().double().cpu().requires_grad_() for n, v in {"x": x, **weights}.items()}
    expected = differentiate(_right_loss(trial, own), own)
    ways = {"within": _compiled(grad(loss, (0, 1))), "of a compiled call": grad(_compiled(loss), (0, 1))}
    for what, find in ways.items():
        with naming(f"grad {what}"), _own_compilations():
            try:
                by_weights, by_x = find(weights, x)
            except UnsupportedError as error:
                raise Declined(error.reason) from error
            trial.agree_gradients({"x": by_x, **by_weights}, expected)


@law(costly=True, once=True, **BRIEF)
def a_forward_derivative_and_a_compiled_call(trial: Trial) -> None:
    """torch.func.jvp within torch.compile, and of a compiled call, gives the right tangent or is declined."""
    loss, (x, weights) = _loss(trial), (trial.inputs.x, trial.inputs.weights)
    along = {n: trial.noise(v, 31 + k).to(v) for k, (n, v) in enumerate({"x": x, **weights}.items())}
    own = {n: v.clone().double().cpu() for n, v in {"x": x, **weights}.items()}
    moved = {n: v.double().cpu() for n, v in along.items()}
    expected: Tensor = jvp(partial(_right_loss, trial), (own,), (moved,))[1]
    found = (weights, x), ({n: along[n] for n in weights}, along["x"])
    refused = None
    ways = {
        "within": _compiled(lambda: jvp(loss, *found)[1]),
        "of a compiled call": lambda: jvp(_compiled(loss), *found)[1],
    }
    for what, find in ways.items():
        with naming(f"jvp {what}"), _own_compilations():
            try:
                trial.agree("the tangent", find(), expected, None, "", scale=8)
            except UnsupportedError as error:
                if Trait.FORWARD_AD in trial.backend.traits:
                    raise
                refused = error
    if refused is not None:
        raise Declined(refused.reason) from refused


_compiled = partial(torch.compile, backend="aot_eager")


@contextmanager
def _own_compilations() -> Iterator[None]:
    """Dynamo never traces a function again that it met under a transform from outside, until it is reset."""
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


def _loss(trial: Trial) -> Any:
    """``(weights, x) -> number``, over a row with resets."""
    lstm, is_init = trial.lstm(), trial.is_init

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(lstm, weights, (x,), {"is_init": is_init})[0]
        return output.sin().sum()

    return loss


def _right_loss(trial: Trial, given: dict[str, Tensor]) -> Tensor:
    """The reference's number for ``{"x": x, **weights}``."""
    inputs = trial.inputs
    weights = {n: given[n] for n in inputs.weights}
    zeros = torch.zeros_like(inputs.h), torch.zeros_like(inputs.c)
    return trial.reference(Inputs(given["x"], *zeros, inputs.starts, weights)).output.sin().sum()


@law(trait=Trait.SCRIPT, **{**SMALL, "L": (2,), "dropout": (30,), "bidirectional": (True,), "dtype": ("f64",)})
def a_script_keeps_training_and_dropout(trial: Trial) -> None:
    """Scripted, saved and loaded, the module applies dropout in training as it does unscripted, not in evaluation."""
    lstm, x = trial.lstm(), trial.inputs.x
    for training in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, as the docs say
            buffer = io.BytesIO()
            torch.jit.save(torch.jit.script(lstm.train(training)), buffer)
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
        torch.manual_seed(3)
        expected = lstm(x, is_init=trial.is_init)[0]
        torch.manual_seed(3)
        try:
            actual = loaded(x, None, trial.is_init)[0]
        except Exception as error:
            first = str(error).strip().splitlines()[-1]
            raise LawBroken(f"scripted it fails where the unscripted module does not: {first}") from error
        trial.agree(f"output, {training=}", actual, expected.double(), scale=2)
        torch.manual_seed(3)
        other = lstm.train(not training)(x, is_init=trial.is_init)[0]
        torch.manual_seed(3)
        actual = loaded.train(not training)(x, None, trial.is_init)[0]
        trial.agree(f"output, scripted with {training=} and changed since", actual, other.double(), scale=2)


@law(trait=Trait.EXPORT, **SMALL)
def exported_saved_and_loaded(trial: Trial) -> None:
    """An exported program, saved and loaded, follows changed inputs and resets."""
    lstm, x, is_init = trial.lstm(), trial.inputs.x, trial.is_init
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(lstm, (x,), {"is_init": is_init}), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for scale in (1, 0, -1):
        other = x * scale
        for starts in (is_init, ~is_init):
            trial.agree("output", program(other, is_init=starts)[0], _from_zeros(trial, other, starts))


@law(T=(3,), L=(1,), bidirectional=(False,), profiles=("quick", "full"))
def a_compiled_modules_copies_have_their_own_mode(trial: Trial) -> None:
    """A copy of a compiled module runs in its own mode, and the module itself follows contexts after the first call.

    Nothing is traced here: the compiled call runs eagerly, and must be the right module's.
    """
    module, td = trial.module(), trial.tensordict()
    module.compile()
    step = module.set_recurrent_mode(False)
    with torch.compiler.set_stance("force_eager"):
        first = module(td[:, 0].clone())["features"]
        over_time = module.set_recurrent_mode(True)
        trial.agree("features of the copy", over_time(td.clone())["features"].transpose(0, 1), trial.expected.output)
        with set_recurrent_mode(True):
            within = module(td.clone())["features"].transpose(0, 1)
        trial.agree("features in a context", within, trial.expected.output)
        with set_recurrent_mode(False):
            again = over_time(td[:, 0].clone())["features"]
        for what, actual in (("of the copy in a context", again), ("of a step", step(td[:, 0].clone())["features"])):
            trial.agree(f"features {what}", actual, first.double(), 0, "b unit", scale=2)
