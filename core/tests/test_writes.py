"""When an error is raised, nothing in the TensorDict has changed: destinations are checked before the first write."""

import pytest
import torch
from rnn_backends import InputError, LSTMModule
from tensordict import TensorDict, tensorclass


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


@pytest.mark.parametrize("place", ["out", "next", ("next", "a"), ("next", "b"), ("next", "b", "deep")])
def test_a_plain_tensor_at_any_depth_where_results_are_to_be_nested(module, rows, place):
    keys = [("out", "y"), ("next", "a", "h"), ("next", "b", "deep", "c")]
    module = LSTMModule(in_key="x", out_keys=keys, lstm=module.lstm, default_recurrent_mode=module.recurrent_mode)
    td = rows((2, 5))
    td[place] = torch.zeros(2, 5)
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


@tensorclass
class Step:
    x: torch.Tensor
    is_init: torch.Tensor
    y: torch.Tensor = None
    next: TensorDict = None
    recurrent_state_h: torch.Tensor = None
    recurrent_state_c: torch.Tensor = None


@tensorclass
class Carried:
    recurrent_state_h: torch.Tensor = None


@tensorclass
class Lacking:
    x: torch.Tensor
    is_init: torch.Tensor
    next: TensorDict = None


def as_tensorclass(kind, td, **fields):
    return kind(x=td["x"], is_init=td["is_init"], **fields, batch_size=td.batch_size)


@pytest.mark.filterwarnings("ignore:this LSTMModule acts without memory")
@pytest.mark.parametrize("kind", [Step, Lacking])
@pytest.mark.parametrize("parent", ["none", "empty", "tensorclass"])
def test_a_tensorclass_that_cannot_hold_the_results_stays_as_it_was(module, rows, kind, parent):
    td = rows((2, 5))
    nested = {"none": None, "empty": TensorDict({}, [2, 5]), "tensorclass": Carried(batch_size=[2, 5])}[parent]
    step = as_tensorclass(kind, td, next=nested)
    if kind is Step and parent == "empty":
        expected = module(td.select("x", "is_init"))
        torch.testing.assert_close(module(step).y, expected["y"])
        torch.testing.assert_close(step.next["recurrent_state_h"], expected["next", "recurrent_state_h"])
        return
    with pytest.raises(InputError, match="cannot be written into"):
        module(step)
    assert getattr(step, "y", None) is None
    assert step.next is nested or not step.next.keys() or step.next.recurrent_state_h is None
