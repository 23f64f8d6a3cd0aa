"""Private and undocumented names of torch, tensordict and TorchRL: each behind one function with a fallback.

No other file of core uses such a name (``core/tests/test_imports.py``). Where a name is missing, the fallback gives the
answer that can only cost time or a refusal, never a wrong number.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def _unknown() -> bool:
    return True


_functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", _unknown)


def transforms_may_be_open() -> bool:
    """Whether a ``torch.func`` transform or a forward-AD level may be open around this call.

    It takes 0.1 us. Without the private names the answer is always true, so that callers look at their tensors.
    ``torch.compile`` handles transforms itself: while it traces, the answer is false.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad_may_be_open() or _functorch_is_active()


def forward_ad_may_be_open() -> bool:
    """Whether a level of forward-mode AD may be open (``torch.func.jvp`` opens one too); true where torch hides it."""
    level: int = getattr(forward_ad, "_current_level", 0)
    return level >= 0


def vmap_may_be_open() -> bool:
    """Whether a level of ``torch.vmap`` may be open, at any depth; true where torch does not tell."""
    try:
        from torch._C._functorch import TransformType
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

        return any(level.key() == TransformType.Vmap for level in retrieve_all_functorch_interpreters())
    except (ImportError, AttributeError):
        return True


def registered_parameters(module: nn.Module) -> Mapping[str, Tensor | None]:
    """The module's own parameters by name, for look-ups that are faster than ``getattr`` (half a microsecond each).

    Without the private name it is empty, and callers fall back on ``getattr``.
    """
    found: Mapping[str, Tensor | None] = getattr(module, "_parameters", {})
    return found


def torchrl_recurrent_mode() -> bool | None:
    """TorchRL's recurrent mode; ``None`` where TorchRL is not loaded or sets no mode.

    ``torchrl.modules.recurrent_mode`` is public. Before ``torchrl.modules`` is imported nobody can have set a mode.
    """
    modules = sys.modules.get("torchrl.modules")
    mode = getattr(modules, "recurrent_mode", None)
    return mode() if mode is not None else None


def all_out_keys(module: Any, constructed: Sequence[Any]) -> Sequence[Any]:
    """A TensorDict module's output keys before ``select_out_keys``; the keys of its constructor as a fallback."""
    keys: Sequence[Any] = getattr(module, "out_keys_source", constructed)
    return keys
