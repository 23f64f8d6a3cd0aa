"""The conformance suite: it checks which laws hold for an LSTM backend.

``check_backend(name) -> Report`` is the Python interface. Names are imported on first use: pytest loads a plugin
of this package in every run on a machine where it is installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .check import check_backend, replay
    from .report.model import Header, Report
    from .suite.verdict import LawResult

__all__ = ["Header", "LawResult", "Report", "check_backend", "replay"]

_HOMES = {"check_backend": "check", "replay": "check", "LawResult": "suite.verdict"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'report.model')}", __name__), name)
