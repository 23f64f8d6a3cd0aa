"""Plugins and names: a broken plugin affects no other, a name means one backend, no backend replaces another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from rnn_backends import (
    LSTM,
    BrokenBackendError,
    ContractError,
    LSTMBackend,
    LSTMModule,
    LSTMNet,
    Trait,
    UnknownBackendError,
    UnsupportedError,
    choose,
    get_backend,
    hookimpl,
    list_backends,
    names,
    registry,
)
from rnn_backends.unroll import unroll

from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken
from ._shared import registered

PLUGIN = "rnn_conformance_trial_plugin"
IN_PROCESS = "this process"
"""The source of backends given to ``register``."""
ALIASES = {"torch": "cudnn", "torchrl": "vmap"}
"""The aliases that the README documents."""


class _Unloadable(EntryPoint):
    """An entry point whose module cannot be imported."""

    def load(self) -> Any:
        raise OSError("libdefect.so: cannot open shared object file")


def _plugin(backend: Callable[[], LSTMBackend], version: int | None = 1) -> ModuleType:
    """A plugin's module."""
    module = ModuleType(PLUGIN)
    vars(module).update(contract_version=version, lstm_backend=hookimpl(backend))
    return module


@contextmanager
def _installed(points: list[EntryPoint], **modules: ModuleType) -> Iterator[registry.Registry]:
    """A registry that finds these entry points and no others."""
    named = {f"{PLUGIN}_{name}": module for name, module in modules.items()}
    with (
        mock.patch.dict(sys.modules, named),
        mock.patch.dict("os.environ", {registry.DISABLE_VARIABLE: ""}),
        mock.patch.object(registry, "entry_points", return_value=points),
    ):
        yield registry.Registry()


def _point(name: str, module: str, kind: type[EntryPoint] = EntryPoint) -> EntryPoint:
    return kind(name, f"{PLUGIN}_{module}", registry.GROUP)


def _quits() -> LSTMBackend:
    raise SystemExit("no licence")


@law(costly=True, T=(1,), B=(1,))
def a_broken_plugin_hides_itself_only(trial: Trial) -> None:
    """Plugins that cannot be imported, that exit, or that need another contract version affect no other plugin."""
    mine = trial.backend
    broken = {
        "rnn-broken-import": "cannot open shared object file",
        "rnn-broken-hook": "no licence",
        "rnn-broken-version": "contract version 99",
    }
    points = [
        _point("rnn-broken-import", "none", _Unloadable),
        _point("rnn-broken-hook", "quits"),
        _point("rnn-broken-version", "other"),
        _point(mine.name, "mine"),
    ]
    modules = {"quits": _plugin(_quits), "other": _plugin(lambda: mine, 99), "mine": _plugin(lambda: mine)}
    with _installed(points, **modules) as plugins:
        try:
            rows = {row.name: row.reason for row in plugins.listings(load=True)}
            got = plugins.get(mine.name)
        except (Exception, SystemExit) as error:
            raise LawBroken(f"a broken plugin stops the others: {type(error).__name__}: {error}") from error
        if got is not mine or rows.get(mine.name, "not listed") is not None:
            raise LawBroken(f"among broken plugins {mine.name!r} is {got}, with the reason {rows.get(mine.name)!r}")
        for name, reason in broken.items():
            _is_broken(plugins, name, reason, rows.get(name))


def _is_broken(plugins: registry.Registry, name: str, reason: str, listed: str | None) -> None:
    """Check that a broken plugin is listed with its reason, and that requesting it raises the reason."""
    if listed is None or reason not in listed:
        raise LawBroken(f"the broken plugin {name!r} is listed with {listed!r}, expected {reason!r} in it")
    try:
        actual = plugins.get(name)
    except BrokenBackendError as error:
        if reason not in str(error):
            raise LawBroken(f"the error of {name!r} does not say {reason!r}: {error}") from error
    else:
        raise LawBroken(f"the broken plugin {name!r} gave {actual}")


@law(costly=True, T=(1,), B=(1,))
def two_plugins_of_one_name_are_rejected(trial: Trial) -> None:
    """If two plugins have the same name neither is used: the error says that there are two."""
    mine = trial.backend
    points = [_point(mine.name, "mine"), _point(mine.name, "other")]
    with _installed(points, mine=_plugin(lambda: mine), other=_plugin(lambda: mine)) as plugins:
        _is_broken(plugins, mine.name, "two plugins", plugins.listings(load=True)[0].reason)


@law(costly=True, T=(1,), B=(1,))
def a_misspelt_name_suggests_the_right_one(trial: Trial) -> None:
    """A misspelt or capitalised backend name raises an UnknownBackendError that suggests the right name."""
    with registered(trial.backend):
        for name in (f"{trial.backend.name}x", trial.backend.name.capitalize() + "_", f"_{trial.backend.name}"):
            if name in names():
                continue
            try:
                actual = get_backend(name)
            except UnknownBackendError as error:
                if f"Did you mean {trial.backend.name!r}?" not in str(error):
                    raise LawBroken(
                        f"the error for {name!r} does not suggest {trial.backend.name!r}: {error}"
                    ) from error
            else:
                raise LawBroken(f"the unknown name {name!r} gave {actual.name!r}")


@law(costly=True, T=(1,), B=(1,))
def an_alias_means_one_backend(trial: Trial) -> None:
    """An alias gives the backend it stands for, or an error that names it; no plugin can register an alias."""
    for alias, name in ALIASES.items():
        mine = LSTMBackend(name, trial.backend.layer)
        with _installed([_point(name, "mine")], mine=_plugin(lambda made=mine: made)) as plugins:  # type: ignore[misc]
            got = _got(plugins, alias)
            if got is not mine:
                raise LawBroken(f"the alias {alias!r} gave {got}, expected {name!r}")
        with _installed([]) as nothing:
            actual = _got(nothing, alias)
            if not (isinstance(actual, UnknownBackendError) and alias in str(actual) and name in str(actual)):
                raise LawBroken(f"with {name!r} not installed the alias {alias!r} gave {actual!r}")
    for word in (*ALIASES, "auto"):
        thief = LSTMBackend(word, trial.backend.layer)
        with _installed([]) as nothing:
            try:
                nothing.register(thief)
            except ContractError:
                continue
        raise LawBroken(f"a backend could be registered under the reserved name {word!r}")


def _got(plugins: registry.Registry, name: str) -> LSTMBackend | Exception:
    try:
        return plugins.get(name)
    except (UnknownBackendError, BrokenBackendError) as error:
        return error


@law(costly=True, T=(1,), B=(1,))
def a_disabled_plugin_is_hidden(trial: Trial) -> None:
    """RNN_BACKENDS_DISABLE removes a plugin from the names, rejects it with this reason, and keeps it listed."""
    mine = trial.backend
    with (
        _installed([_point(mine.name, "mine")], mine=_plugin(lambda: mine)) as plugins,
        mock.patch.dict("os.environ", {registry.DISABLE_VARIABLE: mine.name}),
    ):
        (row,) = plugins.listings(load=True)
        actual = _got(plugins, mine.name)
        if mine.name in plugins.names() or row.loaded or row.reason is None or "disabled" not in row.reason:
            raise LawBroken(f"disabled, {mine.name!r} is among {plugins.names()} and listed as {row}")
        if not (isinstance(actual, UnknownBackendError) and registry.DISABLE_VARIABLE in str(actual)):
            raise LawBroken(f"disabled, {mine.name!r} gave {actual!r}")


@law(costly=True, T=(1,), B=(1,))
def the_environment_names_the_default(trial: Trial) -> None:
    """RNN_BACKENDS_LSTM names the backend of every LSTM, LSTMModule and LSTMNet that is made without one."""
    name, sizes = "rnn-conformance-default", {"input_size": 2, "hidden_size": 3}
    keys: dict[str, Any] = {"in_key": "observation", "out_key": "features", "device": trial.device}
    mine = LSTMBackend(name, unroll, traits=frozenset({Trait.CELL_STATES}))
    made: dict[str, Callable[[], LSTM]] = {
        "LSTM": lambda: LSTM(2, 3, device=trial.device),
        "LSTMModule": lambda: LSTMModule(2, 3, **keys).lstm,
        'LSTMModule(hidden_output="all")': lambda: LSTMModule(2, 3, hidden_output="all", **keys).lstm,
        "LSTMNet": lambda: LSTMNet(1, sizes, {"in_features": 2, "out_features": 2}, trial.device).lstm,
    }
    with registered(mine), mock.patch.dict("os.environ", {choose.DEFAULT_VARIABLE: name}):
        for what, make in made.items():
            if (actual := make().lstm_backend) != name:
                raise LawBroken(f"with {choose.DEFAULT_VARIABLE}={name} {what} runs on {actual!r}")


@law(costly=True, T=(1,), B=(1,))
def a_named_backend_that_refuses_is_an_error(trial: Trial) -> None:
    """Requested by name, value or environment variable, a backend that rejects raises its reason; none replaces it."""
    name = "rnn-conformance-refuses"
    picky = LSTMBackend(name, trial.backend.layer, rejects=lambda spec, device, dtype: "it rejects everything")
    with registered(picky), mock.patch.dict("os.environ", {choose.DEFAULT_VARIABLE: name}):
        for what, request in (("by name", name), ("by value", picky), ("from the environment", None)):
            try:
                lstm = LSTM(2, 3, device=trial.device, dtype=torch.float32, lstm_backend=request)
            except UnsupportedError as error:
                if (error.backend, error.reason) != (name, "it rejects everything"):
                    raise LawBroken(f"requested {what}, the error names {error.backend!r}: {error}") from error
            else:
                raise LawBroken(f"requested {what}, a backend that rejects everything gave {lstm.lstm_backend!r}")


@law(costly=True, T=(1,), B=(1,), profiles=("quick", "full"))
def needed_traits_are_claimed_or_refused(trial: Trial) -> None:
    """For ``hidden_output="all"`` "auto" takes a backend with the trait; a named one without it is rejected."""
    keys: dict[str, Any] = {"in_key": "observation", "out_key": "features", "hidden_output": "all"}
    installed = [row.name for row in list_backends(load=True) if row.reason is None and row.distribution != IN_PROCESS]
    claiming = [name for name in installed if Trait.CELL_STATES in get_backend(name).traits]
    for hidden in (
        [],
        [name for name in claiming if name != "vmap"],
    ):  # the fastest backend may have the trait by chance
        with mock.patch.dict(os.environ, {registry.DISABLE_VARIABLE: ",".join(hidden)}):
            taken = LSTMModule(2, 3, device=trial.device, lstm_backend="auto", **keys).lstm.backend
        if Trait.CELL_STATES not in taken.traits:
            raise LawBroken(f'"auto" took {taken.name!r} for every hidden state, which it does not claim')
    mine = LSTMBackend("rnn-conformance-ends", trial.backend.layer)
    lstm = LSTM(2, 3, batch_first=True, device=trial.device, dtype=trial.case.torch_dtype, lstm_backend=mine)
    try:
        module = LSTMModule(lstm=lstm, **keys)
    except UnsupportedError:
        return
    raise LawBroken(
        f"an LSTM on a backend without the trait was wrapped for every hidden state: {module.lstm_backend!r}"
    )


@law(costly=True, T=(1,), B=(1,), profiles=("quick", "full"))
def a_refresh_reloads_plugins_and_keeps_registered_ones(trial: Trial) -> None:
    """After ``refresh()`` a repaired plugin loads, and backends added by ``register()`` remain."""
    mine, added = replace(trial.backend, name="rnn-repaired"), replace(trial.backend, name="rnn-registered")
    module = _plugin(_quits)
    with _installed([_point(mine.name, "mine")], mine=module) as plugins:
        plugins.register(added)
        _got(plugins, mine.name)
        module.lstm_backend = hookimpl(lambda: mine)  # type: ignore[attr-defined]
        plugins.refresh()
        if (actual := _got(plugins, mine.name)) is not mine:
            raise LawBroken(f"after refresh() a plugin that was repaired gives {actual!r}")
        if (actual := _got(plugins, added.name)) is not added:
            raise LawBroken(f"after refresh() the registered backend gives {actual!r}")
