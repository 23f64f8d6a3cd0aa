"""A trial: one backend on one case, the argument of every law. It builds, runs, and keeps the worst error ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, State, UnsupportedError
from tensordict import TensorDict
from torch import Tensor

from . import compare
from .case import Case
from .device import is_accelerator
from .inputs import Inputs, Rollout, materialise
from .reference import Expected, reference, torch_per_trajectory
from .tolerances import (
    DEVICE_ALLOWANCE,
    DEVICE_SAMPLE_UNIT,
    DEVICE_SAMPLES,
    GRADIENT_FLOOR,
    ROUNDING_ALLOWANCE,
    TF32,
    TF32_UNIT,
    TOLERANCES,
    Tolerance,
    worst_row,
)
from .verdict import Declined, LawBroken


class Ran(NamedTuple):
    """A run's results: ``output [T, B, D*P]``, states ``h [L*D, T, B, P]``, ``c [L*D, T, B, H]`` (no ``T`` if last)."""

    output: Tensor
    h: Tensor
    c: Tensor


class Allowance(NamedTuple):
    """Multipliers of the tolerance of values and of gradients."""

    values: float
    gradients: float


GRADIENT_ROWS = {"x": (1, "t b unit"), "stored h": (2, "layer t b unit"), "stored c": (2, "layer t b unit")}
"""The dimension that counts rows in a gradient, and the names of its axes; a weight's gradient is one row."""

Loss = Callable[[Ran], Tensor]
"""A scalar of a run. Called with the backend's run and with the reference's."""


class Trial:
    """One backend on one case.

    Args:
        backend: under test.
        case: what to run.
        device: to run on.
        rollout: recorded observations in place of the drawn input.
    """

    def __init__(self, backend: LSTMBackend, case: Case, device: str = "cpu", rollout: Rollout | None = None) -> None:
        self.backend, self.case, self.device, self.rollout = backend, case, device, rollout
        self.error_ratio: float | None = None
        self._rounding: dict[float, float] = {}
        self._device_errors: list[tuple[float, float]] = []

    @cached_property
    def inputs(self) -> Inputs:
        """The case's tensors."""
        return self.fresh()

    def fresh(self) -> Inputs:
        """The same tensors again, in memory of their own."""
        return materialise(self.case, self.device, self.rollout)

    def lstm(self, case: Case | None = None, batch_first: bool = False) -> LSTM:
        """An LSTM on the backend with the case's weights.

        Raises:
            Declined: the backend gives a reason at construction.
        """
        case = case or self.case
        spec = case.spec
        try:
            lstm = LSTM(
                spec.input_size,
                spec.hidden_size,
                spec.num_layers,
                spec.bias,
                batch_first,
                spec.dropout,
                spec.bidirectional,
                spec.proj_size,
                self.device,
                case.torch_dtype,
                lstm_backend=self.backend,
            )
        except UnsupportedError as error:
            raise Declined(error.reason) from error
        with torch.no_grad():
            for name, value in materialise(case, self.device).weights.items():
                lstm.get_parameter(name).copy_(value)
        return lstm

    def run(self, lstm: LSTM, inputs: Inputs | None = None) -> Ran:
        """All sequences of the inputs, each from its stored state; states are valid at every sequence's end."""
        inputs = inputs or self.inputs
        output, states = lstm.sequences(inputs.x, inputs.entry, inputs.starts)
        return Ran(output, torch.stack([s.h for s in states]), torch.stack([s.c for s in states]))

    def stream(
        self, lstm: LSTM, x: Tensor, hx: tuple[Tensor, Tensor] | None = None, is_init: Tensor | None = None
    ) -> Ran:
        """``lstm(x, hx, is_init=is_init)``: output ``[T, B, D*P]`` and last states ``[L*D, B, .]``."""
        output, (h, c) = lstm(x, hx, is_init=is_init)
        return Ran(output, h, c)

    def module(self, hidden_output: str = "ends") -> LSTMModule:
        """An LSTMModule on the backend with the case's weights and default keys.

        It wraps an LSTM, or makes its own where the case's seed is odd.
        """
        lstm, spec = self.lstm(batch_first=True), self.case.spec
        keys: dict[str, Any] = {"in_key": "observation", "out_key": "features", "hidden_output": hidden_output}
        if self.case.seed % 2 == 0:
            return LSTMModule(lstm=lstm, **keys)
        module = LSTMModule(
            spec.input_size,
            spec.hidden_size,
            spec.num_layers,
            spec.bias,
            dropout=spec.dropout,
            proj_size=spec.proj_size,
            bidirectional=spec.bidirectional,
            device=self.device,
            dtype=self.case.torch_dtype,
            lstm_backend=self.backend,
            **keys,
        )
        module.lstm.load_state_dict(lstm.state_dict())
        return module

    def tensordict(self, inputs: Inputs | None = None) -> TensorDict:
        """The inputs as a TensorDict ``[B, T]`` under LSTMModule's default keys."""
        inputs = inputs or self.inputs
        return TensorDict(
            {
                "observation": inputs.x.transpose(0, 1),
                "is_init": self.is_init.T.unsqueeze(-1),
                "recurrent_state_h": inputs.h.permute(2, 1, 0, 3),
                "recurrent_state_c": inputs.c.permute(2, 1, 0, 3),
            },
            [self.case.B, self.case.T],
            device=self.device,
        )

    @property
    def is_init(self) -> Tensor:
        """``[T, B]`` bool: the resets as drawn, where the inputs' ``starts`` are true at ``t = 0`` too."""
        return self.case.is_init.to(self.device)

    @property
    def ends(self) -> Tensor:
        """``[T, B]`` bool: where a sequence ends."""
        starts = self.inputs.starts
        return torch.cat([starts[1:], torch.ones_like(starts[:1])])

    @cached_property
    def expected(self) -> Expected:
        """The reference's answer, without gradients."""
        with torch.no_grad():
            return self.reference(self.fresh())

    def reference(self, inputs: Inputs) -> Expected:
        """The reference over any inputs of the case's options, on the CPU."""
        x, h, c, starts = (v.cpu() for v in inputs[:4])
        weights = {name: value.cpu() for name, value in inputs.weights.items()}
        return reference(weights, x, h, c, starts, self.case.L, self.case.bidirectional)

    def at_ends(self, states: Tensor) -> Tensor:
        """``[L*D, T, B, N]``, zero where no sequence ends."""
        return torch.where(self.ends.to(states.device).unsqueeze(-1), states, 0)

    def noise(self, like: Tensor, key: int) -> Tensor:
        """Numbers from U(-1, 1) in the shape of ``like``, the same for every dtype and device."""
        generator = torch.Generator().manual_seed(self.case.seed * 1009 + key)
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return drawn.to(self.case.torch_dtype)

    def loss(self, ran: Ran, parts: str = "yhc") -> Tensor:
        """Random cotangents on the output (``y``) and on the states ``h`` and ``c`` at every sequence's end."""
        total = ran.output.new_zeros(())
        for key, part in enumerate("yhc"):
            if part in parts:
                value = ran[key] if part == "y" else self.at_ends(ran[key])
                total = total + (value * self.noise(value, key).to(value)).sum()
        return total

    def gradients(
        self, loss: Loss, lstm: LSTM | None = None, create_graph: bool = False, inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """Gradients of the loss of the backend's run by input, stored states and every weight; zero if there is
        none."""
        lstm = lstm or self.lstm()
        inputs = inputs or self.fresh()
        for value in (inputs.x, inputs.h, inputs.c):
            value.requires_grad_()
        leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(lstm.named_parameters())}
        return differentiate(loss(self.run(lstm, inputs)), leaves, create_graph)

    def expected_gradients(self, loss: Loss, create_graph: bool = False) -> dict[str, Tensor]:
        """The reference's gradients, in float64."""
        found, leaves = self._reference_with_leaves(materialise(self.case, "cpu", self.rollout))
        return differentiate(loss(Ran(found.output, found.end_h, found.end_c)), leaves, create_graph)

    def _reference_with_leaves(self, inputs: Inputs) -> tuple[Expected, dict[str, Tensor]]:
        """The reference over float64 copies of any inputs, and these copies, which require gradients."""
        weights = {n: v.detach().cpu().double() for n, v in inputs.weights.items()}
        x, h, c = (v.detach().cpu().double() for v in inputs[:3])
        wide = Inputs(x, h, c, inputs.starts.cpu(), weights)
        for value in wide.leaves.values():
            value.requires_grad_()
        return self.reference(wide), wide.leaves

    def agree(
        self,
        what: str,
        actual: Tensor,
        expected: Tensor,
        dim: int | None = 1,
        axes: str = "t b unit",
        scale: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Compare values within the tolerance of the case's dtype or of ``dtype``, times ``scale``; worst row of
        ``dim``."""
        kind = dtype or self.case.torch_dtype
        limit = TOLERANCES[kind]
        limits = ((limit.values * scale * a.values, self._origin(kind, a.values)) for a in self.allowances(kind))
        self._judge(what, actual, expected, limits, dim, axes, limit.floor)

    def agree_states(self, what: str, actual: Ran, h: Tensor, c: Tensor, scale: float = 1.0) -> None:
        """Compare end states ``[L*D, T, B, .]`` with the expected ones, where a sequence ends."""
        self.agree(f"{what} h", self.at_ends(actual.h), self.at_ends(h), 2, "layer t b unit", scale)
        self.agree(f"{what} c", self.at_ends(actual.c), self.at_ends(c), 2, "layer t b unit", scale)

    def agree_in_tf32(self, what: str, actual: Tensor, expected: Tensor, dim: int = 1, axes: str = "t b unit") -> None:
        """Values within TF32's tolerance, or the effect of rounding only the inputs to TF32, if that is larger."""
        allowed = TF32.values * self._rounding_allowance(TF32, TF32_UNIT)
        self._judge(what, actual, expected, [(allowed, " (TF32's)")], dim, axes, TF32.floor)

    def allowances(self, dtype: torch.dtype) -> Iterator[Allowance]:
        """Multipliers of the tolerances of a dtype, for this case on this device; mostly 1.

        A comparison holds within any of them. In float32 on an accelerator there are two, 1 or more where torch's own
        nn.LSTM is less exact there: cuDNN's kernel for small ``H`` rounds to about 16 bits, with TF32 off or on. A
        backend is allowed :data:`DEVICE_ALLOWANCE` times the error of torch.nn.LSTM on that device with the same
        settings, on the case; where that is not enough, on the worst of :data:`DEVICE_SAMPLES` more cases,
        since one small case can come out exact by luck.
        """
        if dtype.itemsize == 2:
            yield Allowance(*[self.rounding_allowance(dtype)] * 2)
        elif dtype == torch.float32 and is_accelerator(self.device):
            yield self._device_allowance(1)
            yield self._device_allowance(1 + DEVICE_SAMPLES)
        else:
            yield Allowance(1.0, 1.0)

    def _device_allowance(self, samples: int) -> Allowance:
        limit = TOLERANCES[torch.float32]
        with torch.inference_mode(False), torch.enable_grad():  # a law may compare inside no_grad
            while len(self._device_errors) < samples:
                self._device_errors.append(self._error_of_torch(len(self._device_errors)))
        values, gradients = (max(errors) for errors in zip(*self._device_errors[:samples], strict=True))
        return Allowance(
            max(1.0, DEVICE_ALLOWANCE * values / limit.values), max(1.0, DEVICE_ALLOWANCE * gradients / limit.gradients)
        )

    def _error_of_torch(self, key: int) -> tuple[float, float]:
        """Worst errors of nn.LSTM's values and gradients on the device; with a ``key``, over changed inputs."""
        inputs, floor = self.fresh(), TOLERANCES[torch.float32].floor
        if key:
            generator = torch.Generator().manual_seed(key)
            for value in inputs.leaves.values():
                value.copy_(_off(value.cpu(), DEVICE_SAMPLE_UNIT, generator))
        exact, leaves = self._reference_with_leaves(inputs)
        right = differentiate(self.loss(Ran(exact.output, exact.end_h, exact.end_c)), leaves)
        for value in inputs.leaves.values():
            value.requires_grad_()
        found = torch_per_trajectory(
            inputs.weights, inputs.x, inputs.h, inputs.c, inputs.starts, self.case.L, self.case.bidirectional
        )
        pairs = ((found.output, exact.output, 1), (found.end_h, exact.end_h, 2), (found.end_c, exact.end_c, 2))
        values = max(worst_row(actual.detach().cpu(), other.detach(), dim, floor) for actual, other, dim in pairs)
        gradients = differentiate(self.loss(Ran(found.output, found.end_h, found.end_c)), inputs.leaves)
        return values, max(
            worst_row(gradients[name].cpu(), value, GRADIENT_ROWS.get(name, (None, ""))[0], GRADIENT_FLOOR)
            for name, value in right.items()
        )

    def rounding_allowance(self, dtype: torch.dtype) -> float:
        """Tolerance multiplier in 16 bits: 1, or more where rounding the inputs alone moves the result further.

        Sixteen steps of three layers of unit weights can be chaotic. The reference runs again from inputs, states and
        weights that are at most one unit in the last place off; :data:`ROUNDING_ALLOWANCE` times that change is
        allowed.
        """
        return self._rounding_allowance(TOLERANCES[dtype], torch.finfo(dtype).eps)

    def _rounding_allowance(self, limit: Tolerance, unit: float) -> float:
        if unit in self._rounding:
            return self._rounding[unit]
        exact, moved = self.expected, 0.0
        for key in range(3):
            generator = torch.Generator().manual_seed(key)
            drawn = materialise(self.case, "cpu", self.rollout)
            x, h, c, *weights = (_off(v, unit, generator) for v in (*drawn[:3], *drawn.weights.values()))
            near = self.reference(Inputs(x, h, c, drawn.starts, dict(zip(drawn.weights, weights, strict=True))))
            pairs = ((near.output, exact.output, 1), (near.end_h, exact.end_h, 2), (near.end_c, exact.end_c, 2))
            moved = max(moved, *(worst_row(actual, right, dim, limit.floor) for actual, right, dim in pairs))
        found = max(1.0, ROUNDING_ALLOWANCE * moved / limit.values) if math.isfinite(moved) else 1.0
        self._rounding[unit] = found
        return found

    def agree_states_of(self, rows: Tensor, actual: Ran, whole: Ran) -> None:
        """Compare the end states of some rows of the batch with those of a whole run."""
        ends = self.ends[:, rows].unsqueeze(-1)
        for name in ("h", "c"):
            here, there = getattr(actual, name), getattr(whole, name)[:, :, rows]
            here, there = torch.where(ends, here, 0), torch.where(ends, there, 0)
            self.agree(f"the end state {name}", here, there, 2, "layer t b unit", scale=2)

    def agree_gradient(
        self,
        what: str,
        actual: Tensor,
        expected: Tensor,
        dim: int | None = None,
        axes: str = "row column",
        scale: float = 1.0,
    ) -> None:
        """Compare a gradient within the tolerance for gradients of the case's dtype; worst row of ``dim``."""
        kind = self.case.torch_dtype
        limit = TOLERANCES[kind].gradients * scale
        limits = ((limit * a.gradients, self._origin(kind, a.gradients)) for a in self.allowances(kind))
        self._judge(what, actual, expected, limits, dim, axes, GRADIENT_FLOOR)

    def agree_gradients(self, actual: dict[str, Tensor], expected: dict[str, Tensor], scale: float = 1.0) -> None:
        """Compare gradients by name: of inputs by row of the batch, of weights as a whole."""
        for name, value in expected.items():
            if name not in actual:
                raise LawBroken(f"there is no gradient of {name}")
            dim, axes = GRADIENT_ROWS.get(name, (None, "row column"))
            self.agree_gradient(f"the gradient of {name}", actual[name], value, dim, axes, scale)

    def _origin(self, dtype: torch.dtype, allowance: float) -> str:
        """The origin of a float32 tolerance on an accelerator: the table, or torch's own error there."""
        if dtype != torch.float32 or not is_accelerator(self.device):
            return ""
        own = f"{DEVICE_ALLOWANCE:g} times torch.nn.LSTM's own error on {self.device}"
        return f" ({own})" if allowance > 1 else f" (the table's for float32; {own} is less)"

    def _judge(
        self,
        what: str,
        actual: Tensor,
        expected: Tensor,
        limits: Iterable[tuple[float, str]],
        dim: int | None,
        axes: str,
        floor: float,
    ) -> None:
        """Compare within any of the ``limits``, each with its origin; later ones are computed only if needed.

        Raises:
            LawBroken: the difference is beyond the last limit.
        """
        broken: LawBroken | None = None
        for limit, origin in limits:
            try:
                error_ratio = compare.judge(what, actual.cpu(), expected.cpu(), limit, dim, axes, floor, origin)
            except LawBroken as error:
                broken = error
                continue
            self._keep(error_ratio)
            return
        assert broken is not None
        self._keep(broken.error_ratio)
        raise broken

    def _keep(self, error_ratio: float | None) -> None:
        if error_ratio is not None:
            self.error_ratio = max(error_ratio, self.error_ratio or 0.0)


def _off(value: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """The tensor in float64, each number changed by a share of it, up to ``unit``."""
    return value.double() * (1 + unit * (2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1))


def differentiate(loss: Tensor, leaves: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor]:
    """Gradients by name; zero where the loss does not depend on a leaf.

    Raises:
        LawBroken: the loss does not depend on anything.
    """
    if not loss.requires_grad:
        raise LawBroken("the output does not depend on input, states or weights: there is no gradient at all")
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def entry_state(inputs: Inputs) -> State:
    """The states stored at ``t = 0``: ``State([L*D, B, P], [L*D, B, H])``."""
    return State(inputs.h[:, 0], inputs.c[:, 0])
