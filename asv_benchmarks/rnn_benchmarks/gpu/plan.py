"""Which parts a run has, and the processes of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rnn_backends import LSTMSpec, explain

from .parts import Job, Part

PARTS = ("environment", "laws", "tests", "figures", "cuts", "products", "crossovers", "quick")
MOST = 16
"""The maximum number of processes side by side; it is never more than the cores."""
SIDE_BY_SIDE = 6
"""Processes of the tests that need CUDA, where pytest-xdist is installed: kernels compile side by side."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Choice:
    """What to run.

    Attributes:
        device: where.
        folder: for everything that is found.
        parts: names, of :data:`PARTS`; they run in that order.
        backends: names; none for all that accept an LSTM there.
        laws: parts of laws' names; none for all.
        tests: the folder of the tests that need CUDA, or ``None``.
        shapes: of the figures; none for S1 to S5 and G1.
        acting: shapes of single steps; none for the usual ones.
    """

    device: str
    folder: Path
    parts: tuple[str, ...] = PARTS
    backends: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    tests: Path | None = None
    shapes: tuple[str, ...] = ()
    acting: tuple[str, ...] = ()


def parts_of(choice: Choice) -> list[Part]:
    """The chosen parts, in order, with their shares of the time."""
    cores = max(1, min(MOST, os.cpu_count() or 1))
    every = (
        Part("environment", "chip, driver, clocks, versions", 20, lambda: [_own("environment", choice)], least=30),
        Part("laws", "smoke, every backend side by side", 80, lambda: _laws(choice, "smoke"), cores),
        Part("tests", "the tests that need CUDA", 45, lambda: _tests(choice)),
        Part(
            "figures", "R, Q, acting, memory, first call, alone on the device", 120, lambda: [_own("figures", choice)]
        ),
        Part("cuts", "other cuts of triton's kernels against the plan's", 40, lambda: [_own("cuts", choice)]),
        Part(
            "products",
            "triton's products that need no recurrence, beside torch's",
            20,
            lambda: [_own("products", choice)],
        ),
        Part("crossovers", "times for auto", 40, lambda: [_own("crossovers", choice)]),
        Part(
            "quick", "laws, quick, every backend, with the time that is left", 55, lambda: _laws(choice, "quick"), cores
        ),
    )
    return [part for part in every if part.name in choice.parts]


def accepting(device: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Installed backends that accept a plain LSTM there."""
    return [verdict.name for verdict in explain(LSTMSpec(32, 128), torch.device(device), dtype) if verdict.accepted]


def _own(what: str, choice: Choice) -> Job:
    """One of this package's own programs: its device, folder and limit, and the chosen names."""
    options = ["--device", choice.device, "--out", str(choice.folder), "--seconds", "{seconds}"]
    for option, values in (("--backend", choice.backends), ("--shape", choice.shapes), ("--acting", choice.acting)):
        options += [word for value in values for word in (option, value)]
    return Job(what, (sys.executable, "-m", "rnn_benchmarks.gpu", what, *options))


def _laws(choice: Choice, profile: str) -> list[Job]:
    """One process per backend; when it is ended, it writes its results so far."""
    return [_check(choice, profile, name) for name in choice.backends or accepting(choice.device)]


def _check(choice: Choice, profile: str, backend: str) -> Job:
    file = choice.folder / f"{profile}-{backend}.jsonl"
    command = [sys.executable, "-m", "rnn_conformance", "check", backend, "--profile", profile, "--seed", "1"]
    command += ["--device", choice.device, "--json", str(file), "--no-shrink"]
    command += [word for law in choice.laws for word in ("-k", law)]
    return Job(f"{profile}-{backend}", tuple(command), ONE_THREAD)


def _tests(choice: Choice) -> Sequence[Job]:
    if choice.tests is None:
        return []
    settings = choice.tests / "pyproject.toml"
    config = ["-c", str(settings)] if settings.exists() else []
    command = [sys.executable, "-m", "pytest", *config, str(choice.tests), "-m", "cuda", "-v", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark"]  # pytest-benchmark warns where pytest-xdist is active, and warnings are errors
    command += ["-n", str(SIDE_BY_SIDE)] if find_spec("xdist") else []
    return [Job("tests", (*command, f"--junitxml={choice.folder / 'tests.xml'}"))]
