"""``triton`` and ``cudnn`` on a machine without a GPU: Triton's kernels are compiled for one that is not here, and
launches go nowhere.

So the host can be measured: what compiling takes, and what a call takes around its kernels. No number is computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class NoLaunch:
    """In place of what loads a compiled kernel and launches it."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata

    def __call__(self, *given: Any) -> None:
        """Launch nothing."""


def driver(launcher: type = NoLaunch, capability: int = 90) -> SimpleNamespace:
    """A driver of Triton's for a GPU that is not here.

    Args:
        launcher: in whose instances launches end.
        capability: of the GPU, 90 for 9.0.
    """
    import triton

    utils = SimpleNamespace(
        load_binary=lambda *about: (1, 2, 32, 0, 1024),
        unload_module=lambda module: None,
        get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
    )
    return SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 7,
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", capability, 32),
        launcher_cls=launcher,
        utils=utils,
    )


def triton_on_cpu() -> ModuleType:
    """The plugin, which from now on takes tensors on a CPU as if they were on an H100; for a process of its own."""
    import triton  # before the variable is set: its interpreter must not take the kernels

    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import rnn_backends_plugins.triton as plugin
    finally:
        del os.environ["TRITON_INTERPRET"]
    plugin.interpreted = lambda: True
    triton.runtime.driver._active = driver()
    return plugin


def cudnn_on_cpu() -> None:
    """From now on the ``cudnn`` backend takes tensors on a CPU as if they were on a GPU, and so does ``torch.nn.LSTM``;
    cuDNN's kernel computes nothing. For a process of its own.
    """
    import torch
    from rnn_backends_plugins import _torch
    from rnn_backends_plugins.testing.cudnn import cuda_on_cpu
    from torch import Tensor

    class NoKernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, shape: tuple[int, ...], *read: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(*read)
            x, h, c = read[:3]
            return x.new_empty(shape), torch.empty_like(h), torch.empty_like(c)

        @staticmethod
        def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
            return None, *(torch.empty_like(value) for value in ctx.saved_tensors)

    def lstm(x: Tensor, hx: tuple[Tensor, Tensor], params: Any, bias: bool, layers: int, *rest: Any) -> Any:
        return NoKernel.apply((*x.shape[:2], hx[0].shape[2]), x, *hx, *params)

    _never_left.enter_context(cuda_on_cpu())
    for functions in (torch, _torch.functions_of_nn()):
        setattr(functions, "lstm", lstm)  # noqa: B010


_never_left = ExitStack()


def in_a_process(module: str, about: dict[str, Any], tree: Path | None = None, environment: Any = None) -> Any:
    """What ``module.main(about)`` prints last, as JSON, in a new process.

    Args:
        module: of this package.
        about: its argument.
        tree: another checkout whose ``core`` and ``plugins`` it imports.
        environment: variables to add.
    """
    added = {"OMP_NUM_THREADS": "1", **(environment or {})}
    if tree is not None:
        added["PYTHONPATH"] = os.pathsep.join(str(tree / folder) for folder in ("core", "plugins"))
    code = f"import json, sys; from rnn_benchmarks.gpu.{module} import measure; measure(**json.loads(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(about)], env={**os.environ, **added}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
