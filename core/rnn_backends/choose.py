"""The choice of a backend: made once, at construction, and explained. There is no silent fallback."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .checks import check_spec, is_arithmetic
from .contract import LSTMBackend, LSTMSpec, Trait
from .crossovers import table_for
from .errors import BrokenBackendError, InputError, UnsupportedError
from .prepare import preparations
from .ranking import Ranking
from .registry import get_backend, list_backends, names

log = logging.getLogger(__name__)

DEFAULT_VARIABLE = "RNN_BACKENDS_LSTM"
AUTO_ORDER = ("cudnn", "vmap")
"""The order of ``"auto"`` if nothing was measured or no backend is clearly faster; the others follow by name."""


@dataclass(frozen=True)
class Verdict:
    """One backend's answer for an LSTM spec, device and dtype.

    Attributes:
        name: the backend's name.
        accepted: whether it runs such an LSTM.
        reason: why it rejects the LSTM; or why ``"auto"`` chooses it (the measured figure and its table); or ``None``.
        chosen: whether ``"auto"`` chooses it.
        prepared: false if the backend has yet to prepare itself in this process, such as by compiling a kernel or
            loading a compiled one: its first LSTM may take seconds, or fail with the reason.
        preparation: if ``prepared`` is false: the backend's description of that work, if it has one.
    """

    name: str
    accepted: bool
    reason: str | None
    chosen: bool
    prepared: bool = True
    preparation: str | None = None


def resolve(
    request: str | LSTMBackend | None,
    spec: LSTMSpec,
    device: torch.device,
    dtype: torch.dtype,
    needs: frozenset[Trait] = frozenset(),
) -> LSTMBackend:
    """The prepared backend for a request, or an error with the reason and the backends that support it.

    Args:
        request: a name, an alias, ``"auto"``, an :class:`LSTMBackend` value, or ``None`` for the default: the
            environment variable ``RNN_BACKENDS_LSTM`` if set, else ``"auto"``.
        spec: the LSTM's options.
        device: the device of its weights.
        dtype: the dtype of its weights.
        needs: the required traits.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        BrokenBackendError: the backend is installed and cannot be loaded.
        UnsupportedError: the backend does not support this spec, device or dtype, or lacks a trait.
    """
    source = None
    if request is None:
        request = os.environ.get(DEFAULT_VARIABLE) or "auto"
        source = f"the environment variable {DEFAULT_VARIABLE}" if request != "auto" else None
    if request == "auto":
        return _auto(spec, device, dtype, needs)
    if not isinstance(request, (str, LSTMBackend)):
        raise InputError(f"lstm_backend must be a name or an LSTMBackend, got {type(request).__name__}")
    backend = get_backend(request, source) if isinstance(request, str) else request
    if device.type != "meta":  # nothing runs on meta: the LSTM checks at its first call, when its weights have memory
        demand(backend, spec, device, dtype)
    if not needs <= backend.traits:
        able = alternatives(spec, device, dtype, backend.name, needs)
        what = f"the trait {_listed(needs - backend.traits)}"
        raise UnsupportedError(backend.name, what, "its author does not claim this trait", able)
    return backend


def is_auto(request: str | LSTMBackend | None) -> bool:
    """Whether ``resolve`` leaves this request to ``"auto"``."""
    return request == "auto" or (request is None and (os.environ.get(DEFAULT_VARIABLE) or "auto") == "auto")


def demand(backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Prepare the backend; raise :class:`UnsupportedError` if it rejects the spec, device or dtype, or fails."""
    reason = _refusal(backend, spec, device, dtype) or preparations.run(backend, spec, device, dtype)
    if reason is not None:
        others = alternatives(spec, device, dtype, backend.name)
        raise UnsupportedError(backend.name, _words(spec, device, dtype), reason, others)


def _refusal(backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """The backend's reason, without a preparation. Its errors are caught, because they must not affect others."""
    if not is_arithmetic(dtype):
        return f"torch does not compute in {str(dtype).removeprefix('torch.')}: keep the weights in 16 bits or more"
    try:
        reason = backend.rejects(spec, device, dtype)
    except Exception as error:
        return f"its rejects() raised {type(error).__name__}: {error}"
    if reason is None:
        return preparations.failure(backend, spec, device, dtype)
    if isinstance(reason, str):
        return reason
    return f"its rejects() must return a reason or None, and returned {type(reason).__name__}"


def alternatives(
    spec: LSTMSpec, device: torch.device, dtype: torch.dtype, but: str, needs: frozenset[Trait] = frozenset()
) -> list[str]:
    """The names of the other backends that accept the spec and have the traits."""
    able = (b for b in _loadable() if needs <= b.traits and _refusal(b, spec, device, dtype) is None)
    return [backend.name for backend in able if backend.name != but]


def explain(
    spec: LSTMSpec, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> list[Verdict]:
    """For every installed backend: whether it accepts, or the reason why not; and which one ``"auto"`` chooses.

    Nothing is compiled: a backend that has not prepared itself yet counts as accepting, with ``prepared=False``.

    Args:
        spec: the LSTM's options, ``LSTMSpec(input_size, hidden_size, ...)`` or ``lstm.spec``.
        device: default: torch's default device.
        dtype: default: torch's default dtype.

    Raises:
        InputError: the options are invalid.
    """
    check_spec(spec)
    device = torch.get_default_device() if device is None else torch.device(device)
    dtype = dtype or torch.get_default_dtype()
    reasons = {row.name: row.reason for row in list_backends(load=True)}
    prepared = dict.fromkeys(reasons, True)
    will: dict[str, str | None] = dict.fromkeys(reasons)
    for name, reason in reasons.items():
        if reason is None:
            backend = get_backend(name)
            reasons[name] = _refusal(backend, spec, device, dtype)
            prepared[name] = reasons[name] is not None or preparations.is_done(backend, spec, device, dtype)
            will[name] = None if prepared[name] else _preparation(backend, spec, device, dtype)
    ranking = _ranking([name for name, reason in reasons.items() if reason is None], spec, device)
    best = ranking.first()
    return [
        Verdict(
            name, reason is None, ranking.why() if name == best else reason, name == best, prepared[name], will[name]
        )
        for name, reason in sorted(reasons.items())
    ]


def _preparation(backend: LSTMBackend, spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """The backend's description, without a preparation; its errors are caught, as in ``rejects``."""
    if backend.preparation is None:
        return None
    try:
        words = backend.preparation(spec, device, dtype)
    except Exception as error:
        return f"its preparation() raised {type(error).__name__}: {error}"
    if words is None or isinstance(words, str):
        return words
    return f"its preparation() must return words or None, and returned {type(words).__name__}"


def _ranking(among: Sequence[str], spec: LSTMSpec, device: torch.device) -> Ranking:
    """The backends, the fastest first as far as they were measured."""
    return Ranking(among, AUTO_ORDER, table_for(device), spec)


def _loadable() -> Iterator[LSTMBackend]:
    installed = names()
    first = [name for name in AUTO_ORDER if name in installed]
    for name in [*first, *(name for name in installed if name not in first)]:
        try:
            yield get_backend(name)
        except BrokenBackendError:
            continue  # its reason is in list_backends() and explain()


def _auto(spec: LSTMSpec, device: torch.device, dtype: torch.dtype, needs: frozenset[Trait]) -> LSTMBackend:
    failed: dict[str, str] = {}
    unavailable: dict[str, str] = {}  # measured to be faster, and rejected for a reason other than this spec

    def able(name: str) -> bool:
        try:
            backend = get_backend(name)
        except BrokenBackendError:
            return False
        if not needs <= backend.traits:
            return False
        reason = _refusal(backend, spec, device, dtype)
        plain = LSTMSpec(spec.input_size, spec.hidden_size)
        if reason is not None and reason == _refusal(backend, plain, device, torch.float32):
            unavailable[name] = reason
        return reason is None

    ranking, tested = _ranking(names(), spec, device), dict[str, bool]()
    while (best := ranking.first(tested)) is not None:
        if best not in tested:
            tested[best] = able(best)
            continue
        backend = get_backend(best)
        reason = preparations.run(backend, spec, device, dtype)
        if reason is None:
            for name in unavailable.keys() & ranking.faster(best):
                _log_once(best, name, unavailable[name])
            return backend
        failed[best], tested[best] = reason, False
        _report_once(_passed_over(best, reason))
    verdicts = explain(spec, device, dtype)
    reasons = {v.name: failed.get(v.name) or (f"lacks {_listed(needs)}" if v.accepted else v.reason) for v in verdicts}
    words = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UnsupportedError("auto", _words(spec, device, dtype), words or "none is installed")


_reported: set[str] = set()


def _report_once(message: str) -> None:
    if message not in _reported:
        _reported.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=6)


def _log_once(best: str, name: str, reason: str) -> None:
    """About the machine, not a fault of the program: logged, so that no warnings filter turns it into an error."""
    passed_over = _passed_over(name, reason)
    if passed_over not in _reported:
        _reported.add(passed_over)
        log.warning("lstm_backend='auto' takes %r: %r is faster, but %s", best, name, reason)


def _passed_over(name: str, reason: str) -> str:
    return f"lstm_backend='auto' passes over {name!r}: {reason}"


def _listed(traits: frozenset[Trait]) -> str:
    return ", ".join(sorted(trait.value for trait in traits))


def _words(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str:
    extras = [
        f"{spec.num_layers} layers" if spec.num_layers > 1 else "",
        "no bias" if not spec.bias else "",
        f"dropout {spec.dropout:g}" if spec.dropout else "",
        "bidirectional" if spec.bidirectional else "",
        f"proj_size {spec.proj_size}" if spec.proj_size else "",
    ]
    options = ", ".join([f"LSTM({spec.input_size}, {spec.hidden_size})", *filter(None, extras)])
    return f"{options} on {device.type} in {str(dtype).removeprefix('torch.')}"
