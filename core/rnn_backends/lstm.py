"""``LSTM``: torch.nn.LSTM's parameters, constructor and returns, over any backend, with resets."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._torch import derivative_in_trace, leave_the_frame_if_debugging, only_inlined
from .checks import as_switch, check_dtype, check_input, check_is_init, check_state, is_usual
from .choose import is_auto, resolve
from .contract import LSTMBackend, LSTMSpec, State, Trait
from .errors import InputError
from .execution import ExecutableLSTM
from .plain import explain
from .torch_tools import check_is_plain
from .weights import spec_of

States = tuple[Tensor, Tensor]
Form = Literal["row", "step", "sequences", "all_states", "output"]
"""The form of a call of :meth:`LSTM.forward`: ``"row"`` by a user, the others by a module around the LSTM."""
_STATES: dict[Form, Literal["ends", "all"] | None] = {"sequences": "ends", "all_states": "all", "output": None}
"""The argument ``states`` of :meth:`LSTM.replay`, by form."""
_TRACED = {Trait.FULLGRAPH, Trait.FORWARD_AD}
"""The traits of a backend made of torch's own operators, through which Dynamo can trace a derivative."""
_NOT_TRACED = 'torch.func does not differentiate it in a trace; in torch.compile it does with_backend("vmap")'


class LSTM(ExecutableLSTM):
    """A drop-in replacement for :class:`torch.nn.LSTM`, with a choice of backends and with resets.

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
        UnsupportedError: the named backend does not support these options, device or dtype; the message has its
            reason. An LSTM on the meta device raises it at the first call, for the weights that it then has.

    Examples:
        >>> import torch
        >>> from rnn_backends import LSTM
        >>> lstm = LSTM(4, 8, batch_first=True)
        >>> x, is_init = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
        >>> is_init[0, 3] = True  # a new sequence starts here, from zeros
        >>> output, (h_n, c_n) = lstm(x, is_init=is_init)
        >>> torch.testing.assert_close(output[0, 3:], lstm(x[0, 3:])[0])
    """

    takes_forms: ClassVar[bool] = True
    """Whether ``forward`` takes ``is_init=`` and ``form=``, with which steps and modules around an LSTM call it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.forward).parameters.values()
        named = {p.name for p in parameters}
        cls.takes_forms = {"is_init", "form"} <= named or any(p.kind is p.VAR_KEYWORD for p in parameters)

    def check_forms(self) -> None:
        """Raise :class:`InputError` if ``forward`` is overridden without the arguments of :attr:`takes_forms`."""
        if not self.takes_forms:
            raise InputError(
                f"{type(self).__name__}.forward takes no is_init= and form=, with which a step and modules around an "
                "LSTM call it: add **kwargs, and pass them to super().forward"
            )

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(
            self, input: Tensor, hx: States | None = None, is_init: Tensor | None = None, form: Form = "row"
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
        check_dtype(dtype)
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=as_switch("bias", bias),
            batch_first=as_switch("batch_first", batch_first),
            dropout=dropout,
            bidirectional=as_switch("bidirectional", bidirectional),
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
            InputError: it is not an LSTM, overrides ``forward``, or is parametrized (parametrize the wrapped module
                instead).
        """
        if isinstance(lstm, LSTM):
            return lstm if lstm_backend is None else lstm.with_backend(lstm_backend)
        check_is_lstm(lstm)
        if parametrize.is_parametrized(lstm):
            raise InputError("lstm is parametrized: wrap it first and parametrize the rnn_backends.LSTM")
        check_is_plain(lstm, "from_torch()", shares_hooks=True)
        new = object.__new__(cls)
        new.share(lstm)
        weight = new.weight_ih_l0
        new._bind(resolve(lstm_backend, spec_of(new), weight.device, weight.dtype))
        return new

    def with_backend(self, lstm_backend: str | LSTMBackend) -> LSTM:
        """The same LSTM on another backend: a new module that *shares* these parameters.

        Raises:
            UnknownBackendError: no backend of that name is installed.
            UnsupportedError: the backend does not support this LSTM.
        """
        weight = self.weight_ih_l0
        backend = resolve(lstm_backend, spec_of(self), weight.device, weight.dtype)
        new = object.__new__(type(self))  # a class's own __new__ may make another object: that of FSDP2 does
        new.share(self)  # the registries themselves are shared, so later changes are too
        new._bind(backend)
        return new

    def forward(
        self, input: Tensor, hx: States | None = None, is_init: Tensor | None = None, form: Form = "row"
    ) -> tuple[Tensor, States]:
        """Run over time.

        Hooks on an LSTM get these arguments (``form`` as a keyword) and this result, for every form.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or ``[T, I]``.
            hx: ``(h_0 [L*D, B, P], c_0 [L*D, B, H])``, the state before the first step (``[L*D, .]`` for an
                unbatched input). Default: zeros.
            is_init: ``[T, B]``, ``[B, T]`` with ``batch_first``, or ``[T]``, bool, with or without a trailing 1:
                true where a new sequence starts. It starts from zeros, also at ``t = 0``, so a row may be cut
                anywhere and its state carried over.
            form: the meaning of the arguments. ``"row"``: as above. Modules around an LSTM use the other forms, in
                which only the weights are checked. ``"step"``: the arguments of :meth:`step_batch_first`.
                ``"sequences"``, ``"all_states"`` and ``"output"``: the arguments of :meth:`replay`, with ``hx`` as
                ``stored`` and ``states`` as ``"ends"``, ``"all"`` and ``None``.

        Returns:
            ``output [T, B, D*P]`` (batch and time as in the input) and ``(h_n, c_n)``, shaped like ``hx``: the
            state after the last step. The reverse direction's is that of the row's last sequence.

        Raises:
            InputError: a shape, dtype or device does not fit.
            UnsupportedError: the backend does not support the current device or dtype, or ``torch.vmap``.
        """
        if torch.compiler.is_compiling():  # without `try`, in which a graph cannot break
            return self._call(input, hx, is_init, form)
        try:
            return self._call(input, hx, is_init, form)
        except (RuntimeError, TypeError) as error:
            h, c = hx if isinstance(hx, tuple) and len(hx) == 2 else (None, None)
            read = {"input": input, "the hidden state": h, "the cell state": c, "is_init": is_init}
            explain(error, self.like_weights(), (read | dict(self.named_parameters())).items())
            raise

    @only_inlined  # a call that breaks the graph runs as plain Python: its tensors may be of a transform's level
    def _call(self, input: Tensor, hx: States | None, is_init: Tensor | None, form: Form) -> tuple[Tensor, States]:
        if self._chosen_on_meta:
            self._choose_again()
        if form == "step" and (hx is None or type(hx) is State):
            return self.step_batch_first(input, hx, is_init)
        if form == "row" and not torch.compiler.is_compiling():
            done = self._row_of_one_step(input, hx, is_init)
            if done is not None:
                return done
        elif self._breaks_this_trace():
            leave_the_frame_if_debugging()
            return self._uncompiled(input, hx, is_init, form)  # type: ignore[no-any-return]
        if form != "row":
            result: tuple[Tensor, States] = self._run(input, hx, is_init, form)
            return result
        casts = self.autocast_dtype()
        check_input(input, self.spec, self.like_weights(), casts is not None, (2, 3))
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

    def _breaks_this_trace(self) -> bool:
        """Whether Dynamo traces a derivative of ``torch.func``, and cannot take it through the backend."""
        if not torch.compiler.is_dynamo_compiling() or not derivative_in_trace():
            return False
        return not self._backend.traits >= _TRACED or torch.compiler.is_exporting()

    @torch.compiler.disable(reason=_NOT_TRACED)  # type: ignore[untyped-decorator]
    def _uncompiled(self, *given: Any) -> tuple[Tensor, States]:
        """:meth:`_call` in a trace that differentiates: a break of the graph."""
        return self._call(*given)

    def _run(self, x: Tensor, hx: States | None, is_init: Tensor | None, form: Form) -> Any:
        stored = hx if hx is None or isinstance(hx, State) else State(*hx)  # a forward pre-hook may return a tuple
        if form == "step":
            return self.step_batch_first(x, stored, is_init)
        if is_init is None or form not in _STATES:
            raise InputError(f"form={form!r} is not a form, or needs is_init")
        return self.replay(x, is_init, stored, _STATES[form])

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
        check_state(state, (self.spec.num_states, *batch), self.spec, self.like_weights(), casts)
        return state if batch else State(state.h.unsqueeze(1), state.c.unsqueeze(1))

    def step(self, x: Tensor, state: States | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        """One time step, for acting.

        Args:
            x: ``[B, I]``.
            state: ``State([L*D, B, P], [L*D, B, H])``, or such a pair; ``None`` for zeros.
            is_init: ``[B]`` or ``[B, 1]`` bool: true where the incoming state counts as zero; ``None`` for nowhere.

        Returns:
            ``output [B, D*P]`` and the next state, shaped like ``state``.

        Raises:
            InputError: a shape, dtype or device does not fit (dtypes may differ under autocast, as in :meth:`forward`),
                or a subclass overrides ``forward`` without ``is_init=`` and ``form=``.
            UnsupportedError: the backend does not support the current device or dtype, or ``torch.vmap``.
        """
        self.check_forms()
        if not self._is_usual_step(x, state, is_init):
            state, is_init = self._check_step(x, state, is_init)
        stored = None if state is None else State(state[0].transpose(0, 1), state[1].transpose(0, 1))
        output, (h, c) = self(x, stored, is_init=is_init, form="step")
        return output, State(h.transpose(0, 1), c.transpose(0, 1))

    def _is_usual_step(self, x: Tensor, state: States | None, is_init: Tensor | None) -> bool:
        """Whether :meth:`_check_step` would change nothing, found in a third of its time."""
        # Not is_usual() for each: a step of one row takes 40 microseconds, and the calls 1.5 of them.
        if type(state) is not State:
            return False
        h, c = state
        if not (type(x) is type(h) is type(c) is Tensor) or x.is_nested or h.is_nested or c.is_nested or x.ndim != 2:
            return False
        spec, weight = self._spec, self.like_weights()
        K, B, device = spec.num_states, x.shape[0], weight.device
        return (
            (x.shape, h.shape, c.shape) == ((B, spec.input_size), (K, B, spec.output_size), (K, B, spec.hidden_size))
            and x.dtype is h.dtype is c.dtype is weight.dtype
            and x.layout is h.layout is c.layout is torch.strided
            and x.device == h.device == c.device == device
            and (is_init is None or is_usual(is_init, (B,), torch.bool, device))
        )

    def _check_step(
        self, x: Tensor, state: States | None, is_init: Tensor | None
    ) -> tuple[State | None, Tensor | None]:
        casts = self.autocast_dtype() is not None
        check_input(x, self.spec, self.like_weights(), casts, (2,))
        rows = (x.shape[0],)
        reset = None if is_init is None else check_is_init(is_init, rows, x.device)
        return self._initial(state, rows, casts), reset

    def scriptable(self) -> nn.Module:
        """A module with the same parameters for ``torch.jit.script``, which uses it when it scripts this LSTM.

        Raises:
            InputError: it is parametrized, has hooks, or overrides ``forward``, all of which would be lost.
            UnsupportedError: the backend does not claim ``Trait.SCRIPT``.
        """
        from .scripting import ScriptableLSTM  # only torch.jit.script needs it

        if Trait.SCRIPT not in self._backend.traits:
            self._decline("torch.jit.script", "its layer is not TorchScript", Trait.SCRIPT)
        check_is_plain(self, "scriptable()")
        return ScriptableLSTM(self)

    def __prepare_scriptable__(self) -> nn.Module:  # torch.jit.script calls it
        return self.scriptable()


def check_is_lstm(value: object) -> None:
    """Raise :class:`InputError` if this is neither a torch.nn.LSTM (or a subclass) nor an rnn_backends.LSTM."""
    if not isinstance(value, nn.RNNBase) or value.mode != "LSTM":
        raise InputError(f"lstm must be a torch.nn.LSTM or rnn_backends.LSTM, got {type(value).__name__}")


def as_inner(lstm: nn.Module) -> LSTM:
    """The LSTM of a module around it, in whose place a user or a tool may have put another module.

    Raises:
        InputError: it is neither an rnn_backends.LSTM nor a wrapper that has the attributes of one.
    """
    if isinstance(lstm, LSTM):
        if not lstm.takes_forms:
            lstm.check_forms()
        return lstm
    if isinstance(getattr(lstm, "spec", None), LSTMSpec):
        return lstm  # type: ignore[return-value]
    if isinstance(lstm, nn.RNNBase) and lstm.mode == "LSTM":
        cure = "assign LSTM.from_torch(lstm), which shares its parameters"
    else:
        cure = "a wrapper has to pass on all arguments of a call, and the attributes of the LSTM in it by __getattr__"
    raise InputError(
        f"the lstm of this module is now a {type(lstm).__name__}, and must be an rnn_backends.LSTM: {cure}"
    )
