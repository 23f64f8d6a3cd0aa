"""tools/ppo_times.py: all its trainings are the same program, and the page has the table of its figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def times():
    spec = importlib.util.spec_from_file_location("ppo_times", ROOT / "tools" / "ppo_times.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_trainings_are_the_same_program_and_every_part_is_timed(times, monkeypatch):
    monkeypatch.setattr(times.ppo, "STEPS", 12)
    monkeypatch.setattr(times.ppo, "EPOCHS", 1)
    torch.manual_seed(0)
    base = None
    for name in ("vmap", "cudnn", "loop", "torchrl-pad"):
        training = times.Training(name, 3, base and base[0])
        first = {key: value.clone() for key, value in training.model.state_dict().items()}
        for i in range(3):  # the first episodes end in the second
            parts, episodes = training.round(i)
            assert list(parts) == list(times.PARTS)
            assert all(seconds > 0 for seconds in parts.values())
            assert training.clock.parts == []  # each part that began has ended
        base = base or (first, training.model.state_dict())
        assert episodes > 0
        torch.testing.assert_close(training.model.state_dict(), base[1], rtol=1e-3, atol=1e-5)
    assert not torch.equal(base[0]["module.0.lstm.weight_hh_l0"], base[1]["module.0.lstm.weight_hh_l0"])


def test_the_page_has_the_table_of_the_figures(times):
    data = json.loads(times.FILE.read_text())
    assert f"<!-- ppo times -->\n{times.table(data)}\n<!-- end -->" in times.PAGE.read_text()
    assert times.FILE.with_suffix(".png").is_file()
