"""``LSTMModule``: an LSTM in a TensorDict pipeline, with keys, recurrent mode, resets and zero-padded hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from tensordict import TensorDictBase, is_tensor_collection
from tensordict.nn import TensorDictModuleBase, dispatch, skip_existing
from tensordict.utils import NestedKey
from torch import Tensor, nn

from . import layout
from ._torch import all_out_keys, is_plain_eager, keep_torchrl_mode_eager, only_inlined, own_state
from .choose import resolve
from .contract import LSTMBackend, State, Trait
from .errors import InputError
from .keys import HIDDEN_IN, HIDDEN_OUT, check_keys, read_keys, write_keys
from .lstm import LSTM, Form, as_inner, check_is_lstm
from .mode import Mode, as_mode, recurrent_mode
from .options import fix_options
from .torchrl_names import TorchRLOptions
from .weights import as_dtype

if TYPE_CHECKING:
    from torchrl.envs import TensorDictPrimer


class LSTMModule(TensorDictModuleBase):  # type: ignore[misc]
    """An embedder for an LSTM, like TorchRL's ``LSTMModule``, over any backend.

    In **sequential mode** (the default) it runs one step: where the reset mask is true the incoming state is zero.
    In **recurrent mode** time is the last batch dimension: a sequence starts at ``t = 0`` and wherever the reset mask
    is true, from the state stored at that position (zeros where the hidden keys are absent). The hidden outputs are
    exactly zero except at each sequence's last step, where they are exact, so they may be carried over.

    Args:
        input_size: ``I``, features of the input.
        hidden_size: ``H``, features of the state.
        num_layers: ``L``.
        bias: whether the layers have biases.
        batch_first: must be ``True``; it exists for code that passes it by position.
        dropout: between layers, in training.
        proj_size: ``P``, 0 for none.
        bidirectional: whether each layer also runs in reverse over each sequence.
        python_based: the same as ``lstm_backend="vmap"``.
        recurrent_backend: TorchRL's name for ``lstm_backend``: a backend's name; ``"pad"`` is ``"cudnn"`` and
            ``"scan"`` is ``"vmap"``.
        recurrent_compute_dtype, recurrent_recompute, recurrent_matmul_precision: TorchRL's options of its own kernels,
            accepted at their defaults; the error for another value says what to use instead.

    Keyword Args:
        in_key: the value's key; the hidden keys are then ``recurrent_state_h`` and ``recurrent_state_c``.
        in_keys: the keys of value, ``h``, ``c`` (and the reset mask). Exclusive with ``in_key``.
        out_key: the output's key; the hidden keys are then ``("next", "recurrent_state_h")`` and
            ``("next", "recurrent_state_c")``.
        out_keys: the keys of output, ``h``, ``c``. Exclusive with ``out_key``.
        is_init_key: the reset mask's key, nested or not. Default ``"is_init"``.
        device: of the parameters.
        dtype: of the parameters.
        lstm: an LSTM (torch.nn's, TorchRL's or ours, with ``batch_first=True``) to wrap; its parameters are shared.
            Exclusive with the sizes and options.
        lstm_backend: a backend's name, ``"auto"``, or an :class:`~rnn_backends.LSTMBackend`. See :class:`LSTM`.
        default_recurrent_mode: the module's own mode after construction.
        hidden_output: ``"ends"`` (zero padded, as above) or ``"all"``: the state after every step, on backends with
            ``Trait.CELL_STATES``.

    Shapes, with ``K = L * D`` (layers times directions): value ``[*batch, I]``, hidden ``[*batch, K, P]`` and
    ``[*batch, K, H]``, reset mask ``[*batch]`` or ``[*batch, 1]`` bool, output ``[*batch, D*P]``; in recurrent mode
    the last dimension of ``batch`` is time.

    Raises:
        InputError: keys, sizes or options do not fit together.
        UnknownBackendError: no backend of that name is installed.
        UnsupportedError: the backend does not support this LSTM; the message has its reason and the backends that do.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from rnn_backends import LSTMModule
        >>> module = LSTMModule(3, 8, in_key="observation", out_key="features")
        >>> td = TensorDict({"observation": torch.randn(4, 3), "is_init": torch.ones(4, 1, dtype=torch.bool)}, [4])
        >>> module(td)["next", "recurrent_state_h"].shape
        torch.Size([4, 1, 8])
        >>> td = TensorDict(
        ...     {"observation": torch.randn(4, 6, 3), "is_init": torch.zeros(4, 6, 1, dtype=torch.bool)}, [4, 6]
        ... )
        >>> module.set_recurrent_mode(True)(td)["features"].shape
        torch.Size([4, 6, 8])
    """

    _stateless_steps = 0  # steps in the middle of a sequence without a stored state; counted up to 2
    DEFAULT_IN_KEYS: ClassVar[list[NestedKey]] = list(HIDDEN_IN)
    DEFAULT_OUT_KEYS: ClassVar[list[NestedKey]] = list(HIDDEN_OUT)

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        proj_size: int = 0,
        bidirectional: bool = False,
        python_based: bool = False,
        recurrent_backend: str | None = None,
        recurrent_compute_dtype: torch.dtype | None = None,
        recurrent_recompute: str | None = None,
        recurrent_matmul_precision: str | None = None,
        *,
        in_key: NestedKey | None = None,
        in_keys: Sequence[NestedKey] | None = None,
        out_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        is_init_key: NestedKey | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        lstm: nn.RNNBase | None = None,
        lstm_backend: str | LSTMBackend | None = None,
        default_recurrent_mode: bool | None = None,
        hidden_output: Literal["ends", "all"] = "ends",
    ) -> None:
        super().__init__()
        keep_torchrl_mode_eager()
        self.in_keys = read_keys(in_key, in_keys, is_init_key)
        self.out_keys = self._written_keys = write_keys(out_key, out_keys)
        check_keys(self.in_keys, self.out_keys)
        self._recurrent_mode = as_mode(default_recurrent_mode)
        self.hidden_output = hidden_output
        torchrl = TorchRLOptions(
            python_based, recurrent_backend, recurrent_compute_dtype, recurrent_recompute, recurrent_matmul_precision
        )
        lstm_backend = torchrl.backend(lstm_backend)
        if lstm is not None:
            unused: dict[str, Any] = {
                "num_layers": num_layers != 1,
                "bias": not bias,
                "dropout": dropout,
                "proj_size": proj_size,
            }
            unused |= {"input_size": input_size, "hidden_size": hidden_size, "bidirectional": bidirectional}
            _check_wrapped(lstm, unused | {"dtype": dtype}, device)
            self.lstm = LSTM.from_torch(lstm, lstm_backend)
            if isinstance(lstm, LSTM):
                lstm_backend = self.lstm.backend  # its choice is made: hidden_output="all" must not choose another
        else:
            if not batch_first:
                raise InputError("LSTMModule needs batch_first=True: a TensorDict's batch comes first")
            if not input_size or not hidden_size:
                raise InputError(f"give input_size and hidden_size, or lstm=; got {input_size} and {hidden_size}")
            self.lstm = LSTM(
                input_size,
                hidden_size,
                num_layers,
                bias,
                True,
                dropout,
                bidirectional,
                proj_size,
                device,
                dtype,
                lstm_backend=lstm_backend,
            )
        self._check_hidden_output(lstm_backend)

    def _check_hidden_output(self, request: str | LSTMBackend | None) -> None:
        if self.hidden_output == "ends":
            return
        if self.hidden_output != "all":
            raise InputError(f"hidden_output must be 'ends' or 'all', got {self.hidden_output!r}")
        if self.lstm.bidirectional:
            raise InputError(
                "hidden_output='all' has no meaning when bidirectional: the reverse direction's state at a step comes "
                "from the end of the sequence, so the next step cannot start from it"
            )
        weight, needs = self.lstm.weight_ih_l0, frozenset({Trait.CELL_STATES})
        self.lstm = self.lstm.with_backend(resolve(request, self.lstm.spec, weight.device, weight.dtype, needs))

    @property
    def lstm_backend(self) -> str:
        """The name of the backend that runs."""
        return self.lstm.lstm_backend

    @property
    def canonical_keys(self) -> list[NestedKey]:
        """The keys that this module reads and writes, for :meth:`canonicalize`."""
        return [*self.in_keys, *self.out_keys]

    def canonicalize(self, data: TensorDictBase, *, inplace: bool = False) -> TensorDictBase:
        """``data`` with contiguous tensors at the keys that this module reads and writes; the rest stays as it is.

        No backend needs it. TorchRL's pipelines call it, and it saves a kernel some copies.

        Args:
            data: of any batch size; missing keys are left out.
            inplace: write into ``data``, else into a copy that shares the other entries.
        """
        found = data if inplace else data.copy()
        for key in self.canonical_keys:
            value = data.get(key, None)
            if value is not None:
                found.set(key, value.contiguous())
        return found

    @property
    def recurrent_mode(self) -> bool:
        """Whether the module runs in recurrent mode now: the mode of :class:`set_recurrent_mode`, else its own."""
        override = recurrent_mode()
        return bool(self._recurrent_mode if override is None else override)

    @recurrent_mode.setter
    def recurrent_mode(self, value: bool) -> None:
        raise InputError("recurrent_mode cannot be set: module.set_recurrent_mode(...) returns a copy in that mode")

    def set_recurrent_mode(self, mode: Mode = True) -> LSTMModule:
        """A copy that shares this LSTM and differs only in mode; the module itself if the mode is the same.

        Args:
            mode: ``True`` or ``"recurrent"``, ``False`` or ``"sequential"``.
        """
        recurrent = bool(as_mode(mode))
        return self if recurrent == bool(self._recurrent_mode) else self._copy(_recurrent_mode=recurrent)

    def with_backend(self, lstm_backend: str | LSTMBackend) -> LSTMModule:
        """A copy on another backend, over the same parameters.

        Raises:
            InputError: the LSTM is within a wrapper, which the copy would leave out.
            UnknownBackendError: no backend of that name is installed.
            UnsupportedError: the backend does not support this LSTM.
        """
        if not isinstance(as_inner(self.lstm), LSTM):
            kind = type(self.lstm).__name__
            raise InputError(f"with_backend() would leave out the {kind} around the LSTM: choose first and wrap then")
        new = self._copy()
        new.lstm = self.lstm.with_backend(lstm_backend)
        new._check_hidden_output(new.lstm.backend)
        return new

    def make_python_based(self) -> LSTMModule:
        """TorchRL's name: switch to the ``vmap`` backend, in place."""
        self.lstm = self.with_backend("vmap").lstm
        return self

    def make_cudnn_based(self) -> LSTMModule:
        """TorchRL's name: switch to the ``cudnn`` backend, in place."""
        self.lstm = self.with_backend("cudnn").lstm
        return self

    def _copy(self, **changed: Any) -> LSTMModule:
        new = object.__new__(type(self))  # a class's own __new__ may make another object: that of FSDP2 does
        state = own_state(self)
        registries = {k: v.copy() for k, v in state.items() if k in _REGISTRIES}
        new.__dict__.update(state, **registries, **changed)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return own_state(self)

    def forward(self, tensordict: TensorDictBase | Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run one step, or over time in recurrent mode.

        Args:
            tensordict: batch size ``[*batch]``, or ``[*batch, T]`` in recurrent mode. Or the entries themselves, by
                position in the order of ``in_keys`` or by keyword; the outputs are then returned as a tuple.
            args: the other entries.
            kwargs: the other entries, or ``tensordict_out``: the TensorDict to write to, by default the given one.

        Returns:
            The TensorDict with ``out_keys`` set.

        Raises:
            MissingKeyError: the value or the reset mask is missing.
            InputError: a shape, dtype or device does not fit; the TensorDict is then unchanged.
        """
        if is_tensor_collection(tensordict):
            return self._forward(tensordict, *args, **kwargs)
        entries = (tensordict, *args) if tensordict is not None else args
        return self._forward_entries(*entries, **kwargs)

    @dispatch(auto_batch_size=False)  # type: ignore[untyped-decorator]
    def _forward_entries(self, tensordict: TensorDictBase) -> TensorDictBase:
        x = tensordict.get(self.in_keys[0], None)
        if x is not None:
            tensordict.batch_size = x.shape[:-1]
        return self._forward(tensordict)

    @only_inlined  # as :meth:`LSTM._call` is
    def _forward(self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None) -> TensorDictBase:
        if skip_existing() and self._has_results(tensordict):
            return tensordict
        out = tensordict if tensordict_out is None else tensordict_out
        recurrent = self.recurrent_mode
        if recurrent:
            layout.check_time(tensordict)
        lstm = as_inner(self.lstm)
        if type(self) is not LSTMModule and torch.is_grad_enabled():
            self._check_gradients_are_seen(lstm)
        read = layout.read(tensordict, self.in_keys, lstm)
        layout.check_writable(out, self.out_keys)
        values = self._over_time(lstm, read) if recurrent else self._one_step(lstm, read)
        return layout.write(out, {key: values[key] for key in self.out_keys})

    def _check_gradients_are_seen(self, lstm: LSTM) -> None:
        """Raise :class:`InputError` if FSDP2 shards this module and would never see the weights' gradients.

        Its hooks look for tensors in a module's results, and not within a TensorDict.
        """
        shards = "set_requires_gradient_sync"  # a public method of every module that FSDP2 shards
        if hasattr(type(self), shards) and not hasattr(type(lstm), shards):
            raise InputError(
                "FSDP2 shards this LSTMModule, and finds no tensors in the TensorDict that it returns: a backward pass "
                "would leave the weights without gradients. Call fully_shard(module.lstm) before fully_shard(module); "
                "act under torch.no_grad()"
            )

    def _has_results(self, td: TensorDictBase) -> bool:
        """The check of tensordict's ``set_skip_existing`` decorator, without its context manager in each step."""
        there, written = td.keys(True), self.out_keys
        return all(key in there for key in written) and not any(key in written for key in self.in_keys)

    def _one_step(self, lstm: LSTM, read: layout.Inputs) -> dict[NestedKey, Tensor]:
        x, is_init, stored = layout.fold_step(read)
        if stored is None and self._stateless_steps < 2 and is_plain_eager():
            self._notice_lost_state(is_init)
        y, state = lstm(x, stored, is_init=is_init, form="step")
        state = _as_stored(lstm, state)
        if read.is_init.ndim == 1:  # the usual case when acting needs no reshape
            return dict(zip(self._all_out_keys(), (y, *state), strict=True))
        values = (layout.unfold_step(value, read.is_init.shape) for value in (y, *state))
        return dict(zip(self._all_out_keys(), values, strict=True))

    def _notice_lost_state(self, is_init: Tensor) -> None:
        """Warn once if steps in the middle of sequences have no state, because the environment does not carry it over.

        A step in which every row starts a sequence needs no state. The second such step warns; a single one may be a
        trial.
        """
        if type(is_init) is not Tensor or is_init.is_meta:
            return
        if is_init.is_cuda and torch.cuda.is_current_stream_capturing():  # a CUDA graph capture allows no reads
            return
        if bool(is_init.all()):
            return
        self._stateless_steps += 1
        if self._stateless_steps == 2:
            h, c = self.in_keys[1:3]
            warnings.warn(
                f"this LSTMModule acts without memory: {h!r} and {c!r} are absent in steps that start no sequence, so "
                "each of them starts from zeros. The environment has to carry the state over: TransformedEnv(env, "
                "Compose(InitTracker(), module.make_tensordict_primer()))",
                UserWarning,
                stacklevel=2,
            )

    def _over_time(self, lstm: LSTM, read: layout.Inputs) -> dict[NestedKey, Tensor]:
        x, is_init, stored = layout.fold_time(read)
        batch = read.is_init.shape[:-1]
        if list(self.out_keys) == list(self._all_out_keys()[:1]):  # select_out_keys dropped the states
            y, _ = lstm(x, stored, is_init=is_init, form="output")
            return {self.out_keys[0]: layout.unfold_time(y, batch)}
        form: Form = "all_states" if self.hidden_output == "all" else "sequences"
        y, state = lstm(x, stored, is_init=is_init, form=form)
        values = (layout.unfold_time(value, batch) for value in (y, *_as_stored(lstm, state)))
        return dict(zip(self._all_out_keys(), values, strict=True))

    def _all_out_keys(self) -> Sequence[NestedKey]:
        return all_out_keys(self, self._written_keys)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """TorchRL's ``TensorDictPrimer`` for the hidden states, to append to an environment.

        Raises:
            InputError: an output key is not ``("next", <input key>)``, so an environment could not carry the state.
        """
        from torchrl.data import Unbounded
        from torchrl.envs import TensorDictPrimer

        pairs = list(zip(self.in_keys[1:3], self._all_out_keys()[1:], strict=True))
        for read, written in pairs:
            if written != ("next", *(read if isinstance(read, tuple) else (read,))):
                raise InputError(f"a primer needs out_keys ('next', <in_key>), got {written!r} for {read!r}")
        lstm = as_inner(self.lstm)
        spec, weight = lstm.spec, lstm.weight_ih_l0
        sizes = (spec.output_size, spec.hidden_size)
        return TensorDictPrimer(
            {
                read: Unbounded(shape=(spec.num_states, size), dtype=weight.dtype)
                for (read, _), size in zip(pairs, sizes, strict=True)
            },
            expand_specs=True,
        )

    def extra_repr(self) -> str:
        """The keys and the mode."""
        return f"in_keys={self.in_keys}, out_keys={self.out_keys}, recurrent_mode={self.recurrent_mode}"

    __repr__ = nn.Module.__repr__  # TensorDictModuleBase's leaves extra_repr out


fix_options(
    LSTMModule, ("hidden_output",), "it takes part in the choice of a backend. Make a new LSTMModule(lstm=) with it"
)
_REGISTRIES = {name for name, value in nn.Module().__dict__.items() if isinstance(value, dict)}


def _as_stored(lstm: LSTM, state: tuple[Tensor, Tensor]) -> State:
    """The state in the weights' dtype, so that a stored state keeps it from step to step under autocast too."""
    (h, c), dtype = state, lstm.like_weights().dtype
    if h.dtype is dtype and c.dtype is dtype and isinstance(state, State):
        return state
    return State(as_dtype(h, dtype), as_dtype(c, dtype))


def _check_wrapped(lstm: nn.RNNBase, unused: dict[str, Any], device: torch.device | str | None) -> None:
    check_is_lstm(lstm)
    given = [name for name, value in unused.items() if value]
    if given:
        raise InputError(f"give lstm= or {', '.join(given)}, not both: an LSTM that is wrapped has its own options")
    if not getattr(lstm, "batch_first", True):
        raise InputError("lstm= must have batch_first=True: a TensorDict's batch comes first")
    has = next(lstm.parameters()).device
    if device is not None and torch.device(device).type != has.type:
        raise InputError(f"device={str(device)!r}, and the parameters of lstm= are on {has}: move one of them")
