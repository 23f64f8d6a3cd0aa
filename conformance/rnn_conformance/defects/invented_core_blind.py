"""The fifth round, core: twelve by somebody who had read core alone, and no word of the suite.

A law is named where one was written, or widened, after the first run, which the defect had survived.
No ``from __future__ import annotations``: TorchScript reads one function here.
"""

from functools import wraps
from inspect import signature
from typing import Any

import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, State, layout, mode, names, set_recurrent_mode
from rnn_backends import lstm as lstm_file
from rnn_backends.choose import demand
from rnn_backends.contract import LayerWeights, Trait
from rnn_backends.layout import Inputs, fold_time, unfold_time
from rnn_backends.module import _requested
from rnn_backends.registry import Registry
from rnn_backends.resets import entry_from_hx, starts_of
from rnn_backends.scripting import ScriptableLSTM
from rnn_backends.stack import layers_with
from rnn_backends.unroll import unroll
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .planting import Patch, in_core
from .right import right


@in_core("edited_weights_are_seen_under_autocast")
def cast_kept_by_version() -> list[Patch]:
    """Without gradients autocast's cast weights are kept by version counter, which an update by .data leaves alone."""
    original = lstm_file._cast
    kept: Any = WeakIdKeyDictionary()

    def cast(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        found = [v for v in w if v is not None]
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if torch.is_grad_enabled() or traced or any(v.is_inference() for v in found):
            return original(w, dtype)
        key = (dtype, *((id(v), v._version) for v in found))
        if w.w_ih not in kept or kept[w.w_ih][0] != key:
            kept[w.w_ih] = (key, original(w, dtype))
        again: LayerWeights = kept[w.w_ih][1]
        return again

    return [Patch(lstm_file, "_cast", cast)]


@in_core()
def context_remembers_on_itself() -> list[Patch]:
    """set_recurrent_mode keeps the former modes on itself: entered twice (a decorated recursion), its mode stays on."""

    def enter(self: Any) -> None:
        self._before = mode._stack()
        self._set((*self._before, self.mode))

    def leave(self: Any, *exc_info: object) -> None:
        self._set(self._before)

    return [Patch(set_recurrent_mode, "__enter__", enter), Patch(set_recurrent_mode, "__exit__", leave)]


@in_core()
def held_by_name() -> list[Patch]:
    """A copied or pickled LSTM goes over to the installed backend of its own backend's name, though that is another."""
    return [Patch(lstm_file, "is_registered_value", lambda backend: backend.name in names())]


@in_core()
def refused_once() -> list[Patch]:
    """After .to() the new place is noted before the backend is asked: it refuses the first call and runs the second."""
    original = LSTM._ready

    def ready(self: Any) -> Any:
        weight = self.weight_ih_l0
        placed = (weight.device, weight.dtype)
        if placed != self._placed:
            self._placed = placed
            demand(self._backend, self.spec, *placed)
        return original(self)

    return [Patch(LSTM, "_ready", ready)]


@in_core("dropout_may_be_set_later")
def dropout_of_the_spec() -> list[Patch]:
    """Over time the dropout is the one at construction: setting lstm.dropout later, as for a schedule, does nothing."""

    def sequences(
        self: Any, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True
    ) -> tuple[Tensor, list[State]]:
        run = self._run_layers if every_end else self._run_layers_last
        spec = self.spec
        weights, dtype, uncast = self._ready()
        if lstm_file.transforms_may_be_open():
            self._check_transforms(weights, x, starts, *(v for state in entry for v in state))
        with uncast:
            entry = [State(s.h.to(dtype), s.c.to(dtype)) for s in entry]
            dropout = spec.dropout if self.training else 0.0
            found: tuple[Tensor, list[State]] = run(
                weights, x.to(dtype), entry, starts, spec.bidirectional, dropout, every_end
            )
            return found

    return [Patch(LSTM, "sequences", sequences)]


@in_core()
def one_key_is_the_output() -> list[Patch]:
    """Over time a single selected out key gets the output, also where select_out_keys chose a hidden state."""
    original = LSTMModule._over_time

    def over_time(self: Any, read: Inputs) -> dict[NestedKey, Tensor]:
        if len(self.out_keys) == 1:
            y = self.lstm.replay_output(*fold_time(read))
            return {self.out_keys[0]: unfold_time(y, read.is_init.shape[:-1])}
        return original(self, read)

    return [Patch(LSTMModule, "_over_time", over_time)]


@in_core("results_in_a_tensordict_outlive_the_next_call")
def results_over_results() -> list[Patch]:
    """Results go into the memory of entries that are there: the last call's results change in their holders' hands."""

    def write(td: TensorDictBase, values: dict[NestedKey, Tensor]) -> TensorDictBase:
        for key, value in values.items():
            there = td.get(key, None)
            if td.is_locked or (there is not None and there.shape == value.shape):
                td.set_(key, value)
            else:
                td.set(key, value)
        return td

    return [Patch(layout, "write", write)]


@in_core("a_script_keeps_training_and_dropout", on=LSTMBackend("defect", unroll, traits=frozenset({Trait.SCRIPT})))
def scripted_zeros_in_default_dtype() -> list[Patch]:
    """A scripted LSTM makes its default state in torch's default dtype: a float64 or bfloat16 one fails without hx."""

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


@in_core("what_is_needed_is_claimed_or_refused")
def wrapped_backend_forgotten() -> list[Patch]:
    """With hidden_output="all" a wrapped LSTM is moved to what "auto" takes instead of its backend being refused."""
    original = LSTMModule.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature(original).bind(self, *args, **kwargs).arguments
        hidden_output = kwargs.pop("hidden_output", "ends")
        original(self, *args, **kwargs)
        self.hidden_output = hidden_output
        self._check_hidden_output(_requested(given.get("lstm_backend"), given.get("python_based", False)))

    return [Patch(LSTMModule, "__init__", init)]


@in_core("a_refresh_looks_again_and_keeps_what_was_registered")
def refresh_forgets_registered() -> list[Patch]:
    """refresh() reads the installed plugins anew and with that throws away what register() added in this process."""
    original = Registry._read

    def read(self: Any) -> None:
        original(self)
        self._local = {}

    return [Patch(Registry, "_read", read)]


@in_core()
def frozen_means_no_graph() -> list[Patch]:
    """With every parameter frozen it runs over time without a graph: gradients of input and state stop at the LSTM."""
    original = LSTM.sequences

    def sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(parameter.requires_grad for parameter in self.parameters()):
            return original(self, *args, **kwargs)
        with torch.no_grad():
            return original(self, *args, **kwargs)

    return [Patch(LSTM, "sequences", sequences)]


def _last_only(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A right ``layer_last``: ``c`` is there at the row's last step only."""
    h, c = right(w, x, entry, starts)
    return State(h, torch.cat([torch.zeros_like(c[:-1]), c[-1:]]))


@in_core(on=LSTMBackend("defect", right, layer_last=_last_only))
def last_in_reverse_too() -> list[Patch]:
    """layer_last runs the reverse direction too: c_n of a bidirectional LSTM is wrong where the row has a reset."""
    original = LSTM._bind

    def bind(self: Any, backend: LSTMBackend) -> None:
        original(self, backend)
        last = backend.layer_last or backend.layer
        self._run_layers_last = layers_with(last, last)

    return [Patch(LSTM, "_bind", bind)]
