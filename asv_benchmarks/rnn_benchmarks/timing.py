"""Measurements of time and memory: contestants in turn, in one process; medians and quartiles."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from .cases import Call

ROUNDS = (3, 61)
"""The minimum and maximum number of rounds, independent of their duration."""
BLOCK = 0.005
"""In seconds. Shorter calls are repeated within a sample until it is about this long, as the clock takes time too."""
SLOW, SLOW_FIRST = 8.0, 20.0
"""In seconds. A contestant is called once if its first call, which may include compilation, takes longer than
``SLOW_FIRST``, and has a single time, that of its second call, if that takes longer than ``SLOW``."""


@dataclass(frozen=True)
class Spread:
    """The median of some numbers and their quartiles."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Median and quartiles of ``values``, at least one."""
        low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(middle, low, high, len(values))

    @property
    def noise(self) -> float:
        """The distance of the quartiles over the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def interleaved(
    calls: Mapping[str, Call],
    seconds: float,
    rounds: tuple[int, int] = ROUNDS,
    slow: float = SLOW,
    tick: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call, by name: one number for each round, or a single number for a slow call.

    In each round every call is measured once, and each round begins with a different call.

    Args:
        calls: the calls to measure, by name.
        seconds: the measuring time of all calls together. The minimum number of rounds is measured in any case.
        rounds: the minimum and maximum number of rounds.
        slow: seconds; a call that takes longer the second time is not repeated.
        tick: called with the name of the call that is measured next.
        clock: returns seconds.
    """
    begun, single, blocks = clock(), {}, {}
    for name, call in calls.items():
        tick(name)
        took = _timed(call, 0, 1, clock)
        took = took if took > SLOW_FIRST else _timed(call, 1, 1, clock)
        single[name] = [took]
        if took < slow:
            blocks[name] = max(1, ceil(BLOCK / max(took, 1e-7)))
    lists: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    with _old_objects_frozen():
        for k in range(rounds[1] if names else 0):
            if k >= rounds[0] and clock() - begun > seconds:
                break
            gc.collect()
            for name in names[k % len(names) :] + names[: k % len(names)]:  # so that no contestant is always first
                tick(name)
                lists[name].append(_timed(calls[name], k, blocks[name], clock))
    return {**single, **lists}


@contextmanager
def _old_objects_frozen() -> Iterator[None]:
    """Make the garbage collector skip all existing objects, so that its time does not depend on the imports."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _timed(call: Call, k: int, block: int, clock: Callable[[], float]) -> float:
    if hasattr(call, "prepare"):
        call.prepare(block)
    begun = clock()
    for n in range(block):
        call(k * block + n)
    return (clock() - begun) / block


def ratio(ours: list[float], theirs: list[float]) -> Spread:
    """``ours`` over ``theirs``, in seconds: round by round if both were measured in rounds, so that load on the machine
    cancels."""
    if len(ours) == len(theirs):
        return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
    return Spread.of([a / median(theirs) for a in ours] if len(ours) > 1 else [ours[0] / b for b in theirs])


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The peak memory of tensors during a call, in bytes, above that before it. oneDNN's scratch memory does not count.

    It is the sum over torch's record of allocations, so the same call gives the same number every time.
    """
    import torch

    call(0)
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        value = call(0)
        del value
    current = peak = 0
    for _, change in sorted(_allocations(profile), key=lambda event: event[0]):
        current += change
        peak = max(peak, current)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the two lines that torch's profiler writes to the process's own output streams."""
    saved, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, stream)
        for handle in (*saved, nowhere):
            os.close(handle)


def _allocations(profile: Any) -> list[tuple[float, int]]:
    """``(time, bytes)`` of every allocation; of every release with negative bytes."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [(event["ts"], event["args"]["Bytes"]) for event in memory]
