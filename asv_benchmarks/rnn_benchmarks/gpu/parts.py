"""The parts of a run: processes side by side, each with a log, stopped together when the part's time is up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rnn_backends.paths import write_whole

POLL = 0.05
GRACE = 5.0
"""Seconds between the request to end and the end of a process group whose time is up."""
CUT_OFF, NOT_BEGUN = "cut off", "not begun"


@dataclass(frozen=True)
class Job:
    """One process of a part.

    Attributes:
        name: of its log, ``NAME.log``.
        command: the program and its arguments; ``{seconds}`` in an argument becomes the seconds that the part has.
        environment: variables added to this process's.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Processes that run side by side.

    Attributes:
        name: short.
        says: a description for the progress line.
        share: of the run's time that is planned for it.
        jobs: makes its processes when the part begins.
        side_by_side: how many run at once at most.
        least: seconds that it has however short the run is.
    """

    name: str
    says: str
    share: float
    jobs: Callable[[], Sequence[Job]]
    side_by_side: int = 1
    least: float = 0.0


@dataclass
class Ended:
    """How a job ended: ``status`` is its exit status, ``"cut off"`` or ``"not begun"``; ``seconds`` it took."""

    name: str
    status: int | str
    seconds: float = 0.0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    begun: float


def run_part(part: Part, folder: Path, seconds: float, done: Callable[[Ended], None] = lambda one: None) -> list[Ended]:
    """Run a part's jobs, and end them with all that they started when its time is up.

    Args:
        part: to run.
        folder: where logs go.
        seconds: its limit.
        done: called when a job has ended.
    """
    try:
        waiting = list(part.jobs())
    except Exception as error:  # a broken plugin, say, must not take the other parts with it
        write_whole(folder / f"{part.name}.log", f"{type(error).__name__}: {error}\n")
        return [Ended(part.name, f"failed: {type(error).__name__}")]
    until = monotonic() + seconds
    running: list[_Running] = []
    ended: list[Ended] = []

    def end(one: _Running, status: int | str, grace: float = GRACE) -> None:
        running.remove(one)
        _end_group(one.process, grace)
        ended.append(Ended(one.job.name, status, round(monotonic() - one.begun, 2)))
        done(ended[-1])

    try:
        while waiting or running:
            for one in list(running):
                if (status := one.process.poll()) is not None:
                    end(one, status)
            if monotonic() > until:
                break
            while waiting and len(running) < part.side_by_side:
                running.append(_start(waiting.pop(0), folder, until))
            sleep(POLL)
    finally:
        for one in running:
            _ask_to_end(one.process)
        by_force = monotonic() + GRACE  # of all of them, however many there are
        for one in list(running):
            end(one, CUT_OFF, max(by_force - monotonic(), 0.0))
    ended += [Ended(job.name, NOT_BEGUN) for job in waiting]
    return ended


def _start(job: Job, folder: Path, until: float) -> _Running:
    now = monotonic()
    left = f"{max(until - now, 0.0):.1f}"
    command = [left if argument == "{seconds}" else argument for argument in job.command]
    with (folder / f"{job.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **job.environment},
        )  # fmt: skip
    return _Running(job, process, now)


def stop(*signal_and_frame: Any) -> None:
    """For ``signal.signal``: a request to end unwinds, and so ends the jobs that run."""
    raise SystemExit(143)


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the rest of a process group, after a while by force. Its leader may have ended already."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(
    parts: Sequence[Part],
    folder: Path,
    seconds: float,
    say: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Run the parts in turn: each has its share of the time and what earlier ones left of theirs.

    Args:
        parts: in order.
        folder: for the logs.
        seconds: for all of them.
        say: takes the lines of progress.
        keep: called after every part with all that is known, to be written down.

    Returns:
        By part: its jobs' ends, and the seconds it took.
    """
    begun, whole, planned = monotonic(), sum(part.share for part in parts), 0.0
    found: dict[str, Any] = {}
    for part in parts:
        planned += seconds * part.share / whole
        began = monotonic()
        limit = max(planned - (began - begun), part.least)
        say(f"[{began - begun:4.0f} s] {part.name}: {part.says}, at most {limit:.0f} s")
        ended = run_part(part, folder, limit, lambda one: say(f"         {one.name}: {_words(one)}"))
        took = monotonic() - began
        found[part.name] = {"seconds": round(took, 2), "limit": round(limit, 2), "jobs": [asdict(one) for one in ended]}
        keep(found)
        right = sum(one.status == 0 for one in ended)
        say(f"[{monotonic() - begun:4.0f} s] {part.name}: {right} of {len(ended)} ended well, {took:.0f} s")
    return found


def _words(one: Ended) -> str:
    how = f"exit status {one.status}" if isinstance(one.status, int) else one.status
    return f"{how} after {one.seconds:.1f} s"
