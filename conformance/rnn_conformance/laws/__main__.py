"""One law over one case in this process; started by :mod:`rnn_conformance.suite.isolation`.

``python -m rnn_conformance.laws LAW BACKEND TOKEN DEVICE ANSWER SECONDS`` writes the outcome into the file ANSWER.
"""

import sys
from pathlib import Path

from rnn_backends import get_backend

from ..suite.case import Case
from ..suite.isolation import write_outcome
from .catalogue import LAWS

if __name__ == "__main__":
    law, name, token, device, answer, seconds = sys.argv[1:]
    write_outcome(LAWS[law], get_backend(name), Case.parse(token), device, Path(answer), float(seconds))
