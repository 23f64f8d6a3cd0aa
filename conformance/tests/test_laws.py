"""Claimed and unclaimed capabilities are observed; declined cases are counted with their reason."""

from __future__ import annotations

import pytest
import torch
from rnn_backends import LSTMBackend, State, Trait, get_backend
from rnn_conformance.check import check_backend
from rnn_conformance.defects.right import right
from rnn_conformance.defects.variants import declines_options
from rnn_conformance.laws.catalogue import LAWS

VALUES = "output_equals_reference"


def test_declined_options_are_counted_with_the_reason():
    report = check_backend(declines_options(), laws=["projection", VALUES], seed=3)
    by_law = {result.law: result for result in report.results}
    assert by_law["projection"].verdict == "declined"
    assert by_law["projection"].message == "one plain layer only"
    assert by_law[VALUES].verdict == "passed"
    assert by_law[VALUES].out_of_reach > 0  # rejected during the draw


@pytest.mark.parametrize(
    ("trait", "law"),
    [
        (Trait.VMAP, "vmap_over_weights"),
        (Trait.DOUBLE_BACKWARD, "double_backward"),
        (Trait.FORWARD_AD, "forward_mode"),
    ],
)
def test_a_claim_is_observed_both_ways(trait, law):
    works = get_backend("vmap").layer
    claimed = check_backend(LSTMBackend("claims", works, traits=frozenset({trait})), laws=[law], profile="smoke")
    assert claimed.results[0].verdict == "passed", claimed.results[0]
    unclaimed = check_backend(LSTMBackend("modest", works), laws=[law], profile="smoke").results[0]
    assert unclaimed.verdict == ("under_claimed" if trait is Trait.DOUBLE_BACKWARD else "declined"), unclaimed


def test_a_silently_partial_double_backward_is_the_worst_verdict():
    backend = LSTMBackend("partial", _detached_gradient)
    (result,) = check_backend(backend, laws=["double_backward"], profile="smoke").results
    assert result.verdict == "silently_wrong", result


def _detached_gradient(w, x, entry, starts):
    """Right values and gradients; the gradients' own gradients miss the weights."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *weights):
            ctx.save_for_backward(x, *weights)
            return right(type(w)(*weights, None), x, entry, starts).h

        @staticmethod
        def backward(ctx, grad):
            x, *weights = (v.detach().requires_grad_() for v in ctx.saved_tensors)
            with torch.enable_grad():
                h = right(type(w)(*weights, None), x, entry, starts).h
            return torch.autograd.grad(h, [x, *weights], grad.detach())

    h = Layer.apply(x, w.w_ih, w.w_hh, w.b_ih, w.b_hh)
    return State(h, right(w, x, entry, starts).c)


def test_every_law_has_a_sentence_and_a_subject():
    for law in LAWS.values():
        assert law.sentence.endswith("."), law.name
        assert law.subject
