"""The plain unroll: how many views of a weight it reads, and the precision of the sum of their gradients."""

import importlib

import pytest
import torch
from rnn_backends.authoring import accumulation_views
from rnn_backends.contract import LayerWeights, State

plain = importlib.import_module("rnn_backends.unroll")


@pytest.mark.parametrize(("number", "views"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_there_are_as_many_views_as_the_next_power_of_two(number, views):
    weight = torch.randn(2, 2, requires_grad=True)
    found = accumulation_views(weight, number)
    assert len(found) == views
    assert all(view.data_ptr() == weight.data_ptr() for view in found)
    assert number > 1 or found[0] is weight


def test_the_gradients_of_views_are_added_in_pairs():
    """Added one by one, ones stop at 256 in bfloat16."""
    weight = torch.zeros((), dtype=torch.bfloat16, requires_grad=True)
    torch.autograd.backward(accumulation_views(weight, 1024))
    assert weight.grad == 1024


def layer(T, dtype, projected):
    B, I, H, P = 2, 3, 4, 2 if projected else 4  # noqa: E741
    shapes = [(4 * H, I), (4 * H, P), (4 * H,), (4 * H,), (P, H)]
    values = [(torch.randn(shape) * 0.5).bfloat16().to(dtype).requires_grad_() for shape in shapes]
    weights = LayerWeights(*values[:4], values[4] if projected else None)
    entry = State(torch.zeros(T, B, P, dtype=dtype), torch.zeros(T, B, H, dtype=dtype))
    starts = torch.arange(T).unsqueeze(-1).expand(T, B) == 0
    return weights, torch.ones(T, B, I, dtype=dtype), entry, starts


@pytest.mark.parametrize("projected", [False, True])
def test_in_bfloat16_the_gradients_of_many_steps_add_up(projected):
    """Each step of a constant input has nearly the same gradient; added one by one they stop growing at 256 terms."""
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        weights, *inputs = layer(1024, dtype, projected)
        plain.unroll(weights, *inputs).h.sum().backward()
        found[dtype] = [w.grad.double() for w in weights if w is not None]
    for expected, actual in zip(*found.values(), strict=True):
        assert (actual - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(
    ("dtype", "grad", "number"),
    [(torch.float32, True, 1), (torch.float64, True, 1), (torch.bfloat16, False, 1), (torch.bfloat16, True, 5)],
    ids=str,
)
def test_views_are_made_where_gradients_in_16_bits_are_added(monkeypatch, dtype, grad, number, projected):
    asked = []
    monkeypatch.setattr(plain, "accumulation_views", lambda weight, n: asked.append(n) or accumulation_views(weight, n))
    with torch.set_grad_enabled(grad):
        plain.unroll(*layer(5, dtype, projected))
    assert asked == [number] * (1 + projected)
