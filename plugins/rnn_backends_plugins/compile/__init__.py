"""``compile``: one step of the LSTM through ``torch.compile``, in a loop over time that is never traced.

Unrolled, the time to compile grows with T. Here only the pointwise half of a step is compiled (``steps.py``), once
for all T, B and H; the loops over time (``forward.py``, ``backward.py``) and the matrix products (``products.py``: on
a CPU by oneDNN where they are large) stay outside; and the whole layer is one operator with a hand-written gradient
(``ops.py``), so it goes into a user's compiled function as a single node.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec

import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, Trait, hookimpl
from rnn_backends.authoring import check_call, reset, torch_step
from torch import Tensor

from .ops import layer

contract_version = 1

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
"""Environment variables with which a process compiles nothing."""


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why ``torch.compile`` does not work here, or ``None``. It imports no compiler."""
    if dtype not in DTYPES:
        return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
    off = next((name for name in SWITCHES if os.environ.get(name) == "1"), None)
    if off is not None:
        return f"{off}=1 switches torch.compile off"
    if sys.version_info >= (3, 15):
        return "torch.compile does not know Python 3.15 or later"
    if sysconfig.get_config_var("Py_GIL_DISABLED") == 1 and sys.version_info < (3, 13, 3):
        return "torch.compile needs Python 3.13.3 or later where the GIL is disabled"
    if device.type == "cpu":
        return _no_cpp_compiler()
    if device.type == "cuda":
        return _no_triton(device)
    return f"it compiles for cpu and cuda, not for {device.type}"


def _no_cpp_compiler() -> str | None:
    names = {"darwin": "clang++", "win32": "cl"}
    compiler = os.environ.get("CXX") or names.get(sys.platform, "g++")  # the compiler that torch.compile calls
    if shutil.which(compiler):
        return None
    return f"torch.compile needs a C++ compiler, and {compiler!r} is not on the path (CXX names another)"


def _no_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "torch.compile needs triton on cuda, and it is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 7 else f"triton needs compute capability 7.0 or more, and this GPU has {major}.{minor}"


def step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step: a :data:`rnn_backends.StepFunction`. A call of compiled code would cost more than it saves."""
    check_call("compile", weights, x, state)
    return torch_step(weights, x, state)


def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    """One step with resets: a :data:`rnn_backends.ActFunction`."""
    usual = check_call("compile", weights, x, state, is_init)
    return torch_step(weights, x, reset(state, is_init, usual))


@hookimpl
def lstm_backend() -> LSTMBackend:
    """Nothing is compiled here; the first layer of a dtype and device does it."""
    traits = {Trait.VMAP, Trait.FULLGRAPH, Trait.EXPORT, Trait.CELL_STATES}
    return LSTMBackend("compile", layer, rejects, frozenset(traits), step=step, act=act)
