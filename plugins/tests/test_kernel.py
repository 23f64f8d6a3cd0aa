"""One call of the fused kernel, or a chain of them: the same numbers."""

import pytest
import torch
from rnn_backends import LSTM, State
from rnn_backends_plugins import cudnn
from rnn_backends_plugins.cudnn import kernel
from rnn_conformance import check_backend
from rnn_conformance.laws.catalogue import LAWS


@pytest.fixture
def calls(monkeypatch):
    """The numbers of steps of each call of torch.lstm."""
    seen, original = [], torch.lstm

    def counted(x, *args):
        seen.append(len(x))
        return original(x, *args)

    monkeypatch.setattr(torch, "lstm", counted)
    monkeypatch.setattr(kernel, "_gives_back", lambda: True)
    return seen


@pytest.fixture
def in_pieces(monkeypatch):
    """Everything counts as large: each step is a separate piece."""
    monkeypatch.setattr(kernel, "_workspace", lambda *args: 1 << 60)
    monkeypatch.setattr(kernel, "SHARE", 0)


def results(layers, is_init, dtype=torch.float32):
    torch.manual_seed(2)
    lstm = LSTM(5, 6, layers, lstm_backend="cudnn", dtype=dtype)
    x = torch.randn(7, 4, 5).to(dtype).requires_grad_()
    hx = tuple(torch.randn(2, layers, 4, 6).to(dtype).requires_grad_())
    y, (h, c) = lstm(x, hx, is_init=is_init)
    loss = (y * torch.randn_like(y)).sum() + (h * torch.randn_like(h)).sum() + (c * torch.randn_like(c)).sum()
    return y, h, c, *torch.autograd.grad(loss, [x, *hx, *lstm.parameters()])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("resets", [False, True])
def test_a_chain_computes_what_one_call_does(calls, monkeypatch, request, layers, resets):
    is_init = (torch.arange(28).reshape(7, 4) % 5 == 3) if resets else None
    whole = results(layers, is_init)
    assert 1 not in calls
    calls.clear()
    request.getfixturevalue("in_pieces")
    pieces = results(layers, is_init)
    assert set(calls) == {1}
    for got, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_chain_in_bfloat16_is_as_near_as_one_call(request, calls):
    whole = results(1, None, torch.bfloat16)
    request.getfixturevalue("in_pieces")
    pieces = results(1, None, torch.bfloat16)
    assert set(calls) == {7, 1}
    right = results(1, None)
    for got, one, expected in zip(pieces, whole, right, strict=True):
        limit = 2 * (one - expected).abs().max() + 0.01 * expected.abs().max()
        assert (got - expected).abs().max() <= limit


def a_call(T=128, B=64, H=256, P=0, dtype=torch.float32, **more):
    """Tensors of these shapes over memory of a single number."""
    one = torch.zeros(1, dtype=dtype)
    x = one.expand(T, B, 8)
    return kernel._pieces(x, State(one.expand(1, B, P or H), one.expand(1, B, H)), more.get("layers", 1))


def test_what_malloc_would_give_back_is_cut(calls):
    assert a_call() == 6
    assert a_call(B=128, H=128, layers=2) == 11
    assert a_call(T=32, B=1024, H=128) == 11
    assert a_call(dtype=torch.bfloat16) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"T": 64, "B": 32, "H": 128},  # small
        {"B": 256, "H": 512},  # the calls of that many pieces cost more
        {"P": 100},
        {"dtype": torch.float64},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "B": 32, "H": 128},  # bfloat16 saves less
    ],
)
def test_everything_else_is_one_call(calls, more):
    assert a_call(**more) == 1


def test_without_gradients_it_is_one_call(calls):
    with torch.no_grad():
        assert a_call() == 1


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"])
def test_another_allocator_is_left_to_do_its_work(monkeypatch, name):
    kernel._gives_back.cache_clear()
    monkeypatch.setenv(name, "4000000000")
    assert not kernel._gives_back()
    kernel._gives_back.cache_clear()


def test_every_law_holds_in_pieces(calls, in_pieces):
    eager = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
    report = check_backend(cudnn.lstm_backend(), profile="smoke", laws=eager)
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"
    assert calls.count(1) > 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_onednn_does_not_serve_16_bits_the_kernel_gets_float32(monkeypatch, dtype):
    seen, original = [], torch.lstm

    def counted(x, *args):
        seen.append(x.dtype)
        return original(x, *args)

    monkeypatch.setattr(torch, "lstm", counted)
    monkeypatch.setattr(kernel, "_onednn_knows", lambda wanted: wanted == torch.bfloat16)
    x, half, full = torch.randn(3, 2, 4).to(dtype), dtype, torch.float32
    for projection, grad, expected in (
        (0, True, half if dtype == torch.bfloat16 else full),
        (2, True, full),
        (2, False, half if dtype == torch.bfloat16 else full),  # nothing is summed up
    ):
        lstm = LSTM(4, 5, proj_size=projection, lstm_backend="cudnn", dtype=dtype)
        with torch.set_grad_enabled(grad):
            y, (h, c) = lstm(x)
        assert {v.dtype for v in (y, h, c)} == {dtype}
        assert seen.pop() == expected
        if grad:
            y.sum().backward()
            assert {p.grad.dtype for p in lstm.parameters()} == {dtype}


def act(rows, units, bias=True, **options):
    torch.manual_seed(3)
    lstm = LSTM(5, units, bias=bias, lstm_backend="cudnn", **options)
    state = State(torch.randn(1, rows, units), torch.randn(1, rows, units))
    return lstm, torch.randn(rows, 5), state


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_of_many_rows_is_the_fused_kernels(calls, bias):
    lstm, x, state = act(kernel.MANY_ROWS, kernel.MANY_UNITS // kernel.MANY_ROWS, bias)
    with_gradients = lstm.step(x, state)
    assert not calls
    with torch.no_grad():
        acting = lstm.step(x, state)
        assert calls == [1]
        lstm.step(x[1:], State(state.h[:, 1:], state.c[:, 1:]))
        assert calls == [1]  # too few rows
    torch.testing.assert_close(acting[0], with_gradients[0].detach(), rtol=1e-5, atol=1e-6)
    for got, expected in zip(acting[1], with_gradients[1], strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_compiled_step_is_the_cells(calls):
    lstm, x, state = act(64, 128)
    with torch.no_grad():
        expected = lstm.step(x, state)[0]
        calls.clear()
        compiled = torch.compile(lstm.step, backend="eager", fullgraph=True)(x, state)[0]
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-6)
    assert not calls
