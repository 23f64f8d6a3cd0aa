"""The backends round under bfloat16 autocast as docs/choosing_a_backend.md says, to the last bit."""

import importlib.util
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTMSpec, get_backend
from torch import nn

_PROGRAM = Path(__file__).parents[2] / "tools" / "autocast_rounding.py"
_spec = importlib.util.spec_from_file_location("autocast_rounding", _PROGRAM)
rounding = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rounding)


@pytest.mark.parametrize(
    ("name", "way"), [("cpp", "nothing within"), ("vmap", "every operator"), ("torchscript", "every operator")]
)
def test_a_backend_rounds_where_the_page_says(name, way):
    reason = get_backend(name).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    base, x = nn.LSTM(rounding.I, rounding.H), torch.randn(rounding.T, rounding.B, rounding.I)
    output = rounding.called(rounding.made(base, name), x)[0].double()
    same = {
        w: float((rounding.written_out(base, x, *how) == output).double().mean()) for w, how in rounding.WAYS.items()
    }
    assert same.pop(way) > 0.99  # a tie may round the other way if sums are added in another order
    assert max(same.values()) < 0.95, "this rounding differs from the others"
