"""The error family: each message says what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RNNBackendsError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(RNNBackendsError, ValueError):
    """A tensor, key or argument is not what the contract asks for."""


class MissingKeyError(RNNBackendsError, KeyError):
    """A key that the module reads is not in the TensorDict."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class ContractError(RNNBackendsError, TypeError):
    """A plugin does not keep the plugin contract (version, hook, name, return type)."""


class BrokenBackendError(RNNBackendsError, ImportError):
    """A plugin is installed and cannot be loaded; the message carries its reason."""


class UnknownBackendError(RNNBackendsError, ValueError):
    """No backend of this name is installed.

    Args:
        name: the name that was asked for.
        installed: the names that could have been.
        source: where the name came from, if not from an argument.
    """

    def __init__(self, name: str, installed: Iterable[str], source: str | None = None) -> None:
        self.name, self.installed = name, tuple(installed)
        near = get_close_matches(name, self.installed, n=1, cutoff=0.5)
        came = f" (from {source})" if source else ""
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(
            f"unknown LSTM backend {name!r}{came}: installed are {', '.join(self.installed) or 'none'}.{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return RNNBackendsError, (str(self),)


class UnsupportedError(RNNBackendsError, NotImplementedError):
    """A backend declines what is asked of it.

    Args:
        backend: the backend's name.
        feature: what was asked, in words.
        reason: why this backend cannot.
        alternatives: names of installed backends that can.
    """

    def __init__(self, backend: str, feature: str, reason: str, alternatives: Iterable[str] = ()) -> None:
        self.backend, self.feature, self.reason = backend, feature, reason
        self.alternatives = tuple(alternatives)
        others = ", ".join(self.alternatives) or "none of the installed ones"
        super().__init__(
            f"LSTM backend {backend!r} declines {feature}: {reason}. Backends that can: {others}."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.backend, self.feature, self.reason, self.alternatives)
