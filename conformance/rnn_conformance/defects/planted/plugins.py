"""Defects that the laws of ``laws/plugins.py`` kill first."""

from __future__ import annotations

from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any

from rnn_backends import (
    BrokenBackendError,
    LSTMBackend,
    LSTMModule,
    UnknownBackendError,
    UnsupportedError,
    choose,
    errors,
    get_backend,
    registry,
)
from rnn_backends import lstm as core
from rnn_backends.registry import Registry

from ..planting import Patch, in_core


def _load_guarding(*kinds: type[BaseException]) -> list[Patch]:
    def replacement(self: Registry, name: str) -> None:
        try:
            self._built[name] = registry._build(name, self._found[name][0])
        except kinds as error:
            self._broken[name] = str(error)

    return [Patch(Registry, "_load", replacement)]


@in_core("a_broken_plugin_hides_itself_only")
def one_broken_plugin_stops_all() -> list[Patch]:
    """A plugin that fails to load raises its error in every listing of backends."""
    return _load_guarding()


@in_core("a_broken_plugin_hides_itself_only")
def a_plugin_that_exits_ends_the_program() -> list[Patch]:
    """A plugin that calls sys.exit() ends the program."""
    return _load_guarding(Exception)


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@in_core("a_broken_plugin_hides_itself_only")
def plugins_of_any_contract_are_loaded() -> list[Patch]:
    """A plugin's contract version is not compared."""
    return [Patch(registry, "CONTRACT_VERSION", _Anything())]


@in_core("a_broken_plugin_hides_itself_only")
def a_broken_plugins_reason_is_lost() -> list[Patch]:
    """A broken plugin's error is kept without its message."""
    return [Patch(registry, "_words", lambda error: type(error).__name__)]


@in_core("two_plugins_of_one_name_are_rejected")
def the_first_of_two_plugins_wins() -> list[Patch]:
    """If two plugins have one name, the first is taken silently."""
    return [Patch(registry, "_clash", lambda name, points: None)]


@in_core("a_misspelt_name_suggests_the_right_one")
def nothing_is_suggested() -> list[Patch]:
    """An unknown name's error suggests no other name."""
    return [Patch(errors, "get_close_matches", lambda *args, **more: [])]


class _Near(dict[str, str]):
    def get(self, key: str, default: Any = None) -> Any:
        all_of = registry._registry
        known = (*self, *all_of._found, *all_of._local)
        return next(iter(get_close_matches(key, known, n=1, cutoff=0.6)), default)


@in_core("a_misspelt_name_suggests_the_right_one")
def a_misspelt_name_is_accepted() -> list[Patch]:
    """A misspelt name is accepted as the nearest known one."""
    return [Patch(registry, "ALIASES", _Near(registry.ALIASES))]


@in_core("an_alias_means_one_backend")
def aliases_swapped() -> list[Patch]:
    """Each of the two aliases gives the other's backend."""
    return [Patch(registry, "ALIASES", {"torch": "vmap", "torchrl": "cudnn"})]


@in_core("an_alias_means_one_backend")
def an_aliass_error_hides_the_alias() -> list[Patch]:
    """If an alias's backend is not installed, the error does not name the alias."""

    def replacement(self: Registry, asked: str, name: str, source: str | None) -> UnknownBackendError:
        return UnknownBackendError(name, self.names(), source)

    return [Patch(Registry, "_unknown", replacement)]


@in_core("an_alias_means_one_backend")
def reserved_names_may_be_taken() -> list[Patch]:
    """A backend may be registered as "auto" or under an alias, and then replaces it."""
    return [Patch(registry, "RESERVED", frozenset())]


@in_core("a_disabled_plugin_is_hidden")
def disabled_plugins_are_hidden_and_loaded() -> list[Patch]:
    """RNN_BACKENDS_DISABLE hides a name in listings, but the backend can still be used by name."""
    hidden, shown = Registry.names, registry._disabled

    def replacement(self: Registry) -> tuple[str, ...]:
        return tuple(name for name in hidden(self) if name not in shown(self._found))

    return [Patch(Registry, "names", replacement), Patch(registry, "_disabled", lambda known: set())]


@in_core("the_environment_names_the_default", round=4, survived=4)
def all_states_forget_the_environment() -> list[Patch]:
    """With hidden_output="all" and no named backend, RNN_BACKENDS_LSTM is ignored in favour of "auto"."""
    original = LSTMModule._check_hidden_output

    def replacement(self: LSTMModule, request: Any) -> None:
        original(self, request or "auto")

    return [Patch(LSTMModule, "_check_hidden_output", replacement)]


def _falls_back(when: Any) -> list[Patch]:
    original = core.resolve

    def replacement(request: Any, *rest: Any) -> LSTMBackend:
        try:
            return original(request, *rest)
        except UnsupportedError:
            if not when(request):
                raise
            return original("auto", *rest)

    return [Patch(core, "resolve", replacement)]


@in_core("a_named_backend_that_refuses_is_an_error")
def a_refusal_falls_back() -> list[Patch]:
    """If a backend chosen by name rejects, another one is taken silently."""
    return _falls_back(lambda request: isinstance(request, str))


@in_core("a_named_backend_that_refuses_is_an_error")
def a_refused_default_falls_back() -> list[Patch]:
    """If the backend of RNN_BACKENDS_LSTM rejects, another one is taken silently."""
    return _falls_back(lambda request: request is None)


@in_core("needed_traits_are_claimed_or_refused", round=7, survived=7)
def wrapped_backend_forgotten() -> list[Patch]:
    """With hidden_output="all" a wrapped LSTM moves to the backend of "auto" instead of being rejected."""
    original = LSTMModule.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature(original).bind(self, *args, **kwargs).arguments
        hidden_output = kwargs.pop("hidden_output", "ends")
        original(self, *args, **kwargs)
        vars(self)["hidden_output"] = hidden_output
        self._check_hidden_output("vmap" if given.get("python_based") else given.get("lstm_backend"))

    return [Patch(LSTMModule, "__init__", init)]


@in_core("needed_traits_are_claimed_or_refused", round=6, survived=6)
def auto_forgets_the_traits() -> list[Patch]:
    """ "auto" takes the fastest backend that accepts the spec, whether or not it has the traits needed."""

    def _auto(spec: Any, device: Any, dtype: Any, needs: Any) -> Any:
        def able(name: str) -> bool:
            try:
                return choose._refusal(get_backend(name), spec, device, dtype) is None
            except BrokenBackendError:
                return False

        best = choose._ranking(choose.names(), spec, device).first({name: able(name) for name in choose.names()})
        if best is not None:
            return get_backend(best)
        said = "; ".join(f"{v.name}: {v.reason}" for v in choose.explain(spec, device, dtype))
        raise UnsupportedError("auto", choose._words(spec, device, dtype), said or "none is installed")

    return [Patch(choose, "_auto", _auto)]


@in_core("a_refresh_reloads_plugins_and_keeps_registered_ones", round=7, survived=7)
def refresh_forgets_registered() -> list[Patch]:
    """refresh() reads the installed plugins again and drops backends added by register()."""
    original = Registry._read

    def read(self: Any) -> None:
        original(self)
        self._local = {}

    return [Patch(Registry, "_read", read)]


@in_core("a_refresh_reloads_plugins_and_keeps_registered_ones", round=6, survived=6)
def a_refresh_keeps_errors() -> list[Patch]:
    """refresh() keeps the errors of plugins: a repaired plugin stays broken."""

    def _read(self: Any) -> None:
        self._found = registry._scan()
        self._built = {}
        if not hasattr(self, "_broken"):
            self._broken, self._causes = {}, {}

    return [Patch(registry.Registry, "_read", _read)]
