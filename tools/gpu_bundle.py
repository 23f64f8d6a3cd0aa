"""Makes a folder to copy to a machine with a GPU and no network: `python tools/gpu_bundle.py gpu-bundle`.

It contains the wheel of this tree, wheels of the packages that the machine may lack (it has torch, Triton, numpy,
pytest, Hypothesis), the tests that need CUDA, and run.sh, which installs into a separate folder and runs them all.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = (
    "tensordict", "torchrl", "pyvers", "hoptorch", "orjson", "cloudpickle", "importlib-metadata", "zipp", "packaging",
    "lazy-importer", "pluggy", "click", "rich", "markdown-it-py", "mdurl", "pygments",
)  # fmt: skip
"""The dependencies of the package, its commands and TorchRL that the other machine lacks."""
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17, 12, 5)), "manylinux2014_x86_64", "linux_x86_64")
LARGEST = 20 << 20
TESTS = "plugins/tests/test_cuda.py"

RUN = """\
#!/usr/bin/env bash
# Laws, tests and figures on this machine's GPU, without a network: ./run.sh, or ./run.sh --help.
# Installs into {site} beside this file (SITE=folder for another place) and changes nothing else.
# PYTHON=python3.12 chooses the interpreter, which has torch, Triton, numpy, pytest and Hypothesis.
set -euo pipefail
here="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
site="${{SITE:-$here/{site}}}"
python="${{PYTHON:-python3}}"
rm -rf "$site"
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \\
  --find-links "$here/wheels" --target "$site" "$here"/wheels/*.whl
export PYTHONPATH="$site${{PYTHONPATH:+:$PYTHONPATH}}" RNN_BACKENDS_COMMIT="{commit}"
exec "$python" -m rnn_benchmarks.gpu run --tests "$here/tests" "$@"
"""


def main() -> None:
    """Create the folder, or replace it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("gpu-bundle"))
    parser.add_argument("--python", default="3.12", help="of the other machine; default: %(default)s")
    options = parser.parse_args()
    folder = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    wheels, tests = folder / "wheels", folder / "tests"
    wheels.mkdir(parents=True)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    _download(wheels, options.python)
    tests.mkdir()
    for name in (TESTS, "pyproject.toml"):  # the tests' settings: markers, warnings that are errors
        shutil.copy(ROOT / name, tests)
    run = folder / "run.sh"
    run.write_text(RUN.format(site="site", commit=_commit()), encoding="utf-8")
    run.chmod(0o755)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > LARGEST:
        sys.exit(f"{folder} has {size / 2**20:.1f} MiB; at most {LARGEST >> 20} can be carried")
    print(f"{folder} has {size / 2**20:.1f} MiB, {len(list(wheels.iterdir()))} wheels; there: {run.name} --help")


def _download(wheels: Path, python: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    _pip(
        "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *platforms,
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(wheels), *NEEDED,
    )  # fmt: skip


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    if subprocess.run(command).returncode:
        sys.exit(f"failed: pip {' '.join(word for word in words if 'linux' not in word and word != '--platform')}")


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
