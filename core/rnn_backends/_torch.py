"""Private and undocumented names of torch, tensordict and TorchRL: each behind one function with a fallback.

No other file of core uses such a name (``core/tests/test_imports.py``). Where a name is missing, the fallback gives the
answer that can only cost time or a refusal, never a wrong number.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def _unknown(*_: object) -> bool:
    return True


_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _unknown)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", _unknown)
_function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", _unknown)
_function_mode_at: Callable[[int], object] | None = getattr(torch._C, "_get_function_stack_at", None)
_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", _unknown)
lstm_cell: Callable[..., tuple[Tensor, Tensor]] | None = getattr(torch, "lstm_cell", None)
"""The undocumented function under ``torch.nn.LSTMCell``; ``None`` where it is missing."""


def transforms_may_be_open() -> bool:
    """Whether a ``torch.func`` transform or a forward-AD level may be open around this call.

    It takes 0.1 us. Without the private names the answer is always true, so that callers look at their tensors.
    While ``torch.compile`` traces, it is about forward-mode AD alone: Dynamo batches any code by itself.
    """
    if torch.compiler.is_dynamo_compiling():
        return bool(forward_ad_in_trace())
    return forward_ad_may_be_open() or bool(_transforms_active())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def forward_ad_in_trace() -> bool:
    """Whether forward-mode AD is open where Dynamo traces, within the trace or around it: Dynamo guards on both."""
    return forward_ad_may_be_open() or "Jvp" in (transform_levels() or ())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def derivative_in_trace() -> bool:
    """Whether ``torch.func.grad`` or forward-mode AD is open where Dynamo traces, within the trace or around it."""
    return forward_ad_may_be_open() or not {"Grad", "Jvp"}.isdisjoint(transform_levels() or ())


def forward_ad_may_be_open() -> bool:
    """Whether a level of forward-mode AD may be open (``torch.func.jvp`` opens one too); true where torch hides it."""
    level: int = getattr(forward_ad, "_current_level", 0)
    return level >= 0


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is known to be active.

    Without the private names: no. Callers must then leave the call to torch's dispatcher, which is what
    :func:`is_plain_eager` says.
    """
    if _transforms_active is _unknown:
        return bool(transform_levels())
    return bool(_transforms_active())


def vmap_may_be_open() -> bool:
    """Whether a level of ``torch.vmap`` may be open, at any depth; true where torch does not tell."""
    levels = transform_levels()
    return levels is None or "Vmap" in levels


def registered_parameters(module: nn.Module) -> Mapping[str, Tensor | None]:
    """The module's own parameters by name, for look-ups that are faster than ``getattr`` (half a microsecond each).

    Without the private name it is empty, and callers fall back on ``getattr``.
    """
    found: Mapping[str, Tensor | None] = getattr(module, "_parameters", {})
    return found


def parametrizations_of(module: nn.Module) -> nn.ModuleDict | None:
    """The module's parametrizations by the weight's name, or ``None``; without the private name a slower look-up."""
    modules: Mapping[str, nn.Module | None] | None = getattr(module, "_modules", None)
    found = getattr(module, "parametrizations", None) if modules is None else modules.get("parametrizations")
    return found if isinstance(found, nn.ModuleDict) else None


def own_state(module: nn.Module) -> dict[str, Any]:
    """The part of ``__dict__`` that a twin or a copy of the module takes: without the entries that would run the
    module.

    Left out: the compiled call of ``module.compile()``, methods patched on this one object (``forward``), bound
    methods of it, and torch's lists of its weights and of weak references to them, which prevent a swap of parameters.
    """
    names = {"_compiled_call_impl", "_flat_weights", "_flat_weight_refs", "_wrapped"}
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in names
        and getattr(value, "__self__", None) is not module
        and not inspect.isfunction(getattr(type(module), name, None))
    }


class SharedRNN(nn.RNNBase):
    """An ``nn.RNNBase`` whose registries several modules may share, torch.nn.LSTM's own among them.

    It keeps no list of its weights, which would be stale when another module changes them, and no weak references to
    them, with which torch cannot swap parameters (``torch.__future__.set_swap_module_params_on_conversion``).
    Parametrizations that were registered through another module are found.
    """

    def share(self, module: nn.RNNBase) -> None:
        """Take over the module's registries and options."""
        self.__dict__.update(own_state(module))
        self._flat_weight_refs = [None] * len(self._flat_weights_names)
        if not isinstance(module, SharedRNN):
            self.__dict__["_wrapped"] = weakref.ref(module)

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Any]) -> None:
        pass  # RNNBase assigns it

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = [None] * len(self._flat_weights_names)
        self.flatten_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedRNN:
        reference = self.__dict__.get("_wrapped")
        wrapped = reference() if reference is not None else None
        if wrapped is not None:
            wrapped._flat_weight_refs = []
        super()._apply(fn, recurse)
        if wrapped is not None:
            wrapped._init_flat_weights()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return own_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._flat_weight_refs = [None] * len(self._flat_weights_names)

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("_modules", {}).get("parametrizations")
        if found is not None and (name == "parametrizations" or name in found):
            missing = [tensor for tensor in found if not isinstance(getattr(type(self), tensor, None), property)]
            if missing:
                self._parametrize(missing)
                return getattr(self, name)
        return super().__getattr__(name)

    def _parametrize(self, names: list[str]) -> None:
        """Prepare this object as torch prepared the one through which these were parametrized."""
        if not type(self).__name__.startswith("Parametrized"):
            self.__class__ = type(f"Parametrized{type(self).__name__}", (type(self),), {})
        for name in names:
            setattr(type(self), name, _parametrized(name))


METHODS_OF_NN_LSTM: dict[str, Any] = {
    name: getattr(nn.LSTM, name)
    for name in ("check_forward_args", "get_expected_cell_size", "permute_hidden")
    if hasattr(nn.LSTM, name)
}
"""Undocumented methods of torch.nn.LSTM that ``nn.RNNBase`` lacks, or has for one tensor in place of two."""


def _parametrized(name: str) -> property:
    def get(self: Any) -> Any:
        found = self._modules.get("parametrizations", {})  # without it: removed through another module
        return found[name]() if name in found else nn.Module.__getattr__(self, name)

    def assign(self: Any, value: Any) -> None:
        self.parametrizations[name].right_inverse(value)

    return property(get, assign)


def torchrl_recurrent_mode() -> bool | None:
    """TorchRL's recurrent mode; ``None`` where TorchRL is not loaded or sets no mode.

    ``torchrl.modules.recurrent_mode`` is public. Before ``torchrl.modules`` is imported nobody can have set a mode.
    """
    modules = sys.modules.get("torchrl.modules")
    mode = getattr(modules, "recurrent_mode", None)
    return mode() if mode is not None else None


def torchrl_set_recurrent_mode() -> Callable[[bool | None], Any] | None:
    """TorchRL's context manager ``torchrl.modules.set_recurrent_mode`` (public); ``None`` where it is not loaded."""
    return getattr(sys.modules.get("torchrl.modules"), "set_recurrent_mode", None)


def torchrl_mode_in_traces() -> bool | None:
    """The mode that traced code would read from TorchRL if it entered no context of TorchRL's itself.

    TorchRL keeps it in an attribute that all threads and tasks share, and in a ``ContextVar``. Comparing the two shows
    whether a mode was set within a trace. Without the private name: the mode of this thread and task.
    """
    manager = _torchrl_manager()
    mode: bool | None = getattr(manager, "_mode", None) if hasattr(manager, "_mode") else torchrl_recurrent_mode()
    return mode


def torchrl_mode_outside() -> bool | None:
    """TorchRL's mode in this thread and task, read while Dynamo traces, when TorchRL's own function does not give it.

    Without the private name: the result of TorchRL's own function.
    """
    context = getattr(_torchrl_manager(), "_context_mode", None)
    mode: bool | None = torchrl_recurrent_mode() if context is None else context.get()
    return mode


def _torchrl_manager() -> object:
    if sys.modules.get("torchrl.modules") is None:
        return None
    rnn = sys.modules.get("torchrl.modules.tensordict_module.rnn")
    return getattr(rnn, "recurrent_mode_state_manager", None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def torchrl_mode_set_in_trace() -> bool:
    """Whether the code that Dynamo traces has set TorchRL's mode before this point: a fact about the code.

    Without the private names: yes, so that the mode is read.
    """
    if torchrl_set_recurrent_mode() is None:
        return False
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        effects: Any = InstructionTranslator.current_tx().output.side_effects
        manager = effects.id_to_variable.get(id(_torchrl_manager()))
        return manager is not None and "_mode" in effects.store_attr_mutations.get(manager, {})
    except (ImportError, AttributeError):
        return True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def keep_torchrl_mode_eager() -> None:
    """Apply :func:`only_inlined` to TorchRL's context manager, if it is loaded: a graph break then keeps its mode.

    Where Dynamo traces the construction of a module, this runs at once, as it does outside.
    """
    for name in ("__enter__", "__exit__"):
        method = getattr(torchrl_set_recurrent_mode(), name, None)
        if inspect.isfunction(method):
            only_inlined(method)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def with_is_traced(kind: type) -> bool:
    """Whether Dynamo traces a ``with`` statement over a context manager of this kind, in which no graph breaks.

    The other way to enter one is to call ``__enter__``, as ``ExitStack`` does. Without the private names: no.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        frame: Any = InstructionTranslator.current_tx()
        while frame is not None:
            if any(type(manager.cm_obj) is kind for manager in frame.active_generic_context_managers):
                return True
            frame = frame.parent
    except (ImportError, AttributeError):
        pass
    return False


def break_the_graph() -> None:
    """Make Dynamo run the frame that it traces as plain Python from here on; an error under ``fullgraph=True``."""
    torch._dynamo.graph_break()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def leave_the_frame_if_debugging() -> None:
    """With torch's debugging backend ``"eager"``, make Dynamo run the frame that it traces as plain Python.

    For use within a derivative of ``torch.func``, before a break of the graph. After the break, ``"eager"`` traces the
    rest of the frame, and fails because its inputs belong to the derivative's level; others trace nothing there.
    Under ``fullgraph=True`` and without the private names it does nothing.
    """
    try:
        from torch._dynamo.exc import SkipFrame
        from torch._dynamo.symbolic_convert import InstructionTranslator

        frame: Any = InstructionTranslator.current_tx()
        compiler = frame.output.compiler_fn
        debugs = getattr(compiler, "compiler_fn", compiler) is torch._dynamo.lookup_backend("eager")
        must_trace = frame.one_graph or frame.error_on_graph_break
        while frame.parent is not None:
            frame = frame.parent
    except (ImportError, AttributeError):
        return
    # Dynamo never traces a frame again that was left once, so frames of this package are broken instead.
    if debugs and not must_trace and not frame.f_globals["__name__"].startswith(f"{__package__}."):
        raise SkipFrame("a derivative of torch.func")


def _frame_strategy() -> Callable[[Any], None] | None:
    """How to tell Dynamo that a code object is never compiled as a frame of its own."""
    eval_frame = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    set_strategy = getattr(eval_frame, "set_code_exec_strategy", None)
    try:
        from torch._dynamo.types import FrameAction, FrameExecStrategy
    except ImportError:
        return None
    if set_strategy is None:
        return None
    return lambda code: set_strategy(code, FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP))


_skip_frame = _frame_strategy()
CAN_INLINE_ONLY = _skip_frame is not None
Function = TypeVar("Function", bound=Callable[..., Any])


def only_inlined(function: Function) -> Function:
    """Decorator: ``torch.compile`` inlines the function in a trace, and never compiles a call of it by itself.

    Between two graphs it then runs as plain Python does, with ``torch.compiler.is_compiling()`` false. Without the
    private name it is compiled there too, and :data:`CAN_INLINE_ONLY` is false.
    """
    if _skip_frame is not None:
        _skip_frame(getattr(function, "__code__", None))
    return function


def all_out_keys(module: Any, constructed: Sequence[Any]) -> Sequence[Any]:
    """A TensorDict module's output keys before ``select_out_keys``; the keys of its constructor as a fallback."""
    keys: Sequence[Any] = getattr(module, "out_keys_source", constructed)
    return keys


def is_plain_eager() -> bool:
    """Whether no dispatch mode, function mode, ``torch.func`` transform or tracer is active.

    It takes 0.2 us. Without one of the private names: no. ``torch.set_default_device`` is a function mode that changes
    factory functions alone, so it does not count.
    """
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _transforms_active()
        or _function_mode_is_on()
        or _tracing_state() is not None
    )


def _function_mode_is_on() -> bool:
    """Whether a function mode other than ``torch.set_default_device`` is active."""
    return bool(_function_modes()) and not _only_default_device()


def _only_default_device() -> bool:
    try:
        from torch.utils._device import DeviceContext
    except ImportError:
        return False
    if _function_mode_at is None or _function_modes is _unknown:
        return False
    return all(type(_function_mode_at(k)) is DeviceContext for k in range(_function_modes()))


def transform_levels() -> set[str] | None:
    """The kinds of ``torch.func``'s open levels, as ``TransformType`` names them; ``None`` where torch hides them."""
    try:
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

        return {level.key().name for level in retrieve_all_functorch_interpreters()}
    except (ImportError, AttributeError):
        return None


def is_functionalized(values: Iterable[Tensor | None]) -> bool:
    """Whether ``functionalize`` wraps one of these. Without the private name: no; then reading it raises."""
    wrapped = getattr(torch, "_is_functional_tensor", None)
    if "Functionalize" in (transform_levels() or ()) if in_transform() else False:
        return True
    return wrapped is not None and any(v is not None and wrapped(v) for v in values)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` or ``make_fx`` are recording. Without the private names: yes."""
    if _tracing_state() is not None:
        return True
    return is_proxied()


def is_jit_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording. Without the private name: no."""
    return _tracing_state is not _unknown and _tracing_state() is not None


def is_proxied(before_dispatch: bool = True) -> bool:
    """Whether ``make_fx`` is recording. Without the private names: yes, where a mode is on.

    Args:
        before_dispatch: whether ``pre_dispatch=True`` counts, which records torch's fused functions as one operator.
    """
    if not (_dispatch_modes() or _function_mode_is_on()):
        return False
    try:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode
    except ImportError:
        return True
    mode = get_proxy_mode()
    return mode is not None and (before_dispatch or not getattr(mode, "pre_dispatch", False))


class _NoKeys:
    def raw_repr(self) -> None:
        return None


def _no_dispatch_keys(_: Tensor) -> _NoKeys:
    return _NoKeys()


dispatch_keys: Callable[[Tensor], Any] = getattr(torch._C, "_dispatch_keys", _no_dispatch_keys)
"""The dispatcher's keys of a tensor: its backend and all that wraps it, as bits by ``raw_repr()``. Without the private
name the bits are ``None``."""


def _any_requires_grad(*values: Tensor | None) -> bool:
    return any(v is not None and v.requires_grad for v in values)


any_requires_grad: Callable[..., bool] = getattr(torch._C, "_any_requires_grad", _any_requires_grad)
"""Whether one of these tensors requires a gradient; ``None`` values are skipped. 0.3 us instead of 1."""


_keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", _unknown)
_default_hooks: Callable[[bool], object] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", _unknown)


def graph_is_kept() -> bool:
    """Whether the backward pass that runs may run again over its graph (``retain_graph=True``).

    Outside of a backward pass, while it is traced, and without the private name: yes.
    """
    return torch.compiler.is_compiling() or bool(_keeps_graph())


def hooks_see_saved_tensors() -> bool:
    """Whether hooks of ``torch.autograd.graph`` get the tensors that are saved now. Without the private name: yes."""
    return _default_hooks(True) is not None


def is_functional_tensor(value: Tensor) -> bool:
    """Whether ``functionalize`` wraps it, so that it shows no memory. Without the private name: no."""
    known = getattr(torch, "_is_functional_tensor", None)
    return known is not None and bool(known(value))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_draft_exported() -> bool:
    """Whether ``torch.export.draft_export`` is recording. Without the private name: no."""
    config = getattr(getattr(torch, "_functorch", None), "config", None)
    return bool(getattr(config, "fake_tensor_propagate_real_tensors", False))


def is_zero_tensor(value: Tensor) -> bool:
    """Whether it is a tensor of zeros without memory. Without the private name: no."""
    known = getattr(value, "_is_zerotensor", None)
    return known is not None and bool(known())
