"""Runs the tests of core and plugins on other versions: `make matrix`, or `python tools/matrix.py --help`.

Each combination of Python, torch, tensordict and TorchRL gets a virtual environment under `.matrix/`. One that cannot
be installed is skipped with the reason. torch is required as `VERSION+cpu`, which only a CPU build satisfies, because a
build for CUDA brings gigabytes. pip's configuration sets the package index, and `--torch-index` adds one for torch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".matrix"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.11.0", "2.12.0", "2.13.0")
OTHERS = (("0.14.3", "0.14.1"), ("0.14.3", None), ("0.15.3", None))
"""(tensordict, TorchRL): TorchRL 0.14 needs tensordict 0.14."""
TESTS = ("core/tests", "plugins/tests")
WITHOUT_TORCHRL = (
    "core/tests/test_torchrl_*.py",
    "core/tests/test_testing.py",
    "core/tests/test_docs.py",
)
"""Tests of what the library does with TorchRL; they cannot run without it."""
TOOLS = ("hypothesis", "pytest", "click", "rich", "numpy", "expecttest", "hatchling")
VERSIONS = """
import platform
from importlib.metadata import version, PackageNotFoundError
def v(name):
    try: return version(name)
    except PackageNotFoundError: return "none"
print(f"Python {platform.python_version()}, " + ", ".join(f"{n} {v(n)}" for n in ("torch", "tensordict", "torchrl")))
"""


class Skipped(Exception):
    """A combination that is not available here; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """One combination."""

    python: str
    torch: str
    tensordict: str
    torchrl: str | None

    @property
    def name(self) -> str:
        """The name for `--only` and for the folder."""
        torchrl = f"torchrl{self.torchrl}" if self.torchrl else "alone"
        return f"py{self.python}-torch{self.torch}-tensordict{self.tensordict}-{torchrl}"


def rows() -> Iterator[Row]:
    """Every combination."""
    for python in PYTHONS:
        for torch in TORCHES:
            for tensordict, torchrl in OTHERS:
                yield Row(python, torch, tensordict, torchrl)


def interpreter(version: str) -> str:
    """The path of this version of Python, found on PATH or in pyenv."""
    homes = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, reversed(homes))]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if done.returncode == 0:
            return candidate
    raise Skipped(f"there is no Python {version} with venv and pip on this machine")


def environment(row: Row, torch_index: str | None) -> Path:
    """A virtual environment with this combination, created if it does not exist."""
    python = FOLDER / row.name / "bin" / "python"
    ready = FOLDER / row.name / ".ready"
    if ready.exists():
        return python
    shutil.rmtree(FOLDER / row.name, ignore_errors=True)
    subprocess.run([interpreter(row.python), "-m", "venv", str(FOLDER / row.name)], check=True)
    install(python, "torch", "--upgrade", "pip")
    index = ["--extra-index-url", torch_index] if torch_index else []
    install(python, f"torch {row.torch} as a CPU build", *index, f"torch=={row.torch}+cpu")
    torchrl = [f"torchrl=={row.torchrl}", "gymnasium"] if row.torchrl else []
    install(python, "the rest", f"torch=={row.torch}+cpu", f"tensordict=={row.tensordict}", *torchrl, *TOOLS)
    install(python, "this project", "--no-deps", "--editable", str(ROOT))
    ready.touch()
    return python


def install(python: Path, what: str, *arguments: str) -> None:
    """Install by pip; an unavailable package is a reason to skip."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Skipped(f"{what} cannot be installed: {said[0] if said else 'pip says nothing'}")


def run(python: Path, torchrl: bool, arguments: list[str]) -> str:
    """Run the tests in an environment and return pytest's last line."""
    left_out = [] if torchrl else [f"--ignore-glob={ROOT / pattern}" for pattern in WITHOUT_TORCHRL]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, *(arguments or TESTS)]
    settings = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    log = FOLDER / "logs" / f"{python.parent.parent.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    summary = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    words = summary[-1].strip("= ") if summary else f"pytest ended with {done.returncode}"
    return words if done.returncode == 0 else f"FAILED: {words} ({log.relative_to(ROOT)})"


def has_torchrl(python: Path) -> bool:
    """Whether TorchRL can be imported in the environment."""
    return subprocess.run([str(python), "-c", "import torchrl"], capture_output=True, check=False).returncode == 0


def main() -> int:
    """Run all available combinations; return 1 if a test failed anywhere, 3 if nothing ran."""
    options = argparse.ArgumentParser(description="Run the tests on other versions.")
    options.add_argument("--only", default="", help="combinations with this in their name, such as py3.12 or torch2.11")
    options.add_argument("--environment", type=Path, help="the python of an environment that exists: run there alone")
    options.add_argument("--torch-index", help="a package index with CPU builds of torch")
    options.add_argument("--list", action="store_true", help="print the combinations and stop")
    options.add_argument("tests", nargs="*", help=f"default: {' '.join(TESTS)}")
    given = options.parse_args()
    if given.environment:
        python = given.environment.absolute()
        print(subprocess.run([str(python), "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip())
        print(said := run(python, has_torchrl(python), given.tests))
        return int(said.startswith("FAILED"))
    told = {}
    for row in (row for row in rows() if given.only in row.name):
        if given.list:
            print(row.name)
            continue
        try:
            python = environment(row, given.torch_index)
            told[row.name] = run(python, row.torchrl is not None, given.tests)
        except Skipped as reason:
            told[row.name] = f"skipped: {reason}"
        print(f"{row.name}: {told[row.name]}", flush=True)
    ran = [said for said in told.values() if not said.startswith("skipped")]
    failed = sum(said.startswith("FAILED") for said in ran)
    print(f"{len(ran)} combinations ran, {len(told) - len(ran)} were skipped, {failed} failed")
    return 1 if failed else 0 if ran or given.list else 3


if __name__ == "__main__":
    sys.exit(main())
