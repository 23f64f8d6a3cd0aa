"""``rnn-backends check triton`` in Triton's interpreter: a program of its own, as ``triton_interpreted.py`` is.

Its arguments are the command's. The interpreter's replacement of Triton's functions is made once and not in every
launch, which is a quarter of the time.
"""

import sys

from rnn_conformance.__main__ import main
from triton_recorded import patched_once

if __name__ == "__main__":
    sys.argv[1:1] = ["check", "triton"]
    with patched_once():
        main()
