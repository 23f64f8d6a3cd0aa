"""What the figures of a run were measured on: chip, driver, clocks and versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch
from rnn_backends import list_backends
from rnn_backends.crossovers import processor, versions

ASKED = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu", "memory.total", "memory.used", "persistence_mode", "compute_mode",
)  # fmt: skip
DISTRIBUTIONS = ("torch", "triton", "tensordict", "torchrl", "numpy", "hypothesis", "pytest", "rnn-backends")


def environment(device: str) -> dict[str, Any]:
    """Everything by name; a missing entry has a message."""
    where = torch.device(device)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "chip": processor(where) or device,
        "commit": os.environ.get("RNN_BACKENDS_COMMIT") or _commit(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(DISTRIBUTIONS),
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "tf32 of cudnn, as torch has it": torch.backends.cudnn.allow_tf32,
        "backends": {row.name: row.reason or "ready" for row in list_backends()},
        "nvidia-smi": _nvidia_smi(),
    }
    if where.type == "cuda" and torch.cuda.is_available():
        chip = torch.cuda.get_device_properties(where)
        found |= {
            "capability": f"{chip.major}.{chip.minor}",
            "multiprocessors": chip.multi_processor_count,
            "memory": chip.total_memory,
        }
    return found


def _commit() -> str:
    """The commit of the code that runs; ``unknown`` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _nvidia_smi() -> dict[str, str] | str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not installed"
    command = [program, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    first = said.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(ASKED, first, strict=False))
