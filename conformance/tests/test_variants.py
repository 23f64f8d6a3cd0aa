"""Correct variants raise no alarm: one fresh seed of the smoke profile each."""

from __future__ import annotations

import pytest
from rnn_conformance.catalogue import LAWS
from rnn_conformance.defects.variants import VARIANTS
from rnn_conformance.runner import check_backend

CHEAP = [name for name, law in LAWS.items() if not law.costly and "smoke" in law.profiles]
"""Laws that compile are about claims, and no variant claims anything."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_correct_variant_passes(name):
    report = check_backend(VARIANTS[name](), profile="smoke", laws=CHEAP)
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"


def test_there_are_enough_of_them():
    assert len(VARIANTS) >= 15
