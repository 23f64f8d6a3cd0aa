"""torch's process-wide settings: each is read, and restored after a change."""

from __future__ import annotations

import pytest
import torch
from rnn_conformance.suite.torch_settings import MIXED, SETTINGS, read_settings, restored_settings

OTHER = {
    "the default dtype": torch.float64,
    "the number of threads": 3,
    "deterministic algorithms": (True, True),
    "matmul precision": "medium",
}
"""Another value of each setting that is not a flag."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_setting_is_seen_and_put_back(name):
    before = read_settings()
    with restored_settings():
        SETTINGS[name].write(OTHER.get(name, not before[name]))
        assert read_settings()[name] != before[name]
    assert read_settings() == before


def test_a_setting_changed_by_its_newer_name_alone_is_seen_and_put_back():
    before = read_settings()
    with restored_settings():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert read_settings()["TF32 in products"] == MIXED
    assert read_settings() == before
