"""The calls of an LSTM: a row, rows of sequences or one step, in time-major form, over all layers and directions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._torch import is_traced, parametrizations_of, transforms_may_be_open
from .binding import NO_CONTEXT, BoundLSTM
from .contract import (
    LayerFunction,
    LayerWeights,
    LSTMBackend,
    State,
    SteppedLayer,
    SurveyedLayer,
    SurveyFunction,
    Trait,
)
from .errors import InputError
from .plain import check_memory, check_together
from .resets import at_ends, entry_from_hx, starts_of, zero_at
from .stack import layers_with
from .weight_cache import WeightInfo, weights_in_use
from .weights import as_dtype

_MASKS = (Tensor, type(None))


class ExecutableLSTM(BoundLSTM):
    """The computation of :class:`LSTM` and the modules around it. It checks only memory and the number of steps."""

    def _row_of_one_step(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None, is_init: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
        """A row of one step through one layer, if its backend has a shorter path for this call; else ``None``."""
        layer = self._backend.layer_last or self._backend.layer
        if type(layer) is not SteppedLayer or len(self._weight_names) != 1 or type(x) is not Tensor:
            return None
        if parametrizations_of(self) is not None:  # weights are computed once in a call: on the general path
            return None
        weights = self.layer_weights()
        info = self._cached_info(weights)
        if info is None or transforms_may_be_open():
            return None
        return layer.row(weights[0], info[0], x, hx, is_init, self.batch_first)

    def _over_time(self, x: Tensor, state: State | None, is_init: Tensor | None) -> tuple[Tensor, State]:
        T, B, spec = x.shape[0], x.shape[1], self.spec
        drops = self.training and self.dropout > 0 and spec.num_layers > 1
        stack = self._backend.stack if self._has_stack and is_init is None and not drops else None
        if stack is not None:
            state = self.zero_state((B,), x) if state is None else state
            weights, infos, dtype, no_autocast = self._ready_or_known()
            if transforms_may_be_open():
                self._check_transforms(weights, x, *state)
            with no_autocast, _in_use(weights, infos):
                x = as_dtype(x, dtype)
                output, last = stack(weights, x, State(as_dtype(state.h, dtype), as_dtype(state.c, dtype)), spec)
                return (output, last) if infos is not None or not _is_recorded() else _following_rows(x, output, last)
        if T == 1 and spec.num_states == 1:
            return self._one_step(x, self.zero_state((B,), x) if state is None else state, is_init)
        if state is None:
            entry = self._entry(x, None)
        else:
            entry = [
                State(entry_from_hx(h, T, is_init), entry_from_hx(c, T, is_init))
                for h, c in zip(state.h, state.c, strict=True)
            ]
        starts = starts_of(x.new_zeros(T, B, dtype=torch.bool) if is_init is None else is_init)
        output, states = self.sequences(x, entry, starts, every_end=False)
        return output, _stacked(states, shared=True)

    def _one_step(self, x: Tensor, state: State, is_init: Tensor | None) -> tuple[Tensor, State]:
        """One step of one layer as a row: the state is the layer's entry, without further operations for autograd.

        Args:
            x: ``[1, B, I]``.
            state: ``State([1, B, P], [1, B, H])``.
            is_init: ``[1, B]`` bool or ``None``.
        """
        h, c = state if is_init is None else (entry_from_hx(v[0], 1, is_init) for v in state)
        starts = x.new_ones(1, x.shape[1], dtype=torch.bool)
        weights, infos, dtype, no_autocast = self._ready_or_known()
        if transforms_may_be_open():
            self._check_transforms(weights, x, h, c, starts)
        with no_autocast, _in_use(weights, infos):
            entry = State(as_dtype(h, dtype), as_dtype(c, dtype))
            layer = self._backend.layer_last or self._backend.layer
            layer = following(layer) if infos is None and _is_recorded() else layer
            out = layer(weights[0], as_dtype(x, dtype), entry, starts)
        return _apart(out.h), State(out.h.clone(), out.c.clone())  # a state shares no memory, and is no view: detach_()

    def replay(
        self, x: Tensor, is_init: Tensor, stored: State | None, states: Literal["ends", "all"] | None = "ends"
    ) -> tuple[Tensor, State | None]:
        """Run over rows of sequences, each from its stored state. Only ``T`` and the trait are checked here.

        Args:
            x: ``[T, B, I]``.
            is_init: ``[T, B]`` bool: true where a sequence starts; one always starts at ``t = 0``.
            stored: ``State([L*D, T, B, P], [L*D, T, B, H])``, read where a sequence starts; ``None`` for zeros.
            states: the states to return: ``"ends"``, ``"all"`` (needs ``Trait.CELL_STATES``), or ``None``, so that a
                backend need not compute them.

        Returns:
            ``output [T, B, D*P]`` and the states, shaped like ``stored``: with ``"ends"`` exact after each sequence's
            last step and exactly zero elsewhere, with ``"all"`` those after every step, else ``None``.

        Raises:
            InputError: there is no time step.
            UnsupportedError: ``"all"`` on a backend without the trait.
        """
        if states == "all" and Trait.CELL_STATES not in self._backend.traits:
            self._decline(
                "the states after every step", "its cell states are right only where sequences end", Trait.CELL_STATES
            )
        self._check_memory(x, is_init, stored)
        starts = starts_of(is_init)
        output, found = self.sequences(x, self._entry(x, stored), starts, every_end=states is not None)
        if states is None:
            return output, None
        if states == "ends":
            return output, _stacked([at_ends(state, starts) for state in found])
        return output, _stacked(found, shared=True)

    def _check_memory(self, x: Tensor, is_init: Tensor | None, state: State | None) -> None:
        h, c = (None, None) if state is None else state
        check_together(self.like_weights(), (x, is_init, h, c))
        check_memory((("input", x), ("is_init", is_init), ("the hidden state", h), ("the cell state", c)))

    def _entry(self, x: Tensor, stored: State | None) -> list[State]:
        T, B = x.shape[:2]
        if T == 0:
            raise InputError("at least one time step is needed, got T = 0")
        if stored is None:
            sizes = self.spec.hidden_size, self.spec.output_size
            c, *h = (x.new_zeros(1, 1, size).expand(T, B, -1) for size in dict.fromkeys(sizes))  # takes no memory
            return [State(h[0] if h else c, c)] * self.spec.num_states
        return [State(h, c) for h, c in zip(*stored, strict=True)]

    def zero_state(self, shape: tuple[int, ...], like: Tensor) -> State:
        """A zero ``State([L*D, *shape, P], [L*D, *shape, H])`` with the dtype and device of ``like``."""
        spec = self.spec
        return State(
            like.new_zeros(spec.num_states, *shape, spec.output_size),
            like.new_zeros(spec.num_states, *shape, spec.hidden_size),
        )

    def sequences(
        self, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True
    ) -> tuple[Tensor, list[State]]:
        """Run over rows of sequences, each from its own stored state, for :class:`LSTMModule`. Nothing is checked here.

        Args:
            x: ``[T, B, I]``.
            entry: ``L*D`` times ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
            starts: ``[T, B]`` bool, true at ``t = 0``.
            every_end: whether to return the states at every sequence's end, or only at the row's end.

        Returns:
            ``output [T, B, D*P]`` and ``L*D`` states: ``[T, B, .]``, valid where a sequence ends, or (without
            ``every_end``) ``[B, .]``, those of each row's last sequence.
        """
        run = self._run_layers if every_end else self._run_layers_last
        weights, infos, dtype, no_autocast = self._ready_or_known()
        if infos is None and _is_recorded():
            layer = following(self._backend.layer)
            run = layers_with(layer if every_end else following(self._backend.layer_last or self._backend.layer), layer)
        dropout = self.dropout if self.training else 0.0
        if transforms_may_be_open():
            self._check_transforms(weights, x, starts, *(v for state in entry for v in state))
        with no_autocast, _in_use(weights, infos):
            x, entry = as_dtype(x, dtype), [State(as_dtype(s.h, dtype), as_dtype(s.c, dtype)) for s in entry]
            survey = None if torch.compiler.is_compiling() else _survey_of(self._backend, every_end)
            with NO_CONTEXT if survey is None else survey(weights, x, entry, starts, self.bidirectional, dropout):
                output, states = run(weights, x, entry, starts, self.bidirectional, dropout, every_end)
            return _apart(output), states

    def _ready_or_known(
        self,
    ) -> tuple[list[LayerWeights], list[WeightInfo] | None, torch.dtype, AbstractContextManager[Any]]:
        """:meth:`_ready`, and the facts about the weights if they are known: then its checks are not needed."""
        weights = self.layer_weights()
        infos = self._cached_info(weights)
        if infos is not None:
            return weights, infos, self._placed[1], NO_CONTEXT
        weights, dtype, no_autocast = self._ready(weights)
        return weights, None, dtype, no_autocast

    def step_batch_first(self, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        """One step with a batch-first state, as in a TensorDict: ``State([B, L*D, P], [B, L*D, H])``."""
        if stored is None:
            h, c = self.zero_state((x.shape[0],), x)
            stored, is_init = State(h.transpose(0, 1), c.transpose(0, 1)), None
        weights, infos = self.layer_weights(), None
        if type(x) is type(stored.h) is type(stored.c) is Tensor and type(is_init) in _MASKS:
            infos = self._cached_info(weights)
        if infos is None:
            check_together(weights[0].w_ih, (x, *stored, is_init))
            weights, dtype, no_autocast = self._ready(weights)
        else:
            dtype, no_autocast = self._placed[1], NO_CONTEXT
        if transforms_may_be_open():
            self._check_transforms(weights, x, *stored, is_init)
        with no_autocast, _in_use(weights, infos):
            x, stored = as_dtype(x, dtype), State(as_dtype(stored.h, dtype), as_dtype(stored.c, dtype))
            done = None
            if infos is not None and self._backend.act_stack is not None and not self.bidirectional:
                done = None if self.training and self.dropout else self._backend.act_stack(weights, x, stored, is_init)
            return self._step_layers(weights, x, stored, is_init) if done is None else done

    def _step_layers(
        self, weights: list[LayerWeights], x: Tensor, stored: State, is_init: Tensor | None
    ) -> tuple[Tensor, State]:
        """:meth:`step_batch_first`, layer by layer."""
        act, run = self._backend.act, self._backend.step or self._layer_as_step
        if act is None:
            self._check_memory(x, is_init, stored)
            stored = stored if is_init is None else zero_at(stored, is_init)
        if len(weights) == 1:  # the usual case takes fewer views
            w, before = weights[0], State(stored.h.squeeze(1), stored.c.squeeze(1))
            after = run(w, x, before) if act is None or is_init is None else act(w, x, before, is_init)
            return after.h.clone(), State(after.h.unsqueeze(1), after.c.unsqueeze(1))  # they must not share memory
        states: list[State] = []
        for k, (w, *state) in enumerate(zip(weights, stored.h.unbind(1), stored.c.unbind(1), strict=True)):
            if k and k % self.spec.directions == 0:
                x = self._between_layers(states)
            before = State(*state)
            states.append(run(w, x, before) if act is None or is_init is None else act(w, x, before, is_init))
        return torch.cat([s.h for s in states[-self.spec.directions :]], -1), _stacked(states, dim=1)

    def _between_layers(self, states: list[State]) -> Tensor:
        x = torch.cat([s.h for s in states[-self.spec.directions :]], -1)
        return nn.functional.dropout(x, self.dropout, self.training)

    def _layer_as_step(self, weights: LayerWeights, x: Tensor, state: State) -> State:
        starts = torch.ones(1, x.shape[0], dtype=torch.bool, device=x.device)
        out = self._backend.layer(weights, x.unsqueeze(0), State(state.h.unsqueeze(0), state.c.unsqueeze(0)), starts)
        return State(out.h.squeeze(0), out.c.squeeze(0))


def following(layer: LayerFunction) -> LayerFunction:
    """The layer for a tracer: its graph raises an error if the results have another number of steps or rows than the
    input. ``torch.jit.trace`` and ``make_fx`` record a loop over time as the example's steps. Over a longer input their
    graph would silently give that number of steps.
    """

    def run(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        return State(*(_with_rows_of(x, value) for value in layer(weights, x, entry, starts)))

    return run


def _in_use(weights: list[LayerWeights], infos: list[WeightInfo] | None) -> AbstractContextManager[None]:
    return nullcontext() if infos is None else weights_in_use(weights, infos)


def _is_recorded() -> bool:
    """Whether a tracer without guards on sizes is active: ``torch.export`` and ``torch.compile`` have guards."""
    return not torch.compiler.is_compiling() and is_traced()


def _with_rows_of(x: Tensor, value: Tensor) -> Tensor:
    """``value``, after a concatenation with ``x``, an operator that compares sizes in every run of the graph."""
    return torch.cat([x[..., :1].detach(), value], -1)[..., 1:]


def _following_rows(x: Tensor, output: Tensor, state: State) -> tuple[Tensor, State]:
    """:func:`following` for all layers at once: the states depend on the output, so that no graph leaves it out."""
    output = _with_rows_of(x, output)
    there = torch.ones_like(output[-1:, :, :1], dtype=torch.bool)
    return output, State(*(torch.where(there, value, value) for value in state))


def _survey_of(backend: LSTMBackend, every_end: bool) -> SurveyFunction | None:
    """The survey, if all layer functions of a call share one."""
    layer, forward = backend.layer, backend.layer if every_end else backend.layer_last or backend.layer
    if isinstance(layer, SurveyedLayer) and isinstance(forward, SurveyedLayer) and layer.survey is forward.survey:
        return layer.survey
    return None


def _apart(output: Tensor) -> Tensor:
    """The output as another tensor for autograd than the one from which the states are taken: the gradient with respect
    to the output, which its hooks get, is then without that of the states, as with ``torch.nn.LSTM``.
    """
    if torch.compiler.is_compiling() or not output.requires_grad or is_traced():
        return output
    return output[...]


def _stacked(states: list[State], shared: bool = False, dim: int = 0) -> State:
    """``L*D`` states as one; ``shared``: the last state shares the output's memory, so it is copied."""
    if len(states) == 1 and not shared:  # a view is enough
        return State(states[0].h.unsqueeze(dim), states[0].c.unsqueeze(dim))
    return State(torch.stack([s.h for s in states], dim), torch.stack([s.c for s in states], dim))
