"""When an error is raised, nothing in the TensorDict has changed: destinations are checked before the first write."""

import pytest
import torch
from rnn_backends import InputError, LSTMModule


@pytest.fixture(params=[True, False], ids=["recurrent", "sequential"])
def module(request):
    return LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap", default_recurrent_mode=request.param)


def refused(module, td, match):
    before = td.clone()
    with pytest.raises(InputError, match=match):
        module(td)
    assert set(td.keys(True)) == set(before.keys(True))
    assert (td == before).all()


def test_a_plain_tensor_where_results_are_to_be_nested(module, rows):
    td = rows((2, 5))
    td["next"] = torch.zeros(2, 5)
    refused(module, td, "is a tensor in the TensorDict")


@pytest.mark.parametrize("key", ["y", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")])
@pytest.mark.parametrize(
    "change",
    [lambda v: v.long(), lambda v: v.double(), lambda v: v[..., :-1].contiguous(), lambda v: v.unsqueeze(-1)],
    ids=["int64", "float64", "too small", "a dimension more"],
)
def test_a_locked_destination_of_another_shape_or_dtype(module, rows, key, change):
    td = module(rows((2, 5)))
    td[key] = change(torch.zeros_like(td[key]))
    refused(module, td.lock_(), "is locked, and its")


def test_a_locked_destination_that_fits_is_written_in_place(module, rows):
    td = module(rows((2, 5)))
    expected = td["y"].clone()
    td["y"].zero_()
    place = td["y"].data_ptr()
    module(td.lock_())
    torch.testing.assert_close(td["y"], expected)
    assert td["y"].data_ptr() == place
