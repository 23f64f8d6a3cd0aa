"""The ``rnn-backends`` command; also ``python -m rnn_conformance``."""

from __future__ import annotations

import faulthandler
import sys
import traceback

EXTRAS = {"click": "cli", "rich": "cli", "hypothesis": "conformance", "pytest": "conformance"}
ERROR = 70
"""The exit status after an error of the program: that of Python, 1, is a verdict here."""


def main() -> None:
    """Run the command. If a package it needs is not installed, print the extra that installs it, exit status 2.

    If a kernel ends the process (a segmentation fault), the stack of Python calls is printed, which shows the law.
    Exit status 1 is a verdict. Without one it is 130 after Ctrl-C, and 70 after an error, which is printed.
    """
    faulthandler.enable()
    try:
        from .cli.main import run

        status = run()
    except Exception as error:
        package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        extra = EXTRAS.get(package)
        if extra is None:
            traceback.print_exc()
            raise SystemExit(ERROR) from None
        print(f"rnn-backends: {package} is not installed. Run: pip install 'rnn-backends[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
