"""One LSTM, many kernels, provably the same: interchangeable LSTM backends for PyTorch and TensorDict."""

from . import authoring as authoring  # its operators are in exported graphs, which may be loaded without a backend
from .choose import Verdict, explain
from .contract import (
    CONTRACT_VERSION,
    ActFunction,
    ActStackFunction,
    LayerFunction,
    LayerWeights,
    LSTMBackend,
    LSTMSpec,
    StackFunction,
    State,
    StepFunction,
    Trait,
)
from .crossovers import versions
from .errors import (
    BrokenBackendError,
    ContractError,
    InputError,
    MissingKeyError,
    RNNBackendsError,
    UnknownBackendError,
    UnsupportedError,
)
from .hooks import hookimpl
from .lstm import LSTM
from .mode import recurrent_mode, set_recurrent_mode
from .module import LSTMModule
from .net import LSTMNet
from .registry import Listing, get_backend, list_backends, names, refresh, register, unregister

__version__ = versions()["rnn-backends"]
__all__ = [
    "CONTRACT_VERSION",
    "LSTM",
    "ActFunction",
    "ActStackFunction",
    "BrokenBackendError",
    "ContractError",
    "InputError",
    "LSTMBackend",
    "LSTMModule",
    "LSTMNet",
    "LSTMSpec",
    "LayerFunction",
    "LayerWeights",
    "Listing",
    "MissingKeyError",
    "RNNBackendsError",
    "StackFunction",
    "State",
    "StepFunction",
    "Trait",
    "UnknownBackendError",
    "UnsupportedError",
    "Verdict",
    "__version__",
    "explain",
    "get_backend",
    "hookimpl",
    "list_backends",
    "names",
    "recurrent_mode",
    "refresh",
    "register",
    "set_recurrent_mode",
    "unregister",
]
