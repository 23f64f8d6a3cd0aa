"""The hook that a plugin implements. The whole plugin interface is in this file."""

from __future__ import annotations

import pluggy

from .contract import LSTMBackend

PROJECT = "rnn_backends"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lstm_backend() -> LSTMBackend:
    """Build and return the backend.

    Called once, when the backend is first requested; heavy imports belong in here. Raise
    :class:`ImportError` with a reason if the backend cannot work on this machine: the reason is shown.
    """
    raise NotImplementedError
