"""Backends by entry-point name: listing imports nothing, and :func:`get_backend` loads one plugin.

A plugin that fails to load disables only itself. pluggy does not isolate plugins, so each entry point is loaded in a
separate plugin manager, and an error is caught and stored as the reason.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

import pluggy

from . import hooks
from .contract import CONTRACT_VERSION, LSTMBackend
from .errors import BrokenBackendError, ContractError, InputError, UnknownBackendError
from .prepare import preparations
from .torchrl_names import ALIASES as TORCHRL_NAMES

GROUP = "rnn_backends"
ALIASES = {"torch": "cudnn", "torchrl": "vmap"}
AUTO = "auto"
RESERVED = frozenset({AUTO, *ALIASES})
DISABLE_VARIABLE = "RNN_BACKENDS_DISABLE"


@dataclass(frozen=True)
class Listing:
    """One row of :func:`list_backends`.

    Attributes:
        name: the backend's name.
        distribution: the distribution that installs it, with its version; ``"this process"`` for :func:`register`.
        loaded: whether its code has been imported and its backend built.
        reason: why it cannot be used, or ``None``.
    """

    name: str
    distribution: str
    loaded: bool
    reason: str | None


class Registry:
    """The installed and the in-process backends of one kind of cell. The module's functions are those of ``"lstm"``.

    Args:
        cell: the kind of recurrent cell; a plugin's hook for it is named ``<cell>_backend``.
    """

    def __init__(self, cell: str = "lstm") -> None:
        self._hook = f"{cell}_backend"
        self._lock = threading.RLock()
        self._local: dict[str, LSTMBackend] = {}
        self._read()

    def _read(self) -> None:
        self._found = _scan()
        self._built: dict[str, LSTMBackend] = {}
        self._broken: dict[str, str] = {}
        self._causes: dict[str, BaseException] = {}

    def refresh(self) -> None:
        """Read the installed entry points again, and forget errors of plugins and results of preparations."""
        preparations.forget()
        with self._lock:
            importlib.invalidate_caches()  # or a distribution installed just now may be missed
            self._read()

    def names(self) -> tuple[str, ...]:
        """Names of the installed and registered backends, sorted. Imports no plugin."""
        installed = set(self._found) - RESERVED - _disabled(self._found)
        return tuple(sorted(installed | set(self._local)))

    def listings(self, load: bool = False) -> list[Listing]:
        """One row for each backend. ``load=True`` loads each, so that every reason is known."""
        with self._lock:
            rows = [Listing(name, "this process", True, None) for name in self._local]
            for name, points in self._found.items():
                reason = self._why_not(name, load)
                owner = ", ".join(sorted({_distribution(point) for point in points}))
                rows.append(Listing(name, owner, name in self._built, reason))
        return sorted(rows, key=lambda row: row.name)

    def _why_not(self, name: str, load: bool) -> str | None:
        if name in _disabled(self._found):
            return f"disabled by {DISABLE_VARIABLE}"
        if load:
            self._load(name)
        return self._broken.get(name) or _clash(name, self._found[name])

    def get(self, name: str, source: str | None = None) -> LSTMBackend:
        """See :func:`get_backend`."""
        requested, name = name, ALIASES.get(name, name)
        with self._lock:
            if name in self._local:
                return self._local[name]
            if name not in self._found or name in _disabled(self._found):
                raise self._unknown(requested, name, source)
            self._load(name)
            if name in self._broken:
                origin = f" (from {source})" if source else ""
                message = f"LSTM backend {name!r}{origin} cannot be loaded: {self._broken[name]}"
                raise BrokenBackendError(message) from self._causes.get(name)
            return self._built[name]

    def _unknown(self, requested: str, name: str, source: str | None) -> UnknownBackendError:
        notes = [
            f"from {source}" if source else "",
            "it stands for the choice of one, when an LSTM is made" if requested == AUTO else "",
            f"TorchRL's name for {TORCHRL_NAMES[requested]!r}" if requested in TORCHRL_NAMES else "",
            f"{requested!r} is its alias" if requested != name else "",
            f"disabled by {DISABLE_VARIABLE}" if name in self._found else "",
        ]
        return UnknownBackendError(name, self.names(), ", ".join(filter(None, notes)), RESERVED)

    def _load(self, name: str) -> None:
        """Build the backend, or store the reason why it cannot be built; once."""
        if name in self._built or name in self._broken:
            return
        points = self._found[name]
        clash = _clash(name, points)
        if clash:
            self._broken[name] = clash
            return
        try:
            self._built[name] = _build(name, points[0], self._hook)
        except (Exception, SystemExit) as error:  # third-party code: any error is the reason
            self._broken[name] = f"{_words(error)} (plugin of {_distribution(points[0])})"
            self._causes[name] = error

    def register(self, backend: LSTMBackend) -> LSTMBackend:
        """Add a backend in this process, without an entry point. Returns it.

        Raises:
            ContractError: it is not an :class:`LSTMBackend`, or its name is taken or reserved.
        """
        if not isinstance(backend, LSTMBackend):
            raise ContractError(f"register() takes a rnn_backends.LSTMBackend, got {type(backend).__name__}")
        with self._lock:
            if backend.name in {*RESERVED, *self._found, *self._local}:
                raise ContractError(f"the backend name {backend.name!r} is taken: choose another")
            self._local[backend.name] = backend
        return backend

    def unregister(self, name: str) -> None:
        """Undo :func:`register`. Modules that use the backend keep it."""
        with self._lock:
            if name not in self._local:
                raise UnknownBackendError(name, sorted(self._local), "unregister() takes what register() added")
            del self._local[name]

    def is_registered_value(self, backend: LSTMBackend) -> bool:
        """Whether looking this backend up by its name returns this same value."""
        return backend in (self._local.get(backend.name), self._built.get(backend.name))


def _build(name: str, point: EntryPoint, hook: str = "lstm_backend") -> LSTMBackend:
    plugin = point.load()
    made_for = getattr(plugin, "contract_version", None)
    if made_for != CONTRACT_VERSION:
        fault = "has no contract_version" if made_for is None else f"is made for contract version {made_for}"
        raise ContractError(f"it {fault}; this rnn-backends has contract version {CONTRACT_VERSION}")
    manager = pluggy.PluginManager(hooks.PROJECT)  # one for each plugin, so that none affects another
    manager.add_hookspecs(hooks)
    manager.register(plugin, name)
    manager.check_pending()  # a misspelt hook is named instead of missed
    built = getattr(manager.hook, hook)()
    if len(built) != 1 or not isinstance(built[0], LSTMBackend):
        actual = f"returned {type(built[0]).__name__}" if built else "is missing or returned None"
        raise ContractError(
            f"its @hookimpl function {hook}() must return one rnn_backends.LSTMBackend, but it {actual}"
        )
    if built[0].name != name:
        raise ContractError(f"its LSTMBackend is named {built[0].name!r} and its entry point {name!r}")
    return replace(built[0], contract_version=made_for) if built[0].contract_version != made_for else built[0]


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    message = lines[-1] if isinstance(error, pluggy.PluginValidationError) else lines[0]  # pluggy's reason comes last
    if isinstance(error, ContractError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _scan() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _distribution(point: EntryPoint) -> str:
    unnamed = "an unnamed distribution"
    try:
        return f"{point.dist.name} {point.dist.version}" if point.dist and point.dist.name else unnamed
    except Exception:  # its METADATA is missing or damaged; that must not hide the others
        return unnamed


def _clash(name: str, points: list[EntryPoint]) -> str | None:
    if name in RESERVED:
        return f"the name {name!r} is reserved (plugin of {_distribution(points[0])})"
    if len(points) > 1:
        owners = " and ".join(_distribution(point) for point in points)
        return f"two plugins have this name, of {owners}: uninstall one"
    return None


def _disabled(known: dict[str, list[EntryPoint]]) -> set[str]:
    disabled = (name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(","))
    names = {ALIASES.get(name, name) for name in disabled} - {""}
    unknown = sorted(names - set(known))
    if unknown and tuple(unknown) not in _warned:
        _warned.add(tuple(unknown))
        near = {name: get_close_matches(name.lower(), known, n=1) for name in unknown}
        words = ", ".join(
            f"{name!r} (did you mean {near[name][0]!r}?)" if near[name] else repr(name) for name in unknown
        )
        accepted = f"It takes names separated by commas, of {', '.join(sorted(known))}"
        warnings.warn(
            f"{DISABLE_VARIABLE} names no installed backend: {words}. {accepted}",
            stacklevel=3,
        )
    return names


_warned: set[tuple[str, ...]] = set()


_registry = Registry()
_registries = {"lstm": _registry}
"""The registries by the kind of cell; a name is one backend for each. A new cell adds a hook, a type and an entry."""


def get_backend(name: str, source: str | None = None, *, cell: str = "lstm") -> LSTMBackend:
    """The backend of this name or alias; loads only that one plugin.

    Args:
        name: a backend's name or an alias. Names are exact: case and underscores count.
        source: the origin of the name, for the error message.
        cell: the kind of recurrent cell; there is ``"lstm"``.

    Raises:
        InputError: there are no backends for such a cell.
        UnknownBackendError: no backend of that name is installed, or it is disabled.
        BrokenBackendError: the backend is installed and cannot be loaded; the message has the reason.
    """
    if cell not in _registries:
        raise InputError(f"there are backends for the cells {', '.join(_registries)}, and none for {cell!r}")
    return _registries[cell].get(name, source)


names = _registry.names
list_backends = _registry.listings
register = _registry.register
unregister = _registry.unregister
refresh = _registry.refresh
is_registered_value = _registry.is_registered_value
