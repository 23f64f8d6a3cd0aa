"""Preparation of a chosen backend, such as compiling a kernel: done once, and a failure is remembered."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable

import torch

from .contract import LSTMBackend, LSTMSpec, needs_no_preparation


class Preparations:
    """The results of ``LSTMBackend.prepare`` in this process."""

    def __init__(self) -> None:
        self._results: dict[Hashable, str | None] = {}
        self._unlock()
        if hasattr(os, "register_at_fork"):  # a child must not wait for a thread that it does not have
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.RLock()

    def run(self, backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        """Prepare the backend if it is not prepared yet. Returns the reason why it cannot run, or ``None``."""
        if backend.prepare is needs_no_preparation:
            return None
        key = _key(backend, spec, device, dtype)
        with self._lock:
            if key is not None and key in self._results:
                return self._results[key]
            reason = _reason(backend, spec, device, dtype)
            if key is not None:
                self._results[key] = reason
            return reason

    def failure(self, backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        """The reason why the backend's preparation failed in this process, or ``None``. Prepares nothing."""
        key = _key(backend, spec, device, dtype)
        return None if key is None else self._results.get(key)

    def is_done(self, backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether nothing remains to be prepared, as far as this process knows."""
        return backend.prepare is needs_no_preparation or _key(backend, spec, device, dtype) in self._results

    def forget(self) -> None:
        """Forget all results, so that backends are prepared again."""
        with self._lock:
            self._results.clear()


def _key(backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> Hashable | None:
    key = (backend.prepare, spec, device, dtype)
    try:
        hash(key)
    except TypeError:  # a callable object without a hash: its result is not remembered
        return None
    return key


def _reason(backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        reason = backend.prepare(spec, device, dtype)
    except Exception as error:  # third-party code: any error is the reason
        return f"its prepare() raised {type(error).__name__}: {error}"
    if reason is None or isinstance(reason, str):
        return reason
    return f"its prepare() must return a reason or None, and returned {type(reason).__name__}"


preparations = Preparations()
