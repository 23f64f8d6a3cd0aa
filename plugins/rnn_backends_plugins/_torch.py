"""Private and undocumented names of torch, each behind one function with a fallback.

No other file of the plugins uses such a name (``core/tests/test_imports.py``). If a name is missing, the fallback is
slower or raises an error, but never gives a wrong number (``plugins/tests/test_private_names.py`` removes each).
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from rnn_backends import UnsupportedError
from torch import Tensor, nn


def _true(*_: object) -> bool:
    return True


_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _true)


def outside_transforms() -> AbstractContextManager[object]:
    """A context in which ``torch.func``'s transforms do not wrap results, for tensors that are cached between calls.

    Raises:
        UnsupportedError: this torch lacks the private name, and a transform is active: tensors that are made inside
            it would stay wrapped after it.
    """
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:
        if _transforms_active is not _true and _transforms_active():
            reason = f"it must leave the transform to plan, and torch {torch.__version__} lacks the function for that"
            raise UnsupportedError("cudnn", "torch.func's transforms", reason, ["vmap"]) from None
        return nullcontext()
    context: AbstractContextManager[object] = temporarily_clear_interpreter_stack()
    return context


def unwrapped(value: Tensor) -> Tensor:
    """The tensor inside ``torch.func.grad``'s wrappers, which have no memory of their own; else the same tensor."""
    functorch = getattr(torch._C, "_functorch", None)
    if functorch is None or not hasattr(functorch, "is_gradtrackingtensor"):
        return value
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    return value


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is active. Without the private name: yes, which is slower but right."""
    return bool(_transforms_active())


def onednn_knows(dtype: torch.dtype) -> bool:
    """Whether this processor has the instructions of oneDNN's LSTM in 16 bits. Without the private names: no."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    try:
        return bool(getattr(torch.ops.mkldnn, name)())
    except (AttributeError, RuntimeError):
        return False


def flatten_for_cudnn(
    weights: list[Tensor],
    per_layer: int,
    I: int,  # noqa: E741
    H: int,
    P: int,
    layers: int,
    bidirectional: bool,
) -> Tensor | None:
    """Move an LSTM's ``weights``, in place, into one buffer in cuDNN's layout, and return that buffer.

    ``torch.nn.LSTM.flatten_parameters`` calls the same function; ``P`` is 0 without a projection. The result is
    ``None`` for a build of torch without cuDNN, or a dtype that cuDNN does not support.
    """
    flatten = getattr(torch, "_cudnn_rnn_flatten_weight", None)
    if flatten is None:
        return None
    mode = 2  # CUDNN_LSTM: torch.backends.cudnn.rnn.get_cudnn_mode("LSTM")
    try:
        with torch.cuda.device_of(weights[0]):
            buffer: Tensor = flatten(weights, per_layer, I, mode, H, P, layers, False, bidirectional)
    except RuntimeError:
        return None
    return buffer


def saved_tensors_are_hooked() -> bool:
    """Whether autograd passes saved tensors to hooks (activation checkpointing). Without the private name: yes."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return True if top is None else top(True) is not None


def largest(values: Sequence[Tensor]) -> Tensor:
    """``[len(values)]``: the largest absolute value of each, NaN where there is one; one launch or two on a GPU.

    Without the private name: one after the other.
    """
    norms = getattr(torch, "_foreach_norm", None)
    whole = [value if value.numel() else value.new_zeros(1) for value in values]
    if norms is not None:
        return torch.stack(norms(whole, float("inf")))
    return torch.stack([value.abs().amax() for value in whole])


def fused_lstm_exists() -> bool:
    """Whether torch has :func:`fused_lstm` and :func:`lstm_cell`; without them ``cudnn`` rejects every LSTM."""
    return hasattr(torch, "lstm") and hasattr(torch, "lstm_cell")


def fused_lstm(
    x: Tensor,
    hx: Sequence[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The undocumented function under ``torch.nn.LSTM``, ``torch.lstm``, without dropout.

    Args:
        x: ``[T, B, I]``.
        hx: ``h_0 [L*D, B, P]`` and ``c_0 [L*D, B, H]``.
        params: all weights, in torch.nn.LSTM's order.
        has_biases: whether the biases are among them.
        num_layers: ``L``.
        train: whether the kernel must save the tensors that a backward pass needs.
        bidirectional: whether ``D`` is 2.

    Returns:
        The output ``[T, B, D*P]``, ``h_n`` and ``c_n``.
    """
    y, h, c = torch.lstm(x, tuple(hx), params, has_biases, num_layers, 0.0, train, bidirectional, False)
    return y, h, c


def lstm_cell(x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The undocumented function under ``torch.nn.LSTMCell``: ``x [B, I]``, ``h [B, H]`` and ``c [B, H]``."""
    h, c = torch.lstm_cell(x, tuple(hx), *params)
    return h, c


def flat_weights(module: nn.RNNBase) -> list[Tensor] | None:
    """An RNN's weights in the order of its kernel; ``None`` if a weight or the private names are missing."""
    names = getattr(module, "_flat_weights_names", None)
    weights = [weight for weight in getattr(module, "_flat_weights", ()) if isinstance(weight, Tensor)]
    return weights if names is not None and len(weights) == len(names) else None


def functions_of_nn() -> Any:
    """The namespace in which ``torch.nn.LSTM`` looks up ``lstm``. Without the private name: torch's."""
    return getattr(torch, "_VF", torch)


def profiler_runs() -> bool:
    """Whether torch's profiler runs. Without the private name: no, and the profile of memory may lack cached blocks."""
    enabled: Callable[[], bool] | None = getattr(torch.autograd, "_profiler_enabled", None)
    return enabled is not None and enabled()


@contextmanager
def below_autograd() -> Iterator[None]:
    """Run below autograd and its bookkeeping of views: a slice is a tensor like any other.

    Without the private names it runs above them, and code that ``torch.compile`` guards is compiled again for views.
    """
    names = ("DispatchKeySet", "DispatchKey", "_AutoDispatchBelowAutograd", "_ExcludeDispatchKeyGuard")
    if not all(hasattr(torch._C, name) for name in names):
        yield
        return
    views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(views):
        yield


def onednn_packed(matrix: Tensor, rows: int) -> Tensor | None:
    """``matrix [K, N]`` packed for :func:`onednn_linear` of ``rows`` rows; ``None`` if torch has no such product."""
    if not onednn_linear_works():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(
        matrix.t().contiguous(), rows
    )  # [N, K], as oneDNN's layers
    return packed


def onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias`` by oneDNN, ``weight [N, K]`` packed or not; needs :func:`onednn_linear_works`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


@cache
def onednn_linear_works() -> bool:
    """Whether the private operators exist, accept these arguments, and multiply right. Tested once, on two numbers."""
    rows, weight = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]])
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        results = [onednn_linear(rows, w, b) for w in (weight, packed) for b in (None, torch.ones(1))]
        return [result.item() for result in results] == [31.0, 32.0, 31.0, 32.0]
    except (AttributeError, RuntimeError, TypeError):
        return False


def compiling_in_traces() -> AbstractContextManager[object]:
    """A context in which ``torch.compile`` can compile a kernel's own code while ``make_fx`` records the caller.

    Without the private name it does nothing, and torch raises an error about the nested trace.
    """
    from torch._dynamo import config

    if not hasattr(config, "force_compile_during_fx_trace"):
        return nullcontext()
    context: AbstractContextManager[object] = config.patch(force_compile_during_fx_trace=True)
    return context


Calls = list[tuple[Any, list[Any]]]


def dynamo_is_off() -> bool:
    """Whether ``torch._dynamo.config.disable`` is set, with which ``torch.compile`` compiles nothing. Without the
    private name: no; ``torch.compile(fullgraph=True)`` then raises its own error.
    """
    return bool(getattr(sys.modules.get("torch._dynamo.config"), "disable", False))


def recording_backend(calls: Calls) -> Callable[..., Any] | None:
    """``torch.compile``'s default backend, which appends to ``calls`` the generated code and its arguments.

    ``None`` without the private names: the caller then compiles as usual, and calls the guarded function.
    """
    try:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        known = inspect.signature(compile_fx).parameters
    except ImportError:
        return None
    if not {"inner_compile", "config_patches"} <= set(known) or not hasattr(config, "enable_autograd_cache"):
        return None

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        code = compile_fx_inner(graph, inputs, **options)

        def call(values: list[Any]) -> Any:
            calls.append((code, list(values)))
            return code(values)

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def backend(graph: Any, inputs: Any) -> Any:
        # The autograd cache would return the code of an earlier process without calling `inner`; inductor's stays on.
        with config.patch(enable_autograd_cache=False):
            return compile_fx(graph, inputs, inner_compile=inner, config_patches={"size_asserts": False})

    return backend


def generated_code(compiled: Any) -> Callable[[list[Any]], Any] | None:
    """The function within the compiler's result, without its wrappers; ``None`` without the private name."""
    return getattr(compiled, "current_callable", None)


def compiles_for_any_size() -> bool:
    """Whether :func:`mark_any_size` works: torch has ``mark_unbacked`` with ``shape_id``, as since 2.11."""
    try:
        from torch._dynamo.decorators import mark_unbacked
    except ImportError:
        return False
    return "shape_id" in inspect.signature(mark_unbacked).parameters


def mark_any_size(value: Tensor, sizes: Iterable[tuple[int, str]]) -> Tensor:
    """Mark ``value`` so that code is compiled for any size of these dimensions, 0 and 1 too; equal names, equal sizes.

    Without the private name nothing is marked, and code is compiled once more for a size of 1.
    """
    if compiles_for_any_size():
        from torch._dynamo.decorators import mark_unbacked

        for dim, name in sizes:
            mark_unbacked(value, dim, shape_id=name)
    return value


Scan = Callable[..., tuple[Any, tuple[Tensor, Tensor]]]
"""``scan(body, init, xs) -> last, (h, c)``, with ``body(before, now) -> after, (h_t, c_t)``."""

SCAN_HAS_GRADIENTS = torch.__version__ >= "2.13"
"""Whether the gradients through torch's scan are right. torch 2.11 and 2.12 compute wrong ones, for a loop of one
product too (measured on 2.11.0 and 2.12.1; right on 2.13.0 and 2.14.1)."""


def scan_of_exports(x: Tensor) -> Scan | None:
    """Torch's loop over the first dimension if ``x [T, ...]`` is exported with a free ``T``; else ``None``.

    It is a prototype of torch. Without the private name, ``None``: the loop is then unrolled, and ``torch.export``
    reports that ``T`` is fixed.
    """
    if not (torch.compiler.is_exporting() and isinstance(x.shape[0], torch.SymInt)):
        return None
    try:
        from torch._higher_order_ops import scan
    except ImportError:
        return None

    def quiet(*args: Any) -> Any:
        with warnings.catch_warnings():  # torch's tracer reads `.grad` of the arguments of the loop's body
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            last, states = scan(*args)
        if not (SCAN_HAS_GRADIENTS or torch.onnx.is_in_onnx_export()):  # an ONNX graph has no gradients
            states = tuple(map(_without_derivative, states))
        return last, states

    return quiet


def _without_derivative(value: Tensor) -> Tensor:
    """The same numbers by an operator whose derivative is an error in torch before 2.13: ``nextafter(v, v) = v``."""
    return torch.nextafter(value, value)


def _padded(value: Tensor, sizes: Sequence[int], number: float) -> Tensor:
    return torch.nn.functional.pad(value, sizes, value=number)


padded: Callable[[Tensor, Sequence[int], float], Tensor] = getattr(torch, "constant_pad_nd", _padded)
"""``torch.nn.functional.pad`` with a number, by the undocumented function below it where there is one: 4 us less."""


_RECURRENT: Any = getattr(torch.backends.cudnn, "rnn", None)
_PRODUCTS: Any = torch.backends.cuda.matmul
"""Where torch keeps the switches. Looking them up from ``torch.backends`` takes 2 us, for a call that asks often."""


def tf32_in_recurrent_networks() -> bool:
    """Whether cuDNN's recurrent networks may multiply float32 in TF32, torch's default.

    ``torch.backends.cudnn.allow_tf32``, the older name of the switch, raises an error once a program has set recurrent
    networks and convolutions apart.
    """
    if _RECURRENT is None:
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(_RECURRENT.fp32_precision == "tf32")


def tf32_in_products() -> bool:
    """Whether torch's matrix products on CUDA may multiply float32 in TF32; not torch's default."""
    found = getattr(_PRODUCTS, "fp32_precision", None)
    return bool(found == "tf32") if found is not None else bool(_PRODUCTS.allow_tf32)
