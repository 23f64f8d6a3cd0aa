"""Whether OpenMP starts as many threads as torch requests, without which oneDNN computes wrong numbers.

oneDNN divides its work by the number that torch requests. With fewer threads a part of the result is never written, and
nothing reports it: ``torch.nn.LSTM`` in float32 and ``torch.mm`` in bfloat16 return the earlier content of memory.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch


def lacks_threads() -> str | None:
    """The reason why oneDNN must not run now, or ``None``."""
    wanted = torch.get_num_threads()
    if wanted <= _started():
        return None
    return (
        f"OpenMP may start fewer threads than torch's {wanted} (OMP_DYNAMIC, OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS), "
        "and oneDNN computes wrong numbers then: unset the variable, or call torch.set_num_threads(1)"
    )


@lru_cache(maxsize=1)
def _started() -> float:
    """The number of threads that OpenMP starts whenever this many are requested."""
    try:
        openmp = ctypes.CDLL(None)  # the process with its libraries, torch's OpenMP among them
        dynamic, levels, limit = (
            getattr(openmp, name)() for name in ("omp_get_dynamic", "omp_get_max_active_levels", "omp_get_thread_limit")
        )
    except (OSError, TypeError, AttributeError):  # no OpenMP, or a system whose libraries have no common names
        return float("inf")
    return 1 if dynamic or levels < 1 else int(limit)
