"""The ``rnn-backends`` command; also ``python -m rnn_conformance``."""

from __future__ import annotations

import faulthandler
import sys

EXTRAS = {"click": "cli", "rich": "cli", "hypothesis": "conformance", "pytest": "conformance"}


def main() -> None:
    """Run the command. If a package it needs is not installed, print the extra that installs it, exit status 2.

    If a kernel ends the process (a segmentation fault), the stack of Python calls is printed, which shows the law.
    """
    faulthandler.enable()
    try:
        from .cli.main import cli

        cli(prog_name="rnn-backends")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = EXTRAS.get(package)
        if extra is None:
            raise
        print(f"rnn-backends: {package} is not installed. Run: pip install 'rnn-backends[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
