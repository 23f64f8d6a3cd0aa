"""The pytest plugin: one test per law.

For an installed backend, without a file::

    pytest --pyargs rnn_conformance --rnn-backend mine

In an author's own tests, ``test_mine.py``::

    from rnn_conformance.pytest_plugin import laws

    test_mine = laws("mine")

pytest loads this module in every run on a machine where it is installed. So it imports nothing: torch, hypothesis and
the suite come with :mod:`rnn_conformance.pytest_items`, once there is a law to collect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from rnn_backends import LSTMBackend


class Laws:
    """The value of :func:`laws`; the plugin collects it as one test per law."""

    def __init__(self, backends: tuple[str | LSTMBackend, ...], options: dict[str, Any]) -> None:
        self.backends, self.options = backends, options


def laws(
    *backends: str | LSTMBackend,
    only: tuple[str, ...] = (),
    profile: str = "quick",
    device: str = "cpu",
    waivers: str | None = None,
    strict: bool = False,
) -> Laws:
    """The laws as tests: ``test_mine = laws("mine")``. Options on pytest's command line take precedence.

    Args:
        backends: installed names, or ``LSTMBackend`` values; none for those of ``--rnn-backend``.
        only: parts of laws' names; none for all of the profile.
        profile: ``"smoke"``, ``"quick"``, ``"full"`` or ``"deep"``.
        device: where to run.
        waivers: a TOML file of known failures, beside the test file.
        strict: whether a capability that works and is not claimed is a failure.
    """
    options = {"only": only, "profile": profile, "device": device, "waivers": waivers, "strict": strict}
    return Laws(backends, options)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; see ``pytest --help``."""
    group = parser.getgroup("rnn-backends", "laws for LSTM backends (rnn_conformance)")
    add = group.addoption
    add("--rnn-backend", action="append", default=[], metavar="NAME", help="backend to check; may be repeated")
    add("--rnn-profile", choices=("smoke", "quick", "full", "deep"), help="how many cases are tried (default: quick)")
    add("--rnn-law", action="append", default=[], metavar="LAW", help="only laws with this in their name")
    add("--rnn-device", metavar="DEVICE", help="device to run on (default: cpu)")
    add(
        "--rnn-seed",
        type=int,
        metavar="N",
        help="seed of the generated cases (default: a fresh one, shown in every failure)",
    )
    add("--rnn-waivers", metavar="FILE", help="TOML file of known failures")
    add("--rnn-strict", action="store_true", help="a capability that works and is not claimed is a failure")
    add("--rnn-no-shrink", action="store_true", help="do not search for smaller failing cases")


def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> pytest.Collector | None:
    """Collect the values of :func:`laws`, and nothing else."""
    if not isinstance(obj, Laws):
        return None
    from .pytest_items import LawsCollector

    return LawsCollector.from_parent(collector, name=name, requested=obj)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many laws ran and how many were waived, in runs that had any."""
    called = [r for group in terminalreporter.stats.values() for r in group if getattr(r, "when", "") == "call"]
    state = [value for report in called for name, value in report.user_properties if name == "rnn_law"]
    if state:
        terminalreporter.write_line(f"rnn_conformance: {len(state)} laws ran, {state.count('waived')} waived")
