"""Transforms: capabilities that a backend claims work, and those it does not claim raise an error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rnn_backends import LSTM, Trait, UnsupportedError
from torch import Tensor

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reach import CHEAP_DTYPE
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import Declined, LawBroken

SMALL: dict[str, Any] = {"T": (3,), "B": (2,), "L": (1, 2), "P": (0,), "bidirectional": (False,), "bias": (True,)}


def _functional(lstm: LSTM) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """``(weights, x [T, B, I], is_init [T, B]) -> output [T, B, D*P]``."""

    def run(weights: dict[str, Tensor], x: Tensor, is_init: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(lstm, weights, (x,), {"is_init": is_init})[0]
        return output

    return run


def _streamed(trial: Trial, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The reference's output for other inputs and weights, with every sequence from zeros."""
    h, c = torch.zeros_like(trial.inputs.h), torch.zeros_like(trial.inputs.c)
    return trial.reference(Inputs(x, h, c, trial.inputs.starts, weights)).output


def _vmapped(trial: Trial, over_weights: bool, over_data: bool) -> None:
    lstm, (x, _, _, _, weights) = trial.lstm(), trial.inputs
    scales = (1.0, -0.5, 0.25)
    many = {n: torch.stack([v * s for s in scales]) for n, v in weights.items()} if over_weights else weights
    xs = torch.stack([x * s for s in scales]) if over_data else x
    run = torch.vmap(_functional(lstm), in_dims=(0 if over_weights else None, 0 if over_data else None, None))
    actual = run(many, xs, trial.is_init)
    for k, s in enumerate(scales):
        own = {n: v * s for n, v in weights.items()} if over_weights else weights
        expected = _streamed(trial, x * s if over_data else x, own)
        trial.agree(f"output of sample {k}", actual[k], expected)


@law(trait=Trait.VMAP, profiles=("quick", "full"))
def vmap_over_weights(trial: Trial) -> None:
    """torch.vmap over stacked weights gives every member's own output, resets included."""
    _vmapped(trial, True, False)


@law(trait=Trait.VMAP)
def vmap_over_data(trial: Trial) -> None:
    """torch.vmap over inputs gives every sample's own output, resets included."""
    _vmapped(trial, False, True)


@law(trait=Trait.VMAP)
def vmap_over_weights_and_data(trial: Trial) -> None:
    """torch.vmap over weights and inputs together gives every pair's own output, resets included."""
    _vmapped(trial, True, True)


@law(trait=Trait.VMAP, profiles=("quick", "full"), **SMALL)
def vmap_of_gradients(trial: Trial) -> None:
    """torch.vmap of torch.func.grad gives every sample's own gradient of every weight."""
    run, (x, _, _, _, weights) = _functional(trial.lstm()), trial.inputs

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(weights, x, trial.is_init).sin().sum()

    xs = torch.stack([x, -x])
    actual = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, xs)
    for k, sample in enumerate(xs):
        own = {n: v.clone().double().cpu().requires_grad_() for n, v in weights.items()}
        expected = differentiate(_streamed(trial, sample, own).sin().sum(), own)
        trial.agree_gradients({n: v[k] for n, v in actual.items()}, expected)


@law(profiles=("quick", "full"))
def functional_gradients_are_right(trial: Trial) -> None:
    """torch.func.grad over functional_call, resets included, equals autograd, or is declined with a reason."""
    run, (x, _, _, _, weights) = _functional(trial.lstm()), trial.inputs

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(weights, x, trial.is_init).sin().sum()

    try:
        by_weights, by_x = torch.func.grad(loss, argnums=(0, 1))(weights, x)
    except UnsupportedError as error:
        raise Declined(error.reason) from error
    own = {n: v.clone().double().cpu().requires_grad_() for n, v in {"x": x, **weights}.items()}
    right = _streamed(trial, own["x"], {n: own[n] for n in weights})
    trial.agree_gradients({"x": by_x, **by_weights}, differentiate(right.sin().sum(), own))


@law(trait=Trait.DOUBLE_BACKWARD, **SMALL)
def double_backward(trial: Trial) -> None:
    """Gradients of gradients, for input and every weight, equal the reference's."""

    def second(first: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        total = sum((g * trial.noise(g, 11 + k).to(g)).sum() for k, g in enumerate(first.values()))
        assert isinstance(total, Tensor)
        return differentiate(total, leaves)

    lstm, inputs = trial.lstm(), trial.fresh()
    actual = trial.gradients(trial.loss, lstm, create_graph=True, inputs=inputs)
    if not any(g.requires_grad for g in actual.values()):
        raise LawBroken(
            "with create_graph=True the gradients have no graph, without an error: a penalty on them would be lost "
            "(torch's once_differentiable is silent where the loss is linear in the output)"
        )
    leaves = {"x": inputs.x, **dict(lstm.named_parameters())}
    own = trial.fresh()
    expected_leaves = {"x": own.x, **own.weights}
    for value in own.leaves.values():
        value.requires_grad_()
    found = trial.reference(own)
    first = differentiate(trial.loss(Ran(found.output, found.end_h, found.end_c)), own.leaves, create_graph=True)
    trial.agree_gradients(second({n: actual[n] for n in first}, leaves), second(first, expected_leaves))


@law(trait=Trait.FORWARD_AD, profiles=("quick", "full"), **SMALL)
def forward_mode(trial: Trial) -> None:
    """torch.func.jvp along directions of input, state and weights equals the reference's, output and last state."""
    lstm, inputs, is_init = trial.lstm(), trial.inputs, trial.is_init
    state = (inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    leaves = {"x": inputs.x, "h": state[0], "c": state[1], **inputs.weights}
    along = {n: trial.noise(v, 21 + k).to(v) for k, (n, v) in enumerate(leaves.items())}
    carried = torch.zeros_like(inputs.starts)
    carried[0] = ~is_init[0]

    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        weights = {n: given[n] for n in inputs.weights}
        hx = given["h"], given["c"]
        output, (h, c) = torch.func.functional_call(lstm, weights, (given["x"], hx), {"is_init": is_init})
        return output, h, c

    def right(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        weights = {n: given[n] for n in inputs.weights}
        h, c = (torch.where(carried.unsqueeze(-1), v.unsqueeze(1), 0) for v in (given["h"], given["c"]))
        found = trial.reference(Inputs(given["x"], h, c, inputs.starts, weights))
        return found.output, found.end_h[:, -1], found.end_c[:, -1]

    for names in (tuple(leaves), ("h",), ("c",)):
        moved = {n: v if n in names else torch.zeros_like(v) for n, v in along.items()}
        values, tangents = torch.func.jvp(run, (leaves,), (moved,))[:2]
        wanted, along_wanted = torch.func.jvp(right, (leaves,), (moved,))[:2]
        for name, actual, expected in zip(("output", "h", "c"), values, wanted, strict=True):
            trial.agree(name, actual, expected, None, "")
        for name, actual, expected in zip(("output", "h", "c"), tangents, along_wanted, strict=True):
            trial.agree(f"the tangent of {name} along {', '.join(names)}", actual, expected, None, "", scale=4)


@law(trait=Trait.SCRIPT, costly=True, T=(4,), B=(2,), dtype=CHEAP_DTYPE, stored=("zeros",))
def scripted_saved_and_loaded(trial: Trial) -> None:
    """torch.jit.script compiles the module; saved and loaded it gives the same results, for other T and B too."""
    lstm, inputs = trial.lstm(), trial.inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, as the docs say
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(lstm), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    actual = loaded(inputs.x, None, trial.is_init)[0]
    trial.agree("output", actual, trial.expected.output)
    row = loaded(inputs.x[:2, :1], None, trial.is_init[:2, :1])[0]
    trial.agree("output of fewer steps and rows", row, _head(trial.expected.output, trial), scale=2)


def _head(output: Tensor, trial: Trial) -> Tensor:
    """Two steps of one row; in reverse they do not see later steps, so they are computed separately."""
    inputs = trial.inputs
    few = Inputs(inputs.x[:2, :1], inputs.h[:, :2, :1], inputs.c[:, :2, :1], inputs.starts[:2, :1], inputs.weights)
    return trial.reference(few).output


@law(
    trait=Trait.FULLGRAPH, profiles=("quick", "full"), costly=True, once=True, T=(3,), B=(2,), dtype=CHEAP_DTYPE,
    stored=("zeros",),
    bidirectional=(False,),
)  # fmt: skip
def compiled_in_one_graph(trial: Trial) -> None:
    """torch.compile(fullgraph=True) traces the module, and the graph follows changed resets and gradients."""
    lstm, x = trial.lstm(), trial.inputs.x

    def run(x: Tensor, is_init: Tensor) -> Tensor:
        return lstm(x, is_init=is_init)[0]

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for is_init in (trial.is_init, ~trial.is_init):
        starts = is_init.clone()
        starts[0] = True
        expected = trial.reference(trial.inputs._replace(starts=starts)).output
        trial.agree("output", compiled(x, is_init), expected)
    actual = differentiate((compiled(x, trial.is_init) ** 2).sum(), dict(lstm.named_parameters()))
    eager = differentiate((run(x, trial.is_init) ** 2).sum(), dict(lstm.named_parameters()))
    trial.agree_gradients(actual, {n: v.double() for n, v in eager.items()}, scale=2)


@law(
    trait=Trait.EXPORT,
    costly=True,
    T=(3,),
    B=(2,),
    dtype=CHEAP_DTYPE,
    stored=("random",),
    bidirectional=(True,),
    profiles=("quick", "full"),
)
def exported(trial: Trial) -> None:
    """torch.export exports the module, and the program follows changed resets in both directions, from zeros or hx."""
    lstm, inputs = trial.lstm(), trial.inputs
    carried = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone())
    forms = [(trial.case.T, carried), (trial.case.T, None), (1, carried)]
    for steps, hx in (
        forms if trial.case.L == 1 else forms[:1]
    ):  # deeper ones take longer, and one form shows the layers
        x = inputs.x[:steps]
        program = torch.export.export(lstm, (x, hx), {"is_init": trial.is_init[:steps]}).module()
        for is_init in (trial.is_init[:steps], ~trial.is_init[:steps]):
            starts, read = is_init.clone(), torch.zeros_like(is_init)
            starts[0], read[0] = True, ~is_init[0] & (hx is not None)
            h, c = (torch.where(read.unsqueeze(-1), v[:, :steps], 0) for v in (inputs.h, inputs.c))
            expected = trial.reference(Inputs(x, h, c, starts, inputs.weights)).output
            trial.agree(f"output of {steps} steps", program(x, hx, is_init=is_init)[0], expected)
