"""A sample of ``make sanitize``: the kernel of ``cpp`` under AddressSanitizer and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rnn_backends_plugins.cpp import build

pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))


@pytest.mark.slow
def test_the_sanitizers_report_planted_faults_and_nothing_over_random_cases():
    program = Path(__file__).with_name("sanitize.py")
    command = [sys.executable, program, "--cases", "60", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=dict(os.environ))
    if "the compiler has no sanitizers" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both planted faults were reported" in done.stdout
    assert "60 cases from seed 1: no report" in done.stdout
