"""One law over one case in a process of its own; started by :mod:`rnn_conformance.suite.isolation`.

``python -m rnn_conformance.laws LAW BACKEND TOKEN DEVICE ANSWER SECONDS`` writes the outcome into the file ANSWER.
Without arguments it reads such arguments from standard input, and runs each in a fork.
"""

import sys
from pathlib import Path

from rnn_backends import get_backend

from ..suite.case import Case
from ..suite.interpreter import serve
from ..suite.isolation import write_outcome
from .catalogue import LAWS


def run(arguments: list[str]) -> None:
    """Run the law and write its outcome."""
    law, name, token, device, answer, seconds = arguments
    write_outcome(LAWS[law], get_backend(name), Case.parse(token), device, Path(answer), float(seconds))


if __name__ == "__main__":
    if sys.argv[1:]:
        run(sys.argv[1:])
    else:
        serve(run)
