"""Correct variants raise no alarm: a fresh seed of the smoke profile, each over a quarter of the laws, in turn."""

from __future__ import annotations

import pytest
from rnn_conformance.check import check_backend, replay
from rnn_conformance.defects.variants import VARIANTS
from rnn_conformance.laws.catalogue import LAWS

CHEAP = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
"""Laws that compile are about claims, and no variant claims anything."""

PARTS = 4
"""Every law runs over a quarter of the variants: all laws over all of them take minutes."""


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.parametrize(("place", "name"), list(enumerate(VARIANTS)), ids=list(VARIANTS))
def test_a_correct_variant_passes(place, name):
    report = check_backend(VARIANTS[name](), profile="smoke", laws=CHEAP[place % PARTS :: PARTS])
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"


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
