"""The suite is tested: every planted defect dies by a law named beforehand, every correct variant passes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from rnn_backends import Backend, LSTMSpec, State, Trait, get_backend
from rnn_conformance.catalogue import LAWS
from rnn_conformance.runner import check_backend

_spec = importlib.util.spec_from_file_location("defects", Path(__file__).with_name("defects.py"))
d = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(d)

VALUES, ENDS = "output_equals_reference", "end_states_equal_reference"
GRADIENTS = "gradients_equal_reference"


def swapped(w):
    return w._replace(w_ih=w.w_ih.roll(1, 0))


def bias_gradient_doubled(w):
    return w if w.b_ih is None else w._replace(b_ih=2 * w.b_ih - w.b_ih.detach())


DEFECTS = {
    "gates read in the order i, o, f, g": (d.gates("iofg"), VALUES),
    "g and o swapped": (d.gates("ifog"), VALUES),
    "i and f swapped": (d.gates("figo"), VALUES),
    "recurrent bias ignored": (
        d.with_weights(lambda w: w if w.b_hh is None else w._replace(b_hh=0 * w.b_hh)),
        "both_biases_count",
    ),
    "input bias ignored": (
        d.with_weights(lambda w: w if w.b_ih is None else w._replace(b_ih=0 * w.b_ih)),
        "both_biases_count",
    ),
    "forget gate plus one": (d.layer(d.forget_plus_one), VALUES),
    "hard sigmoid": (d.layer(d.hard_sigmoid), VALUES),
    "no tanh before the output gate": (d.layer(d.no_output_tanh), VALUES),
    "peephole": (d.layer(d.peephole), VALUES),
    "units shifted by one": (d.with_weights(swapped), VALUES),
    "float32 inside float64": (d.layer(d.half_inside), VALUES),
    "projection not carried": (d.carries_unprojected, "projection"),
    "NaN in the input cleaned up": (d.layer(d.nan_hidden), "nan_is_not_hidden"),
    "reset by multiplication": (d.layer(reset=d.times_not_reset), "nan_stays_in_its_sequence"),
    "reset by multiplication reads unread states": (
        d.layer(reset=d.times_not_reset),
        "nan_in_unread_stored_states_stays_there",
    ),
    "reset one step late": (d.layer(reset=d.one_late), "consecutive_resets"),
    "reset one step early": (d.layer(reset=d.one_early), "reset_at_the_last_step"),
    "h reset, c not": (d.layer(reset=d.only_h), "reset_at_the_last_step"),
    "c reset, h not": (d.layer(reset=d.only_c), "reset_at_the_last_step"),
    "one row's reset resets all": (d.layer(reset=d.whole_batch), "a_batch_is_its_rows_alone"),
    "stored state ignored at resets": (d.layer(reset=d.to_zero), "consecutive_resets"),
    "stored state ignored at t = 0": (
        d.with_inputs(lambda x, e, s: (x, State(torch.where(s.unsqueeze(-1) & s.all(), e.h, 0), e.c), s)),
        "no_reset",
    ),
    "never reset": (d.layer(reset=d.never), "reset_at_the_last_step"),
    "stored state read at every step": (d.layer(reset=d.every_step), "nan_in_unread_stored_states_stays_there"),
    "consecutive resets merged": (d.layer(reset=d.not_twice), "consecutive_resets"),
    "resets ignored when every row has them": (d.layer(reset=d.not_twice), "reset_at_every_step_is_independent_steps"),
    "detached between steps": (d.layer(d.detached), GRADIENTS),
    "gradient through a reset": (d.layer(reset=d.leaks_through), "gradient_across_a_reset_is_zero"),
    "gradient to unread stored states": (
        d.layer(reset=d.leaks_through),
        "gradient_of_unread_stored_states_is_zero",
    ),
    "no gradient to stored states": (d.layer(reset=d.detached_entry), GRADIENTS),
    "bias gradient doubled": (d.with_weights(bias_gradient_doubled), "both_biases_count"),
    "output detached": (d.with_result(lambda r, e, s: State(r.h.detach(), r.c)), "gradients_of_the_output_alone"),
    "c detached": (d.with_result(lambda r, e, s: State(r.h, r.c.detach())), "gradients_of_the_end_states_alone"),
    "c of the last step only": (
        d.with_result(lambda r, e, s: State(r.h, torch.cat([0 * r.c[:-1], r.c[-1:]]))),
        ENDS,
    ),
    "c of the step before": (d.with_result(lambda r, e, s: State(r.h, r.c.roll(1, 0))), ENDS),
    "c and h the same": (d.with_result(lambda r, e, s: State(r.h, r.c.tanh())), "last_states_equal_reference"),
    "starts written to": (d.writes_starts, "nothing_passed_in_changes"),
    "input written to": (d.writes_x, "nothing_passed_in_changes"),
    "result of the call before added": (d.remembers, "same_call_same_answer"),
    "weights packed once": (d.stale_weights, "edited_weights_are_seen"),
    "output in shared scratch": (d.shared_scratch, "a_result_outlives_the_next_call"),
    "random numbers drawn": (d.random_step, "global_state_is_left_alone"),
    "every step depends on all input": (d.sees_the_future, "the_future_is_not_read"),
    "infinity spreads over the row": (d.sees_the_future, "infinity_stays_in_its_sequence"),
    "rows mixed": (d.mixes_rows, "gradient_of_other_rows_is_zero"),
    "rows mixed by NaN": (d.mixes_rows, "nan_stays_in_its_row"),
    "time reversed when there is one row": (d.one_row_squeezed, "one_row"),
}
FACTORIES = {d.remembers, d.stale_weights, d.shared_scratch}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_killed_by_the_law_named_beforehand(name):
    layer, law = DEFECTS[name]
    backend = Backend("defect", layer() if layer in FACTORIES else layer)
    (result,) = check_backend(backend, laws=[law], seed=1, shrink=False).results
    assert result.verdict == "failed", f"{name}: {law} says {result.verdict}: {result.message}"


def fused_bias(w, x, entry, starts):
    if w.b_ih is not None and w.b_hh is not None:
        w = w._replace(b_ih=w.b_ih + w.b_hh, b_hh=torch.zeros_like(w.b_hh))
    return d.right(w, x, entry, starts)


def one_matmul(w, x, state):
    a = torch.cat([x, state.h], -1) @ torch.cat([w.w_ih, w.w_hh], -1).T
    if w.b_ih is not None:
        a = a + w.b_ih + w.b_hh
    return d.finish(w, tuple(a.chunk(4, -1)), state.c)


def double_inside(w, x, entry, starts):
    wide = type(w)(*(None if v is None else v.double() for v in w))
    found = d.right(wide, x.double(), State(entry.h.double(), entry.c.double()), starts)
    return State(found.h.to(x.dtype), found.c.to(x.dtype))


def batch_major_memory(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    return State(*(v.transpose(0, 1).contiguous().transpose(0, 1) for v in found))


def row_by_row(w, x, entry, starts):
    if x.shape[1] == 0:
        return d.right(w, x, entry, starts)
    rows = [slice(b, b + 1) for b in range(x.shape[1])]
    found = [d.right(w, x[:, r], State(entry.h[:, r], entry.c[:, r]), starts[:, r]) for r in rows]
    return State(torch.cat([s.h for s in found], 1), torch.cat([s.c for s in found], 1))


def ends_only(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    ends = torch.cat([starts[1:], torch.ones_like(starts[:1])]).unsqueeze(-1)
    return State(found.h, torch.where(ends, found.c, float("nan")))


def declines_options(spec: LSTMSpec, device, dtype):
    return "one plain layer only" if spec.proj_size or spec.bidirectional or spec.num_layers > 1 else None


VARIANTS = {
    "biases fused": Backend("variant", fused_bias),
    "one product of [x, h]": Backend("variant", d.layer(one_matmul)),
    "float64 inside, cast back": Backend("variant", double_inside),
    "results not contiguous": Backend("variant", batch_major_memory),
    "one row at a time": Backend("variant", row_by_row),
    "c NaN where no sequence ends, as nothing is promised there": Backend("variant", ends_only),
    "declines options with a reason": Backend("variant", d.right, rejects=declines_options),
}
CHEAP = [name for name, law in LAWS.items() if not law.costly and law.trait is None]


@pytest.mark.parametrize("name", VARIANTS)
def test_correct_variant_passes(name):
    report = check_backend(VARIANTS[name], profile="smoke", laws=CHEAP)
    assert not report.failures, f"seed {report.header.seed}: {report.failures[0]}"
    assert report.ok


def test_declined_options_are_counted_with_the_reason():
    report = check_backend(VARIANTS["declines options with a reason"], laws=["projection", VALUES], seed=3)
    by_law = {result.law: result for result in report.results}
    assert by_law["projection"].verdict == "declined"
    assert by_law["projection"].message == "one plain layer only"
    assert by_law[VALUES].verdict == "passed"
    assert by_law[VALUES].declined > 0


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
    claimed = check_backend(Backend("claims", works, traits=frozenset({trait})), laws=[law], profile="smoke")
    assert claimed.results[0].verdict == "passed", claimed.results[0]
    unclaimed = check_backend(Backend("modest", works), laws=[law], profile="smoke").results[0]
    assert unclaimed.verdict == ("declined" if trait is Trait.VMAP else "under_claimed"), unclaimed


def test_a_silently_partial_double_backward_is_the_worst_verdict():
    backend = Backend("partial", _detached_gradient)
    (result,) = check_backend(backend, laws=["double_backward"], profile="smoke").results
    assert result.verdict == "silently_wrong", result


def _detached_gradient(w, x, entry, starts):
    """Right values and gradients; the gradients' own gradients miss the weights."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *weights):
            ctx.save_for_backward(x, *weights)
            return d.right(type(w)(*weights, None), x, entry, starts).h

        @staticmethod
        def backward(ctx, grad):
            x, *weights = (v.detach().requires_grad_() for v in ctx.saved_tensors)
            with torch.enable_grad():
                h = d.right(type(w)(*weights, None), x, entry, starts).h
            return torch.autograd.grad(h, [x, *weights], grad.detach())

    h = Layer.apply(x, w.w_ih, w.w_hh, w.b_ih, w.b_hh)
    return State(h, d.right(w, x, entry, starts).c)


def test_every_law_has_a_sentence_and_a_subject():
    for law in LAWS.values():
        assert law.sentence.endswith("."), law.name
        assert law.subject
