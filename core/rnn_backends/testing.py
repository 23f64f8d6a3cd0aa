"""For tests of your own policy: whether a replay in recurrent mode gives the same results as acting.

``rnn-backends doctor`` does the same from the command line. TorchRL is not imported: the environment imports it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from . import mistakes
from .errors import InputError
from .mistakes import Mistake
from .mode import set_recurrent_mode
from .module import LSTMModule

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}


class Diagnosis(NamedTuple):
    """The result of :func:`diagnose`.

    Args:
        agrees: whether the replay's features equal those of acting; ``None`` if they could not be compared.
        difference: the largest absolute difference of the features; NaN if they could not be compared.
        steps: the number of compared steps.
        mistakes: the common mistakes that were found.
        first: the position of the first difference, in words; empty without one.
    """

    agrees: bool | None
    difference: float
    steps: int
    mistakes: tuple[Mistake, ...]
    first: str = ""

    @property
    def healthy(self) -> bool:
        """Whether acting and replay agree and no mistake was seen."""
        return bool(self.agrees) and not self.mistakes

    def __str__(self) -> str:
        if self.agrees is None:
            lines = ["acting and replay could not be compared"]
        elif self.agrees:
            lines = [f"acting and replay agree over {self.steps} steps (largest difference {self.difference:.2g})"]
        else:
            lines = [f"acting and replay differ by up to {self.difference:.2g} over {self.steps} steps{self.first}"]
        if not self.agrees and not self.mistakes:
            lines.append("none of the common mistakes was seen: look for modules that keep a state of their own")
        return "\n".join([*lines, *map(str, self.mistakes)])


def assert_rollout_equals_replay(
    policy: nn.Module,
    env: Any,
    *,
    steps: int = 64,
    data: TensorDictBase | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> None:
    """Roll the policy out, replay the rollout in recurrent mode, and compare the features of every LSTMModule.

    Args:
        policy: a TensorDict module that holds one or more :class:`~rnn_backends.LSTMModule`.
        env: a TorchRL environment with its transforms.
        steps: length of the rollout. It should be long enough that an episode ends within it.
        data: rows ``[*batch, T]`` of a collector or replay buffer, to check too.
        atol: absolute tolerance; by default 1e-4 in float32, 1e-8 in float64, 2e-2 in 16 bits.
        rtol: relative tolerance; the same by default.

    Raises:
        AssertionError: they differ or a common mistake was found; the message names it and the line to change.
        InputError: the policy holds no LSTMModule.

    Examples:
        >>> import torch
        >>> from rnn_backends import LSTMModule
        >>> from rnn_backends.testing import diagnose
        >>> diagnose(torch.nn.Linear(2, 2), env=None)
        Traceback (most recent call last):
        ...
        rnn_backends.errors.InputError: the policy holds no rnn_backends.LSTMModule: Linear
    """
    found = diagnose(policy, env, steps=steps, data=data, atol=atol, rtol=rtol)
    if not found.healthy:
        raise AssertionError(str(found))


def diagnose(
    policy: nn.Module,
    env: Any,
    *,
    steps: int = 64,
    data: TensorDictBase | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> Diagnosis:
    """The check of :func:`assert_rollout_equals_replay`, with the result as a value."""
    modules = [module for module in policy.modules() if isinstance(module, LSTMModule)]
    if not modules:
        raise InputError(f"the policy holds no rnn_backends.LSTMModule: {type(policy).__name__}")
    if steps < 2:
        raise InputError(f"steps must be at least 2, got {steps}")
    usual = _TOLERANCES.get(modules[0].lstm.weight_ih_l0.dtype, 2e-2)
    atol, rtol = usual if atol is None else atol, usual if rtol is None else rtol
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this LSTMModule acts without memory")  # reported below as a mistake
        found = _from_acting(policy, env, modules, steps, atol, rtol)
        if data is not None:
            wrong = tuple(dict.fromkeys(_from_data(policy, modules, data, atol, rtol)))
            found = found._replace(mistakes=(*found.mistakes, *wrong))
    return found


def _from_acting(
    policy: nn.Module, env: Any, modules: list[LSTMModule], steps: int, atol: float, rtol: float
) -> Diagnosis:
    reset = env.reset()
    seen = [m for module in modules for m in (*mistakes.in_policy(module), *mistakes.in_reset(module, reset))]
    if any(mistake.name in mistakes.CANNOT_ACT for mistake in seen):
        return Diagnosis(None, float("nan"), 0, tuple(dict.fromkeys(seen)))
    result = policy(reset.clone())
    seen += [m for module in modules for m in mistakes.in_result(module, result)]
    with _listening(modules) as acting:
        acted = env.rollout(steps, policy, break_when_any_done=False).clone()
    with _listening(modules) as replaying, set_recurrent_mode(True):
        policy(_readable(policy, acted))
    time = acted.ndim - 1
    by_module = {
        module: [torch.stack(values, time) for values in zip(*calls[-acted.batch_size[-1] :], strict=True)]
        for module, calls in acting.items()
    }
    shared = list(mistakes.in_calls({module: len(calls) for module, calls in acting.items()}, acted.batch_size[-1]))
    seen += shared
    if not shared and not any(mistake.name in mistakes.NOT_CARRIED for mistake in seen):
        transforms = _transforms(env)
        seen += [
            m for key, values in by_module.items() for m in mistakes.in_rollout(key, acted, values[1:], transforms)
        ]
    worst, first = 0.0, ""
    for module, (expected, *_) in by_module.items():
        actual = replaying[module][-1][0]
        apart = ~torch.isclose(actual, expected, atol=atol, rtol=rtol)
        worst = max(worst, (actual - expected).abs().nan_to_num(nan=float("inf")).amax().item())
        if apart.any() and not first:
            *row, step = apart.flatten(acted.ndim).any(-1).nonzero()[0].tolist()
            first = f"; first at step {step}" + (f" of row {row}" if row else "")
    return Diagnosis(not first, worst, acted.numel(), tuple(dict.fromkeys(seen)), first)


def _from_data(
    policy: nn.Module, modules: list[LSTMModule], data: TensorDictBase, atol: float, rtol: float
) -> Iterator[Mistake]:
    if data.ndim < 1 or data.batch_size[-1] < 2:
        raise InputError(f"data needs a time dimension of two steps or more, the last; got {tuple(data.batch_size)}")
    for module in modules:
        wrong = list(mistakes.in_data(module, data))
        yield from wrong
        if wrong:
            return
    with _listening(modules) as written, set_recurrent_mode(False):
        policy(_readable(policy, data))  # all stored steps again, in one call
    for module in modules:
        if module in written:
            yield from mistakes.in_order(module, data, written[module][-1][1], atol, rtol)


def _readable(policy: nn.Module, td: TensorDictBase) -> TensorDictBase:
    """The entries that the policy reads, without those that it wrote."""
    keys = getattr(policy, "in_keys", None)
    return td.select(*keys, strict=False).clone() if keys else td.exclude("next").clone()


@contextmanager
def _listening(modules: list[LSTMModule]) -> Iterator[dict[LSTMModule, list[tuple[Tensor, ...]]]]:
    """The results (features, h, c, as far as they are written) of each call of each module."""
    heard: dict[LSTMModule, list[tuple[Tensor, ...]]] = {}

    def hear(module: LSTMModule, args: Any, result: Any) -> None:
        values = result if isinstance(result, tuple) else (result.get(key) for key in module.out_keys)
        heard.setdefault(module, []).append(tuple(value.detach().clone() for value in values))

    handles = [module.register_forward_hook(hear) for module in modules]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _transforms(env: Any) -> list[Any]:
    """The transforms of an environment and of those inside it, flat."""
    found: list[Any] = []
    for _ in range(100):
        transform = getattr(env, "transform", None)
        if transform is None:
            return found
        found.extend(transform if hasattr(transform, "__iter__") else [transform])
        env = getattr(env, "base_env", None)
    return found
