"""Correct variants raise no alarm: a fresh seed of the smoke profile, each over a quarter of the laws, in turn."""

from __future__ import annotations

import pytest
from rnn_conformance.catalogue import LAWS
from rnn_conformance.defects.variants import VARIANTS
from rnn_conformance.runner import check_backend

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
