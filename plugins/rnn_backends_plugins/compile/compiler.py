"""One compilation per step function, device and dtype, and a short way to call what came out.

A call of a ``torch.compile``'d function checks guards and passes several wrappers: about 40 microseconds, several
times the work of one step of a small LSTM. The loops over time hand in tensors whose dtype, device and layout they
made themselves, so nothing is left to guard, and they call the generated code directly.
"""

import inspect
from collections.abc import Callable
from functools import cache
from threading import RLock
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., None]
B, H = 3, 5  # sizes to compile with, of no other meaning: B, H and 4 differ, so that none is taken for another
_one_at_a_time = RLock()


def compiled(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    """``step`` compiled, for every B and H, 0 and 1 included.

    What it returns checks nothing: its arguments must be contiguous, on ``device``, and of the shapes and dtypes
    that ``step`` documents.
    """
    with _one_at_a_time:  # of two threads that come first, one would compile in vain
        return _compiled(step, device, dtype)


@cache
def _compiled(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    # A code object of its own, because torch counts its recompilations per code object and stops after a few.
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
    calls: list[tuple[Any, list[Any]]] = []
    run: Step = torch.compile(own, backend=_recording(calls), dynamic=True, fullgraph=True)
    samples = [_sample(name, device, dtype) for name in inspect.signature(step).parameters]
    run(*samples)
    return (_direct(*calls[0], samples) if len(calls) == 1 else None) or run


def _recording(calls: list[tuple[Any, list[Any]]]) -> Callable[..., Any]:
    """torch.compile's default backend, noting the generated code and what it is called with."""
    from torch._functorch import config  # the compiler, imported when it is needed
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        code = compile_fx_inner(graph, inputs, **options)

        def call(values: list[Any]) -> Any:
            calls.append((code, list(values)))
            return code(values)

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def backend(graph: Any, inputs: Any) -> Any:
        # This cache would hand out the code of an earlier process without asking `inner`; the inductor's stays on.
        with config.patch(enable_autograd_cache=False):
            return compile_fx(graph, inputs, inner_compile=inner, config_patches={"size_asserts": False})

    return backend


def _direct(code: Any, values: list[Any], samples: list[Tensor]) -> Step | None:
    """Call generated code without torch.compile's wrappers, or ``None`` where it does not look as expected."""
    place = {v.data_ptr(): k for k, v in enumerate(samples)}
    place |= {B: len(samples), H: len(samples) + 1}  # no address is as small
    order = [place.get(v.data_ptr() if isinstance(v, Tensor) else v, -1) for v in values]
    call = getattr(code, "current_callable", None)
    if call is None or -1 in order or not set(range(len(samples))) <= set(order):
        return None

    def run(*tensors: Tensor) -> None:
        b, _, h = tensors[0].shape
        given = (*tensors, b, h)
        call([given[k] for k in order])

    return run


def _sample(name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    if name.endswith("starts"):
        return _any_size(torch.ones(B, dtype=torch.bool, device=device), {0: "B"})
    if name.endswith("gates"):
        return _any_size(torch.zeros(B, 4, H, dtype=dtype, device=device), {0: "B", 2: "H"})
    return _any_size(torch.zeros(B, H, dtype=dtype, device=device), {0: "B", 1: "H"})


def _any_size(value: Tensor, letters: dict[int, str]) -> Tensor:
    from torch._dynamo.decorators import mark_unbacked

    if "shape_id" in inspect.signature(mark_unbacked).parameters:  # older torch compiles once more for B = 1
        for dim, letter in letters.items():
            mark_unbacked(value, dim, shape_id=letter)
    return value
