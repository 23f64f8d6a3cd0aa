"""Nested transforms: gradients taken outside, inside and around torch.vmap, and many cotangents at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rnn_backends import State, Trait
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jacrev, vmap

from ..suite.law import law
from ..suite.trial import Trial, differentiate
from ..suite.verdict import Declined
from ._kinds import IN_FULL, KINDS, naming

SMALL: dict[str, Any] = KINDS | {"T": (3,), "B": (2,), "L": (1,)}
Weights = dict[str, Tensor]
Call = Callable[[Weights, Tensor], Tensor]
"""``(weights, x [T, B, I]) -> output and last state, one vector``."""


class _Steps(torch.nn.Module):
    """The steps of a row one by one, for ``functional_call``."""

    def __init__(self, lstm: torch.nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, state: Any, is_init: Tensor) -> Tensor:
        outputs = []
        for t in range(len(x)):
            output, state = self.lstm.step(x[t], state, is_init[t])  # type: ignore[operator]
            outputs.append(output)
        return _flat(torch.stack(outputs), *state)


def _flat(*values: Tensor) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def _calls(trial: Trial) -> dict[str, Call]:
    """A call over a row on the backend, and the same row step by step."""
    lstm, inputs, is_init = trial.lstm(), trial.inputs, trial.is_init
    state = State(inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    steps = _Steps(lstm)

    def row(weights: Weights, x: Tensor) -> Tensor:
        output, (h, c) = functional_call(lstm, weights, (x, state), {"is_init": is_init})
        return _flat(output, h, c)

    def one_by_one(weights: Weights, x: Tensor) -> Tensor:
        found: Tensor = functional_call(steps, {f"lstm.{k}": v for k, v in weights.items()}, (x, state, is_init))
        return found

    return {"a row": row, "steps": one_by_one}


def _right(trial: Trial, weights: Weights, x: Tensor) -> Tensor:
    """The reference's result of a :data:`Call`, in float64."""
    starts, (h, c) = trial.is_init.clone(), (torch.zeros_like(v).double() for v in (trial.inputs.h, trial.inputs.c))
    for entry, stored in ((h, trial.inputs.h), (c, trial.inputs.c)):
        entry[:, 0] = torch.where(starts[0].unsqueeze(-1), 0, stored[:, 0].double())
    starts[0] = True
    inputs = trial.inputs._replace(x=x, h=h, c=c, starts=starts, weights=weights)
    found = trial.reference(inputs)
    return _flat(found.output, found.end_h[:, -1], found.end_c[:, -1])


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().double().requires_grad_()


def _many(trial: Trial) -> tuple[Weights, Tensor]:
    """Three members with different weights ``[3, ...]``, by name, and different inputs ``[3, T, B, I]``."""
    scales = torch.tensor((1.0, -0.5, 0.25), dtype=trial.case.torch_dtype)
    return {n: torch.stack([v * s for s in scales]) for n, v in trial.inputs.weights.items()}, torch.stack(
        [trial.inputs.x * s for s in scales.flip(0)]
    )


def _loss(out: Tensor) -> Tensor:
    return out.sin().sum()


def _agree(trial: Trial, found: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in right.items():
        trial.agree_gradient(f"the gradient of {name}", found[name], value, None, "")


def _expected(trial: Trial, weights: Weights, x: Tensor, over: str) -> dict[str, Tensor]:
    """The reference's gradients of the sum of all members' losses, computed member by member."""
    weights, x = {n: _leaf(v) for n, v in weights.items()}, _leaf(x)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(3):
        own = {n: v[k] if "weights" in over else v for n, v in weights.items()}
        total = total + _loss(_right(trial, own, x[k] if "data" in over else x))
    return differentiate(total, {"x": x, **weights})


@law(trait=Trait.VMAP, **SMALL | IN_FULL)
def gradients_outside_of_vmap(trial: Trial) -> None:
    """A backward pass or torch.func.grad around torch.vmap gives each member its gradients, in rows and in steps."""
    for form, call in _calls(trial).items():
        for over in ("weights", "data", "weights and data"):
            weights, x = _many(trial)
            weights = weights if "weights" in over else {n: v[0] for n, v in weights.items()}
            x = x if "data" in over else x[0]
            dims = (0 if "weights" in over else None, 0 if "data" in over else None)
            expected = _expected(trial, weights, x, over)

            def loss(weights: Weights, x: Tensor, call: Call = call, dims: Any = dims) -> Tensor:
                return _loss(vmap(call, in_dims=dims)(weights, x))

            what = f"vmap over {over}, {form}"
            with naming(f"a backward pass outside of {what}"):
                leaves = {n: v.clone().requires_grad_() for n, v in {"x": x, **weights}.items()}
                found = differentiate(loss({n: leaves[n] for n in weights}, leaves["x"]), leaves)
                _agree(trial, found, expected)
            with naming(f"grad of {what}"):
                by_weights, by_x = grad(loss, argnums=(0, 1))(weights, x)
                _agree(trial, {"x": by_x, **by_weights}, expected)


@law(trait=Trait.VMAP, **SMALL | IN_FULL)
def gradients_within_vmap(trial: Trial) -> None:
    """torch.vmap of torch.func.grad and of jacrev gives each member its own result, in rows and in steps."""
    weights, x = _many(trial)
    for form, call in _calls(trial).items():
        with naming(f"vmap of grad, {form}"):
            by_weights, by_x = vmap(grad(lambda w, x, call=call: _loss(call(w, x)), argnums=(0, 1)))(weights, x)
            expected = _expected(trial, weights, x, "weights and data")
            _agree(trial, {"x": by_x, **by_weights}, expected)
        with naming(f"vmap of jacrev, {form}"):
            found = vmap(jacrev(lambda w, x, call=call: call(w, x).cos()[-2:]))(weights, x)
            for k in range(3):
                _agree(trial, {n: v[k] for n, v in found.items()}, _last_rows(trial, weights, x, k))


def _last_rows(trial: Trial, weights: Weights, x: Tensor, k: int) -> dict[str, Tensor]:
    """The reference's Jacobian of the cosine of the last two numbers, of member ``k``."""
    own = {n: _leaf(v[k]) for n, v in weights.items()}
    last = _right(trial, own, x[k].double()).cos()[-2:]
    rows = [torch.autograd.grad(value, list(own.values()), retain_graph=True) for value in last.unbind()]
    return {n: torch.stack(values) for n, values in zip(own, zip(*rows, strict=True), strict=True)}


@law(**SMALL | IN_FULL)
def many_cotangents_at_once(trial: Trial) -> None:
    """jacrev, jacobian(vectorize=True) and is_grads_batched equal one backward pass per output element."""
    inputs = trial.inputs
    x = _leaf(inputs.x)
    right_rows = _right(trial, {n: v.double() for n, v in inputs.weights.items()}, x)
    right = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0] for value in right_rows.unbind()])
    one = inputs.weights
    for form, call in _calls(trial).items():

        def batched(call: Call = call) -> Tensor:
            leaf = inputs.x.clone().requires_grad_()
            out = call(one, leaf)
            return torch.autograd.grad(out, leaf, torch.eye(len(out), dtype=out.dtype), is_grads_batched=True)[0]

        ways: dict[str, Callable[[], Tensor]] = {
            "jacrev": partial(jacrev(partial(call, one)), inputs.x),
            "jacobian(vectorize=True)": partial(jacobian, partial(call, one), inputs.x, vectorize=True),
            "is_grads_batched": batched,
        }
        for name, find in ways.items():
            with naming(f"{name}, {form}"):
                try:
                    found = find()
                except RuntimeError as error:
                    if Trait.VMAP in trial.backend.traits:
                        raise
                    raise Declined(f"VMAP is not claimed, and it fails loudly: {error}") from error
                _agree(trial, {"x": found}, {"x": right})
