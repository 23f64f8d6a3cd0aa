"""``LSTM``: torch.nn.LSTM's parameters, constructor and returns, over any backend, with resets."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._torch import SharedRNN, registered_parameters, transforms_may_be_open
from .checks import check_dense, check_input, check_is_init, check_state
from .choose import alternatives, demand, is_auto, resolve
from .contract import LayerWeights, LSTMBackend, LSTMSpec, State, SurveyedLayer, SurveyFunction, Trait
from .errors import InputError, UnsupportedError
from .known import KnownWeights, known_weights, step_is_over, step_knows
from .plain import check_memory, check_together, nothing_at_work
from .registry import get_backend, is_registered_value
from .resets import at_ends, entry_from_hx, starts_of, zero_at
from .stack import RunLayers, layers_with
from .transforms import traits_needed
from .weights import as_dtype, cast_weights, spec_of, weight_names, weight_shapes

States = tuple[Tensor, Tensor]
Form = Literal["row", "step", "sequences", "all_states", "output"]
"""How :meth:`LSTM.forward` is called: by a user, or by a module around it."""
KINDS = "cpu cuda xpu mps xla hpu mtia maia ipu privateuseone meta lazy vulkan ve fpga ideep hip opengl opencl"
NO_AUTOCAST = frozenset(kind for kind in KINDS.split() if not torch.amp.is_autocast_available(kind))
"""Device types without autocast. They are determined once, because torch 2.11's Dynamo cannot trace the question."""
_TRANSFORMS = {
    Trait.FORWARD_AD: ("forward-mode AD", "its kernel has no forward derivative"),
    Trait.VMAP: ("torch.vmap", "its kernel has no batching rule"),
}
"""Transforms that not every kernel follows: the feature's name and the reason of a refusal, by trait."""


_NO_CONTEXT = nullcontext()
_MASKS = (Tensor, type(None))


class LSTM(SharedRNN):
    """A drop-in for :class:`torch.nn.LSTM` that runs on a backend of your choice and knows resets.

    Parameters, their names, shapes, seeded initial values and ``state_dict`` are torch.nn.LSTM's.

    Args:
        input_size: ``I``, features of the input.
        hidden_size: ``H``, features of the state.
        num_layers: ``L``.
        bias: whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: whether input and output are ``[B, T, .]`` instead of ``[T, B, .]``.
        dropout: probability of dropout on the output of every layer but the last, in training.
        bidirectional: whether a second LSTM runs over each sequence in reverse.
        proj_size: ``P``, size of a projected ``h``; 0 for none.
        device: of the parameters.
        dtype: of the parameters.

    Keyword Args:
        lstm_backend: a backend's name, ``"auto"``, or an :class:`~rnn_backends.LSTMBackend`. Default: the environment
            variable ``RNN_BACKENDS_LSTM``, else ``"auto"``. Resolved once, here.

    Raises:
        UnknownBackendError: no backend of that name is installed.
        UnsupportedError: the named backend declines these options, device or dtype; the message has its reason.

    Examples:
        >>> import torch
        >>> from rnn_backends import LSTM
        >>> lstm = LSTM(4, 8, batch_first=True)
        >>> x, is_init = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
        >>> is_init[0, 3] = True  # a new sequence starts here, from zeros
        >>> output, (h_n, c_n) = lstm(x, is_init=is_init)
        >>> torch.testing.assert_close(output[0, 3:], lstm(x[0, 3:])[0])
    """

    weight_ih_l0: Tensor

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(
            self, input: Tensor, hx: States | None = None, *, is_init: Tensor | None = None, form: Form = "row"
        ) -> tuple[Tensor, States]:
            """Run over time: see :meth:`forward`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        lstm_backend: str | LSTMBackend | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        weight = self.weight_ih_l0
        self._bind(resolve(lstm_backend, spec_of(self), weight.device, weight.dtype))
        self._chosen_on_meta = weight.device.type == "meta" and is_auto(lstm_backend)

    @classmethod
    def from_torch(cls, lstm: nn.RNNBase, lstm_backend: str | LSTMBackend | None = None) -> LSTM:
        """Wrap a torch.nn.LSTM (or TorchRL's): the new module *shares* its parameters.

        Raises:
            InputError: it is not an LSTM, or it is parametrized (parametrize the wrapped module instead).
        """
        if isinstance(lstm, LSTM):
            return lstm if lstm_backend is None else lstm.with_backend(lstm_backend)
        check_is_lstm(lstm)
        if parametrize.is_parametrized(lstm):
            raise InputError("lstm is parametrized: wrap it first and parametrize the rnn_backends.LSTM")
        new = cls.__new__(cls)
        new.share(lstm)
        weight = new.weight_ih_l0
        new._bind(resolve(lstm_backend, spec_of(new), weight.device, weight.dtype))
        return new

    def with_backend(self, lstm_backend: str | LSTMBackend) -> LSTM:
        """The same LSTM on another backend: a new module that *shares* these parameters.

        Raises:
            UnknownBackendError: no backend of that name is installed.
            UnsupportedError: it declines this LSTM.
        """
        weight = self.weight_ih_l0
        backend = resolve(lstm_backend, spec_of(self), weight.device, weight.dtype)
        new = type(self).__new__(type(self))
        new.share(self)  # the registries themselves are shared, also for later changes
        new._bind(backend)
        return new

    def _bind(self, backend: LSTMBackend) -> None:
        weight = self.weight_ih_l0
        self._backend, self._spec = backend, spec_of(self)
        self._weight_names = weight_names(self._spec)
        self._weight_shapes = weight_shapes(self._spec)
        self._run_layers = layers_with(backend.layer, backend.layer)
        self._run_layers_last = layers_with(backend.layer_last or backend.layer, backend.layer)
        self._placed = (weight.device, weight.dtype)
        self._placed_in_autocast: tuple[torch.device, torch.dtype] | None = None
        self._known_before: list[KnownWeights] | None = None
        self._chosen_on_meta = False
        self._has_stack = backend.stack is not None  # a bool: Dynamo does not guard a function it may not trace

    def _choose_anew(self) -> None:
        """Choose again where ``"auto"`` had only weights without memory to go by, and they have arrived since."""
        weight = self.weight_ih_l0
        if self._chosen_on_meta and weight.device.type != "meta":
            self._bind(resolve("auto", spec_of(self), weight.device, weight.dtype))

    @property
    def lstm_backend(self) -> str:
        """The name of the backend that runs."""
        if self._chosen_on_meta:
            self._choose_anew()
        return self._backend.name

    @property
    def run_layers(self) -> RunLayers:
        """The function that runs all layers, bound to the backend, with the row's last states right."""
        return self._run_layers_last

    @property
    def backend(self) -> LSTMBackend:
        """The backend that runs."""
        if self._chosen_on_meta:
            self._choose_anew()
        return self._backend

    @property
    def spec(self) -> LSTMSpec:
        """The options, as backends see them; as they were when the backend was bound."""
        return self._spec

    def forward(
        self, input: Tensor, hx: States | None = None, *, is_init: Tensor | None = None, form: Form = "row"
    ) -> tuple[Tensor, States]:
        """Run over time.

        Hooks on an LSTM see these arguments (``form`` among the keyword arguments) and returns in every form.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or ``[T, I]``.
            hx: ``(h_0 [L*D, B, P], c_0 [L*D, B, H])``, the state before the first step (``[L*D, .]`` for an
                unbatched input). Default: zeros.
            is_init: ``[T, B]``, ``[B, T]`` with ``batch_first``, or ``[T]``, bool, with or without a trailing 1:
                true where a new sequence starts. It starts from zeros, also at ``t = 0``, so a row may be cut
                anywhere and its state carried over.
            form: what the arguments are. ``"row"``: as above. The others are how modules around an LSTM call it, with
                nothing checked but the weights. ``"step"``: those of :meth:`step_stored`. ``"sequences"`` and
                ``"all_states"``: those of :meth:`replay`, with ``hx`` as ``stored``, without and with ``every_step``.
                ``"output"``: those of :meth:`replay_output`; it returns the output and ``None``.

        Returns:
            ``output [T, B, D*P]`` (batch and time as in the input) and ``(h_n, c_n)``, shaped like ``hx``: the
            state after the last step. For the reverse direction, of the row's last sequence.

        Raises:
            InputError: a shape, dtype or device does not fit.
            UnsupportedError: the backend declines the current device or dtype, or being vmapped.
        """
        if self._chosen_on_meta:
            self._choose_anew()
        if form != "row":
            if form == "step" and (hx is None or type(hx) is State):
                return self.step_stored(input, hx, is_init)
            result: tuple[Tensor, States] = self._run(input, hx, is_init, form)
            return result
        casts = self.autocast_dtype()
        check_input(input, self.spec, self.weight_ih_l0, casts is not None, (2, 3))
        batched = input.ndim == 3
        lead = tuple(input.shape[:-1])
        x = self._time_major(input, batched)
        reset = None if is_init is None else check_is_init(is_init, lead, input.device)
        if reset is not None:
            reset = self._time_major(reset, batched)
        T, B = x.shape[:2]
        if T == 0:
            raise InputError(f"input must have at least one time step, got shape {tuple(input.shape)}")
        state = self._initial(hx, (B,) if batched else (), casts is not None)
        self._check_memory(x, reset, state)
        output, state = self._over_time(x, state, reset)
        output = output.transpose(0, 1) if self.batch_first and batched else output
        if not batched:
            return output.squeeze(1), (state.h.squeeze(1), state.c.squeeze(1))
        return output, (state.h, state.c)

    def _run(self, x: Tensor, hx: States | None, is_init: Tensor | None, form: Form) -> Any:
        stored = hx if hx is None or isinstance(hx, State) else State(*hx)  # a pre-hook may have made it a tuple
        if form == "step":
            return self.step_stored(x, stored, is_init)
        if is_init is None or form not in ("sequences", "all_states", "output"):
            raise InputError(f"form={form!r} is not a form, or needs is_init")
        if form == "output":
            return self.replay_output(x, is_init, stored), None
        return self.replay(x, is_init, stored, form == "all_states")

    def _time_major(self, value: Tensor, batched: bool) -> Tensor:
        if not batched:
            return value.unsqueeze(1)
        return value.transpose(0, 1) if self.batch_first else value

    def _initial(self, hx: States | None, batch: tuple[int, ...], casts: bool) -> State | None:
        if hx is None:
            return None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise InputError(f"hx must be a pair (h_0, c_0), got {type(hx).__name__}")
        state = State(*hx)
        check_state(state, (self.spec.num_states, *batch), self.spec, self.weight_ih_l0, casts)
        return state if batch else State(state.h.unsqueeze(1), state.c.unsqueeze(1))

    def _over_time(self, x: Tensor, state: State | None, is_init: Tensor | None) -> tuple[Tensor, State]:
        T, B, spec = x.shape[0], x.shape[1], self.spec
        drops = self.training and self.dropout > 0 and spec.num_layers > 1
        stack = self._backend.stack if self._has_stack and is_init is None and not drops else None
        if stack is not None:
            state = self.zero_state((B,), x) if state is None else state
            weights, dtype, uncast = self._ready()
            if transforms_may_be_open():
                self._check_transforms(weights, x, *state)
            with uncast:
                return stack(weights, x.to(dtype), State(state.h.to(dtype), state.c.to(dtype)), spec)
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
        """One step of one layer as a row: its state is the layer's entry as it is, so that autograd has nothing else.

        Args:
            x: ``[1, B, I]``.
            state: ``State([1, B, P], [1, B, H])``.
            is_init: ``[1, B]`` bool or ``None``.
        """
        h, c = state if is_init is None else (entry_from_hx(v[0], 1, is_init) for v in state)
        starts = x.new_ones(1, x.shape[1], dtype=torch.bool)
        weights, dtype, uncast = self._ready()
        if transforms_may_be_open():
            self._check_transforms(weights, x, h, c, starts)
        with uncast:
            entry = State(as_dtype(h, dtype), as_dtype(c, dtype))
            out = (self._backend.layer_last or self._backend.layer)(weights[0], as_dtype(x, dtype), entry, starts)
        return out.h, State(out.h.clone(), out.c)  # the output's memory is its own

    def zero_state(self, shape: tuple[int, ...], like: Tensor) -> State:
        """``State([L*D, *shape, P], [L*D, *shape, H])`` of zeros, with ``like``'s dtype and device."""
        spec = self.spec
        return State(
            like.new_zeros(spec.num_states, *shape, spec.output_size),
            like.new_zeros(spec.num_states, *shape, spec.hidden_size),
        )

    def sequences(
        self, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True
    ) -> tuple[Tensor, list[State]]:
        """Run over rows of sequences, each from its own stored state: what :class:`LSTMModule` stands on.

        Nothing is checked here.

        Args:
            x: ``[T, B, I]``.
            entry: ``L*D`` times ``State([T, B, P], [T, B, H])``, read where ``starts`` is true.
            starts: ``[T, B]`` bool, true at ``t = 0``.
            every_end: whether the states of every sequence's end are asked for, or the last one's only.

        Returns:
            ``output [T, B, D*P]`` and ``L*D`` states: ``[T, B, .]``, right where a sequence ends, or (without
            ``every_end``) ``[B, .]``, those of each row's last sequence.
        """
        run = self._run_layers if every_end else self._run_layers_last
        dropout = self.dropout if self.training else 0.0
        weights, dtype, uncast = self._ready()
        if transforms_may_be_open():
            self._check_transforms(weights, x, starts, *(v for state in entry for v in state))
        with uncast:
            x, entry = x.to(dtype), [State(s.h.to(dtype), s.c.to(dtype)) for s in entry]
            survey = None if torch.compiler.is_compiling() else _survey_of(self._backend, every_end)
            if survey is None:
                return run(weights, x, entry, starts, self.bidirectional, dropout, every_end)
            with survey(weights, x, entry, starts, self.bidirectional, dropout):
                return run(weights, x, entry, starts, self.bidirectional, dropout, every_end)

    def replay(
        self, x: Tensor, is_init: Tensor, stored: State | None, every_step: bool = False
    ) -> tuple[Tensor, State]:
        """Run over rows of sequences, each from its stored state. Nothing but ``T`` is checked here.

        Args:
            x: ``[T, B, I]``.
            is_init: ``[T, B]`` bool: a sequence starts here; it does at ``t = 0`` too.
            stored: ``State([L*D, T, B, P], [L*D, T, B, H])``, read where a sequence starts; ``None`` for zeros.
            every_step: give the state after every step (needs ``Trait.CELL_STATES``).

        Returns:
            ``output [T, B, D*P]`` and the states, shaped like ``stored``: exact after each sequence's last step and
            exactly zero elsewhere, unless ``every_step``.

        Raises:
            InputError: there is no time step.
        """
        self._check_memory(x, is_init, stored)
        starts = starts_of(is_init)
        output, states = self.sequences(x, self._entry(x, stored), starts)
        if not every_step:
            states = [at_ends(state, starts) for state in states]
        return output, _stacked(states, shared=every_step)

    def replay_output(self, x: Tensor, is_init: Tensor, stored: State | None) -> Tensor:
        """Like :meth:`replay`, the output alone: nobody reads the states, so a backend need not find them."""
        self._check_memory(x, is_init, stored)
        return self.sequences(x, self._entry(x, stored), starts_of(is_init), every_end=False)[0]

    def _check_memory(self, x: Tensor, is_init: Tensor | None, state: State | None) -> None:
        h, c = (None, None) if state is None else state
        check_together(self.weight_named("weight_ih_l0"), (x, is_init, h, c))
        check_memory((("input", x), ("is_init", is_init), ("the hidden state", h), ("the cell state", c)))

    def _entry(self, x: Tensor, stored: State | None) -> list[State]:
        T, B = x.shape[:2]
        if T == 0:
            raise InputError("at least one time step is needed, got T = 0")
        if stored is None:
            h, c = self.zero_state((1, 1), x)
            stored = State(h.expand(-1, T, B, -1), c.expand(-1, T, B, -1))  # takes no memory
        return [State(h, c) for h, c in zip(*stored, strict=True)]

    def step(self, x: Tensor, state: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        """One time step, for acting. Nothing is checked here but that input and state are dense.

        Args:
            x: ``[B, I]``.
            state: ``State([L*D, B, P], [L*D, B, H])``; ``None`` for zeros.
            is_init: ``[B]`` bool: where the incoming state is taken as zero; ``None`` for nowhere.

        Returns:
            ``output [B, D*P]`` and the next state, shaped like ``state``.
        """
        stored = None
        check_dense("input", x)
        if state is not None:
            check_dense("h", state.h)
            check_dense("c", state.c)
            stored = State(state.h.transpose(0, 1), state.c.transpose(0, 1))
        output, (h, c) = self(x, stored, is_init=is_init, form="step")
        return output, State(h.transpose(0, 1), c.transpose(0, 1))

    def step_stored(self, x: Tensor, stored: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        """:meth:`step` with the state as a TensorDict has it, ``State([B, L*D, P], [B, L*D, H])``, in and out."""
        if stored is None:
            h, c = self.zero_state((x.shape[0],), x)
            stored, is_init = State(h.transpose(0, 1), c.transpose(0, 1)), None
        weights = self.layer_weights()
        known = self._known(weights)
        if known is None or type(x) is not Tensor or type(stored.h) is not Tensor or type(is_init) not in _MASKS:
            check_together(weights[0].w_ih, (x, *stored, is_init))
            weights, dtype, uncast = self._ready()
        else:
            dtype, uncast = self._placed[1], _NO_CONTEXT
        if transforms_may_be_open():
            self._check_transforms(weights, x, *stored, is_init)
        act, run = self._backend.act, self._backend.step or self._layer_as_step
        if is_init is not None and act is None:
            stored = zero_at(stored, is_init)
        states: list[State] = []
        try:
            with uncast:
                x, h, c = as_dtype(x, dtype), as_dtype(stored.h, dtype), as_dtype(stored.c, dtype)
                for k, (w, *state) in enumerate(zip(weights, h.unbind(1), c.unbind(1), strict=True)):
                    if k and k % self.spec.directions == 0:
                        x = self._between_layers(states)
                    if known is not None:
                        step_knows(w, known[k])
                    before = State(*state)
                    states.append(run(w, x, before) if act is None or is_init is None else act(w, x, before, is_init))
        finally:
            if known is not None:
                step_is_over()
        return torch.cat([s.h for s in states[-self.spec.directions :]], -1), _stacked(states, dim=1)

    def _between_layers(self, states: list[State]) -> Tensor:
        x = torch.cat([s.h for s in states[-self.spec.directions :]], -1)
        return nn.functional.dropout(x, self.dropout, self.training)

    def _layer_as_step(self, weights: LayerWeights, x: Tensor, state: State) -> State:
        starts = torch.ones(1, x.shape[0], dtype=torch.bool, device=x.device)
        out = self._backend.layer(weights, x.unsqueeze(0), State(state.h.unsqueeze(0), state.c.unsqueeze(0)), starts)
        return State(out.h.squeeze(0), out.c.squeeze(0))

    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype to compute in under autocast, or ``None``. Like torch's own: float64 is left alone."""
        weight = self.weight_named("weight_ih_l0")
        kind = weight.device.type
        if weight.dtype == torch.float64 or kind in NO_AUTOCAST or not torch.is_autocast_enabled(kind):
            return None
        return torch.get_autocast_dtype(kind)

    def _ready(self) -> tuple[list[LayerWeights], torch.dtype, AbstractContextManager[Any]]:
        """The weights in the dtype to compute in, and a context in which autocast does not touch them."""
        weight = self.weight_named("weight_ih_l0")
        if (weight.device, weight.dtype) != self._placed:
            demand(self._backend, self.spec, weight.device, weight.dtype)
            self._placed, self._known_before = (weight.device, weight.dtype), None
        casts = self.autocast_dtype()
        weights = self.layer_weights()
        self._check_weights(weights, casts is not None)
        if casts is None:
            return weights, weight.dtype, nullcontext()
        if (weight.device, casts) != self._placed_in_autocast:
            demand(self._backend, self.spec, weight.device, casts)
            self._placed_in_autocast = (weight.device, casts)
        cast = [cast_weights(layer, casts) for layer in weights]
        return cast, casts, torch.autocast(weight.device.type, enabled=False)

    def _known(self, weights: list[LayerWeights]) -> list[KnownWeights] | None:
        """What is known of the weights, if they are as :meth:`_ready` would hand them out: checked, nothing to cast."""
        if not nothing_at_work():
            return None
        found = [known for w in weights if (known := known_weights(w)) is not None]
        if found != self._known_before:
            if len(found) < len(weights) or not all(map(self._is_as_placed, found, self._weight_shapes)):
                return None
            self._known_before = found
        dtype, kind = self._placed[1], self._placed[0].type
        if dtype != torch.float64 and kind not in NO_AUTOCAST and torch.is_autocast_enabled(kind):
            return None
        return found

    def _is_as_placed(self, known: KnownWeights, shapes: tuple[tuple[int, ...] | None, ...]) -> bool:
        return (known.device, known.dtype) == self._placed and known.shapes == shapes

    def _check_weights(self, weights: list[LayerWeights], casts: bool) -> None:
        """All weights of one device and dtype (under autocast: any dtype), in the shapes that the options say.

        ``functional_call``, parametrizations and assignment give whatever weights they like, and a kernel that reads
        memory by its address cannot tell.
        """
        first = weights[0].w_ih
        if not isinstance(first, Tensor):
            raise self._wrong_weight(weights, casts)
        device, dtype = first.device, first.dtype
        for layer, shapes in zip(weights, self._weight_shapes, strict=True):
            for value, shape in zip(layer, shapes, strict=True):
                if value is None and shape is None:
                    continue
                if (
                    value is None
                    or value.is_nested  # it may not say its shape
                    or value.shape != shape
                    or value.device != device
                    or (value.dtype is not dtype and not casts)
                ):
                    raise self._wrong_weight(weights, casts)

    def _wrong_weight(self, weights: list[LayerWeights], casts: bool) -> InputError:
        """The error about the first weight that does not fit."""
        first = weights[0].w_ih
        for names, layer, shapes in zip(self._weight_names, weights, self._weight_shapes, strict=True):
            fields = [(value, shape) for value, shape in zip(layer, shapes, strict=True) if shape is not None]
            for name, (value, shape) in zip(names, fields, strict=True):
                if not isinstance(value, Tensor):
                    return InputError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}")
                if value.is_nested:
                    return InputError(f"{name} is a nested tensor: it must be dense, of shape {shape}")
                if tuple(value.shape) != shape:
                    return InputError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
                if value.device != first.device:
                    came = f"{name} is on {value.device}, weight_ih_l0 on {first.device}"
                    return InputError(f"{came}: all must be on one device (functional_call must be given all)")
                if value.dtype != first.dtype and not casts:
                    came = f"{name} has dtype {value.dtype}, weight_ih_l0 {first.dtype}"
                    return InputError(f"{came}: convert one of them")
        return InputError("the weights do not fit together")

    def _check_transforms(self, weights: list[LayerWeights], *read: Tensor | None) -> None:
        """Decline a transform that a tensor of this call is part of, if the backend does not claim its trait."""
        if _TRANSFORMS.keys() <= self._backend.traits:
            return
        needed = traits_needed([*read, *(v for layer in weights for v in layer)]) - self._backend.traits
        for trait, (feature, reason) in _TRANSFORMS.items():
            if trait in needed:
                self._decline(feature, reason, trait)

    def layer_weights(self) -> list[LayerWeights]:
        """The parameters as backends see them: ``L*D`` entries, layer by layer, forward then reverse."""
        weights = []
        parameters = registered_parameters(self)
        for names in self._weight_names:
            found = [getattr(self, name) if (v := parameters.get(name)) is None else v for name in names]
            b_ih, b_hh = found[2:4] if self.bias else (None, None)
            w_hr = found[-1] if self.proj_size else None
            weights.append(LayerWeights(found[0], found[1], b_ih, b_hh, w_hr))
        return weights

    def weight_named(self, name: str) -> Tensor:
        """A parameter, or what a parametrization makes of one; ``nn.Module``'s own look-up takes half a microsecond."""
        found = registered_parameters(self).get(name)
        return getattr(self, name) if found is None else found

    def _decline(self, feature: str, reason: str, trait: Trait) -> NoReturn:
        weight = self.weight_ih_l0
        others = alternatives(self.spec, weight.device, weight.dtype, self.lstm_backend, frozenset({trait}))
        raise UnsupportedError(self.lstm_backend, feature, reason, others)

    def extra_repr(self) -> str:
        """torch.nn.LSTM's, and the backend."""
        return f"{super().extra_repr()}, lstm_backend={self.lstm_backend!r}"

    def scriptable(self) -> nn.Module:
        """A module over the same parameters that ``torch.jit.script`` compiles; scripting this one compiles that.

        Raises:
            UnsupportedError: the backend does not claim ``Trait.SCRIPT``.
        """
        from .scripting import ScriptableLSTM  # only torch.jit.script asks for it

        if Trait.SCRIPT not in self._backend.traits:
            self._decline("torch.jit.script", "its layer is not TorchScript", Trait.SCRIPT)
        return ScriptableLSTM(self)

    def __prepare_scriptable__(self) -> nn.Module:  # torch.jit.script calls it
        return self.scriptable()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for bound in ("_run_layers", "_run_layers_last", "_spec", "_has_stack", "_weight_names", "_weight_shapes"):
            state.pop(bound, None)
        for found_in_calls in ("_placed_in_autocast", "_known_before"):
            state.pop(found_in_calls, None)
        if is_registered_value(self._backend):
            state["_backend"] = self.lstm_backend  # functions do not pickle; the name finds them again
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend = state["_backend"]
        super().__setstate__(state)
        self._bind(get_backend(backend) if isinstance(backend, str) else backend)
        self._chosen_on_meta = state.get("_chosen_on_meta", False)
        self._placed = state["_placed"]  # loaded to another device, the next call asks the backend, as after .to()


def _survey_of(backend: LSTMBackend, every_end: bool) -> SurveyFunction | None:
    """The survey that every layer function of a call shares, if there is one."""
    layer, forward = backend.layer, backend.layer if every_end else backend.layer_last or backend.layer
    if isinstance(layer, SurveyedLayer) and isinstance(forward, SurveyedLayer) and layer.survey is forward.survey:
        return layer.survey
    return None


def check_is_lstm(value: object) -> None:
    """Raise :class:`InputError` if this is no LSTM: neither torch.nn's nor one that derives from it, nor ours."""
    if not isinstance(value, nn.RNNBase) or value.mode != "LSTM":
        raise InputError(f"lstm must be a torch.nn.LSTM or rnn_backends.LSTM, got {type(value).__name__}")


def _stacked(states: list[State], shared: bool = False, dim: int = 0) -> State:
    """``L*D`` states as one; ``shared``: the last one's memory is the output's too, so it is copied."""
    if len(states) == 1 and not shared:  # a view is enough
        return State(states[0].h.unsqueeze(dim), states[0].c.unsqueeze(dim))
    return State(torch.stack([s.h for s in states], dim), torch.stack([s.c for s in states], dim))
