"""Precision and dtype: results have the weights' dtype, whatever torch's defaults, and torch's own accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from rnn_backends import State, UnsupportedError
from torch import Tensor

from ..suite.compare import demand
from ..suite.device import tf32_allowed
from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.reference import torch_per_trajectory, trajectories
from ..suite.torch_settings import SETTINGS, restored_settings
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import Declined, LawBroken


@law(wide=True, dtype=("f16",), profiles=("quick", "full"))
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


@law(wide=True, dtype=("f32", "f16", "bf16"), profiles=("quick", "full"))
def everything_has_the_weights_dtype(trial: Trial) -> None:
    """Output, states, all gradients and a step's results have the dtype and device of the weights."""
    lstm, inputs = trial.lstm(), trial.fresh()
    found = dict(zip(("output", "h", "c"), trial.run(lstm), strict=True))
    found |= {f"the gradient of {n}": g for n, g in trial.gradients(trial.loss, lstm).items()}
    found |= dict(zip(("streamed output", "h_n", "c_n"), trial.stream(lstm, inputs.x), strict=True))
    for name, mode in (("a step", torch.enable_grad), ("a step without gradients", torch.no_grad)):
        with mode():
            try:
                output, (h, c) = lstm.step(inputs.x[0], State(inputs.h[:, 0], inputs.c[:, 0]))
            except NotImplementedError:
                raise
            except RuntimeError as error:  # the next layer's weights have another dtype than its input
                raise LawBroken(f"{name} raises {error}") from error
        found |= {f"output of {name}": output, f"h of {name}": h, f"c of {name}": c}
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
            ran.output.sum().backward()
            with torch.no_grad():
                acted = trial.run(lstm).output
                step, _ = lstm.step(inputs.x[0], State(inputs.h[:, 0], inputs.c[:, 0]))
    except Exception as error:
        raise LawBroken(f"under another default device: {type(error).__name__}: {error}") from error
    gradients = (parameter.grad for parameter in lstm.parameters())
    results = (*ran, acted, step, *(value for value in gradients if value is not None))
    names = ("output", "h", "c", "output without gradients", "output of a step", *dict(lstm.named_parameters()))
    for name, value in zip(names, results, strict=True):
        if value.device != inputs.x.device:
            raise LawBroken(f"{name} is on {value.device} under another default device")
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree("output without gradients", acted, trial.expected.output)


ALTERED: dict[str, Any] = {
    "deterministic algorithms": (True, False), "anomaly mode": True, "mkldnn.enabled": False, "warn_always": True,
}  # fmt: skip
"""Settings of torch under which a number may not change, each with another value than torch's default."""


@law(profiles=("quick", "full"))
def settings_of_torch_change_no_number(trial: Trial) -> None:
    """With deterministic algorithms, anomaly mode or without mkldnn, values, steps and gradients are the same."""
    lstm, inputs, expected = trial.lstm(), trial.inputs, trial.expected_gradients(trial.loss)
    for name, value in ALTERED.items():
        with restored_settings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anomaly mode warns that it is on
            SETTINGS[name].write(value)
            actual = trial.gradients(trial.loss, lstm)
            with torch.no_grad():
                ran = trial.run(lstm)
                step, _ = lstm.step(inputs.x[0], State(inputs.h[:, 0], inputs.c[:, 0]))
        trial.agree(f"output with another value of {name}", ran.output, trial.expected.output)
        trial.agree_states(
            f"with another value of {name} the end state", ran, trial.expected.end_h, trial.expected.end_c
        )
        if not trial.case.bidirectional:
            trial.agree(f"step with another value of {name}", step, trial.expected.output[0], 0, "b unit")
        trial.agree_gradients(actual, expected)


@law(wide=True, dtype=("f32",), T=(4, 5), B=(4,), H=(8,), I=(5,), L=(1, 2), profiles=("quick", "full"))
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
"""The allowed error of a sum over time and rows, relative to the largest: bfloat16 rounds at 4e-3, and correct kernels
reach 1e-2 in 150 cases; accumulation in bfloat16 term by term is off by 3e-2 after 64 terms, by 5e-1 after 1024."""


@law(
    costly=True, T=(600,), B=(1,), I=(2,), H=(4,), L=(1,), P=(0, 2), bidirectional=(False,),
    resets=("consecutive",),
    dtype=("bf16",), profiles=("quick", "full"),
)  # fmt: skip
def long_rows_in_bfloat16(trial: Trial) -> None:
    """In bfloat16 600 steps with resets are right, and so are the weights' gradients, which are sums over the steps.

    A sum that is accumulated step by step in bfloat16 stops growing after some 256 terms;
    ``rnn_backends.unroll.accumulation_views`` is one remedy.
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
    costly=True, once=True, T=(1100,), B=(4,), I=(2,), H=(4,), L=(1,), P=(0,), bidirectional=(False,),
    resets=("none",), profiles=("quick", "full"),
)  # fmt: skip
def long_rows_equal_reference(trial: Trial) -> None:
    """Over 1100 steps, with starts next to multiples of 32, values, bidirectional too, and gradients are right."""
    for two in (False, True):
        own = Trial(trial.backend, replace(trial.case, bidirectional=two), trial.device)
        try:
            lstm = own.lstm()
        except Declined:
            if not two:
                raise
            continue
        inputs = own.fresh().weighted(trial.case.H**-0.5)
        for row, step in enumerate((-1, 0, 1)):  # the fourth row is one sequence
            inputs.starts[32 + step :: 32, row] = True
        lstm.load_state_dict(inputs.weights)
        x = inputs.x.detach().cpu().double().requires_grad_(not two)
        weights = {n: w.detach().cpu().double().requires_grad_(not two) for n, w in inputs.weights.items()}
        output, end_h, end_c = _by_lengths(weights, x, inputs.h.cpu(), inputs.c.cpu(), inputs.starts.cpu(), two)
        inputs.x.requires_grad_(not two)
        ran = own.run(lstm, inputs)
        own.agree("output", ran.output, output)
        ends = torch.cat([inputs.starts[1:], torch.ones_like(inputs.starts[:1])]).unsqueeze(-1)
        for name, actual, wanted in (("h", ran.h, end_h), ("c", ran.c, end_c)):
            own.agree(f"end {name}", torch.where(ends, actual, 0), wanted, 2, "layer t b unit")
        if not two:
            leaves = {"x": inputs.x, **dict(lstm.named_parameters())}
            right = differentiate(output.square().sum(), {"x": x, **weights})
            own.agree_gradients(differentiate(ran.output.square().sum(), leaves), right)
        trial.error_ratio = max(trial.error_ratio or 0.0, own.error_ratio or 0.0)


def _by_lengths(
    weights: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor, starts: Tensor, two: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn.LSTM of one layer in float64, over all trajectories of one length at once: for long rows.

    Returns:
        ``output [T, B, D*P]`` and, where a sequence ends and else zero, ``h [D, T, B, P]`` and ``c [D, T, B, H]``.
    """
    (T, B), H, bias = starts.shape, c.shape[-1], "bias_ih_l0" in weights
    lstm = torch.nn.LSTM(x.shape[-1], H, 1, bias, bidirectional=two, dtype=torch.float64)
    end_h, end_c = torch.zeros_like(h).double(), torch.zeros_like(c).double()
    by_length: dict[int, list[tuple[int, int]]] = {}
    for b, begin, end in trajectories(starts):
        by_length.setdefault(end - begin, []).append((b, begin))
    places, pieces = [], []
    for length, found in by_length.items():
        rows, begins = (torch.tensor(column) for column in zip(*found, strict=True))
        steps = begins + torch.arange(length).unsqueeze(-1)
        hx = h[:, begins, rows].double().contiguous(), c[:, begins, rows].double().contiguous()
        piece, (h_n, c_n) = torch.func.functional_call(lstm, weights, (x[steps, rows], hx))
        end_h[:, steps[-1], rows], end_c[:, steps[-1], rows] = h_n.detach(), c_n.detach()
        places.append((steps * B + rows).flatten())
        pieces.append(piece.flatten(0, 1))
    order = torch.cat(places).argsort()
    return torch.cat(pieces)[order].view(T, B, -1), end_h, end_c


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
            parameter.data.mul_(-2)  # like an update of a target network
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
    # one feature: two could cancel, so that a gate is not saturated and has rounding noise
    _follows(trial, lambda x: torch.sign(x) * 3e4)


@law(dtype=("f64", "f32"), I=(1,), L=(1,), B=(1, 2, 3), profiles=("quick", "full"))
def infinite_input_saturates(trial: Trial) -> None:
    """An infinite input saturates the gates: values are finite and equal the reference's."""
    _follows(trial, lambda x: torch.where(x > 0, float("inf"), x))


@law(dtype=("f64", "f32", "f16", "bf16"), B=(1, 2, 3), profiles=("quick", "full"))
def large_cell_states_are_carried(trial: Trial) -> None:
    """Cell states of some hundreds saturate only their tanh: values, steps and gradients equal the reference's."""
    inputs, lstm = trial.fresh(), trial.lstm()
    inputs = inputs._replace(c=inputs.c * 400)
    expected, ran = trial.reference(inputs), trial.run(lstm, inputs)
    trial.agree("output", ran.output, expected.output)
    trial.agree_states("the end state", ran, expected.end_h, expected.end_c)
    if not trial.case.bidirectional:
        with torch.no_grad():
            output, _ = lstm.step(inputs.x[0], State(inputs.h[:, 0], inputs.c[:, 0]))
        trial.agree("output of a step", output, expected.output[0], 0, "b unit")
    exact = Inputs(*inputs[:4], {n: w.cpu().double().requires_grad_() for n, w in inputs.weights.items()})
    right = differentiate(trial.reference(exact).output.sin().sum(), exact.weights)
    trial.agree_gradients(differentiate(ran.output.sin().sum(), dict(lstm.named_parameters())), right)


@law(dtype=("f16",), I=(4,), P=(0,), L=(1,), bidirectional=(False,), T=(1, 2, 3), profiles=("quick", "full"))
def products_may_cancel_in_float16(trial: Trial) -> None:
    """In float16 a sum of products is right even if its partial sums exceed 65504: they have a wider dtype."""
    inputs = trial.fresh()
    signs = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float16) * 200
    rows = signs[torch.arange(4 * trial.case.H) % 3].to(trial.device)
    inputs = inputs._replace(x=torch.full_like(inputs.x, 256), weights=inputs.weights | {"weight_ih_l0": rows})
    lstm = trial.lstm()
    lstm.load_state_dict(inputs.weights)
    expected = trial.reference(inputs)
    with torch.no_grad():
        step, _ = lstm.step(inputs.x[0], State(inputs.h[:, 0], inputs.c[:, 0]))
    trial.agree("output of a step", step, expected.output[0], 0, "b unit")
    trial.agree("output", trial.run(lstm, inputs).output, expected.output)


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
