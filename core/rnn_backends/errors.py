"""The error family: each message says what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RNNBackendsError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(RNNBackendsError, ValueError, RuntimeError):
    """A tensor, key or argument is not what the contract asks for.

    torch raises ``ValueError`` for some of these and ``RuntimeError`` for others: this is both.
    """


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
        note: where the name came from, or why it is not there.
        also: words that are taken besides the installed names; only a hint may name them.
    """

    def __init__(self, name: str, installed: Iterable[str], note: str | None = None, also: Iterable[str] = ()) -> None:
        self.name, self.installed, self.note = name, tuple(installed), note
        candidates = {word.lower(): word for word in (*sorted(also), *self.installed)}
        near = get_close_matches(name.lower(), candidates, n=1)
        came = f" ({note})" if note else ""
        hint = " 'auto' chooses one." if "auto" in also else ""
        hint = f" Did you mean {candidates[near[0]]!r}?" if near else hint
        super().__init__(
            f"unknown LSTM backend {name!r}{came}: installed are {', '.join(self.installed) or 'none'}.{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), self.args, self.__dict__)


class UnsupportedError(RNNBackendsError, NotImplementedError):
    """A backend declines what is asked of it. (``NotImplementedError`` is a ``RuntimeError``, as torch raises.)

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
        super().__init__(f"LSTM backend {backend!r} declines {feature}: {reason}. Backends that can: {others}.")

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), self.args, self.__dict__)


def _remake(kind: type[RNNBackendsError], args: tuple[object, ...], state: dict[str, object]) -> RNNBackendsError:
    """Unpickle an error whose constructor takes other arguments than its message (workers send errors home)."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
