"""A program for one failure: it builds the case's tensors, runs the backend on them, and then the law itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..laws.catalogue import LAWS
from ..suite.case import Case
from ..suite.verdict import LawResult
from .model import Results, versions

BY_HAND = '''\
"""{title}

{message}
Found with {versions}. Needs nothing else: python {file}
"""

import torch
from rnn_backends import LSTM, get_backend
from rnn_conformance.suite.case import Case
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.suite.inputs import materialise
from rnn_conformance.suite.reference import torch_per_trajectory
from rnn_conformance.suite.trial import Trial

torch.set_num_threads(1)
torch.set_printoptions(precision=6, linewidth=120)
case = Case.parse("{token}")  # {described}

# The case by hand. x [T, B, I]; a sequence starts from the state stored where starts [T, B] is true.
x, h, c, starts, weights = inputs = materialise(case, "{device}")
lstm = {constructor}
with torch.no_grad():
    for name, value in weights.items():
        lstm.get_parameter(name).copy_(value)
print("starts [T, B]:", starts.int().tolist())
output, states = lstm.sequences(x, inputs.entry, starts)
expected = torch_per_trajectory(weights, x, h, c, starts, case.L, case.bidirectional)
print("actual output [T, B, unit]:", output.detach(), sep="\\n")
print("expected output, torch.nn.LSTM over one trajectory at a time:", expected.output.detach(), sep="\\n")

# The law: a plain function that raises AssertionError. Its source: rnn-backends laws {law}
LAWS["{law}"].function(Trial(get_backend("{backend}"), case, "{device}"))
print("the law holds for this case")
'''
BY_TOKEN = '''\
"""{title}

{message}
Found with {versions}. Needs nothing else: python {file}
"""

import torch
from rnn_conformance import replay

torch.set_num_threads(1)
result = replay("{backend}", "{law}", "{token}", "{device}")
print(result.label, result.message)
raise SystemExit(not result.ok)
'''


def program(backend: str, law: str, token: str, device: str = "cpu", message: str = "", file: str = "case.py") -> str:
    """The source of a program that shows the case.

    Raises:
        ValueError: the token is not understood.
    """
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    said = {
        "title": f"{backend} and the law {law}: {LAWS[law].sentence}".replace("\\", "\\\\"),
        "message": message.replace("\\", "\\\\").replace('"""', "'''").rstrip(),
        "versions": found,
        "file": file,
        "backend": backend,
        "law": law,
        "token": token,
        "device": device,
    }
    if ":" in token:
        return BY_TOKEN.format(**said)
    case = Case.parse(token)
    return BY_HAND.format(**said, described=_described(case), constructor=_constructor(case, backend, device))


def _described(case: Case) -> str:
    starts = ", ".join(f"[t={t}, b={b}]" for t, b in case.is_init.nonzero().tolist()[:8]) or "nowhere"
    many = " ..." if case.is_init.sum() > 8 else ""
    return f"T={case.T} B={case.B} I={case.I} H={case.H}, {case.torch_dtype}, resets at {starts}{many}"


def _constructor(case: Case, backend: str, device: str) -> str:
    spec, usual = case.spec, type(case.spec)(1, 1)
    options = [str(spec.input_size), str(spec.hidden_size)]
    for name in ("num_layers", "bias", "dropout", "bidirectional", "proj_size"):
        if getattr(spec, name) != getattr(usual, name):
            options.append(f"{name}={getattr(spec, name)}")
    options += [f'device="{device}"'] if device != "cpu" else []
    return f'LSTM({", ".join(options)}, dtype={case.torch_dtype}, lstm_backend="{backend}")'


def write_scripts(results: Results, folder: Path) -> Iterator[Path]:
    """Write a program for each failure that has a token; the paths."""
    for run in results.runs:
        for result in run.failures:
            if result.token is not None:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / _file_name(result, run.device)
                path.write_text(
                    program(result.backend, result.law, result.token, run.device, result.message, path.name),
                    encoding="utf-8",
                )
                yield path


def _file_name(result: LawResult, device: str) -> str:
    where = "" if device == "cpu" else "_" + device.replace(":", "")
    return f"{result.backend}_{result.law}{where}.py".replace("/", "-")
