"""TorchRL's own tests of its LSTMModule, with ours in its place.

    git clone --depth 1 https://github.com/pytorch/rl      # tests are not part of TorchRL's wheel
    python tools/torchrl_tests.py rl                       # ours
    python tools/torchrl_tests.py rl --theirs              # TorchRL's, to compare
    python tools/torchrl_tests.py rl -- -k canonicalize    # further words are pytest's

The installed TorchRL is tested with the checkout's test files: use a checkout of about the same version. Tests that
fail for a documented reason (EXPECTED) are counted separately; the exit status is 1 if any other test fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

RECOMPUTE = "recurrent_recompute='full' is refused: torch.utils.checkpoint around the module does that for any backend"
EXPECTED = {
    "TestLSTMModule::test_errs": "a string in place of a list of keys raises InputError, not nanobind's TypeError",
    "TestLSTMModule::test_python_cudnn": "it is no instance of nn.LSTM, because torch.compile refuses subclasses",
    "test_lstm_scan_recompute_matches_pad": RECOMPUTE,
}
"""Parts of a test's name, and why it cannot pass with our module."""


def replace_module() -> None:
    """Replace TorchRL's LSTMModule by ours in the packages that export it and in the module that defines it."""
    import torchrl.modules
    from rnn_backends import LSTMModule
    from torchrl.modules import tensordict_module
    from torchrl.modules.tensordict_module import rnn

    for place in (rnn, tensordict_module, torchrl.modules):
        place.LSTMModule = LSTMModule


class Verdicts:
    """A pytest plugin: marks the tests that are expected to fail, and collects the names of failed tests."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Mark the tests that cannot pass as expected failures, with the reason."""
        for item in items if self.ours else ():
            reason = next((reason for part, reason in EXPECTED.items() if part in item.nodeid), None)
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def main() -> int:
    """Run the tests, and return pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of pytorch/rl")
    parser.add_argument("--theirs", action="store_true", help="TorchRL's module, as it is")
    parser.add_argument("words", nargs="*", help="pytest's options, after --")
    options = parser.parse_args()
    tests = options.checkout / "test" / "modules" / "test_rnn.py"
    if not tests.is_file():
        parser.error(f"{tests} does not exist: not a checkout of pytorch/rl of 0.14 or later")
    if not options.theirs:
        replace_module()
    picked = ["-k", "not GRU and not gru and not MatmulPrecision"] if "-k" not in options.words else []
    place = ["--rootdir", str(options.checkout), "-c", str(options.checkout / "pytest.ini"), "-p", "no:cacheprovider"]
    return int(pytest.main([str(tests), *place, "-q", *picked, *options.words], plugins=[Verdicts(not options.theirs)]))


if __name__ == "__main__":
    sys.exit(main())
