"""TorchRL's options of its LSTMModule: accepted if they have a meaning here, else refused with a replacement.

Nothing here imports TorchRL. Its options are those of version 0.14.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .contract import LSTMBackend
from .errors import InputError

ALIASES = {"pad": "cudnn", "scan": "vmap"}
"""TorchRL's recurrent backends that have another name here. Both of ``pad`` call torch's fused kernel, both of ``scan``
are loops in Python that a compiler traces. ``auto`` and ``triton`` are names here too."""

PYTHON_BASED = frozenset({"pad", "auto"})
"""TorchRL's recurrent backends that run the class under them, which ``python_based`` makes one in Python."""

Request = str | LSTMBackend | None


class TorchRLOptions(NamedTuple):
    """TorchRL's options of recurrent mode; ``None`` where one was not given.

    Attributes:
        python_based: the same as the backend ``vmap``; the names in :data:`PYTHON_BASED` may be given with it.
        recurrent_backend: a backend's name, or one of :data:`ALIASES`.
        recurrent_compute_dtype: rejected, except float32, which is TorchRL's default.
        recurrent_recompute: rejected, except ``"none"``.
        recurrent_matmul_precision: rejected, except ``"auto"``.
    """

    python_based: bool = False
    recurrent_backend: str | None = None
    recurrent_compute_dtype: torch.dtype | None = None
    recurrent_recompute: str | None = None
    recurrent_matmul_precision: str | None = None

    def backend(self, lstm_backend: Request) -> Request:
        """The requested backend.

        Args:
            lstm_backend: our own option.

        Raises:
            InputError: two options name different backends, or an option is not available here; the message says what
                to write instead.
        """
        self._check()
        requested: dict[str, Request] = {"lstm_backend": lstm_backend}
        if self.recurrent_backend is not None and not (self.python_based and self.recurrent_backend in PYTHON_BASED):
            requested["recurrent_backend"] = ALIASES.get(self.recurrent_backend, self.recurrent_backend)
        if self.python_based:
            requested["python_based"] = "vmap"
        given = {option: name for option, name in requested.items() if name is not None}
        names = {"vmap" if name == "torchrl" else name for name in given.values()}
        if len(names) > 1:
            words = " and ".join(f"{option} means {name!r}" for option, name in given.items())
            raise InputError(f"{words}: give one of them")
        return next(iter(given.values()), None)

    def _check(self) -> None:
        if self.recurrent_compute_dtype not in (None, torch.float32):
            raise InputError(
                f"recurrent_compute_dtype={self.recurrent_compute_dtype} is not available: a module computes in its "
                "parameters' dtype; use dtype=, module.to(...) or torch.autocast"
            )
        if self.recurrent_recompute not in (None, "none"):
            raise InputError(
                f"recurrent_recompute={self.recurrent_recompute!r} is not available: use "
                "torch.utils.checkpoint.checkpoint around the module to save less and compute it twice"
            )
        if self.recurrent_matmul_precision not in (None, "auto"):
            raise InputError(
                f"recurrent_matmul_precision={self.recurrent_matmul_precision!r} is not available: torch's switches "
                "apply (torch.backends.cudnn.allow_tf32, torch.set_float32_matmul_precision)"
            )
