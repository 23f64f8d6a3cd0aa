"""One compilation per step function, device and dtype, and a direct call of the generated code.

A call of a ``torch.compile``'d function checks guards and passes several wrappers: about 40 microseconds, several
times the work of one step of a small LSTM. The loops over time allocate their tensors themselves, so
dtype, device and layout are known, no guard is needed, and the generated code is called directly.
"""

import inspect
from collections.abc import Callable
from functools import cache
from threading import RLock
from types import FunctionType
from typing import Any

import torch
from rnn_backends import UnsupportedError
from torch import Tensor

from .. import _torch

Step = Callable[..., None]
B, H = 3, 5  # arbitrary sizes to compile with: B, H and 4 differ, so that none is confused with another
_one_at_a_time = RLock()


def compiled(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    """``step`` compiled, for every B and H, 0 and 1 included.

    The returned function checks nothing: its arguments must be contiguous, on ``device``, and of the shapes and dtypes
    that ``step`` documents.

    Raises:
        UnsupportedError: ``torch.compile`` is switched off.
    """
    with _one_at_a_time:  # otherwise two threads could compile the same function
        return _compiled(step, device, dtype)


@cache
def _compiled(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    if _torch.dynamo_is_off():
        raise _switched_off("torch._dynamo.config.disable")
    if torch.compiler.is_exporting():  # draft_export runs operators
        raise _switched_off("torch.export: call the LSTM once before")
    # A separate code object, because torch counts recompilations per code object and stops after a few.
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
    calls: _torch.Calls = []
    recording = _torch.recording_backend(calls)
    run: Step = torch.compile(own, backend=recording or "inductor", dynamic=True, fullgraph=True)
    samples = [_sample(name, device, dtype) for name in inspect.signature(step).parameters]
    with _torch.compiling_in_traces():
        run(*samples)
    if not calls and recording is not None:
        raise _switched_off("torch.compiler.set_stance")
    if len(calls) != 1 or not _torch.compiles_for_any_size():
        return run  # no generated code, or code for some sizes only, which needs its guards
    return _direct(*calls[0], samples) or run


def _switched_off(by: str) -> UnsupportedError:
    return UnsupportedError("compile", "this process", f"torch.compile is switched off here ({by})", ["vmap"])


def _direct(code: Any, values: list[Any], samples: list[Tensor]) -> Step | None:
    """A direct call of generated code without torch.compile's wrappers; ``None`` if its form is not as expected."""
    place = {v.data_ptr(): k for k, v in enumerate(samples)}
    place |= {B: len(samples), H: len(samples) + 1}  # no address is so small
    order = [place.get(v.data_ptr() if isinstance(v, Tensor) else v, -1) for v in values]
    call = _torch.generated_code(code)
    if call is None or -1 in order or not set(range(len(samples))) <= set(order):
        return None

    def run(*tensors: Tensor) -> None:
        b, _, h = tensors[0].shape
        given = (*tensors, b, h)
        call([given[k] for k in order])

    return run


def _sample(name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    if name.endswith("starts"):
        return _torch.mark_any_size(torch.ones(B, dtype=torch.bool, device=device), [(0, "B")])
    if name.endswith("gates"):
        return _torch.mark_any_size(torch.zeros(B, 4, H, dtype=dtype, device=device), [(0, "B"), (2, "H")])
    return _torch.mark_any_size(torch.zeros(B, H, dtype=dtype, device=device), [(0, "B"), (1, "H")])
