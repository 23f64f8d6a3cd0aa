"""A program that reproduces one failure and needs only torch and the backend. It draws the case's tensors as the suite
does, and prints the backend's numbers and those of torch.nn.LSTM over one trajectory at a time.

Text from tokens, plugins and reports appears in it as Python literals or in comments only.
"""

from __future__ import annotations

import base64
import inspect
import re
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path

from rnn_backends.paths import write_whole

from .check import case_of
from .laws.catalogue import LAWS
from .report.model import Results, replay_line, versions
from .report.terminal import printable
from .suite import inputs, reference
from .suite.case import Case
from .suite.tolerances import TOLERANCES
from .suite.verdict import LawResult

PROGRAM = """\
{comment}

import sys
{imports}from collections.abc import Mapping
from typing import NamedTuple

import torch
from rnn_backends import LSTM, State
from torch import Tensor, nn

torch.set_num_threads(1)
torch.set_printoptions(precision=6, linewidth=120)
device, dtype = {device!a}, {dtype}
T, B, I, H, P, L, bidirectional = {T}, {B}, {I}, {H}, {P}, {L}, {bidirectional}
rows = L * (1 + bidirectional)

# The case: x [T, B, I]; a sequence starts from the states h, c that are stored where starts [T, B] is true.
generator = torch.Generator().manual_seed({seed})


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


weights = {{
{weights}
}}
x = 2 * uniform(T, B, I)
h, c = {zeros}uniform(rows, T, B, P), {zeros}2 * uniform(rows, T, B, H)
{recorded}starts = torch.zeros(T, B, dtype=torch.bool)
starts[0] = True
for t, b in {starts}:
    starts[t, b] = True


{layout}

x, h, c = ({place}(value.to(device, dtype)) for value in (x, h, c))
starts = {place}(starts.to(device))
weights = {{name: value.to(device, dtype) for name, value in weights.items()}}

# The backend.
lstm = {constructor}.eval()
with torch.no_grad():
    for name, value in weights.items():
        lstm.get_parameter(name).copy_(value)
x.requires_grad_()
entry = [State(*stored) for stored in zip(h, c, strict=True)]
output, states = lstm.sequences(x, entry, starts)


# torch.nn.LSTM in float64, one trajectory at a time.
{reference}


wide = {{name: value.double().requires_grad_() for name, value in weights.items()}}
wide_x = x.detach().double().requires_grad_()
expected = torch_per_trajectory(wide, wide_x, h.double(), c.double(), starts, L, bidirectional)

print("starts [T, B]:", starts.int().tolist())
print("actual output [T, B, unit]:", output.detach(), sep="\\n")
print("expected output, torch.nn.LSTM over one trajectory at a time:", expected.output.detach(), sep="\\n")

failed = False


def compare(name: str, actual: Tensor, right: Tensor, tolerance: float) -> None:
    global failed
    error = (actual.detach().double() - right.detach()).abs().max().item()
    limit = tolerance * right.abs().max().item()
    failed |= not error <= limit
    print(f"{{name}}: error {{error:.2g}}, tolerance {{limit:.2g}}", "" if error <= limit else "  <- differs")


compare("output", output, expected.output, {values})
if output.requires_grad:
    ramp = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64, device=device).view(output.shape)
    leaves = {{"x": x, **{{name: lstm.get_parameter(name) for name in weights}}}}
    right_leaves = {{"x": wide_x, **wide}}
    actual = torch.autograd.grad(output, list(leaves.values()), ramp.to(dtype), allow_unused=True)
    right = torch.autograd.grad(expected.output, list(right_leaves.values()), ramp, allow_unused=True)
    for name, got, wanted in zip(leaves, actual, right, strict=True):
        if wanted is not None:
            compare(f"gradient of {{name}}", torch.zeros_like(wanted) if got is None else got, wanted, {gradients})

print("these differ; run the law with:" if failed else "no difference here: the law tests something else; run it with:")
print({replay!a})
sys.exit(failed)
"""
RECORDED = """\
packed = {data!a}
observation = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(packed))), dtype=torch.float32)
x = observation.view(B, T, I).double().transpose(0, 1)
"""


def program(backend: str, law: str, token: str, device: str = "cpu", message: str = "", file: str = "case.py") -> str:
    """The source of a program that reproduces the case.

    Raises:
        ValueError: the token is invalid.
    """
    case, rollout = case_of(law, token)
    limit = TOLERANCES[case.torch_dtype]
    result = LawResult(backend, law, "failed", token=token)
    data = b"" if rollout is None else rollout.observation.contiguous().numpy().tobytes()
    recorded = "" if rollout is None else RECORDED.format(data=base64.b64encode(zlib.compress(data, 9)).decode())
    return PROGRAM.format(
        comment=_comment(backend, law, token, message, file),
        imports="" if rollout is None else "import base64\nimport zlib\n",
        recorded=recorded,
        device=device,
        dtype=case.torch_dtype,
        **{name: getattr(case, name) for name in ("T", "B", "I", "H", "L", "bidirectional", "seed")},
        P=case.spec.output_size,
        weights="\n".join(f"    {name!a}: uniform{shape}," for name, shape in inputs.weight_shapes(case).items()),
        zeros="0 * " if case.stored == "zeros" else "",
        starts=case.is_init.nonzero().tolist(),
        layout=_layout(case),
        place=_place(case),
        constructor=_constructor(case, backend, device),
        reference="\n\n".join(
            textwrap.dedent(inspect.getsource(part)).rstrip() + "\n"
            for part in (reference.Expected, reference.trajectories, reference.torch_per_trajectory)
        ).rstrip(),
        values=limit.values,
        gradients=limit.gradients,
        replay=replay_line(result, device),
    )


def _comment(backend: str, law: str, token: str, message: str, file: str) -> str:
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"{backend} and the law {law}: {LAWS[law].sentence}",
        *message.splitlines(),
        f"The case: {token}",
        f"Found with {found}. Needs torch and the backend, nothing else: python {file}",
    ]
    return "\n".join(f"# {printable(line, line=True)}".rstrip() for text in lines for line in text.splitlines())


def _place(case: Case) -> str:
    return "Tensor.clone" if case.layout == "contiguous" else inputs._layouts[case.layout].__name__


def _layout(case: Case) -> str:
    """The function that gives the tensors their strides."""
    return "" if case.layout == "contiguous" else inspect.getsource(inputs._layouts[case.layout]).rstrip() + "\n"


def _constructor(case: Case, backend: str, device: str) -> str:
    spec, usual = case.spec, type(case.spec)(1, 1)
    options = [str(spec.input_size), str(spec.hidden_size)]
    for name in ("num_layers", "bias", "dropout", "bidirectional", "proj_size"):
        if getattr(spec, name) != getattr(usual, name):
            options.append(f"{name}={getattr(spec, name)}")
    return f"LSTM({', '.join(options)}, device=device, dtype=dtype, lstm_backend={backend!a})"


def write_scripts(results: Results, folder: Path) -> Iterator[Path]:
    """Write a program for each failure that has a token; return the paths.

    Raises:
        OSError: one cannot be written.
    """
    for run in results.runs:
        for result in run.failures:
            if result.token is not None:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / _file_name(result, run.device)
                write_whole(
                    path, program(result.backend, result.law, result.token, run.device, result.message, path.name)
                )
                yield path


def _file_name(result: LawResult, device: str) -> str:
    where = "" if device == "cpu" else "_" + device.replace(":", "")
    return re.sub(r"[^\w.-]+", "-", f"{result.backend}_{result.law}{where}.py").lstrip(".-")
