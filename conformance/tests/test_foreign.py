"""The findings of docs/conformance.md in modules of other projects still hold: by law and replay token."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchrl")

from rnn_conformance import replay
from rnn_conformance.check import quiet_single_thread
from rnn_conformance.suite.case import Case

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance" / "studies"
PAGE = (ROOT / "docs" / "conformance.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def the_folder_is_importable():
    """The files import each other by name, as in ``python run.py``; afterwards they are removed from
    ``sys.modules``."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in {path.stem for path in FOLDER.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def backends(the_folder_is_importable):
    return import_module("run").backends()


def verdict_of(backend, law, token):
    with quiet_single_thread():
        return replay(backend, law, token).verdict


NAMES = ("torchrl_pad", "torchrl_scan", "torchrl_python", "nn_lstm", "nn_lstm_masked")
RESETS = "T3.B2.I2.H3.f64.r2.s0"
FOUND = [
    ("torchrl_python", "projection", "T2.B1.I1.H3.P1.f64.s0", "crashed"),
    ("torchrl_python", "one_step", "T1.B1.I1.H2.P1.f64.s0", "failed"),
    ("torchrl_python", "gradients_accumulate", "T1.B1.I1.H2.P1.f64.s0", "failed"),
    ("torchrl_scan", "projection", "T2.B1.I1.H3.P1.f64.s0", "declined"),
    ("torchrl_pad", "long_rows_in_bfloat16", "T600.B1.I2.H4.bf16.r2.s1", "failed"),
    ("torchrl_python", "long_rows_in_bfloat16", "T600.B1.I1.H1.bf16.s0", "failed"),
    ("nn_lstm_masked", "long_rows_in_bfloat16", "T600.B1.I1.H1.bf16.s0", "failed"),
    ("nn_lstm", "reset_at_the_last_step", "T2.B1.I1.H1.f64.r2.s0", "failed"),
    ("nn_lstm", "double_backward", "T3.B2.I1.H1.f64.r1b.s0", "silently_wrong"),
    ("nn_lstm_masked", "nan_stays_in_its_sequence", "T2.B1.I1.H1.f64.r3.s0", "failed"),
    ("nn_lstm_masked", "infinity_stays_in_its_sequence", "T2.B1.I1.H1.f64.r2.s0", "failed"),
    ("nn_lstm_masked", "nan_in_unread_stored_states_stays_there", "T2.B1.I1.H1.f64.s0", "failed"),
    ("nn_lstm_masked", "gradient_of_unread_stored_states_is_zero", "T2.B1.I1.H1.f64.s0", "failed"),
]
WHOLE = [
    ("pad", "sequential_mode_starts_from_zero", "T2.B1.I1.H3.P2.f64.s0", "crashed"),
    ("pad", "steps_equal_recurrent_mode", "T2.B1.I1.H3.P2.f64.zeros.s0", "crashed"),
    ("pad", "bidirectional", "T5.B2.I2.H5.L2.P3.bi.f64.r192.s2", "passed"),
    ("python", "bidirectional", "T2.B1.I1.H2.bi.f64.r2.s0", "declined"),
    ("scan", "bidirectional", "T2.B1.I1.H2.bi.f64.r2.s0", "declined"),
    ("scan", "no_dropout_in_evaluation", "T2.B1.I1.H2.L2.d30.f64.zeros.s0", "declined"),
]


def test_the_names(backends):
    assert tuple(backends) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nn_lstm"])
def test_values_and_gradients_are_right_at_resets(backends, name):
    for law in ("output_equals_reference", "gradients_equal_reference", "recurrent_mode_starts_from_stored_states"):
        assert verdict_of(backends[name], law, RESETS) == "passed"


@pytest.mark.parametrize(("name", "law", "token", "verdict"), FOUND)
def test_what_was_found(backends, name, law, token, verdict):
    assert verdict_of(backends[name], law, token) == verdict
    assert f"`{law}`" in PAGE
    assert f"`{token}`" in PAGE


@pytest.mark.parametrize(("kind", "law", "token", "verdict"), WHOLE)
def test_what_was_found_in_the_whole_module(kind, law, token, verdict):
    whole = import_module("whole_module")
    assert whole.answer(law, Case.parse(token), whole.OPTIONS[kind]).verdict == verdict
    assert verdict == "passed" or f"`{law}` | `{token}`" in PAGE


def test_what_was_found_beside_the_laws():
    facts = import_module("module_facts")
    assert facts.integer_is_init(False) > 0.1
    assert facts.integer_is_init(True) > 0.1
    assert facts.autocast_dtypes() == [torch.bfloat16, torch.float32]
    assert "must match the size" in facts.acting_with_a_projection()
    assert facts.unprojected_step() == (2, 4)
    assert facts.layers_left_out()
    assert facts.fourth_argument() == (True, False)
