"""What the ``triton`` backend does on the host around its kernels: buffers, and no operator too many."""

import pytest
import torch
from rnn_backends.authoring import Arguments, Run

pytest.importorskip("triton", reason="the kernels come with triton, and it is not installed")

from rnn_backends_plugins.triton import run
from rnn_backends_plugins.triton.plan import Plan

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("little", [0, 1 << 30])
def test_what_entered_each_step_is_the_stored_state_at_starts_and_the_state_before_elsewhere(monkeypatch, T, little):
    monkeypatch.setattr(run, "_LITTLE", little)
    B, H = 3, 4
    starts = torch.rand(T, B) < 0.4
    starts[0] = True
    h, entry_h = torch.randn(T, B, H), torch.randn(B, T, H).transpose(0, 1)
    h[-1] = float("nan")  # enters no step
    given = Arguments(torch.empty(T, B, 1), h, h, None, None, entry_h, h, starts)
    found = run._entering(given, Run(h, h, h, None, None))
    assert found.is_contiguous()
    for t in range(T):
        for b in range(B):
            assert found[t, b].equal(entry_h[t, b] if starts[t, b] else h[t - 1, b])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("B", "H", "padded", "tiles"), [(1, 1, 16, 1), (37, 40, 64, 3), (16, 64, 64, 1), (64, 5, 16, 4)]
)
@pytest.mark.parametrize("expanded", [False, True])
def test_one_allocation_holds_what_enters_the_first_step_and_zeros(dtype, B, H, padded, tiles, expanded):
    first = torch.randn(1, H, dtype=dtype).expand(B, H) if expanded else torch.randn(B, H, dtype=dtype)
    cut = Plan(16, -(-H // 16), 16, padded, padded, 4)
    into, counters = run._exchanged(first, cut, tiles)
    rows = tiles * cut.rows
    assert into.is_contiguous()
    assert into.numel() == 2 * rows * padded
    slots = into.view(2, rows, padded)
    assert slots[0, :B, :H].equal(first)
    slots[0, :B, :H] = 0
    assert not into.any()
    assert counters.dtype == torch.int32
    assert counters.is_contiguous()
    assert counters.numel() >= 32 * tiles
    assert not counters.any()
    assert not counters.data_ptr() % 16
    assert into.untyped_storage().data_ptr() == counters.untyped_storage().data_ptr()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_products_see_neither_gradients_nor_autocast(autocast, gradients):
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, autocast):
        with run._as_it_is():
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu") == autocast
