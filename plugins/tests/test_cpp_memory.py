"""The memory that ``cpp`` keeps from call to call: no block is used twice at once, and the pool never exceeds its peak
use."""

import gc
import os
import threading

import pytest
import torch
from rnn_backends import LSTM
from rnn_backends_plugins.cpp import build, memory
from rnn_backends_plugins.cpp.memory import Pool
from rnn_conformance import check_backend

MIB = 1 << 20


@pytest.fixture
def pool(monkeypatch) -> Pool:
    """A new pool, from which the kernel takes memory."""
    new = Pool()
    monkeypatch.setattr(memory, "pool", new)
    return new


def test_a_block_comes_back_when_its_last_tensor_is_gone(pool):
    first = pool.take(MIB)
    part, where = first.view(torch.float32)[7:9], first.data_ptr()
    del first
    assert pool.free_bytes() == 0
    assert pool.take(MIB).data_ptr() != where
    del part
    assert where in (pool.take(MIB).data_ptr() for _ in range(2))


def test_two_at_once_are_apart(pool):
    tensors = [pool.take(MIB).fill_(k) for k in range(5)]
    assert all((value == k).all() for k, value in enumerate(tensors))


@pytest.mark.parametrize(("asked", "same"), [(MIB, True), (MIB // 2, True), (MIB // 2 - 1, False), (MIB + 1, False)])
def test_a_block_serves_what_is_nearly_as_large(pool, asked, same):
    pool.take(MIB)
    found = pool.take(asked)
    assert len(found) == asked
    assert pool._used == (MIB if same else asked)


def test_the_nearest_block_serves(pool):
    large, small = pool.take(3 * MIB), pool.take(2 * MIB)
    wanted = small.data_ptr()
    del large, small
    assert pool.take(2 * MIB - 5).data_ptr() == wanted


def test_it_holds_no_more_than_was_used_at_once(pool):
    held = [pool.take(4 * MIB), pool.take(4 * MIB)]
    held.clear()
    assert pool.free_bytes() == 8 * MIB
    for size in (10, 11, 12, 40, 45, 3):  # none of these fits into a free block
        used = pool.take(size * MIB)
        assert pool.free_bytes() + len(used) <= max(8, size, 45 if size == 3 else 0) * MIB
        del used


def test_release_gives_back_what_nobody_uses(pool):
    kept, gone = pool.take(MIB).fill_(3), pool.take(2 * MIB)
    del gone
    assert pool.free_bytes() == 2 * MIB
    pool.release()
    assert pool.free_bytes() == 0
    assert (kept == 3).all()
    del kept
    assert pool.free_bytes() == MIB


TOO_LARGE = 1 << 60
"""More bytes than any machine has."""


def test_a_failed_allocation_raises_no_peak(pool):
    pool.take(2 * MIB)
    with pytest.raises(RuntimeError):
        pool.take(TOO_LARGE)
    for size in (3, 5, 7):
        pool.take(size * MIB)
    assert pool.free_bytes() == 7 * MIB


def test_free_blocks_are_given_back_before_an_allocation_fails(pool, monkeypatch):
    pool.take(4 * MIB)
    held, empty = pool.take(MIB), torch.empty

    def no_room_beside_others(size, **options):
        if pool._free:
            raise RuntimeError("can't allocate memory")
        return empty(size, **options)

    monkeypatch.setattr(torch, "empty", no_room_beside_others)
    another = pool.take(MIB)
    assert len(another) == len(held)
    assert pool.free_bytes() == 0


def test_threads_take_and_give_back_at_once(pool):
    wrong = []

    def work(number: int) -> None:
        for k in range(200):
            mine = [pool.take((1 + k % 3) * MIB // 4).fill_(number) for _ in range(3)]
            wrong.extend(value for value in mine if (value != number).any())
            mine.clear()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.free_bytes() <= 4 * 3 * 3 * MIB // 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_takes_can_take(pool):
    with pool._lock:  # as if another thread held it
        child = os.fork()
        if not child:
            os._exit(0 if len(pool.take(MIB)) == MIB else 1)
    assert os.waitpid(child, 0)[1] == 0


with_kernel = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))


def large() -> tuple[LSTM, torch.Tensor]:
    torch.manual_seed(0)
    lstm = LSTM(3, 64, lstm_backend="cpp")
    return lstm, torch.randn(32, 40, 3)  # gates of 1.25 MiB


@with_kernel
def test_graphs_that_live_at_once_keep_their_own_gates(pool):
    lstm, x = large()
    alone = [torch.autograd.grad(lstm(x * k)[0].sum(), lstm.weight_hh_l0)[0] for k in (1, 2)]
    together = [lstm(x * k)[0].sum() for k in (1, 2)]
    for wanted, y in zip(alone, together, strict=True):
        for _ in range(2):  # the graph is retained
            found = torch.autograd.grad(y, lstm.weight_hh_l0, retain_graph=True)[0]
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@with_kernel
def test_a_loop_of_training_takes_no_new_memory(pool):
    lstm, x = large()
    held = set()
    for _ in range(5):
        lstm(x)[0].sum().backward()
        gc.collect()
        held.add(pool.free_bytes())
    assert len(held) == 1
    assert held.pop() >= 32 * 40 * 256 * 4


@with_kernel
def test_torchs_record_of_memory_is_whole(pool):
    lstm, x = large()
    lstm(x)[0].sum().backward()
    before = pool.free_bytes()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        y = lstm(x)[0]
    assert pool.free_bytes() == before
    taken = max(event.cpu_memory_usage for event in profile.events())
    assert taken >= 32 * 40 * 256 * 4
    y.sum().backward()


@with_kernel
def test_the_laws_hold_where_all_memory_is_kept(pool, monkeypatch):
    """The laws' sizes are small: without this they would never reuse a block."""
    monkeypatch.setattr(memory, "SMALLEST", 1)
    report = check_backend("cpp", profile="smoke", seed=3)
    assert report.ok, report
    assert pool.free_bytes() > 0
