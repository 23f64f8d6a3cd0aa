"""The example of deployment, whole: saved, compiled, and run from Python and from C++."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "deployment"
COMPILER = os.environ.get("CXX", "g++").split()[-1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler {COMPILER}")
def test_every_way_of_deployment_gives_what_the_lstm_gives(tmp_path):
    command = [sys.executable, str(FOLDER / "deploy.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    pieces = ["1", "2", "5", "12"]
    for way in ("torch.export, from Python", "AOTInductor, from Python", "compiled.pt2, from C++", "lstm.pt, from C++"):
        assert re.findall(rf"{re.escape(way)}: pieces of (\d+): largest difference", done.stdout) == pieces, way
