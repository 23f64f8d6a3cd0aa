"""The error family: each message names the expected and the actual value, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RNNBackendsError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(RNNBackendsError, ValueError, RuntimeError):
    """A tensor, key or argument does not fit the contract.

    torch raises ``ValueError`` for some of these and ``RuntimeError`` for others: this is both.
    """


class MissingKeyError(RNNBackendsError, KeyError):
    """A key that the module reads is not in the TensorDict."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class ContractError(RNNBackendsError, TypeError):
    """A plugin breaks the plugin contract (version, hook, name, return type)."""


class BrokenBackendError(RNNBackendsError, ImportError):
    """An installed plugin cannot be loaded; the message has the reason."""


class UnknownBackendError(RNNBackendsError, ValueError):
    """No backend of this name is installed.

    Args:
        name: the requested name.
        installed: the names of the installed backends.
        note: the origin of the name, or the reason why it is missing.
        also: further valid names, such as aliases; only the hint mentions them.
    """

    def __init__(self, name: str, installed: Iterable[str], note: str | None = None, also: Iterable[str] = ()) -> None:
        self.name, self.installed, self.note = name, tuple(installed), note
        candidates = {word.lower(): word for word in (*sorted(also), *self.installed) if word != name}
        near = get_close_matches(name.lower(), candidates, n=1)
        origin = f" ({note})" if note else ""
        hint = " 'auto' chooses one." if "auto" in also else ""
        hint = f" Did you mean {candidates[near[0]]!r}?" if near else hint
        super().__init__(
            f"unknown LSTM backend {name!r}{origin}: installed are {', '.join(self.installed) or 'none'}.{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), self.args, self.__dict__)


class UnsupportedError(RNNBackendsError, NotImplementedError):
    """A backend does not support a feature. (``NotImplementedError`` is a ``RuntimeError``, as torch raises.)

    Args:
        backend: the backend's name.
        feature: the feature, in words (a noun).
        reason: why this backend does not support it.
        alternatives: names of installed backends that support it.
    """

    def __init__(self, backend: str, feature: str, reason: str, alternatives: Iterable[str] = ()) -> None:
        self.backend, self.feature, self.reason = backend, feature, reason
        self.alternatives = tuple(alternatives)
        others = ", ".join(self.alternatives) or "none of the installed ones"
        super().__init__(f"LSTM backend {backend!r} does not support {feature}: {reason}. Backends that can: {others}.")

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), self.args, self.__dict__)


def _remake(kind: type[RNNBackendsError], args: tuple[object, ...], state: dict[str, object]) -> RNNBackendsError:
    """Unpickle an error with more constructor arguments than its message, such as one sent by a worker process."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
