"""Process-wide settings: each is read, and restored after a change."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from rnn_conformance.suite.torch_settings import MIXED, SETTINGS, read_settings, restored_settings

OTHER = {
    "the default dtype": torch.float64,
    "the number of threads": 3,
    "deterministic algorithms": (True, True),
    "matmul precision": "medium",
    "Python's random numbers": random.Random(7).getstate(),
    "NumPy's random numbers": pickle.dumps(np.random.RandomState(7).get_state()),
    "Python's filters of warnings": (("ignore", None, Warning, None, 0),),
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
