"""Run the conformance suite over the backends of this folder: ``python run.py [NAME...] [--profile quick]``."""

import argparse
from dataclasses import replace

import nn_lstm
import torch
import torchrl_pad
import torchrl_python
import torchrl_scan
from rnn_backends import LSTMBackend, LSTMSpec
from rnn_conformance import check_backend
from rnn_conformance.check import quiet_single_thread
from rnn_conformance.report.model import Report
from rnn_conformance.suite.verdict import VERDICTS


def backends() -> dict[str, LSTMBackend]:
    """All of them, by name."""
    hooks = (torchrl_pad, torchrl_scan, torchrl_python, nn_lstm)
    return {value.name: value for value in (*(hook.lstm_backend() for hook in hooks), nn_lstm.MASKED)}


def without_projection(backend: LSTMBackend) -> LSTMBackend:
    """The same, declining projections, whose failure would hide all others."""

    def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return "projections are declined in this run" if spec.proj_size else backend.rejects(spec, device, dtype)

    return replace(backend, rejects=rejects)


def line(report: Report) -> str:
    """The number of laws by verdict, and the worst error as a share of its tolerance."""
    counts = "".join(f"{report.count(verdict):>9}" for verdict in reversed(VERDICTS))
    return f"{report.backend:<16}{counts}{report.worst_error_ratio or 0:>10.2g}{report.seconds:>7.0f} s"


def failures(report: Report, most: int = 12) -> str:
    """Each failure in two lines, law and token, then the message; the worst first."""
    bad = report.failures
    rows = [f"  {r.label}: {r.law}  {r.token}\n      {r.message.splitlines()[0][:150]}" for r in bad[:most]]
    rest = [f"  and {len(bad) - most} more: -k LAW selects one"] if len(bad) > most else []
    return "\n".join([*rows, *rest])


def main() -> None:
    """Check the named backends, or all."""
    known = backends()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--profile", default="smoke", choices=("smoke", "quick", "full", "deep"))
    parser.add_argument("-k", "--laws", action="append", default=[], metavar="LAW", help="laws with this in their name")
    parser.add_argument("--seed", type=int, help="of the generated cases; default: a fresh one")
    parser.add_argument("--no-projection", action="store_true", help="decline projections, to see other failures")
    asked = parser.parse_args()
    print(" " * 16 + "".join(f"{verdict.split('_')[0]:>9}" for verdict in reversed(VERDICTS)) + "    error_ratio")
    for name in asked.names or known:
        if name not in known:
            parser.error(f"there is no {name!r}; there are {', '.join(known)}")
        backend = without_projection(known[name]) if asked.no_projection else known[name]
        with quiet_single_thread():
            report = check_backend(backend, profile=asked.profile, laws=asked.laws, seed=asked.seed)
        print(line(report), failures(report), sep="\n", flush=True)


if __name__ == "__main__":
    main()
