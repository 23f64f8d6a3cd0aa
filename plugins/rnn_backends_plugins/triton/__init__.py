"""``triton``: an LSTM layer as Triton kernels for NVIDIA GPUs, with the resets inside.

A kernel runs through all of time and reads the resets itself, so nothing is planned on the host and nothing waits for
the device. ``kernels.py`` is where to begin to read; ``plan.py`` says how a layer is cut for a card, ``run.py`` calls,
``launch.py`` launches.

Triton comes with torch on Linux with CUDA. Without a GPU its interpreter runs the kernels on a CPU, slowly, for tests:
``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, Trait, hookimpl
from rnn_backends.authoring import Arguments, Needs, Run, WeightInfo, make_act_stack, make_layer, make_steps
from torch import Tensor

from .plan import MOST_FEATURES, MOST_UNITS

contract_version = 1

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

LEAST_CAPABILITY = 8, 0
"""Of which on a GPU multiplies TF32 and bfloat16."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


DEVICES = ("cuda", "cpu") if interpreted() else ("cuda",)


def _forward(given: Arguments, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    from . import run  # triton is imported by the first call: it may not be there

    return run.forward(given, keep)


def _backward(given: Arguments, done: Run, needs: Needs) -> list[Tensor | None]:
    from . import run

    return run.backward(given, done, needs)


layer = make_layer("triton", _forward, _backward, lambda H, dtype: (4, H), DEVICES)


def _step_on_memory(
    info: WeightInfo, weights: LayerWeights, x: Tensor, state: State, is_init: Tensor | None
) -> State | None:
    if not _fit([info], [weights], x, state, (), is_init):
        return None
    from . import run

    return run.step(weights, x, state, is_init)


def _stack_on_memory(
    infos: list[WeightInfo], weights: list[LayerWeights], x: Tensor, state: State, is_init: Tensor | None
) -> tuple[Tensor, State] | None:
    if not _fit(infos, weights, x, state, (len(weights),), is_init):
        return None
    from . import run

    return run.step_stack(weights, x, state, is_init)


def _fit(
    infos: list[WeightInfo],
    weights: list[LayerWeights],
    x: Tensor,
    state: State,
    layers: tuple[int, ...],
    is_init: Tensor | None,
) -> bool:
    """Whether the kernel may read these: shapes (``[B, *layers, H]`` of the state), dtypes and devices fit."""
    (h, c), (I, H, _), B = state, infos[0].sizes, x.shape[0] if x.ndim else 0  # noqa: E741
    kind = infos[0].dtype, infos[0].device
    return (
        all((v.dtype, v.device) == kind for v in (x, h, c))
        and x.shape == (B, I)
        and h.shape == c.shape == (B, *layers, H)
        and all(w.w_hr is None for w in weights)
        and all((n.dtype, n.device) == kind and n.sizes == (H, H, H) for n in infos[1:])
        and (is_init is None or (is_init.shape, is_init.dtype, is_init.device) == ((B,), torch.bool, x.device))
    )


step, act = make_steps("triton", layer, _step_on_memory, DEVICES)
act_stack = make_act_stack(_stack_on_memory, DEVICES)


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot serve here. Looks, and imports no Triton."""
    if find_spec("triton") is None:
        return "triton is not installed (it comes with torch on Linux with CUDA)"
    if device.type == "cpu" and not interpreted():
        return "it is made for cuda, not for cpu (TRITON_INTERPRET=1 runs it there, slowly, for tests)"
    if device.type not in DEVICES:
        return f"it is made for cuda, not for {device.type}"
    if dtype not in DTYPES:
        return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
    if spec.proj_size:
        return "it has no projection (proj_size)"
    if spec.hidden_size > MOST_UNITS:
        return f"it takes a hidden_size of at most {MOST_UNITS}"
    if spec.input_size > MOST_FEATURES:
        return f"it takes an input_size of at most {MOST_FEATURES}"
    return _gpu_is_too_old(device) if device.type == "cuda" else None


def _gpu_is_too_old(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "its exchange between programs was written for NVIDIA GPUs"
    found = torch.cuda.get_device_capability(device)
    if found >= LEAST_CAPABILITY:
        return None
    least, here = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
    return f"it needs compute capability {least} or more, and this GPU has {here}"


@hookimpl
def lstm_backend() -> LSTMBackend:
    """Nothing is compiled here; Triton compiles at the first call of a hidden size and dtype, a second or two."""
    traits = {Trait.VMAP, Trait.FULLGRAPH, Trait.EXPORT, Trait.CELL_STATES}
    return LSTMBackend("triton", layer, rejects, frozenset(traits), step=step, act=act, act_stack=act_stack)
