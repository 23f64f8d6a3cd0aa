"""The reference is right: compared with torch.nn.LSTM per trajectory and finite differences, and independent of
core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import rnn_conformance.suite.reference as module
import torch
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.inputs import materialise
from rnn_conformance.suite.reference import reference, torch_per_trajectory, trajectories

CASES = [
    Case(1, 1, 1, 1, seed=1),
    Case(5, 3, 2, 4, resets=0b01100_10001_11111, seed=2),
    Case(4, 2, 3, 5, L=3, P=2, resets=0b0101_1000, seed=3),
    Case(6, 2, 3, 3, L=2, bidirectional=True, bias=False, resets=0b001010_000110, seed=4),
    Case(3, 2, 2, 4, P=1, bidirectional=True, resets=0b010_000, seed=5),
]


def both(case):
    inputs = materialise(case)
    for value in inputs.leaves.values():
        value.requires_grad_()
    args = (inputs.weights, inputs.x, inputs.h, inputs.c, inputs.starts, case.L, case.bidirectional)
    return inputs.leaves, reference(*args), torch_per_trajectory(*args)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.token)
def test_two_witnesses_agree_in_values_and_gradients(case):
    leaves, ours, torchs = both(case)
    grads = []
    for found in (ours, torchs):
        torch.manual_seed(0)
        loss = sum((value * torch.randn_like(value)).sum() for value in (found.output, found.end_h, found.end_c))
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
    for a, b in zip((ours.output, ours.end_h, ours.end_c), (torchs.output, torchs.end_h, torchs.end_c), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    for name, a, b in zip(leaves, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=name)


def test_gradients_equal_finite_differences():
    case = Case(3, 2, 2, 2, P=1, resets=0b010_000, seed=6)
    inputs = materialise(case)
    names = list(inputs.weights)
    leaves = [v.requires_grad_() for v in (inputs.x, inputs.h, inputs.c, *inputs.weights.values())]

    def run(x, h, c, *weights):
        found = reference(dict(zip(names, weights, strict=True)), x, h, c, inputs.starts, 1, False)
        return found.output, found.end_c

    assert torch.autograd.gradcheck(run, leaves)


def test_trajectories_begin_at_zero_and_at_starts():
    starts = torch.tensor([[0, 1], [0, 1], [1, 0]], dtype=torch.bool)
    assert trajectories(starts) == [(0, 0, 2), (0, 2, 3), (1, 0, 1), (1, 1, 3)]


def test_by_hand_one_unit_one_step():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    weights = {"weight_ih_l0": torch.tensor([[1.0], [2.0], [3.0], [4.0]]), "weight_hh_l0": torch.zeros(4, 1)}
    found = reference(weights, one, 0 * one[None], one[None], torch.ones(1, 1, dtype=torch.bool), 1, False)
    s = torch.sigmoid(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    c = s[1] + s[0] * torch.tanh(torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(found.c.flatten()[0], c)
    torch.testing.assert_close(found.output.flatten()[0], s[2] * c.tanh())


def test_it_imports_nothing_of_the_core():
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported == {"__future__", "collections.abc", "typing", "torch"}
