"""Shared by the plugins' tests: random arguments of one layer, and a backend's results for them."""

import pytest
import torch
from rnn_backends import LayerWeights, State, get_backend
from torch import Tensor
from torch._dynamo.utils import counters

Case = tuple[LayerWeights, Tensor, State, Tensor]


@pytest.fixture
def case():
    """``case(T=7, B=4, I=3, H=5, P=0, ...)``: a layer's arguments; the entry is NaN wherever it is not read."""
    return _case


def _case(T=7, B=4, I=3, H=5, P=0, bias=True, dtype=torch.float64, rate=0.3, seed=0, spread=0.5) -> Case:  # noqa: E741
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * spread).to(dtype).requires_grad_()

    starts = torch.rand(T, B, generator=g) < rate
    starts[0] = True
    biases = (draw(4 * H), draw(4 * H)) if bias else (None, None)
    weights = LayerWeights(draw(4 * H, I), draw(4 * H, P or H), *biases, draw(P, H) if P else None)
    unread = ~starts.unsqueeze(-1)
    entry = State(draw(T, B, P or H), draw(T, B, H))
    with torch.no_grad():
        for value in entry:
            value.masked_fill_(unread, torch.nan)
    return weights, draw(T, B, I), entry, starts


@pytest.fixture
def leaves():
    """``leaves(case)``: the tensors of a case that have a gradient."""
    return _leaves


def _leaves(args: Case) -> list[Tensor]:
    weights, x, entry, _ = args
    return [v for v in (x, *weights, *entry) if v is not None]


@pytest.fixture
def run():
    """``run(name, case, read="hc")``: outputs, and all gradients, for cotangents that differ at every place."""
    return _run


def _run(name: str, args: Case, read: str = "hc") -> tuple[State, tuple[Tensor, ...]]:
    out = get_backend(name).layer(*args)
    taken = [getattr(out, letter) for letter in read]
    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) for v in taken]
    return out, torch.autograd.grad(taken, _leaves(args), cotangents, allow_unused=True, materialize_grads=True)


@pytest.fixture
def no_new_code():
    """Let ``compile`` compile for float64, and fail on any later compilation."""
    _run("compile", _case())
    counters.clear()
    yield
    assert counters["stats"]["unique_graphs"] == 0, "something was compiled again"
