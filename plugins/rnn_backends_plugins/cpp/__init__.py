"""``cpp``: an LSTM layer in C++, compiled on first use for the processor it runs on.

Forward, backward and one step, written for reinforcement learning on a CPU: a reset is a pointer to another state, so
it costs nothing at any step, and with enough rows each row runs over all time steps on one core, without barriers.
``lstm.cpp`` is the file to read first.
"""

from __future__ import annotations

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, Trait, hookimpl
from rnn_backends.authoring import WeightInfo, make_act_stack, make_layer, make_steps, with_one_step
from torch import Tensor

from . import kernel
from .build import unable, what_remains, why_not

contract_version = 1

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

wide_layer = make_layer("cpp", kernel.forward, kernel.backward, kernel.gates_of, ("cpu",), checks_memory=True)


def _over_time(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """A :data:`rnn_backends.LayerFunction`; in 16 bits it computes in float32."""
    if x.dtype.itemsize > 2:
        return wide_layer(weights, x, entry, starts)
    others = (None if v is None else v.float() for v in weights[2:])
    wide = LayerWeights(weights.w_ih.float(), weights.w_hh.float(), *others)
    h, c = wide_layer(wide, x.float(), State(entry.h.float(), entry.c.float()), starts)
    return State(h.to(x.dtype), c.to(x.dtype))


layer = with_one_step(_over_time, wide_layer, kernel.row, kernel.row_backward, ("cpu",))


def _step_on_memory(
    info: WeightInfo, weights: LayerWeights, x: Tensor, state: State, is_init: Tensor | None
) -> State | None:
    return kernel.step(info, x, state, is_init) if x.dtype in kernel.WIDE else None


def _stack_on_memory(
    infos: list[WeightInfo], weights: list[LayerWeights], x: Tensor, state: State, is_init: Tensor | None
) -> tuple[Tensor, State] | None:
    """A step of one layer, with fewer views of its state; of several layers, core calls one after the other."""
    if len(infos) != 1 or x.dtype not in kernel.WIDE:
        return None
    found = kernel.step(infos[0], x, state, is_init)
    return torch.cat([found.h.squeeze(1)], -1), found  # a copy: output and state must not share memory


step, act = make_steps("cpp", layer, _step_on_memory, ("cpu",))
act_stack = make_act_stack(_stack_on_memory, ("cpu",))


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the backend does not support this, as far as it is known without compiling, or ``None``."""
    if dtype not in DTYPES:
        return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
    if device.type != "cpu":
        return f"it is made for cpu, not for {device.type}"
    return unable()


def prepare(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """Load the kernel, and compile it if that has not been done; the reason why that failed, or ``None``."""
    return why_not()


def preparation(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """A description of the work that :func:`prepare` would do, or ``None``."""
    return what_remains()


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The backend. Nothing is compiled here."""
    traits = {Trait.VMAP, Trait.FULLGRAPH, Trait.EXPORT, Trait.CELL_STATES}
    return LSTMBackend(
        "cpp",
        layer,
        rejects,
        frozenset(traits),
        step=step,
        act=act,
        act_stack=act_stack,
        prepare=prepare,
        preparation=preparation,
    )
