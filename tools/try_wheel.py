"""Installs the wheel of a folder into a fresh virtual environment and imports it: `python tools/try_wheel.py dist`.

The environment can import the packages of this one, so that torch is not installed again, but not the repository.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROGRAM = """
import rnn_backends, torch
assert rnn_backends.__file__.startswith({folder!r}), rnn_backends.__file__
print(rnn_backends.LSTM(3, 4)(torch.randn(2, 1, 3))[0].shape, rnn_backends.names())
"""


def main(folder: str) -> None:
    """Install the only wheel in the folder, and run a call from it."""
    (wheel,) = Path(folder).resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as place:
        home = Path(place).resolve() / "venv"
        venv.create(home, with_pip=True)
        python = str(home / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
        outside = [path for path in sys.path if path.endswith("site-packages")]
        site = next(home.rglob("site-packages"))
        (site / "outside.pth").write_text("\n".join(outside) + "\n")
        subprocess.run([python, "-P", "-c", PROGRAM.format(folder=str(home))], check=True, cwd=home)
    print(f"{wheel.name} installs and runs")


if __name__ == "__main__":
    main(sys.argv[1])
