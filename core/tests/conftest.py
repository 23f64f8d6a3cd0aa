"""Shared by core's tests: the backends, the reference (torch.nn.LSTM, one sequence at a time) and random rows."""

import pytest
import torch
from rnn_backends.choose import DEFAULT_VARIABLE
from tensordict import TensorDict
from torch import nn

BUILT_IN = ("cudnn", "vmap", "compile", "cpp", "torchscript")
EAGER = ("cudnn", "vmap", "torchscript")
"""The backends that need no compiler: for tests of core alone, where another backend would only take time."""


@pytest.fixture(params=BUILT_IN)
def backend(request):
    """Every built-in backend; one that is missing fails its tests."""
    return request.param


@pytest.fixture(params=EAGER)
def eager_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch):
    monkeypatch.delenv(DEFAULT_VARIABLE, raising=False)
    torch.manual_seed(0)


def _mask(T, *steps):
    return torch.tensor([t in steps for t in range(T)])


@pytest.fixture
def mask():
    """``mask(T, *steps)``: ``[T]`` bool, true at those steps."""
    return _mask


@pytest.fixture
def witness():
    """torch's own LSTM, run on each sequence of each row separately."""
    return _witness


def _witness(lstm, x, is_init, h, c):
    """Outputs ``[B, T, N]``, and ``h``, ``c`` ``[B, T, K, N]``: states at each sequence's end, zero elsewhere.

    ``x [B, T, I]``, ``is_init [B, T]``, stored ``h [B, T, K, P]`` and ``c [B, T, K, H]``, which a sequence starts from.
    """
    ours = nn.LSTM(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        lstm.bias,
        True,
        bidirectional=lstm.bidirectional,
        proj_size=lstm.proj_size,
        dtype=x.dtype,
    )
    weights = dict(lstm.named_parameters())
    rows = [_one_row(ours, weights, *row) for row in zip(x, is_init, h, c, strict=True)]
    return tuple(torch.stack(values) for values in zip(*rows, strict=True))


def _one_row(lstm, weights, x, is_init, h, c):
    T = len(x)
    starts = [t for t in range(T) if t == 0 or is_init[t]]
    outputs, hs, cs = [], [torch.zeros_like(h[0])] * T, [torch.zeros_like(c[0])] * T
    for start, stop in zip(starts, [*starts[1:], T], strict=True):
        given = (x[start:stop], (h[start], c[start]))
        y, (hs[stop - 1], cs[stop - 1]) = torch.func.functional_call(lstm, weights, given)
        outputs.append(y)
    return torch.cat(outputs), torch.stack(hs), torch.stack(cs)


@pytest.fixture
def rows():
    """Rows of random steps with default keys: ``rows((B, T), I, K, H)``."""
    return _rows


def _rows(batch, I=3, K=1, H=4, P=None, stored=True, dtype=None, resets=0.3):  # noqa: E741
    td = TensorDict({"x": torch.randn(*batch, I, dtype=dtype), "is_init": torch.rand(*batch, 1) < resets}, batch)
    if stored:
        td["recurrent_state_h"] = torch.randn(*batch, K, P or H, dtype=dtype)
        td["recurrent_state_c"] = torch.randn(*batch, K, H, dtype=dtype)
    return td


@pytest.fixture
def unchanged():
    """``unchanged(before, after)``: the same keys, values and batch size, and no new entry."""
    return _unchanged


def _unchanged(before, after):
    def leaves(td):
        return dict(td.items(include_nested=True, leaves_only=True))

    old, new = leaves(before), leaves(after)
    assert set(old) == set(new), f"entries were added or removed: {set(old) ^ set(new)}"
    assert before.batch_size == after.batch_size
    for key, value in old.items():
        torch.testing.assert_close(new[key], value, rtol=0, atol=0, msg=f"{key!r} changed")
