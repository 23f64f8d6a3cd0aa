"""How it is measured: contestants in turn, in one process, until the time is up; medians and quartiles.

Like cases.py, loaded by its path from the asv benchmarks.
"""

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
"""At least and at most as many rounds, whatever the time."""
BLOCK = 0.005
"""Seconds: shorter calls are repeated until a sample is about as long, so that the clock does not count."""
SLOW, HOPELESS = 8.0, 20.0
"""Seconds: a second call that takes longer is the last, and so is a first one: that may have compiled something."""


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one number."""
        low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(middle, low, high, len(values))

    @property
    def noise(self) -> float:
        """The range between the quartiles over the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def interleaved(
    calls: Mapping[str, Call],
    seconds: float,
    rounds: tuple[int, int] = ROUNDS,
    slow: float = SLOW,
    tick: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call, by name: one number a round, or a single one for what is slow.

    Args:
        calls: what to measure.
        seconds: for all of them together; exceeded by the least number of rounds only.
        rounds: the least and the most.
        slow: what takes longer when called a second time is not repeated.
        tick: told whose turn it is.
        clock: seconds.
    """
    begun, found, blocks = clock(), {}, {}
    for name, call in calls.items():
        tick(name)
        took = _timed(call, 0, 1, clock)
        took = took if took > HOPELESS else _timed(call, 1, 1, clock)
        found[name] = [took]
        if took < slow:
            blocks[name] = max(1, ceil(BLOCK / max(took, 1e-7)))
    lists: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    with _old_objects_set_aside():
        for k in range(rounds[1] if names else 0):
            if k >= rounds[0] and clock() - begun > seconds:
                break
            gc.collect()
            for name in names[k % len(names) :] + names[: k % len(names)]:  # nobody is always first
                tick(name)
                lists[name].append(_timed(calls[name], k, blocks[name], clock))
    return {**found, **lists}


@contextmanager
def _old_objects_set_aside() -> Iterator[None]:
    """Collecting garbage looks at what was made since, and is quick however much was imported."""
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
    """Of times: round by round where both were measured in rounds, so that what slows both does not count."""
    if len(ours) == len(theirs):
        return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
    return Spread.of([a / median(theirs) for a in ours] if len(ours) > 1 else [ours[0] / b for b in theirs])


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most memory that tensors took during the call, above what was there before; oneDNN's scratch is not in it.

    Counted from torch's own record of every allocation, so the same call always gives the same number.
    """
    import torch

    call(0)
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        return torch.cuda.max_memory_allocated() - before
    watched = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=watched, profile_memory=True) as profile:
        kept = call(0)
        del kept
    now = most = 0
    for _, change in sorted(_allocations(profile), key=lambda event: event[0]):
        now += change
        most = max(most, now)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's profiler writes two lines past Python's streams each time."""
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
    """``(when, bytes)`` of every allocation, and of every release as a negative number."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [(event["ts"], event["args"]["Bytes"]) for event in memory]
