"""Precision and dtype: results have the weights' dtype, whatever torch's defaults, and torch's own accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from rnn_backends import UnsupportedError
from torch import Tensor

from ..suite.compare import demand
from ..suite.device import tf32_allowed
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reference import torch_per_trajectory
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import Declined, LawBroken


@law(dtype=("f16",), profiles=("quick", "full"))
def output_equals_reference_in_float16(trial: Trial) -> None:
    """In float16 output and end states equal the float64 reference's within its rounding."""
    ran = trial.run(trial.lstm())
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(dtype=("f32",), profiles=("quick", "full"))
def output_equals_reference_in_tf32(trial: Trial) -> None:
    """With TF32 allowed, torch's default for cuDNN, output and end states equal the reference's within TF32's rounding.

    All other laws run with TF32 off, where float32 has its own tolerance.
    """
    with tf32_allowed(trial.device):
        ran = trial.run(trial.lstm())
    trial.agree_in_tf32("output", ran.output, trial.expected.output)
    for name, actual, expected in (("h", ran.h, trial.expected.end_h), ("c", ran.c, trial.expected.end_c)):
        ends = trial.at_ends(actual), trial.at_ends(expected)
        trial.agree_in_tf32(f"the end state {name}", *ends, 2, "layer t b unit")


@law(dtype=("f32", "bf16", "f16", "f64"), profiles=("quick", "full"))
def everything_has_the_weights_dtype(trial: Trial) -> None:
    """Output, states and all gradients have the dtype and device of the weights."""
    lstm, inputs = trial.lstm(), trial.fresh()
    found = dict(zip(("output", "h", "c"), trial.run(lstm), strict=True))
    found |= {f"the gradient of {n}": g for n, g in trial.gradients(trial.loss, lstm).items()}
    found |= dict(zip(("streamed output", "h_n", "c_n"), trial.stream(lstm, inputs.x), strict=True))
    for name, value in found.items():
        actual, expected = (value.dtype, value.device), (inputs.x.dtype, inputs.x.device)
        if actual != expected:
            raise LawBroken(f"{name} has dtype and device {actual}, expected {expected}")


@law(dtype=("f32", "f64"), profiles=("quick", "full"))
def the_default_dtype_does_not_matter(trial: Trial) -> None:
    """With another torch default dtype the values are the same, and so is their dtype."""
    lstm = trial.lstm()
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if trial.case.dtype == "f64" else torch.float64)
    try:
        ran = trial.run(lstm)
        step, _ = lstm.step(trial.inputs.x[0], None)
    finally:
        torch.set_default_dtype(usual)
    for name, value in (("output", ran.output), ("h", ran.h), ("c", ran.c), ("output of a step", step)):
        if value.dtype != trial.case.torch_dtype:
            raise LawBroken(f"{name} has dtype {value.dtype} under another default dtype")
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(profiles=("quick", "full"))
def the_default_device_does_not_matter(trial: Trial) -> None:
    """With another torch default device nothing is allocated there, and the values are the same."""
    lstm, inputs = trial.lstm(), trial.inputs
    try:
        with torch.device("meta"):
            ran = trial.run(lstm)
    except Exception as error:
        raise LawBroken(f"under another default device: {type(error).__name__}: {error}") from error
    for name, value in zip(("output", "h", "c"), ran, strict=True):
        if value.device != inputs.x.device:
            raise LawBroken(f"{name} is on {value.device} under another default device")
    trial.agree("output", ran.output, trial.expected.output)


@law(dtype=("f32",), T=(4, 5), B=(4,), H=(8,), I=(5,), L=(1, 2), profiles=("quick", "full"))
def no_worse_than_torch(trial: Trial) -> None:
    """In float32 the root-mean-square error against float64 is at most four times torch.nn.LSTM's."""
    x, h, c, starts, weights = trial.inputs
    own = torch_per_trajectory(weights, x, h, c, starts, trial.case.L, trial.case.bidirectional)
    ran = trial.run(trial.lstm())
    for name, actual, theirs, right in (
        ("output", ran.output, own.output, trial.expected.output),
        ("end c", trial.at_ends(ran.c), trial.at_ends(own.end_c), trial.expected.end_c),
    ):
        limit = 4 * _rms(theirs.cpu() - right) + 4 * torch.finfo(torch.float32).eps * _rms(right)
        error = _rms(actual.cpu() - right)
        if not error <= limit:
            raise LawBroken(
                f"{name} is off by {error:.3g} root mean square, torch.nn.LSTM's by {limit / 4:.3g} at most"
            )


SUM_ERROR = 0.02
"""The allowed error of a sum over time and rows, of the largest: bfloat16 rounds at 4e-3, correct kernels reach 1e-2 in
150 cases; terms added up one after the other in bfloat16 come to 3e-2 after 64 of them, to 5e-1 after 1024."""


@law(
    costly=True, T=(600,), B=(2,), I=(2,), H=(4,), L=(1,), P=(0, 2), bidirectional=(False,), resets=("consecutive",),
    dtype=("bf16",), profiles=("quick", "full"),
)  # fmt: skip
def long_rows_in_bfloat16(trial: Trial) -> None:
    """In bfloat16 600 steps with resets are right, and a weight's gradient, a sum over them, is as exact as they are.

    Added up step by step in bfloat16 it stops growing at some 256 terms;
    ``rnn_backends.unroll.accumulation_views`` is one way out.
    """
    few, lstm, times = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm(), 256
    lstm.load_state_dict(few.weights)
    own = {name: value.detach().cpu().double().requires_grad_() for name, value in few.weights.items()}
    expected = trial.reference(few._replace(weights=own))
    right = differentiate(times * expected.output.square().sum(), own)
    ran = trial.run(lstm, few.tiled(times))
    trial.agree("output", ran.output, expected.output.repeat(1, times, 1))
    actual = differentiate(ran.output.float().square().sum(), dict(lstm.named_parameters()))
    largest = {name: float(value.abs().max()) for name, value in right.items()}
    floor = max(largest.values()) / 4  # one weight's gradient may almost cancel
    for name, gradient in actual.items():
        error = float((gradient.cpu().double() - right[name]).abs().max()) / max(largest[name], floor)
        if not error <= SUM_ERROR:
            raise LawBroken(f"the gradient of {name} is off by {error:.1%} of its largest value", error / SUM_ERROR)


@law(
    costly=True, T=(300,), B=(2,), I=(2,), H=(4,), L=(1,), P=(0, 2), bidirectional=(False,), resets=("consecutive",),
    profiles=("quick", "full"),
)  # fmt: skip
def long_rows_equal_reference(trial: Trial) -> None:
    """Over 300 steps output and all gradients equal the reference's, as over ten: no block of time forgets another."""
    few, lstm = trial.fresh().weighted(trial.case.H**-0.5), trial.lstm()
    lstm.load_state_dict(few.weights)
    x, h, c, starts = (value.detach().cpu() for value in few[:4])
    weights = {name: value.detach().cpu().double() for name, value in few.weights.items()}
    own = Inputs(x.double(), h.double(), c.double(), starts, weights)
    for inputs in (few, own):
        inputs.x.requires_grad_()
    leaves = {"x": own.x, **{name: value.requires_grad_() for name, value in own.weights.items()}}
    expected, ran = trial.reference(own), trial.run(lstm, few)
    trial.agree("output", ran.output, expected.output)
    right = differentiate(expected.output.square().sum(), leaves)
    found = differentiate(ran.output.square().sum(), {"x": few.x, **dict(lstm.named_parameters())})
    trial.agree_gradients(found, right)


def _rms(value: Tensor) -> float:
    return value.detach().double().square().mean().sqrt().item()


@contextmanager
def _autocast(trial: Trial) -> Iterator[None]:
    """Autocast to bfloat16; a backend may reject it when called, as autocast is known only then."""
    try:
        with torch.autocast(torch.device(trial.device).type, torch.bfloat16):
            yield
    except UnsupportedError as error:
        raise Declined(error.reason) from error


@law(dtype=("f32",), profiles=("quick", "full"))
def autocast_computes_in_bfloat16(trial: Trial) -> None:
    """Under autocast the output is right within bfloat16's rounding; float32 weights get float32 gradients."""
    lstm = trial.lstm()
    with _autocast(trial):
        ran = trial.run(lstm)
    trial.agree("output", ran.output, trial.expected.output, dtype=torch.bfloat16)
    ran.output.float().sum().backward()
    for name, parameter in lstm.named_parameters():
        if parameter.grad is None or parameter.grad.dtype != torch.float32:
            raise LawBroken(f"{name} got no gradient in float32 under autocast")


@law(dtype=("f32",), bidirectional=(False,), T=(3, 4, 6), profiles=("quick", "full"))
def autocast_keeps_the_states_dtype(trial: Trial) -> None:
    """Under autocast the stored states are float32 after every step, and in recurrent mode."""
    module, td = trial.module(), trial.tensordict()
    with _autocast(trial):
        whole = module.set_recurrent_mode(True)(td.clone())
        now = td[:, 0].clone()
        for t in range(trial.case.T):
            now = module(now)
            for key in ("recurrent_state_h", "recurrent_state_c"):
                for when, value in ((f"after step {t}", now["next", key]), ("in recurrent mode", whole["next", key])):
                    if value.dtype != torch.float32:
                        raise LawBroken(f"{key} {when} has dtype {value.dtype} under autocast, expected torch.float32")
            state = now["next"].select("recurrent_state_h", "recurrent_state_c")
            now = td[:, min(t + 1, trial.case.T - 1)].select("observation", "is_init").clone().update(state)
    trial.agree("features", whole["features"].transpose(0, 1), trial.expected.output, dtype=torch.bfloat16)


@law(dtype=("f32",), profiles=("quick", "full"))
def autocast_ends_with_its_context(trial: Trial) -> None:
    """After a call under autocast the next call without autocast is exact again."""
    lstm = trial.lstm()
    with _autocast(trial):
        trial.run(lstm)
    trial.agree("output after autocast", trial.run(lstm).output, trial.expected.output)


@law(dtype=("f32",), profiles=("quick", "full"))
def edited_weights_are_seen_under_autocast(trial: Trial) -> None:
    """Weights edited between two autocast contexts, in place or by ``.data``, take effect in the second."""
    lstm, halved = trial.lstm(), trial.inputs.weighted(-0.5)
    with torch.no_grad():
        with _autocast(trial):
            trial.run(lstm)
        for parameter in lstm.parameters():
            parameter.mul_(-0.5)
        with _autocast(trial):
            output = trial.run(lstm).output
        for parameter in lstm.parameters():
            parameter.data.mul_(-2)  # as target networks are updated
        with _autocast(trial):
            again = trial.run(lstm).output
    trial.agree("output", output, trial.reference(halved).output, dtype=torch.bfloat16)
    trial.agree("output after an edit by .data", again, trial.expected.output, dtype=torch.bfloat16)


@law(dtype=("f32",), T=(2, 3, 4), profiles=("quick", "full"))
def autocast_trains_after_acting(trial: Trial) -> None:
    """Under autocast a call without gradients does not stop the next call's gradients from reaching the weights."""
    lstm = trial.lstm()
    with _autocast(trial):
        with torch.no_grad():
            trial.run(lstm)
        output = trial.run(lstm).output
    if not output.requires_grad:
        raise LawBroken("after a call under no_grad the output requires no gradient")
    output.float().sum().backward()
    without = [name for name, parameter in lstm.named_parameters() if parameter.grad is None]
    if without:
        raise LawBroken(f"no gradient reached {', '.join(without)} after a call under no_grad")


def _of_inputs(trial: Trial, change: Callable[[Tensor], Tensor]) -> tuple[Ran, Inputs]:
    inputs = trial.fresh()
    inputs = inputs._replace(x=change(inputs.x))
    return trial.run(trial.lstm(), inputs), inputs


def _follows(trial: Trial, change: Callable[[Tensor], Tensor]) -> None:
    ran, inputs = _of_inputs(trial, change)
    for name, value in zip(("output", "h", "c"), (ran.output, trial.at_ends(ran.h), trial.at_ends(ran.c)), strict=True):
        demand(name, value.isfinite(), value, "a finite number", "")
    expected = trial.reference(inputs)
    trial.agree("output", ran.output, expected.output)
    trial.agree_states("the end state", ran, expected.end_h, expected.end_c)


@law(dtype=("f64", "f32"), I=(1,), profiles=("quick", "full"))
def large_input_saturates(trial: Trial) -> None:
    """Inputs of about ten thousand saturate the gates without overflow: values are finite and equal the reference's."""
    # one feature: two could cancel to an unsaturated gate, and to rounding noise
    _follows(trial, lambda x: torch.sign(x) * 3e4)


@law(dtype=("f64", "f32"), I=(1,), L=(1,), B=(1, 2, 3), profiles=("quick", "full"))
def infinite_input_saturates(trial: Trial) -> None:
    """An infinite input saturates the gates: values are finite and equal the reference's."""
    _follows(trial, lambda x: torch.where(x > 0, float("inf"), x))


@law(dtype=("f64", "f32"), profiles=("quick", "full"))
def subnormal_input_is_read(trial: Trial) -> None:
    """With subnormal numbers in the input, values are finite and equal the reference's."""
    _follows(trial, lambda x: x * torch.finfo(x.dtype).tiny / 16)


@law(dtype=("f32",), T=(2, 3, 4), profiles=("quick", "full"))
def gradients_of_large_input_are_finite(trial: Trial) -> None:
    """Where the gates are saturated the gradients are finite and equal the reference's."""
    large = torch.sign(trial.fresh().x) * 3e4
    inputs = trial.fresh()._replace(x=large.clone())
    found = trial.gradients(trial.loss, inputs=inputs)
    for name, value in found.items():
        demand(f"the gradient of {name}", value.isfinite(), value, "a finite number", "")


@law(dtype=("f32",), L=(1,), bidirectional=(False,), profiles=("quick", "full"))
def an_error_leaves_autocast_on(trial: Trial) -> None:
    """If a kernel raises under autocast, over time or in a step, the caller's autocast stays on."""

    def failing(*args: Any) -> Any:
        raise _Failed

    kind = torch.device(trial.device).type
    fails = replace(trial.backend, layer=failing, layer_last=failing, step=None, act=None, stack=None)
    lstm = trial.lstm().with_backend(fails)
    calls = (
        lambda: trial.run(lstm),
        lambda: trial.stream(lstm, trial.inputs.x),
        lambda: lstm.step(trial.inputs.x[0], None),
    )
    with _autocast(trial):
        for call in calls:
            with suppress(_Failed):
                call()
            if not torch.is_autocast_enabled(kind):
                torch.set_autocast_enabled(kind, True)
                raise LawBroken("after an error in a kernel autocast is off in the caller's context")


class _Failed(Exception):
    """Raised and caught by the law itself."""
