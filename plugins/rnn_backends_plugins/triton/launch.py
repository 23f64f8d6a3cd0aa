"""Launches of the kernels with little Python: facts that Triton looks up at every launch are looked up once.

``kernel[grid](...)`` binds some forty arguments, asks each for its type and alignment, and writes all of it down as the
key of the compiled kernel: tens of microseconds, more than a short row takes on a GPU. But it returns the compiled
kernel, and ``compiled[grid](...)`` launches that one with nothing looked up but the stream and the hooks; without hooks
its ``run`` takes a third of that. Which kernel it has to be follows from the compile-time arguments, the GPU, the
alignment of the tensors and the width of the numbers; the last two are looked at here at every launch.

This is the only file that uses names of Triton's which it does not document: :func:`known` says whether they are as
they were in the versions that were read; where they are not, every launch takes Triton's own way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Any
from warnings import warn

import torch
import triton
from rnn_backends import UnsupportedError
from torch import Tensor

KNOWN = (3, 6), (4, 0)
"""The first version of Triton with such a launcher that was read (then 3.9), and the one before which it is believed:
``compiled[grid]`` takes every argument in the kernel's order, addresses for tensors, and passes over compile-time
arguments. It gives them to ``run``, after three numbers of programs, the stream, the function, its metadata, the
launch's, and two hooks. A launcher of another kind raises about their number. ``test_triton_host.py`` compares all."""

ALIGNMENT = 16
"""Bytes: whether an address is a multiple of them is what Triton compiles a kernel for."""

MOST = 2**31 - 1
"""The largest number that Triton passes in 32 bits."""


class Launcher:
    """A kernel with the arguments that never change, which it keeps compiled for each GPU.

    Hooks that Triton calls before and after a launch are called. What changes the compilation later on, such as
    ``TRITON_DEBUG``, has no effect on kernels that are compiled already.

    Args:
        kernel: a function of ``kernels.py``.
        constants: its last arguments by name, those of compile time among them, and how it is launched.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        self.kernel, self.constants = kernel, constants
        self._compiled: dict[int, _Compiled] = {}
        self._taken_back = False
        self._prepared: set[int] = set()

    def __call__(self, grid: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        """Launch it on the GPU of the tensors, whatever the current one is.

        Args:
            grid: how many programs.
            tensors: the kernel's first arguments, all on one device.
            numbers: those that follow.

        Raises:
            UnsupportedError: its programs wait for each other, and do not all fit on the GPU; nothing ran.
        """
        device = tensors[0].device
        try:
            if device.type != "cuda" or device.index == torch.cuda.current_device():
                self._launch(device.index or 0, grid, tensors, numbers)
            else:
                with torch.cuda.device(device):
                    self._launch(device.index, grid, tensors, numbers)
        except RuntimeError as error:
            if "cooperative launch" not in str(error):
                raise
            why = (
                f"{grid[0] * grid[1]} programs wait for each other, and the driver does not let so many run at once: "
                "something keeps a part of the GPU from this process (MPS's limit of threads, say)"
            )
            raise UnsupportedError("triton", "this GPU as it is", why, ["cudnn", "vmap"]) from error

    def _launch(self, index: int, grid: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        compiled = self._compiled.get(index)
        try:
            if compiled is not None and compiled.launch(self.kernel, grid, tensors, numbers):
                return
        except TypeError as error:  # nothing was launched: its arguments are read first
            self._compiled.clear()
            self._taken_back = True
            warn(
                f"triton {triton.__version__} does not take the arguments of a shorter launch ({error}): "
                "launches go the longer way from now on",
                RuntimeWarning,
                stacklevel=2,
            )
        found = self.kernel[grid](*tensors, *numbers, **self.constants)
        if compiled is not None or self._taken_back:
            return
        compiled = known(self.kernel, self.constants, found, tensors, numbers, index)
        if compiled is not None:
            self._compiled[index] = compiled

    def is_new_to(self, device: torch.device) -> bool:
        """Whether nobody has asked this for the device before."""
        index = device.index or 0
        if index in self._prepared:
            return False
        self._prepared.add(index)
        return True

    def compile(self, dtype: torch.dtype, others: Mapping[str, torch.dtype]) -> None:
        """Compile it for the current GPU and for tensors of usual alignment, without a launch.

        Args:
            dtype: of the tensors.
            others: those of the tensors that have another, by the parameter's name.
        """
        given = [parameter for parameter in self.kernel.params if parameter.name not in self.constants]
        stand_ins = [1 if p.do_not_specialize else others.get(p.name, dtype) for p in given]
        self.kernel.warmup(*stand_ins, grid=(1, 1), **self.constants)


Compilation = tuple[Launcher, torch.dtype, Mapping[str, torch.dtype]]
"""A launcher, and the arguments of :meth:`Launcher.compile`."""


def compile_together(wanted: Sequence[Compilation], device: torch.device) -> None:
    """Compile kernels side by side, one thread each as far as there are processors; returns when all are done.

    Triton compiles in C++ and in another process, without Python's lock. A kernel that fails here is compiled again at
    its launch, which then raises the error. No thread outlives the call.

    Args:
        wanted: the kernels; those that are compiled already take no time.
        device: the GPU.
    """
    threads = min(len(wanted), processors())
    mode = getattr(triton, "AsyncCompileMode", None)
    if threads < 2 or mode is None or not KNOWN[0] <= version(triton.__version__) < KNOWN[1]:
        return

    on: AbstractContextManager[object] = torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def start() -> None:
        with on, ThreadPoolExecutor(threads) as pool, mode(pool, ignore_errors=True):
            for launcher, dtype, others in wanted:
                if not launcher.kernel.pre_run_hooks:  # which would see launches that there are not
                    launcher.compile(dtype, others)

    Context().run(start)  # the mode is a context variable: nothing of it stays, and a caller's own is not in the way


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Compiled:
    """A compiled kernel on GPU ``index``, for tensors of which those at ``aligned`` are so and numbers of 32 bits."""

    def __init__(self, compiled: Any, aligned: Sequence[int], constants: Sequence[Any], index: int) -> None:
        self.compiled, self.aligned, self.constants, self.index = compiled, aligned, constants, index

    def addresses(self, tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[int] | None:
        """The tensors' addresses; ``None`` where another compiled kernel has to run."""
        if max(numbers) > MOST or min(numbers) < -MOST:
            return None
        found, together = [tensor.data_ptr() for tensor in tensors], 0
        for k in self.aligned:
            together |= found[k]
        return None if together % ALIGNMENT else found

    def launch(self, kernel: Any, grid: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[int]) -> bool:
        """Launch it if it is the right one; whether it was."""
        found = None if kernel.pre_run_hooks else self.addresses(tensors, numbers)
        if found is None:
            return False
        kernel = self.compiled
        if _hooks_are_called():
            kernel[(*grid, 1)](*found, *numbers, *self.constants)
        else:
            stream = triton.runtime.driver.active.get_current_stream(self.index)
            about = kernel.function, kernel.packed_metadata, None, None, None
            kernel.run(*grid, 1, stream, *about, *found, *numbers, *self.constants)
        return True


def _hooks_are_called() -> bool:
    """Whether Triton calls anything before or after a launch, as far as its chains of hooks tell."""
    knobs = triton.knobs.runtime
    for chain in (knobs.launch_enter_hook, knobs.launch_exit_hook):
        if chain is not None and getattr(chain, "calls", True):
            return True
    return False


def known(
    kernel: Any,
    constants: dict[str, Any],
    found: Any,
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    index: int = 0,
) -> _Compiled | None:
    """What ``kernel[grid](...)`` returned, if it can be launched again in the shorter way.

    Args:
        kernel: the function.
        constants: the arguments that never change, and how it is launched.
        found: what it returned.
        tensors: the kernel's first arguments.
        numbers: those that follow.
        index: of the GPU.

    Returns:
        ``None`` if anything is not as expected: the version, the type of the returned object, the hooks, the
        parameters (tensors, then numbers on which nothing is specialised, then ``constants``), or these arguments are
        not those that all launches but a few have.
    """
    kind = getattr(triton.compiler, "CompiledKernel", None)
    if type(found) is not kind or not KNOWN[0] <= version(triton.__version__) < KNOWN[1]:
        return None
    first = len(tensors)
    try:
        parameters, hooks = list(kernel.params), kernel.pre_run_hooks
        aligned = [
            k
            for k, parameter in enumerate(parameters[:first])
            if not parameter.do_not_specialize and not parameter.do_not_specialize_on_alignment
        ]
        varies = all(parameter.do_not_specialize for parameter in parameters[first : first + len(numbers)])
        rest = [parameter.name for parameter in parameters[first + len(numbers) :]]
        _ = found.run, found.function, found.packed_metadata, triton.runtime.driver.active.get_current_stream
    except AttributeError:
        return None
    if (
        not isinstance(hooks, list)
        or not hasattr(kind, "__getitem__")
        or not varies
        or not constants.keys() >= set(rest)
    ):
        return None
    compiled = _Compiled(found, aligned, [constants[name] for name in rest], index)
    return None if compiled.addresses(tensors, numbers) is None else compiled


def version(text: str) -> tuple[int, ...]:
    """``"3.9.0+git1"`` -> ``(3, 9)``."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
