"""The second round, core: twenty defects by somebody who had read neither the laws nor the planted defects.

Bugs as a refactoring makes them: in keys, modes, copies, transforms, and in LSTMNet. A law is named where one was
written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, LSTMNet, State, Trait, layout, set_recurrent_mode
from rnn_backends import lstm as core
from rnn_backends import mode as modes
from rnn_backends import net as nets
from rnn_backends.choose import demand
from rnn_backends.contract import LayerWeights, LSTMSpec
from rnn_backends.errors import InputError
from rnn_backends.mode import as_mode
from rnn_backends.registry import get_backend
from rnn_backends.resets import entry_from_hx, zero_at
from rnn_backends.scripting import ScriptableLSTM
from rnn_backends.transforms import traits_needed
from rnn_backends.unroll import unroll
from tensordict import TensorDictBase
from tensordict.nn import skip_existing
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.utils.weak import WeakIdKeyDictionary

from .planting import Patch, in_core


def no_sixteen_bits(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """A reason to decline for a backend that does the rest."""
    return "it has no 16-bit kernel" if dtype in (torch.bfloat16, torch.float16) else None


TRACEABLE = LSTMBackend("defect", unroll, traits=frozenset(Trait))
"""The plain unroll with all that it can: for defects that show only where a backend is traced or scripted."""
PICKY = LSTMBackend("defect", unroll, rejects=no_sixteen_bits)
"""The plain unroll, declining 16 bits: for a defect that shows only where a backend declines."""


@in_core("dropout_of_a_step_is_torchs")
def step_drops_each_direction_by_itself() -> list[Patch]:
    """In sequential mode a bidirectional LSTM in training draws dropout per direction, not over both at once."""

    def wrong(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        if stored is None:
            stored = State(*(v.transpose(0, 1) for v in self.zero_state((x.shape[0],), x)))
        elif is_init is not None:
            stored = zero_at(stored, is_init)
        run, directions = self._backend.step or self._layer_as_step, self.spec.directions
        states: list[State] = []
        weights, dtype, uncast = self._ready()
        if core.transforms_may_be_open():
            self._check_transforms(weights, x, *stored, is_init)
        with uncast:
            x, hs, cs = x.to(dtype), stored.h.to(dtype), stored.c.to(dtype)
            for k, (w, h, c) in enumerate(zip(weights, hs.unbind(1), cs.unbind(1), strict=True)):
                if k and k % directions == 0:
                    below = (s.h for s in states[-directions:])
                    x = torch.cat([nn.functional.dropout(h, self.dropout, self.training) for h in below], -1)
                states.append(run(w, x, State(h, c)))
        output = torch.cat([s.h for s in states[-directions:]], -1)
        return output, core._stacked(states, dim=1)

    return [Patch(LSTM, "step_stored", wrong)]


@in_core()
def step_output_is_the_state() -> list[Patch]:
    """In sequential mode the output of a one-directional LSTM shares memory with its next h: one changes the other."""
    original = LSTM.step_stored

    def wrong(self: LSTM, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        output, after = original(self, x, stored, is_init)
        return (output if self.bidirectional else after.h[:, -1]), after

    return [Patch(LSTM, "step_stored", wrong)]


@in_core()
def backend_copies_wake_in_training() -> list[Patch]:
    """with_backend of an LSTM in evaluation gives one in training, so its dropout drops."""
    original = LSTM.with_backend

    def wrong(self: LSTM, lstm_backend: str | LSTMBackend) -> LSTM:
        new = original(self, lstm_backend)
        new.training = True  # as nn.Module.__init__ leaves it
        return new

    return [Patch(LSTM, "with_backend", wrong)]


@in_core("the_primer_fits_the_first_step")
def primer_in_default_dtype() -> list[Patch]:
    """The primer's hidden states have torch's default dtype and not the weights', so the first step refuses them."""

    def wrong(self: LSTMModule) -> Any:
        from torchrl.data import Unbounded
        from torchrl.envs import TensorDictPrimer

        pairs = list(zip(self.in_keys[1:3], self.out_keys_source[1:], strict=True))
        for read, written in pairs:
            if written != ("next", *(read if isinstance(read, tuple) else (read,))):
                raise InputError(f"a primer needs out_keys ('next', <in_key>), got {written!r} for {read!r}")
        spec = self.lstm.spec
        sizes = (spec.output_size, spec.hidden_size)
        return TensorDictPrimer(
            {read: Unbounded(shape=(spec.num_states, size)) for (read, _), size in zip(pairs, sizes, strict=True)},
            expand_specs=True,
        )

    return [Patch(LSTMModule, "make_tensordict_primer", wrong)]


@in_core()
def locked_results_are_swapped() -> list[Patch]:
    """A locked TensorDict's entries are replaced and not written in place: whoever holds its memory sees nothing."""

    def wrong(td: TensorDictBase, values: dict[Any, Tensor]) -> TensorDictBase:
        if td.is_locked:
            with td.unlock_():
                for key, value in values.items():
                    td.set(key, value)
            return td
        for key, value in values.items():
            td.set(key, value)
        return td

    return [Patch(layout, "write", wrong)]


@in_core("another_tensordict_may_be_written")
def locked_input_refused_despite_tensordict_out() -> list[Patch]:
    """Whether the results can be written is asked of the input, also where tensordict_out= says to write elsewhere."""

    def wrong(
        self: LSTMModule, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None
    ) -> TensorDictBase:
        if skip_existing() and self._has_results(tensordict):
            return tensordict
        recurrent = self.recurrent_mode
        if recurrent and not tensordict.ndim:
            raise InputError("recurrent mode needs a time dimension, the last of the batch size; got a 0-d TensorDict")
        read = layout.read(tensordict, self.in_keys, self.lstm)
        layout.check_writable(tensordict, self.out_keys)
        values = self._over_time(read) if recurrent else self._one_step(read)
        out = tensordict if tensordict_out is None else tensordict_out
        return layout.write(out, {key: values[key] for key in self.out_keys})

    return [Patch(LSTMModule, "_forward", wrong)]


@in_core("edited_weights_are_seen_under_autocast")
def autocast_casts_kept_while_acting() -> list[Patch]:
    """Under autocast without gradients the cast weights are kept: an optimizer's later step is not seen."""
    original, kept = core._cast, WeakIdKeyDictionary()

    def wrong(w: LayerWeights, dtype: torch.dtype) -> LayerWeights:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return original(w, dtype)
        found = kept.get(w.w_ih)
        if found is None or found.w_ih.dtype != dtype:
            found = kept[w.w_ih] = original(w, dtype)
        return found

    return [Patch(core, "_cast", wrong)]


@in_core(on=PICKY)
def refusal_after_a_move_comes_once() -> list[Patch]:
    """A backend that declines the dtype a module was moved to is refused at the first call, and runs at the second."""
    original = LSTM._ready

    def wrong(self: LSTM) -> Any:
        weight = self.weight_ih_l0
        before, self._placed = self._placed, (weight.device, weight.dtype)
        if before != self._placed:
            demand(self._backend, self.spec, weight.device, weight.dtype)
        return original(self)

    return [Patch(LSTM, "_ready", wrong)]


@in_core("copies_keep_what_is_frozen")
def copies_of_frozen_weights_thaw() -> list[Patch]:
    """The frozen parameters of an LSTM that is deep-copied or pickled come back trainable."""

    def wrong(self: LSTM, state: dict[str, Any]) -> None:
        backend = state["_backend"]
        nn.RNNBase.__setstate__(self, state)
        self._bind(get_backend(backend) if isinstance(backend, str) else backend)
        self.requires_grad_()

    return [Patch(LSTM, "__setstate__", wrong)]


@in_core("contexts_of_a_mode_nest")
def mode_none_is_transparent() -> list[Patch]:
    """Within set_recurrent_mode(None) the outer context's mode goes on instead of each module's own."""

    def wrong(self: set_recurrent_mode) -> None:
        inherited = modes.recurrent_mode() if self.mode is None else self.mode
        self._set((*modes._stack(), inherited))

    return [Patch(set_recurrent_mode, "__enter__", wrong)]


@in_core("a_copy_has_its_mode_wherever_it_is_made")
def mode_copy_made_in_a_context_is_lost() -> list[Patch]:
    """LSTMModule.set_recurrent_mode compares with the mode in force and not its own: in a context no copy is made."""

    def wrong(self: LSTMModule, mode: Any = True) -> LSTMModule:
        wanted = bool(as_mode(mode))
        return self if wanted == self.recurrent_mode else self._copy(_recurrent_mode=wanted)

    return [Patch(LSTMModule, "set_recurrent_mode", wrong)]


@in_core("a_compiled_module_follows_its_mode", on=TRACEABLE)
def compiled_calls_miss_the_mode_set_outside() -> list[Patch]:
    """A compiled module runs in its own mode within an eager set_recurrent_mode context."""

    def wrong(stack: tuple[bool | None, ...]) -> None:
        if torch.compiler.is_compiling():
            modes._mirror.stack = stack
        else:
            modes._context.set(stack)

    return [Patch(set_recurrent_mode, "_set", staticmethod(wrong))]


@in_core("a_script_keeps_training_and_dropout", on=TRACEABLE)
def scripted_dropout_is_frozen() -> list[Patch]:
    """An LSTM that is scripted in evaluation never drops, also after train()."""
    original = ScriptableLSTM.__init__

    def wrong(self: ScriptableLSTM, lstm: LSTM) -> None:
        original(self, lstm)
        self.dropout = lstm.dropout if lstm.training else 0.0

    return [Patch(ScriptableLSTM, "__init__", wrong)]


@in_core("parametrized_weights_are_read")
def weights_read_past_parametrizations() -> list[Patch]:
    """Weights are read from the parameter registry: where one is parametrized, the original runs in its place."""

    def wrong(self: LSTM) -> list[LayerWeights]:
        held = dict(self.named_parameters(remove_duplicate=False))

        def found(name: str) -> Tensor:
            return held[name] if name in held else held[f"parametrizations.{name}.original"]

        weights = []
        for names in self._all_weights:
            w = [found(name) for name in names]
            b_ih, b_hh = w[2:4] if self.bias else (None, None)
            weights.append(LayerWeights(w[0], w[1], b_ih, b_hh, w[-1] if self.proj_size else None))
        return weights

    return [Patch(LSTM, "layer_weights", wrong)]


@in_core("a_net_over_time_is_its_parts")
def net_gives_back_the_first_state_everywhere() -> list[Patch]:
    """Of many steps LSTMNet gives back the first step's hidden state at every step, not the ones that came in."""
    original = LSTMNet._state

    def wrong(self: LSTMNet, x: Tensor, h: Tensor | None, c: Tensor | None) -> State:
        found = original(self, x, h, c)
        if x.ndim < 3 or h is None:
            return found
        return State(found.h[:, :1].expand_as(found.h), found.c[:, :1].expand_as(found.c))

    return [Patch(LSTMNet, "_state", wrong)]


@in_core("the_mlp_has_a_bias_where_it_is_asked_for")
def lazy_last_layer_keeps_its_bias() -> list[Patch]:
    """An MLP of one layer that finds its in_features out at the first call has a bias despite bias_last_layer=False."""
    original = nets.mlp

    def wrong(in_features: int | None = None, bias_last_layer: bool = True, **options: Any) -> nn.Sequential:
        lazy = in_features is None and not options.get("depth") and not options.get("num_cells")
        return original(in_features, bias_last_layer=bias_last_layer or lazy, **options)

    return [Patch(nets, "mlp", wrong)]


@in_core("selected_outputs_are_the_only_ones")
def any_single_selected_key_gets_the_output() -> list[Patch]:
    """In recurrent mode, where select_out_keys leaves one hidden key alone, the output is written under it."""

    def wrong(self: LSTMModule, read: layout.Inputs) -> dict[Any, Tensor]:
        x, is_init, stored = layout.fold_time(read)
        batch = read.is_init.shape[:-1]
        if len(self.out_keys) == 1:
            y = self.lstm.replay_output(x, is_init, stored)
            return {self.out_keys[0]: layout.unfold_time(y, batch)}
        y, state = self.lstm.replay(x, is_init, stored, self.hidden_output == "all")
        values = (layout.unfold_time(value, batch) for value in (y, *self._as_stored(state)))
        return dict(zip(self.out_keys_source, values, strict=True))

    return [Patch(LSTMModule, "_over_time", wrong)]


@in_core()
def rows_of_one_step_keep_hx() -> list[Patch]:
    """LSTM(x, hx, is_init=) with T = 1 starts from hx also where is_init is true."""

    def wrong(h0: Tensor, T: int, is_init: Tensor | None) -> Tensor:
        return h0.expand(T, -1, -1) if is_init is None or T == 1 else entry_from_hx(h0, T, is_init)

    return [Patch(core, "entry_from_hx", wrong)]


@in_core("vmap_that_is_not_claimed_is_refused")
def vmap_around_grad_not_refused() -> list[Patch]:
    """A backend without Trait.VMAP is refused within vmap only where vmap is the innermost transform."""

    def wrong(tensors: Iterable[Tensor | None]) -> set[Trait]:
        needed = traits_needed(tensors)
        if Trait.VMAP in needed and retrieve_current_functorch_interpreter().key() != TransformType.Vmap:
            needed.remove(Trait.VMAP)
        return needed

    return [Patch(core, "traits_needed", wrong)]


@in_core()
def frozen_weights_stop_the_gradient() -> list[Patch]:
    """Over time, an LSTM whose parameters are all frozen passes no gradient to its input and states."""
    original = LSTM.sequences

    def wrong(self: LSTM, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True) -> Any:
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(trains):
            return original(self, x, entry, starts, every_end)

    return [Patch(LSTM, "sequences", wrong)]
