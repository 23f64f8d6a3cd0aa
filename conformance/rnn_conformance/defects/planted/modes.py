"""Defects that the laws of ``laws/modes.py`` kill first."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from rnn_backends import LSTMModule, set_recurrent_mode
from rnn_backends import mode as modes
from rnn_backends._torch import only_inlined
from rnn_backends.mode import as_mode

from ..planting import Patch, in_core


@in_core("contexts_of_a_mode_nest", round=3, survived=3)
def mode_none_is_transparent() -> list[Patch]:
    """Within set_recurrent_mode(None) the outer context's mode stays active instead of each module's own."""

    original = set_recurrent_mode.__enter__

    def replacement(self: set_recurrent_mode) -> None:
        inherited = modes.recurrent_mode() if self.mode is None else self.mode
        original(set_recurrent_mode(inherited))

    return [Patch(set_recurrent_mode, "__enter__", replacement)]


@in_core("a_context_may_be_entered_within_itself", round=(4, 7), survived=4)
def mode_before_kept_on_the_instance() -> list[Patch]:
    """set_recurrent_mode keeps the previous mode on the instance: entered twice (recursion), its mode stays active."""

    begin, end = set_recurrent_mode.__enter__, set_recurrent_mode.__exit__

    def enter(self: Any) -> None:
        self._before = modes._context.get()
        begin(self)

    def leave(self: Any, *exc_info: object) -> None:
        end(self, *exc_info)
        modes._context.set(self._before)

    return [Patch(set_recurrent_mode, "__enter__", enter), Patch(set_recurrent_mode, "__exit__", leave)]


@in_core("a_copy_has_its_mode_wherever_it_is_made", round=3, survived=3)
def mode_copy_made_in_a_context_is_lost() -> list[Patch]:
    """LSTMModule.set_recurrent_mode makes no copy if the active mode is the same."""

    def replacement(self: LSTMModule, mode: Any = True) -> LSTMModule:
        wanted = bool(as_mode(mode))
        return self if wanted == self.recurrent_mode else self._copy(_recurrent_mode=wanted)

    return [Patch(LSTMModule, "set_recurrent_mode", replacement)]


@in_core("contexts_of_a_mode_nest", by_numbers=False)
def a_mode_in_capitals_is_another() -> list[Patch]:
    """set_recurrent_mode compares names with their case, so "Recurrent" is sequential."""

    def replacement(mode: Any) -> bool | None:
        return mode == "recurrent" if isinstance(mode, str) else mode

    return [Patch(modes, "as_mode", replacement)]


@in_core("a_context_may_be_entered_within_itself", by_numbers=False)
def a_coroutine_is_decorated_as_a_function() -> list[Patch]:
    """A decorated coroutine function has its mode while the coroutine is made, and not while it runs."""
    changed = vars(inspect) | {"iscoroutinefunction": lambda function: False}
    return [Patch(modes, "inspect", SimpleNamespace(**changed))]


@in_core("a_mode_within_compiled_code_acts_there_alone", by_numbers=False)
def in_a_trace_the_outer_context_decides() -> list[Patch]:
    """In compiled code a context within another one keeps the outer one's mode."""
    original = modes._decided

    def replacement(entry: Any, torchrl: bool | None) -> bool | None:
        if torch.compiler.is_compiling() and entry is not None and entry.outer is not None:
            entry = entry.outer
        return original(entry, torchrl)

    return [Patch(modes, "_decided", replacement)]


@in_core("a_mode_within_compiled_code_acts_there_alone", by_numbers=False)
def a_context_without_with_needs_no_graph_break() -> list[Patch]:
    """Compiled code that enters a context without a with statement goes on as a trace, which a graph break ends."""
    return [Patch(modes, "break_the_graph", lambda: None)]


@in_core("a_mode_within_compiled_code_acts_there_alone", by_numbers=False)
def every_context_is_taken_for_a_with_statement() -> list[Patch]:
    """A context that compiled code enters by hand is taken for one of a with statement."""
    return [Patch(modes, "with_is_traced", lambda kind: True)]


@in_core("a_mode_within_compiled_code_acts_there_alone", by_numbers=False)
def a_context_from_outside_is_not_left_in_a_trace() -> list[Patch]:
    """Compiled code that leaves a context which was entered outside of it does nothing."""
    original = set_recurrent_mode.__exit__

    def leave(self: set_recurrent_mode, *exc_info: object) -> None:
        if not torch.compiler.is_compiling() or modes._traced.entry is not None:
            original(self, *exc_info)

    return [Patch(set_recurrent_mode, "__exit__", only_inlined(leave))]
