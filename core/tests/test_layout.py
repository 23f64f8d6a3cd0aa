"""Any layout of a TensorDict: ranks, sizes of one and none, locked, lazily stacked, named, strided."""

import pytest
import torch
from rnn_backends import InputError, LSTMModule
from tensordict import LazyStackedTensorDict, MemoryMappedTensor, TensorDict, lazy_stack
from torch.testing import assert_close

H_OUT, C_OUT = ("next", "recurrent_state_h"), ("next", "recurrent_state_c")
RESULTS = ("y", H_OUT, C_OUT)


def make(recurrent=True, **kwargs):
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent, "lstm_backend": "vmap"}
    return LSTMModule(3, 4, 2, **{**options, **kwargs})


def data(rows, *batch, **kwargs):
    return rows(batch, K=2, **kwargs)


def assert_same(one, other):
    for key in RESULTS:
        assert_close(one[key], other[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("batch", [(2,), (1, 2), (2, 3), (2, 1, 3), (2, 3, 2)], ids=str)
def test_over_time_any_rank_is_rows_one_by_one(eager_backend, rows, batch):
    module = make(lstm_backend=eager_backend)
    td = data(rows, *batch, 6)
    out = module(td.clone())
    assert out.batch_size == td.batch_size
    for index in torch.cartesian_prod(*(torch.arange(n) for n in batch)).reshape(-1, len(batch)).tolist():
        assert_same(out[tuple(index)], module(td[tuple(index)].clone()))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 3), (1, 2, 1, 2)], ids=str)
def test_one_step_any_rank(eager_backend, rows, batch):
    module = make(False, lstm_backend=eager_backend)
    td = data(rows, *batch)
    out, flat = module(td.clone()), module(td.clone().reshape(-1))
    assert_same(out.reshape(-1), flat)


@pytest.mark.parametrize("batch", [(6,), (1, 6), (6, 1), (1,), (1, 1), (1, 1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("trailing", [True, False])
def test_one_row_one_step_and_reset_masks_without_trailing_one(rows, batch, trailing):
    module, td = make(), data(rows, *batch)
    expected = module(td.clone().reshape(-1, batch[-1])).reshape(batch)
    if not trailing:
        td["is_init"] = td["is_init"].squeeze(-1)
    assert_same(module(td), expected)


@pytest.mark.parametrize("batch", [(0, 5), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("recurrent", [True, False])
def test_an_empty_batch(eager_backend, rows, batch, recurrent):
    out = make(recurrent, lstm_backend=eager_backend)(data(rows, *batch))
    assert (out["y"].shape, out[H_OUT].shape) == ((*batch, 4), (*batch, 2, 4))


def test_an_empty_batch_of_one_step(eager_backend, rows):
    assert make(False, lstm_backend=eager_backend)(data(rows, 0))["y"].shape == (0, 4)


def test_no_time_step_is_refused(rows, unchanged):
    td = data(rows, 2, 0)
    before = td.clone()
    with pytest.raises(InputError, match="at least one time step"):
        make()(td)
    unchanged(before, td)


@pytest.mark.parametrize("recurrent", [True, False])
def test_locked_with_room_is_written_in_place(rows, recurrent):
    module, td = make(recurrent), data(rows, 2, 5)
    expected = module(td.clone())
    td.update({key: torch.full_like(expected[key], 9) for key in RESULTS[:1]})
    td["next"] = {key[1]: torch.full_like(expected[key], 9) for key in RESULTS[1:]}
    held = td["y"]
    with torch.no_grad():
        out = module(td.lock_())
    assert out is td
    assert td.is_locked
    assert td["y"] is held
    assert_same(td, expected)


def test_locked_without_room_is_refused_untouched(rows, unchanged):
    td = data(rows, 2, 5)
    before = td.clone()
    td.lock_()
    with pytest.raises(InputError, match="locked"):
        make()(td)
    unchanged(before, td)
    out = make()(td, tensordict_out=TensorDict(batch_size=[2, 5]))
    assert out["y"].shape == (2, 5, 4)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("recurrent", [True, False])
def test_lazily_stacked_over_batch_or_time(eager_backend, rows, dim, recurrent):
    module, td = make(recurrent, lstm_backend=eager_backend), data(rows, 2, 3, 5)
    expected = module(td.clone())
    lazy = lazy_stack(list(td.unbind(dim)), dim)
    assert isinstance(lazy, LazyStackedTensorDict)
    out = module(lazy)
    assert out is lazy
    assert_same(out, expected)


def test_a_lazy_stack_of_rows_of_different_lengths_is_refused():
    parts = [TensorDict({"x": torch.randn(T, 3), "is_init": torch.zeros(T, 1, dtype=torch.bool)}, []) for T in (4, 5)]
    with pytest.raises(InputError, match=r"'x'.* cannot be read \(Failed to stack.*pad them to one length"):
        make()(lazy_stack(parts, 0))


def test_lazily_stacked_with_other_entries_of_many_shapes(rows):
    """The purpose of a lazy stack: unread entries need not even stack."""
    parts = list(data(rows, 2, 5).unbind(0))
    parts[0]["picture"], parts[1]["picture"] = torch.zeros(5, 3), torch.zeros(5, 7)
    lazy = lazy_stack(parts, 0)
    assert make()(lazy)["y"].shape == (2, 5, 4)
    assert lazy[1]["picture"].shape == (5, 7)


@pytest.mark.parametrize("names", [("env", "agent", "time"), ("env", "agent", "step"), ("env", None, "TIME")])
def test_a_last_dimension_named_time_or_no_dimension_named_so(rows, names):
    td = data(rows, 2, 3, 5)
    td.names = [name and name.lower() for name in names]  # strings of their own, equal to the library's
    assert make()(td)["y"].shape == (2, 3, 5, 4)


def test_a_middle_dimension_named_time_is_refused(rows):
    td = data(rows, 2, 3, 5)
    td.names = ["env", "time", "agent"]
    with pytest.raises(InputError, match="time as the last batch dimension"):
        make()(td)


def test_named_dimensions_stay(rows):
    td = data(rows, 2, 5)
    td.names = ["env", "time"]
    out = make()(td)
    assert out.names == ["env", "time"]
    assert out["next"].names == ["env", "time"]


TIME_FIRST = {
    "named": lambda td: TensorDict(dict(td.items()), [2, 5], names=["time", "env"]),
    "transposed": lambda td: named(td, "env", "time").transpose(0, 1),
    "stacked": lambda td: lazy_stack([named(row, "time") for row in td.unbind(0)], -1),
}


def named(td, *names):
    td.names = list(names)
    return td


@pytest.mark.parametrize("kind", TIME_FIRST)
def test_a_dimension_named_time_is_the_last_one_or_the_call_is_refused(rows, unchanged, kind):
    td = TIME_FIRST[kind](data(rows, 2, 5))
    before = td.clone()
    with pytest.raises(InputError, match=r"time as the last batch dimension, got the names \['time'"):
        make()(td)
    unchanged(before, td)
    steps = make(False)(td.clone())  # one step each: no dimension is time
    assert steps["y"].shape == (*td.batch_size, 4)


def test_rows_on_disk_are_read_and_written(eager_backend, rows, tmp_path):
    """What ``memmap`` returns is locked: results go into entries that are there, or into another TensorDict."""
    module, td = make(lstm_backend=eager_backend), data(rows, 2, 5)
    expected = module(td.clone())
    stored = td.memmap(tmp_path / "rows")
    with pytest.raises(InputError, match="locked and lacks"):
        module(stored)
    assert_same(module(TensorDict.load_memmap(tmp_path / "rows")), expected)
    assert_same(module(stored, tensordict_out=TensorDict(batch_size=[2, 5])), expected)
    assert_same(module(stored[:, :3].copy()), module(td[:, :3].clone()))
    out = module(stored.copy())
    assert_same(out, expected)
    loss = [torch.autograd.grad(found["y"].sum(), list(module.parameters())) for found in (out, expected)]
    assert_close(*loss)
    whole = expected.detach()
    room = whole.clone().memmap(tmp_path / "room")
    for key in RESULTS:
        room[key].fill_(9)
    with torch.no_grad():
        assert module(room) is room
    assert_same(TensorDict.load_memmap(tmp_path / "room"), whole)


def test_one_step_from_memory_mapped_entries(eager_backend, rows):
    module, td = make(False, lstm_backend=eager_backend), data(rows, 2)
    mapped = TensorDict({key: MemoryMappedTensor.from_tensor(value) for key, value in td.items()}, [2])
    with torch.no_grad():
        assert_same(module(mapped), module(td.clone()))


def test_strided_views_of_a_larger_tensordict(eager_backend, rows):
    module, td = make(lstm_backend=eager_backend), data(rows, 6, 8)
    view, solid = td[::2, 1::3], td[::2, 1::3].contiguous().clone()
    assert_same(module(view.clone()), module(solid))
    transposed = td.transpose(0, 1)
    assert_same(module(transposed.clone(False)), module(transposed.contiguous()))


def test_a_tensordict_with_its_device_set(rows):
    td = data(rows, 2, 5).to("cpu")
    assert td.device is not None
    assert make()(td)["y"].device.type == "cpu"


def test_an_existing_next_keeps_its_other_entries(rows):
    td = data(rows, 2, 5)
    td["next"] = {"reward": torch.ones(2, 5, 1)}
    assert make()(td)["next", "reward"].all()


@pytest.mark.parametrize("key", ["x", "is_init", "h", "c"])
def test_memory_that_a_reshape_would_copy_is_checked_before(key):
    """Two batch dimensions in an order that no view can join: torch would copy beyond the end."""
    entries = {"x": torch.randn(3, 2, 2, 4), "is_init": torch.zeros(3, 2, 2, dtype=torch.bool)}
    entries |= {name: torch.zeros(3, 2, 2, 1, 5) for name in ("h", "c")}
    module = LSTMModule(4, 5, in_keys=["x", "h", "c", "is_init"], out_keys=["y", "h", "c"], lstm_backend="vmap")
    td = TensorDict({name: value.transpose(0, 2) for name, value in entries.items()}, [2, 2, 3])
    entries[key].untyped_storage().resize_(entries[key].nbytes - entries[key].itemsize)
    with pytest.raises(InputError, match="its storage holds"):
        module.set_recurrent_mode(True)(td)
