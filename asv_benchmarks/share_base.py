"""Let an asv environment use the torch of another one: links to all its packages, this project's excepted.

asv runs it with its environment's Python. The other one is ``ASV_BASE_PYTHON``, by default the repository's ``.venv``.
The links come after the environment's own packages on the path.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

OURS = ("rnn_backends", "rnn_conformance", "rnn_benchmarks", "_rnn_backends", "__editable__")
ASK = "import sys, sysconfig; print(sysconfig.get_path('purelib')); print(*sys.version_info[:2])"


def main() -> None:
    """Replace the links."""
    base = os.environ.get("ASV_BASE_PYTHON") or str(Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python")
    said = subprocess.run([base, "-c", ASK], text=True, capture_output=True, check=True).stdout.splitlines()
    here = f"{sys.version_info[0]} {sys.version_info[1]}"
    if said[1] != here:
        raise SystemExit(f"the packages of {base} are for Python {said[1]}, and this environment has {here}")
    own = Path(sysconfig.get_path("purelib"))
    links = own.parent / "shared-packages"
    links.mkdir(exist_ok=True)
    for old in links.iterdir():
        old.unlink()
    for package in Path(said[0]).iterdir():
        if package.name.startswith(OURS) or package.suffix == ".pth" or package.name == "__pycache__":
            continue
        (links / package.name).symlink_to(package)
    (own / "zz_shared_packages.pth").write_text(f"{links}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
