"""Defects that the laws of ``laws/compiled.py`` kill first.

No ``from __future__ import annotations`` here: TorchScript reads the annotations.
"""

from typing import Any

import torch
from rnn_backends import (
    LSTM,
    LayerFunction,
    LayerWeights,
    LSTMBackend,
    LSTMModule,
    State,
    Trait,
    _torch,
    scripting,
    set_recurrent_mode,
)
from rnn_backends import mode as modes
from rnn_backends.resets import entry_from_hx, starts_of
from rnn_backends.scripting import ScriptableLSTM
from rnn_backends.unroll import unroll
from torch import Tensor

from ..planting import FULLGRAPH, SCRIPT, Patch, backend, in_core, in_layer, made
from ..right import both, right


@made("a_compiled_result_outlives_the_next_call", traits=FULLGRAPH, by_numbers=False)
def compiled_into_shared_scratch() -> LayerFunction:
    """In compiled code without gradients the output is in memory that the next call overwrites."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        if h.requires_grad or not torch.compiler.is_compiling():
            return State(h, c)
        shape = tuple(h.shape)
        if shape not in scratch:
            scratch[shape] = torch.empty_like(h)
        return State(scratch[shape].copy_(h), c)

    return run


@in_core("a_compiled_module_follows_its_mode", on=LSTMBackend("defect", right, traits=FULLGRAPH))
def compiled_modules_keep_their_own_mode() -> list[Patch]:
    """A compiled module runs in the mode of its construction, whatever set_recurrent_mode context is active."""
    original = LSTMModule.recurrent_mode

    def replacement(module: LSTMModule) -> bool:
        return bool(module._recurrent_mode if torch.compiler.is_compiling() else original.__get__(module))

    return [Patch(LSTMModule, "recurrent_mode", property(replacement))]


TRACEABLE = LSTMBackend("defect", unroll, traits=frozenset(Trait))
"""The plain unroll with all its traits: for defects that show only if a backend is traced or scripted."""


@in_core("a_compiled_module_follows_its_mode", on=TRACEABLE, round=3, survived=3)
def compiled_calls_ignore_the_mode_set_outside() -> list[Patch]:
    """A compiled module ignores a set_recurrent_mode context that is entered outside of the compiled code."""

    original = modes._decided

    def replacement(entry: Any, torchrl: bool | None) -> bool | None:
        return None if torch.compiler.is_compiling() else original(entry, torchrl)

    return [Patch(modes, "_decided", replacement)]


@backend("compiled_with_graph_breaks", by_numbers=False)
def out_of_the_graph_and_out_of_autograd() -> LSTMBackend:
    """In a compiled caller the layer runs outside of the graph and detaches its results."""
    plainly = torch.compiler.disable(right)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch.compiler.is_compiling():
            return both(torch.Tensor.detach, plainly(w, x, entry, starts))
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


TRACED_DERIVATIVES = frozenset({Trait.FULLGRAPH, Trait.FORWARD_AD})


@in_layer("a_gradient_of_torch_func_and_a_compiled_call", traits=TRACED_DERIVATIVES)
def compiled_gradients_lack_the_recurrence(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Where torch.func.grad is open in a trace, the gradient of the recurrent weights is zero."""
    frozen = torch.compiler.is_compiling() and _torch.derivative_in_trace() and not _torch.forward_ad_in_trace()
    return right(w._replace(w_hh=w.w_hh.detach()) if frozen else w, x, entry, starts)


@in_layer("a_forward_derivative_and_a_compiled_call", traits=TRACED_DERIVATIVES)
def compiled_tangents_are_zero(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In a trace the tangents of the results are zero, as Dynamo makes those of an operator without a derivative."""
    h, c = right(w, x, entry, starts)
    if torch.compiler.is_compiling() and _torch.forward_ad_in_trace():
        return State(h.detach(), c.detach())
    return State(h, c)


def _undifferentiated_in_traces(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    h, c = right(w, x, entry, starts)
    if torch.compiler.is_compiling() and _torch.derivative_in_trace():
        return State(h.detach(), c.detach())
    return State(h, c)


UNDIFFERENTIATED = LSTMBackend("defect", _undifferentiated_in_traces, traits=FULLGRAPH)


@in_core("a_gradient_of_torch_func_and_a_compiled_call", on=UNDIFFERENTIATED)
def every_backend_is_traced_within_a_gradient() -> list[Patch]:
    """A trace within torch.func.grad goes through backends that Dynamo cannot differentiate."""
    return [Patch(LSTM, "_breaks_this_trace", lambda lstm: False)]


@in_core("a_forward_derivative_and_a_compiled_call", on=UNDIFFERENTIATED)
def nobody_asks_for_a_forward_derivative_in_traces() -> list[Patch]:
    """In a trace no call breaks the graph for a derivative, nor is a backend without a forward derivative refused."""
    original = LSTM._check_transforms

    def replacement(lstm: LSTM, *given: Any) -> None:
        if not torch.compiler.is_compiling():
            original(lstm, *given)

    return [Patch(LSTM, "_check_transforms", replacement), Patch(LSTM, "_breaks_this_trace", lambda lstm: False)]


@in_core("a_script_keeps_training_and_dropout", on=LSTMBackend("defect", unroll, traits=SCRIPT))
def scripted_for_evaluation() -> list[Patch]:
    """A scripted LSTM never applies dropout, not even in training."""
    original = scripting.ScriptableLSTM.__init__

    def replacement(self: scripting.ScriptableLSTM, lstm: torch.nn.Module) -> None:
        original(self, lstm)  # type: ignore[arg-type]
        self.dropout = 0.0

    return [Patch(scripting.ScriptableLSTM, "__init__", replacement)]


@in_core("a_script_keeps_training_and_dropout", on=TRACEABLE, round=3, survived=3)
def scripted_dropout_is_frozen() -> list[Patch]:
    """An LSTM scripted in evaluation mode never applies dropout, not even after train()."""
    original = ScriptableLSTM.__init__

    def replacement(self: ScriptableLSTM, lstm: LSTM) -> None:
        original(self, lstm)
        self.dropout = lstm.dropout if lstm.training else 0.0

    return [Patch(ScriptableLSTM, "__init__", replacement)]


@in_core(
    "a_script_keeps_training_and_dropout",
    on=LSTMBackend("defect", unroll, traits=SCRIPT),
    round=7,
    survived=7,
)
def scripted_zeros_in_default_dtype() -> list[Patch]:
    """A scripted LSTM makes its default state in torch's default dtype: without hx it fails in float64 and bfloat16."""

    def forward(
        self: Any,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        is_init: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batched = input.dim() == 3
        flip = batched and self.batch_first
        x = input.transpose(0, 1) if flip else input if batched else input.unsqueeze(1)
        T, B = x.shape[0], x.shape[1]
        reset: Tensor | None = None
        if is_init is not None:
            assert is_init.dtype == torch.bool, "is_init must be a bool tensor"
            lead = is_init.reshape(input.shape[:-1])
            reset = lead.transpose(0, 1) if flip else lead if batched else lead.unsqueeze(1)
        if hx is None:
            h0 = torch.zeros(self.num_states, B, self.output_size, device=x.device)
            c0 = torch.zeros(self.num_states, B, self.hidden_size, device=x.device)
        else:
            h0, c0 = hx
            if not batched:
                h0, c0 = h0.unsqueeze(1), c0.unsqueeze(1)
        weights: list[LayerWeights] = []
        for layer in self.layers:
            weights.append(layer())
        entry: list[State] = []
        for k in range(self.num_states):
            entry.append(State(entry_from_hx(h0[k], T, reset), entry_from_hx(c0[k], T, reset)))
        starts = starts_of(torch.zeros(T, B, dtype=torch.bool, device=x.device) if reset is None else reset)
        dropout = self.dropout if self.training else 0.0
        y, states = self.run_layers(weights, x, entry, starts, self.bidirectional, dropout, False)
        h = torch.stack([state.h for state in states])
        c = torch.stack([state.c for state in states])
        if not batched:
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return y.transpose(0, 1) if flip else y, (h, c)

    return [Patch(ScriptableLSTM, "forward", forward)]


@in_layer("exported_saved_and_loaded", traits=frozenset({Trait.EXPORT}), by_numbers=False)
def exported_without_its_resets(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In an exported program a sequence starts at the row's beginning only."""
    first = torch.zeros_like(starts)
    first[0] = True
    return right(w, x, entry, first if torch.compiler.is_exporting() else starts)


@in_core("a_compiled_modules_copies_have_their_own_mode", round=8, survived=8)
def a_mode_copy_runs_the_compiled_original() -> list[Patch]:
    """A copy of a compiled module in another mode keeps the original's compiled call, and with it the mode."""
    original = LSTMModule._copy

    def replacement(self: LSTMModule, **changed: Any) -> LSTMModule:
        new = original(self, **changed)
        new.__dict__["_compiled_call_impl"] = self._compiled_call_impl
        return new

    return [Patch(LSTMModule, "_copy", replacement)]


@in_core("a_compiled_modules_copies_have_their_own_mode", round=8, survived=8)
def a_compiled_module_binds_its_mode() -> list[Patch]:
    """compile() binds the current mode: later contexts are ignored."""
    original = LSTMModule.compile

    def replacement(self: LSTMModule, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        compiled, mode = self._compiled_call_impl, self.recurrent_mode

        def bound(*given: Any, **named: Any) -> Any:
            with set_recurrent_mode(mode):
                return compiled(*given, **named)

        self.__dict__["_compiled_call_impl"] = bound

    return [Patch(LSTMModule, "compile", replacement)]


@in_core("a_compiled_modules_copies_have_their_own_mode", round=8, survived=8)
def a_compiled_module_keeps_the_mode_of_its_first_call() -> list[Patch]:
    """A compiled module runs in the mode of its first call, whatever mode is set later."""
    original = LSTMModule.recurrent_mode

    def replacement(module: LSTMModule) -> bool:
        now = bool(original.__get__(module))
        if module._compiled_call_impl is None:
            return now
        return bool(module.__dict__.setdefault("_first_mode", now))

    return [Patch(LSTMModule, "recurrent_mode", property(replacement))]
