"""Backends by entry-point name: listing imports nothing, asking for one loads that one.

A plugin that fails to load hides itself only. pluggy isolates nothing by itself, so each entry point is loaded
guarded and its reason is kept.
"""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from . import hooks
from .contract import CONTRACT_VERSION, Backend
from .errors import BrokenBackendError, ContractError, UnknownBackendError

GROUP = "rnn_backends"
ALIASES = {"torch": "cudnn", "torchrl": "vmap"}
RESERVED = frozenset({"auto", *ALIASES})
DISABLE_VARIABLE = "RNN_BACKENDS_DISABLE"


@dataclass(frozen=True)
class Listing:
    """One row of :func:`list_backends`.

    Attributes:
        name: the backend's name.
        distribution: who installs it, with its version; ``"this process"`` for :func:`register`.
        loaded: whether its code has been imported and its backend built.
        reason: why it cannot be used, or ``None``.
    """

    name: str
    distribution: str
    loaded: bool
    reason: str | None


class Registry:
    """The installed and the in-process backends. The module's functions are one instance of this."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._local: dict[str, Backend] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the installed entry points again and forget which plugins were broken."""
        with self._lock:
            self._found = _scan()
            self._built: dict[str, Backend] = {}
            self._broken: dict[str, str] = {}
            self._causes: dict[str, Exception] = {}
            self._plugins = pluggy.PluginManager(hooks.PROJECT)
            self._plugins.add_hookspecs(hooks)

    def names(self) -> tuple[str, ...]:
        """Names of the installed and registered backends, sorted. Imports no plugin."""
        return tuple(sorted({*self._found, *self._local} - _disabled(self._found)))

    def listings(self, load: bool = False) -> list[Listing]:
        """One row a backend. ``load=True`` loads each, guarded, so that every reason is known."""
        rows = [Listing(name, "this process", True, None) for name in self._local]
        for name, points in self._found.items():
            reason = self._why_not(name, load)
            who = ", ".join(sorted({_distribution(point) for point in points}))
            rows.append(Listing(name, who, name in self._built, reason))
        return sorted(rows, key=lambda row: row.name)

    def _why_not(self, name: str, load: bool) -> str | None:
        if name in _disabled(self._found):
            return f"disabled by {DISABLE_VARIABLE}"
        if load:
            try:
                self.get(name)
            except BrokenBackendError:
                pass
        return self._broken.get(name) or _clash(name, self._found[name])

    def get(self, name: str, source: str | None = None) -> Backend:
        """The backend of this name or alias; loads only that one plugin.

        Args:
            name: a backend's name or an alias. Names are exact: case and underscores count.
            source: where the name came from, for the error message.

        Raises:
            UnknownBackendError: nothing of that name is installed, or it is disabled.
            BrokenBackendError: it is installed and cannot be loaded; the message has the reason.
        """
        name = ALIASES.get(name, name)
        with self._lock:
            if name in self._local:
                return self._local[name]
            if name not in self.names():
                if name in self._found:
                    source = f"{source + ', ' if source else ''}disabled by {DISABLE_VARIABLE}"
                raise UnknownBackendError(name, self.names(), source)
            if name not in self._built and name not in self._broken:
                self._load(name)
            if name in self._broken:
                message = f"LSTM backend {name!r} cannot be loaded: {self._broken[name]}"
                raise BrokenBackendError(message) from self._causes.get(name)
            return self._built[name]

    def _load(self, name: str) -> None:
        points = self._found[name]
        clash = _clash(name, points)
        if clash:
            self._broken[name] = clash
            return
        try:
            self._built[name] = self._build(name, points[0])
        except Exception as error:  # a plugin is somebody else's code: whatever it raises is its reason
            first = next(iter(str(error).strip().splitlines()), "")
            why = first if isinstance(error, ContractError) else f"{type(error).__name__}: {first}"
            self._broken[name] = f"{why} (plugin of {_distribution(points[0])})"
            self._causes[name] = error

    def _build(self, name: str, point: EntryPoint) -> Backend:
        plugin = point.load()
        made_for = getattr(plugin, "contract_version", None)
        if made_for != CONTRACT_VERSION:
            came = f"is made for contract version {made_for}" if made_for else "names no contract_version"
            raise ContractError(f"it {came}; this rnn-backends has contract version {CONTRACT_VERSION}")
        self._plugins.register(plugin, name)
        others = [other for other in self._plugins.get_plugins() if other is not plugin]
        built = self._plugins.subset_hook_caller("lstm_backend", others)()
        if len(built) != 1 or not isinstance(built[0], Backend):
            came = f"returned {type(built[0]).__name__}" if built else "is missing or returned None"
            raise ContractError(
                f"its @hookimpl function lstm_backend() must return one rnn_backends.Backend, and {came}"
            )
        if built[0].name != name:
            raise ContractError(f"its Backend is named {built[0].name!r} and its entry point {name!r}")
        return built[0]

    def register(self, backend: Backend) -> Backend:
        """Add a backend in this process, without an entry point. Returns it.

        Raises:
            ContractError: it is not a :class:`Backend`, or its name is taken or reserved.
        """
        if not isinstance(backend, Backend):
            raise ContractError(f"register() takes a rnn_backends.Backend, got {type(backend).__name__}")
        with self._lock:
            if backend.name in RESERVED or backend.name in self._found or backend.name in self._local:
                raise ContractError(f"the backend name {backend.name!r} is taken: choose another")
            self._local[backend.name] = backend
        return backend

    def unregister(self, name: str) -> None:
        """Take back a :func:`register`. Modules that use the backend keep it."""
        with self._lock:
            if name not in self._local:
                raise UnknownBackendError(name, tuple(self._local), "unregister")
            del self._local[name]

    def holds(self, backend: Backend) -> bool:
        """Whether this very value can be had again by its name."""
        return backend in (self._local.get(backend.name), self._built.get(backend.name))


def _scan() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        known = found.setdefault(point.name, [])
        # One distribution can be seen twice on sys.path (an editable install and its sources).
        if all((_owner(point), point.value) != (_owner(other), other.value) for other in known):
            known.append(point)
    return found


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unnamed distribution"


def _distribution(point: EntryPoint) -> str:
    return f"{_owner(point)} {point.dist.version}" if point.dist else _owner(point)


def _clash(name: str, points: list[EntryPoint]) -> str | None:
    if name in RESERVED:
        return f"the name {name!r} is reserved (plugin of {_distribution(points[0])})"
    if len(points) > 1:
        owners = " and ".join(_distribution(point) for point in points)
        return f"two plugins have this name, of {owners}: uninstall one"
    return None


def _disabled(known: dict[str, list[EntryPoint]]) -> set[str]:
    names = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")} - {""}
    unknown = sorted(names - set(known))
    if unknown:
        warnings.warn(f"{DISABLE_VARIABLE} names no installed backend: {unknown}", stacklevel=3)
    return names


_registry = Registry()
names = _registry.names
get_backend = _registry.get
list_backends = _registry.listings
register = _registry.register
unregister = _registry.unregister
refresh = _registry.refresh
holds = _registry.holds
