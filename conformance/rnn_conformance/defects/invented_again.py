"""The third round, core: twelve defects by somebody who had read neither laws nor defects, after the second round.

A law is named where one was written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

from math import prod
from typing import Any

import rnn_backends.lstm as core
import torch
from rnn_backends import LSTM, InputError, LayerWeights, LSTMModule, LSTMNet, State, layout, names, set_recurrent_mode
from rnn_backends.choose import demand
from rnn_backends.mode import _stack
from rnn_backends.resets import ends_of, first_steps, mirrored, take_steps
from torch import Tensor
from torch.nn.functional import dropout as drop

from .planting import Patch, in_core


@in_core()
def directions_dropped_apart() -> list[Patch]:
    """Between bidirectional layers dropout draws a mask for each direction instead of one for both together."""

    def wrong_layers_with(ahead: Any, back: Any) -> Any:
        def run_layers(
            weights: list[LayerWeights],
            x: Tensor,
            entry: list[State],
            starts: Tensor,
            bidirectional: bool,
            dropout: float,
            every_end: bool,
        ) -> tuple[Tensor, list[State]]:
            directions = 2 if bidirectional else 1
            states: list[State] = []
            for k in range(0, len(weights), directions):
                hands_on = k + directions < len(weights) and dropout > 0
                out = ahead(weights[k], x, entry[k], starts)
                output = drop(out.h.contiguous(), dropout, True) if hands_on else out.h
                states.append(out if every_end else State(out.h[-1], out.c[-1]))
                if bidirectional:
                    first = first_steps(starts)
                    out = back(weights[k + 1], x.flip(0), mirrored(entry[k + 1], starts), ends_of(starts).flip(0))
                    h, c = out.h.flip(0), out.c.flip(0)
                    output = torch.cat([output, drop(h, dropout, True) if hands_on else h], -1)
                    at = first if every_end else first[-1:]
                    h, c = take_steps(h, at), take_steps(c, at)
                    states.append(State(h, c) if every_end else State(h[0], c[0]))
                x = output
            return x, states

        return run_layers

    return [Patch(core, "layers_with", wrong_layers_with)]


@in_core("wrong_tensors_are_refused")
def reset_mask_judged_by_its_count() -> list[Patch]:
    """LSTM takes an is_init of any shape with the right number of elements, a transposed one too, and reshapes it."""
    original = core.check_is_init

    def wrong(is_init: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if isinstance(is_init, Tensor) and is_init.numel() == prod(shape):
            is_init = is_init.reshape(shape)
        return original(is_init, shape, device)

    return [Patch(core, "check_is_init", wrong)]


@in_core("padding_is_zero_where_states_are_nan")
def padding_of_h_multiplies() -> list[Patch]:
    """Hidden outputs h are padded by a multiplication, so a NaN or infinity within a sequence is not zeroed."""

    def wrong(state: State, starts: Tensor) -> State:
        ends = ends_of(starts).unsqueeze(-1)
        return State(state.h * ends, torch.where(ends, state.c, 0))

    return [Patch(core, "at_ends", wrong)]


@in_core()
def selected_out_keys_shift() -> list[Patch]:
    """After select_out_keys the results are paired with the keys that are left, so c's key alone is given h."""

    def patch(name: str) -> Patch:
        original = getattr(LSTMModule, name)

        def wrong(self: LSTMModule, read: layout.Inputs) -> Any:
            return dict(zip(self.out_keys, original(self, read).values(), strict=False))

        return Patch(LSTMModule, name, wrong)

    return [patch("_one_step"), patch("_over_time")]


@in_core()
def hidden_outputs_over_time_in_autocast_dtype() -> list[Patch]:
    """Under autocast the hidden outputs of recurrent mode come in autocast's dtype instead of the weights'."""
    original = LSTMModule._as_stored

    def wrong(self: LSTMModule, state: State) -> State:
        return state if state.h.ndim == 4 else original(self, state)

    return [Patch(LSTMModule, "_as_stored", wrong)]


@in_core()
def declined_once_then_run() -> list[Patch]:
    """After a move that the backend declines only the first call is refused: the second one runs on it."""
    original = LSTM._ready

    def wrong(self: LSTM) -> Any:
        weight = self.weight_ih_l0
        now = (weight.device, weight.dtype)
        if now != self._placed:
            self._placed = now
            demand(self._backend, self.spec, *now)
        return original(self)

    return [Patch(LSTM, "_ready", wrong)]


@in_core("the_environment_names_the_default")
def all_states_forget_the_environment() -> list[Patch]:
    """With hidden_output="all" and no backend named, RNN_BACKENDS_LSTM is passed over and "auto" chooses."""
    original = LSTMModule._check_hidden_output

    def wrong(self: LSTMModule, request: Any) -> None:
        original(self, request or "auto")

    return [Patch(LSTMModule, "_check_hidden_output", wrong)]


@in_core("a_copy_keeps_the_very_backend")
def held_by_name_only() -> list[Patch]:
    """A LSTMBackend value with an installed one's name is pickled as that name: the copy runs on the installed one."""
    return [Patch(core, "is_registered_value", lambda backend: backend.name in names())]


@in_core("from_torch_keeps_the_training_flag")
def wrapping_wakes_dropout() -> list[Patch]:
    """from_torch forgets that the wrapped LSTM is in evaluation mode: the wrapper drops out."""
    original = LSTM.__dict__["from_torch"].__func__

    def wrong(cls: type[LSTM], lstm: Any, lstm_backend: Any = None) -> LSTM:
        found: LSTM = original(cls, lstm, lstm_backend)
        if not isinstance(lstm, LSTM):
            found.training = True
        return found

    return [Patch(LSTM, "from_torch", classmethod(wrong))]


@in_core("a_context_may_be_entered_within_itself")
def mode_before_kept_on_the_instance() -> list[Patch]:
    """set_recurrent_mode keeps what was before on itself: entered twice (a recursive function), it leaks its mode."""

    def enter(self: Any) -> None:
        self._before = _stack()
        self._set((*self._before, self.mode))

    def leave(self: Any, *exc_info: object) -> None:
        self._set(self._before)

    return [Patch(set_recurrent_mode, "__enter__", enter), Patch(set_recurrent_mode, "__exit__", leave)]


@in_core("autocast_trains_after_acting")
def cast_weights_kept_without_gradient() -> list[Patch]:
    """Weights cast for autocast are kept until they change: after a call in no_grad, training has no gradient."""
    original, kept = core._cast, dict[Any, Any]()

    def wrong(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
            return original(w, dtype)
        given = [v for v in w if v is not None]
        now = [v._version for v in given]
        key = (tuple(map(id, given)), dtype)
        found = kept.get(key)
        if found is None or found[0] != now:
            found = kept[key] = (now, original(w, dtype), given)  # holds the weights: no id comes twice
        return found[1]

    return [Patch(core, "_cast", wrong)]


@in_core("a_net_leaves_its_options_alone")
def net_writes_into_its_options() -> list[Patch]:
    """LSTMNet puts device and backend into the caller's lstm_kwargs: the next net made from them takes the first's."""
    original = LSTMNet.__init__

    def wrong(
        self: LSTMNet,
        out_features: int,
        lstm_kwargs: Any,
        mlp_kwargs: Any,
        device: Any = None,
        *,
        lstm_backend: Any = None,
    ) -> None:
        if not lstm_kwargs.setdefault("batch_first", True):
            raise InputError("LSTMNet needs batch_first=True: its inputs are [batch, time, features]")
        lstm_kwargs.setdefault("device", device)
        lstm_kwargs.setdefault("lstm_backend", lstm_backend)
        original(self, out_features, lstm_kwargs, mlp_kwargs, device, lstm_backend=lstm_backend)

    return [Patch(LSTMNet, "__init__", wrong)]
