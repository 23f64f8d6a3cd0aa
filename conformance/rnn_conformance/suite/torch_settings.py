"""Process-wide settings of torch, Python and NumPy, read and restored: no call may leave one changed."""

from __future__ import annotations

import gc
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.backends import cuda, cudnn, mkldnn

TINY = 1e-310
"""Subnormal in float64: zero where the CPU flushes denormal numbers."""


class Setting(NamedTuple):
    """One setting: how it is read, and how it is set."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _attribute(owner: Any, name: str) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _flushes_denormal() -> bool:
    return bool((torch.full((1,), TINY, dtype=torch.float64) * 1).item() == 0)


def _unlimited_filters() -> tuple[Any, ...]:
    """Filters of warnings for every message and module; a library that is imported late may add narrower ones."""
    return tuple(given for given in warnings.filters if given[1] is None and given[3] is None)


def _set_unlimited_filters(value: tuple[Any, ...]) -> None:
    narrower = [given for given in warnings.filters if given[1] is not None or given[3] is not None]
    warnings.filters[:] = [*value, *narrower]  # type: ignore[index]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


SETTINGS: dict[str, Setting] = {
    "gradient mode": Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": Setting(torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": Setting(
        _deterministic, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    ),
    "matmul precision": Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "TF32 in products": _attribute(cuda.matmul, "allow_tf32"),
    "TF32 in cudnn": _attribute(cudnn, "allow_tf32"),
    "reduced precision of float16 sums": _attribute(cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "reduced precision of bfloat16 sums": _attribute(cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    "cudnn.enabled": _attribute(cudnn, "enabled"),
    "cudnn.benchmark": _attribute(cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(cudnn, "deterministic"),
    "mkldnn.enabled": _attribute(mkldnn, "enabled"),
    "mkldnn.deterministic": _attribute(mkldnn, "deterministic"),
    "flush_denormal": Setting(_flushes_denormal, torch.set_flush_denormal),
    "warn_always": Setting(torch.is_warn_always_enabled, torch.set_warn_always),
    "anomaly mode": Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast on the CPU": Setting(
        lambda: torch.is_autocast_enabled("cpu"), lambda value: torch.set_autocast_enabled("cpu", value)
    ),
    "autocast's cache": Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "Python's random numbers": Setting(random.getstate, random.setstate),
    "NumPy's random numbers": Setting(
        lambda: pickle.dumps(np.random.get_state()), lambda value: np.random.set_state(pickle.loads(value))
    ),
    "Python's garbage collection": Setting(gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    "Python's filters of warnings": Setting(_unlimited_filters, _set_unlimited_filters),
}
"""By name, in words; the matmul precision comes before the settings that it changes."""


MIXED = "unreadable by its older name"
"""The value of a setting that torch refuses to read because it was set by its newer name."""


def read_settings() -> dict[str, Any]:
    """The value of each setting now."""
    return {name: _read(setting) for name, setting in SETTINGS.items()}


def _read(setting: Setting) -> Any:
    try:
        return setting.read()
    except RuntimeError:
        return MIXED


@contextmanager
def restored_settings() -> Iterator[dict[str, Any]]:
    """Context manager: yields the settings, and restores the changed ones at the end."""
    before = read_settings()
    with warnings.catch_warnings():
        try:
            yield before
        finally:
            for name, setting in SETTINGS.items():
                if _read(setting) != before[name] and before[name] != MIXED:
                    setting.write(before[name])
