"""The figures other than plain times: R and Q, memory, errors, and the cost of compilation."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from os import environ

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .cases import DENSE, Contestant, Shape, build, masks, weights
from .groups import Group, Row, run
from .timing import interleaved, peak_bytes, ratio

KINDS = {"output only": "output", "exact ends": "ends", "stored states": "stored"}
"""Values of a contestant's ``reads`` for the tensor interface, by their names in tables."""
SECONDS = 3.0
"""The measuring time of a single figure."""


def R_group(
    title: str,
    backends: Iterable[str],
    shape: Shape,
    resets: str,
    reads: str = "output",
    seconds: float = SECONDS,
    option: str = "",
    device: str = "cpu",
) -> Group:
    """R = time(backend, with resets) / time(torch's dense ``nn.LSTM``, same shape, no resets), forward and backward.

    1 means that resets are free. Both run in turn in one process; R is the median of the ratio over the rounds, the
    ``over`` of each backend's row.
    """
    names = [DENSE, *(name for name in backends if name != DENSE)]
    contestants = {name: Contestant(name, shape, resets, "train", reads, device, option) for name in names}
    return Group(title, contestants, DENSE, seconds)


def Q_group(
    title: str,
    ours: str,
    peers: Iterable[str],
    shape: Shape,
    resets: str,
    seconds: float = SECONDS,
    device: str = "cpu",
) -> Group:
    """Q = time(TorchRL's ``LSTMModule``) / time(our ``LSTMModule``), the same TensorDict, forward and backward.

    Above 1 ours is faster. They run in turn in one process; ``over`` in each peer's row is Q against that peer, the
    median of the ratio over the rounds. See :func:`Q_of`.
    """
    names = (ours, *peers)
    contestants = {name: Contestant(name, shape, resets, "train", "module", device) for name in names}
    return Group(title, contestants, ours, seconds)


def Q_of(rows: Iterable[Row]) -> float | None:
    """Q of a group's rows, against the fastest peer. ``None`` if no peer was measured."""
    return min((row.over.median for row in rows if row.over and row.label != row.base), default=None)


def measure_R(backend: str, shape: Shape, resets: str, reads: str = "output", device: str = "cpu") -> float:
    """R of one backend, see :func:`R_group`.

    Raises:
        NotImplementedError: it cannot be measured, with the reason.
    """
    rows = run(R_group("R", (backend,), shape, resets, reads, SECONDS, device=device))
    row = next(row for row in rows if row.label == backend)
    if row.over is None:
        raise NotImplementedError(next(one.note for one in rows if one.seconds is None))
    return row.over.median


def measure_Q(backend: str, shape: Shape, resets: str, peers: Iterable[str], device: str = "cpu") -> float:
    """Q of one backend against the fastest peer, see :func:`Q_group`.

    Raises:
        NotImplementedError: it or every peer cannot be measured, with the reason.
    """
    rows = run(Q_group("Q", backend, peers, shape, resets, SECONDS, device))
    value = Q_of(rows)
    if value is None:
        raise NotImplementedError(next(row.note for row in rows if row.seconds is None))
    return value


def products_over_dense(shape: Shape, seconds: float = 3.0) -> float:
    """The time of the bare matrix products of a forward and backward pass, relative to dense ``nn.LSTM``.

    By torch.mm; a kernel may have faster products, so the ratio may be above 1. Forward: ``x`` by ``w_ih`` for
    all steps, ``h`` by ``w_hh`` step by step. Backward: the gates' gradient by both, and both weights' gradients.
    """
    named = weights(shape)
    w_ih, w_hh = named["weight_ih_l0"], named["weight_hh_l0"]
    x, h = torch.randn(shape.T, shape.B, shape.I), torch.randn(shape.T, shape.B, shape.H)
    gates = torch.randn(shape.T, shape.B, 4 * shape.H)
    out, back = torch.empty(shape.B, 4 * shape.H), torch.empty(shape.B, shape.H)

    @torch.no_grad()
    def products(k: int) -> None:
        x.flatten(0, 1) @ w_ih.T
        for t in range(shape.T):
            torch.mm(h[t], w_hh.T, out=out)
            torch.mm(gates[t], w_hh, out=back)
        flat = gates.flatten(0, 1)
        flat @ w_ih, flat.T @ x.flatten(0, 1), flat.T @ h.flatten(0, 1)

    found = interleaved({"products": products, DENSE: build(Contestant(DENSE, shape, "0", "train"))}, seconds)
    return ratio(found["products"], found[DENSE]).median


def share_of_peak(backend: str, shape: Shape, resets: str, seconds: float = 3.0) -> float:
    """The share of oneDNN's speed in a matrix product that a forward and backward pass reaches.

    Only the LSTM's own products count as work: ``24 T B H (I + H)`` operations. The reference is the product of two
    square matrices of 1024 rows, ``2 * 1024**3`` operations, measured in turn with it. (torch.mm uses another library,
    MKL, and may be much slower.)
    """
    a, b = torch.randn(1024, 1024).to_mkldnn(), torch.randn(1024, 1024)
    work = 24 * shape.T * shape.B * shape.H * (shape.I + shape.H)
    product = torch.no_grad()(lambda k: linear(a, b))
    calls = {backend: build(Contestant(backend, shape, resets, "train")), "product": product}
    found = interleaved(calls, seconds)
    return work / (2 * 1024**3) * ratio(found["product"], found[backend]).median


def kernel_costs(H: int, seconds: float = 6.0) -> dict[str, float]:
    """The cost of a cell (one row at one step), a step and a call of dense ``nn.LSTM``, forward and backward.

    The model is ``time = cell * (T B + step * T + call)`` for ``T`` steps of ``B`` rows, fitted by least squares of the
    relative error over 4 to 128 rows and 4 to 60 steps.

    Returns:
        ``cell`` in microseconds, ``step`` and ``call`` in cells.
    """
    sizes = [
        (B, T) for B in (4, 16, 64, 128) for T in (4, 16, 60) if T * B * H < 500_000
    ]  # above this size malloc dominates the time, not the kernel
    calls = {f"{B} {T}": build(Contestant(DENSE, Shape(B, T, 64, H), "0", "train")) for B, T in sizes}
    found = interleaved(calls, seconds)
    times = np.array([statistics.median(found[name]) for name in calls])
    terms = np.array([[T * B, T, 1] for B, T in sizes]) / times[:, None]
    (cell, step, call), *_ = np.linalg.lstsq(terms, np.ones(len(sizes)))
    return {"cell": float(cell * 1e6), "step": float(step / cell), "call": float(call / cell)}


def critics(backend: str, shape: Shape, resets: str, count: int = 10, seconds: float = 6.0) -> float:
    """The speed-up of ``count`` LSTMs over one batch under ``torch.vmap`` compared with a loop over them.

    Forward, and backward to all weights.
    """
    from rnn_backends import LSTM

    lstms = [LSTM(shape.I, shape.H, lstm_backend=backend) for _ in range(count)]
    x, starts = torch.randn(shape.T, shape.B, shape.I), masks(shape, resets)
    stacked, buffers = torch.func.stack_module_state(list[nn.Module](lstms))

    def together(k: int) -> object:
        def one(params: dict[str, Tensor]) -> Tensor:
            made: Tensor = torch.func.functional_call(lstms[0], (params, buffers), (x,), {"is_init": starts[k % 32]})[0]
            return made

        return torch.autograd.grad(torch.vmap(one)(stacked).sum(), list(stacked.values()))

    def in_turn(k: int) -> object:
        return [
            torch.autograd.grad(lstm(x, is_init=starts[k % 32])[0].sum(), list(lstm.parameters())) for lstm in lstms
        ]

    found = interleaved({"together": together, "in turn": in_turn}, seconds)
    return ratio(found["in turn"], found["together"]).median


def memory_over_dense(backend: str, shape: Shape, resets: str, device: str = "cpu") -> float:
    """The peak memory of tensors in forward and backward, relative to torch's dense ``nn.LSTM``."""
    peak = {
        one: peak_bytes(build(Contestant(one, shape, resets, "train", device=device)), device)
        for one in (backend, DENSE)
    }
    return peak[backend] / peak[DENSE]


def error(backend: str, shape: Shape, resets: str, device: str = "cpu") -> float:
    """The largest absolute error of the output against a textbook LSTM in float64."""
    ours = build(Contestant(backend, shape, resets, "forward", device=device))(0).cpu()
    starts = masks(shape, "0" if backend == DENSE else resets)[0]
    x = torch.randn(shape.T, shape.B, shape.I, generator=torch.Generator().manual_seed(2))
    return float((ours - _reference(weights(shape), x, starts)).abs().max())


def _reference(named: dict[str, Tensor], x: Tensor, starts: Tensor) -> Tensor:
    """``x [T, B, I]``, ``starts [T, B]`` -> ``h [T, B, H]``, step by step, in float64."""
    w_ih, w_hh, b_ih, b_hh = (named[f"{name}_l0"].double() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = c = torch.zeros(x.shape[1], w_hh.shape[1], dtype=torch.float64)
    found = []
    for step, start in zip(x.double(), starts, strict=True):
        h, c = (torch.where(start.unsqueeze(-1), 0.0, v) for v in (h, c))
        i, f, g, o = (step @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h)
    return torch.stack(found)


FRESH = """
import json, sys, time, torch
from rnn_backends import LSTM
from torch._dynamo.utils import counters

device = sys.argv[4]
wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

def once(T):
    x = torch.randn(T, 8, 16, device=device, requires_grad=True)
    is_init = torch.rand(T, 8, device=device) < 0.03
    lstm(x, is_init=is_init)[0].sum().backward()
    wait()

torch.set_num_threads(int(sys.argv[2]))
lstm = LSTM(16, 32, device=device, lstm_backend=sys.argv[1])
(torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum()  # the device's own first call is not ours
wait()
begun = time.perf_counter()
once(int(sys.argv[3]))
seconds = time.perf_counter() - begun
before = counters["stats"]["unique_graphs"]
for T in map(int, sys.argv[5:]):
    once(T)
print(json.dumps({"seconds": seconds, "recompilations": counters["stats"]["unique_graphs"] - before}))
"""


def first_call(
    backend: str, T: int, then: Iterable[int] = (), timeout: float = 280.0, device: str = "cpu"
) -> dict[str, float]:
    """The first forward and backward pass in a new process, without a compiler's cache, at ``T`` steps.

    Returns:
        ``seconds`` of the first call, and the ``recompilations`` of Dynamo over the numbers of steps in ``then``.

    Raises:
        NotImplementedError: it cannot run, with the last line of its error.
    """
    numbers = [str(value) for value in (torch.get_num_threads(), T, device, *then)]
    with tempfile.TemporaryDirectory() as cache:
        caches = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        env = {**environ, **caches, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-c", FRESH, backend, *numbers]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise NotImplementedError(f"it took longer than {timeout:.0f} s") from None
    if done.returncode:
        raise NotImplementedError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return dict(json.loads(done.stdout.splitlines()[-1]))
