"""The ``rnn-backends`` command; also ``python -m rnn_conformance``."""

from __future__ import annotations

import faulthandler
import sys

EXTRAS = {"click": "cli", "rich": "cli", "hypothesis": "conformance", "pytest": "conformance"}


def main() -> None:
    """Run the command. Where a package it needs is not installed: say which extra brings it, exit status 2.

    Where a kernel ends the process (a segmentation fault), the stack of Python calls is printed: it names the law.
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
