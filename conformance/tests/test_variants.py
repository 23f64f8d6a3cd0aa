"""No law fails for a correct variant: a fresh seed of the smoke profile, each over a quarter of the laws, in turn."""

from __future__ import annotations

import pytest
from rnn_conformance.check import check_backend, replay
from rnn_conformance.defects.variants import VARIANTS
from rnn_conformance.laws.catalogue import LAWS

CHEAP = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
"""Laws that compile test claimed traits, and no variant claims any."""

PARTS = 4
"""Every law runs over a quarter of the variants: all laws over all of them take minutes."""


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.parametrize(("place", "name"), list(enumerate(VARIANTS)), ids=list(VARIANTS))
def test_a_correct_variant_passes(place, name):
    report = check_backend(VARIANTS[name](), profile="smoke", laws=CHEAP[place % PARTS :: PARTS])
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"


KINDS = [
    "freed_memory", "tensor_subclasses", "other_layouts_are_right_or_refused", "lazy_tensors",
    "nested_tensors_are_right_or_refused", "torch_modes", "fake_and_meta_tensors",
]  # fmt: skip
"""Laws about kinds of tensors and torch modes, each in its own process: one for every second variant, in turn."""

ALARMS = [
    ("one_product_of_x_and_h", "freed_memory"),  # its concatenation read a freed weight
    ("float64_inside", "freed_memory"),
    ("weights_in_one_buffer", "freed_memory"),
    ("all_layers_at_once", "lazy_tensors"),  # torch.lstm reads zero tensors, which have no memory
    ("all_layers_at_once", "traces_follow_inputs_and_resets"),
    ("one_sequence_at_a_time", "traces_follow_inputs_and_resets"),  # they plan by the resets
    ("padded_and_packed", "traces_follow_inputs_and_resets"),
    ("a_step_of_all_layers", "the_backend_runs_every_layer_and_step"),  # the law did not count act_stack
]
"""Pairs that once gave a crash, a wrong number, an error without a message or a false alarm."""


@pytest.mark.parametrize(
    ("name", "law"), [*((name, KINDS[place % len(KINDS)]) for place, name in enumerate(VARIANTS) if place % 2), *ALARMS]
)
def test_a_correct_variant_takes_or_declines_other_kinds_of_tensors(name, law):
    report = check_backend(VARIANTS[name](), profile="full", laws=[law], shrink=False)
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"


def test_every_law_about_kinds_is_among_them():
    subjects = ("tensors", "tracing")
    isolated = {name for name, law in LAWS.items() if law.time_limit and not law.trait and law.subject in subjects}
    elsewhere = {"traces_follow_lengths"}  # core/tests/test_recorded_loops.py
    assert isolated - elsewhere <= {*KINDS, *(law for _, law in ALARMS)}


def test_there_are_enough_of_them():
    assert len(VARIANTS) >= 15


@pytest.mark.parametrize(
    ("law", "token"),
    [
        ("autocast_computes_in_bfloat16", "T16.B1.I1.H8.L2.bi.f32.s69"),  # rounding its inputs moves it by 8 %
        ("output_equals_reference_in_bfloat16", "T16.B1.I1.H8.L2.bi.bf16.s69"),
        (
            "long_rows_in_bfloat16",  # a bias's gradient that nearly cancels
            "T600.B2.I2.H4.P2.bf16.r18" + "0" * 148 + "18" + "0" * 74 + ".s111313",
        ),
    ],
)
def test_a_case_that_once_raised_a_false_alarm_does_not(law, token):
    assert replay("vmap", law, token).verdict == "passed"
