"""The ``cpp`` backend alone: sizes at the edges of its tiles, its threads, its own functions, and its compilation.
test_operators.py tests all hand-written layers.
"""

import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTM, InputError, LayerWeights, State, get_backend
from rnn_backends_plugins import cpp as plugin
from rnn_backends_plugins.cpp import build
from torch import Tensor

CPU = torch.device("cpu")
SIZES = (1, 3, 15, 16, 17, 31, 33, 64, 65, 130)

# If there is a compiler and it fails, everything here fails: wrong C++ must not look like a missing compiler.
pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))


def assert_near(found, wanted, relative: float) -> None:
    """Every tensor within ``relative`` of its largest number; NaN and infinity where they are expected."""
    for got, want in zip(*(torch.utils._pytree.tree_leaves(v) for v in (found, wanted)), strict=True):
        largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
        torch.testing.assert_close(got, want, rtol=0, atol=relative * largest, equal_nan=True)


@pytest.fixture
def threads():
    """``threads(n)`` sets the number of threads, which is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("H", "P"), [(H, P) for H in SIZES for P in (0, 1, 16, 33, 63, 64, 65) if P < H])
def test_every_size_about_a_register_and_a_tile(case, run, H, P):
    k = SIZES.index(H) + P
    args = case(T=4, B=SIZES[(3 * k + 1) % 10], I=SIZES[(7 * k + 2) % 10], H=H, P=P, spread=0.2, seed=k)
    assert_near(run("cpp", args), run("vmap", args), 1e-12)


LARGE = [
    {"T": 140, "B": 300, "H": 17},
    {"T": 140, "B": 129, "H": 3, "P": 2},
    {"T": 140, "B": 1, "H": 33, "P": 17},
    {"T": 130, "B": 5, "I": 130, "H": 65, "P": 64},
    {"T": 3, "B": 300, "I": 65, "H": 130, "P": 65},
    {"T": 3, "B": 7, "I": 31, "H": 300},
]


@pytest.mark.parametrize("read", ["hc", "h", "c"])
@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_several_blocks_of_rows_chunks_of_steps_and_parts_of_weights(case, run, sizes, read):
    args = case(**sizes, spread=0.1)
    assert_near(run("cpp", args, read), run("vmap", args, read), 1e-12)


FEW_ROWS = [
    {"T": 5, "B": 1, "I": 10, "H": 257},
    {"T": 140, "B": 2, "I": 10, "H": 200},
    {"T": 30, "B": 7, "I": 70, "H": 170},
    {"T": 20, "B": 5, "I": 110, "H": 200, "P": 65},
    {"T": 70, "B": 7, "I": 100, "H": 200, "P": 64},
]
"""A number of units that threads share, waiting for each other."""


@pytest.mark.parametrize("read", ["hc", "h", "c"])
@pytest.mark.parametrize("number", [2, 3, 16])
@pytest.mark.parametrize("sizes", FEW_ROWS, ids=str)
def test_threads_that_share_units(case, run, threads, sizes, number, read):
    args = case(**sizes, spread=0.1)
    wanted = run("vmap", args, read)
    threads(number)
    found = run("cpp", args, read)
    assert_near(found, wanted, 1e-12)
    torch.testing.assert_close(run("cpp", args, read), found, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_threads_that_share_units_keep_rows_and_sequences_apart(case, threads, poison):
    threads(3)
    weights, x, entry, starts = case(T=9, B=5, I=70, H=170, spread=0.1)
    starts[6] = True
    entry = State(*(v.detach().nan_to_num() for v in entry))
    poisoned = x.detach().clone()
    poisoned[2:6, 3, 7] = poison
    results = []
    for given in (x, poisoned.requires_grad_()):
        out = plugin.layer(weights, given, entry, starts)
        after, others = [v[6:] for v in out], [v[:, [0, 1, 2, 4]] for v in out]
        (grad,) = torch.autograd.grad(sum(v.sum() for v in (*after, *others)), given)
        results.append((after, others, grad[6:], grad[:, [0, 1, 2, 4]]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [{}, {"H": 33, "P": 17, "B": 33}, *LARGE[:3], LARGE[5]], ids=str)
def test_sizes_in_float32(case, run, sizes):
    args = case(**sizes, spread=0.1, dtype=torch.float32)
    assert_near(run("cpp", args), run("vmap", args), 1e-5)


@pytest.mark.parametrize("P", [0, 17])
@pytest.mark.parametrize("B", [2, 3, 7, 300])
def test_any_number_of_threads_gives_the_same_and_one_number_the_same_bits(case, run, threads, B, P):
    args = case(T=1200 // B + 30, B=B, I=20, H=130, P=P, spread=0.1)
    found = {}
    for number in (1, 2, 5):
        threads(number)
        found[number] = run("cpp", args)
        torch.testing.assert_close(run("cpp", args), found[number], rtol=0, atol=0)
    assert_near((found[2], found[5]), (found[1], found[1]), 1e-12)


def test_a_large_step_is_the_same_on_any_number_of_threads(threads):
    weights, x, state = acting(B=3, I=130, H=130)
    found = []
    for number in (1, 2, 5):
        threads(number)
        found.append(plugin.step(weights, x, state))
    torch.testing.assert_close(found[1:], found[:1] * 2, rtol=0, atol=0)


@pytest.mark.parametrize("P", [0, 3])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_before_a_start_is_not_seen_after_it(case, poison, P):
    weights, x, entry, starts = case(T=12, B=9, I=5, H=17, P=P)
    starts[7] = True
    entry = State(*(v.detach().nan_to_num() for v in entry))
    poisoned = x.detach().clone()
    poisoned[3:7, :, 2] = poison
    results = []
    for given in (x, poisoned.requires_grad_()):
        out = plugin.layer(weights, given, entry, starts)
        after = out.h[7:], out.c[7:]
        results.append((*after, torch.autograd.grad(sum(v.sum() for v in after), given)[0][7:]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_a_number_in_one_row_is_not_seen_in_the_others(case, poison):
    weights, x, entry, starts = case(T=5, B=9, I=5, H=17)
    poisoned = x.detach().clone()
    poisoned[1, 4] = poison
    others = torch.arange(9) != 4
    results = []
    for given in (x, poisoned.requires_grad_()):
        out = plugin.layer(weights, given, entry, starts)
        (grad,) = torch.autograd.grad(out.h.sum() + out.c.sum(), given)
        results.append((out.h[:, others], out.c[:, others], grad[:, others]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("value", [1e30, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("H", [5, 16, 17])
@pytest.mark.parametrize("P", [0, 3])
def test_inputs_that_saturate_do_so_as_in_torch(case, run, dtype, relative, value, H, P):
    _, x, entry, _ = args = case(H=H, P=P, dtype=dtype, rate=0.0)
    with torch.no_grad():
        x[3, 1, 0] = value
        entry.h[0, 2, 0] = value
    (found, grads), (wanted, wanted_grads) = run("cpp", args), run("vmap", args)
    assert_near(found, wanted, relative)
    for got, want in zip(grads, wanted_grads, strict=True):  # zero times infinity is NaN, a small number is not
        assert torch.equal(got.isfinite(), want.isfinite())
        assert_near(got.where(got.isfinite(), 0), want.where(want.isfinite(), 0), relative)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_weights_that_saturate_do_so_as_in_torch(case, dtype, relative):
    weights, x, entry, starts = case(H=17, dtype=dtype)
    large = LayerWeights(*(None if v is None else v.detach() * 1e4 for v in weights))
    found, wanted = (get_backend(name).layer(large, x, entry, starts) for name in ("cpp", "vmap"))
    assert wanted.h.abs().max() > 0.7  # tanh(1), at least
    assert_near(found, wanted, relative)


def test_next_to_zero_the_relative_error_is_small():
    H = 33
    w_ih = torch.linspace(-2, 2, 4 * H).unsqueeze(1)
    weights = LayerWeights(w_ih, torch.zeros(4 * H, H), None, None, None)
    exact = LayerWeights(w_ih.double(), weights.w_hh.double(), None, None, None)
    x, zeros, starts = torch.full((1, 1, 1), 1e-6), torch.zeros(1, 1, H), torch.ones(1, 1, dtype=torch.bool)
    found = plugin.layer(weights, x, State(zeros, zeros), starts)
    wanted = get_backend("vmap").layer(exact, x.double(), State(zeros.double(), zeros.double()), starts)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def acting(B=2, I=5, H=5, P=0, bias=True, dtype=torch.float64) -> tuple[LayerWeights, Tensor, State]:  # noqa: E741
    g = torch.Generator().manual_seed(B + H)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) / 5).to(dtype)

    biases = (draw(4 * H), draw(4 * H)) if bias else (None, None)
    weights = LayerWeights(draw(4 * H, I), draw(4 * H, P or H), *biases, draw(P, H) if P else None)
    return weights, draw(B, I), State(draw(B, P or H), draw(B, H))


def plain_step(weights: LayerWeights, x: Tensor, state: State) -> State:
    starts = torch.ones(1, len(x), dtype=torch.bool)
    out = get_backend("vmap").layer(weights, x[None], State(state.h[None], state.c[None]), starts)
    return State(out.h[0], out.c[0])


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B", [0, 1, 2, 3, 4, 5, 8, 33])
def test_a_step_of_few_rows_and_of_many(B, bias, dtype, relative):
    for H, I in product((1, 7, 8, 15, 16, 17, 33, 130), (1, 16, 33)):  # noqa: E741
        for P in (0, 3) if H > 3 else (0,):
            args = acting(B, I, H, P, bias, dtype)
            with torch.no_grad():
                found = plugin.step(*args)
            assert_near(found, plain_step(*args), relative)


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("B", [1, 4, 7])
def test_a_step_that_starts_reads_no_state(options, B):
    torch.manual_seed(0)
    lstm = LSTM(5, 17, 2, lstm_backend="cpp", **options)
    dtype, P, is_init = lstm.weight_ih_l0.dtype, lstm.spec.output_size, torch.arange(B) % 3 == 0
    x, h, c = (torch.randn(*shape).to(dtype) for shape in ((B, 5), (2, B, P), (2, B, 17)))
    clean = State(*(v.masked_fill(is_init[:, None], 0) for v in (h, c)))
    poisoned = State(*(v.masked_fill(is_init[:, None], torch.nan) for v in (h, c)))
    with torch.no_grad():
        found, wanted = lstm.step(x, poisoned, is_init), lstm.with_backend("vmap").step(x, clean)
    assert_near(found, wanted, 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("B", [2, 7])
def test_a_step_has_gradients(B):
    args = acting(B)
    read = [v.requires_grad_() for v in (args[1], *args[2], *args[0]) if v is not None]
    found, wanted = (f(*args) for f in (plugin.step, plain_step))
    grads = [torch.autograd.grad(out.h.square().sum() + out.c.sum(), read) for out in (found, wanted)]
    assert_near((found, grads[0]), (wanted, grads[1]), 1e-13)


def transposed(v: Tensor) -> Tensor:
    """A matrix stored column by column; a vector has no such layout."""
    return v.t().contiguous().t()


def spaced(v: Tensor) -> Tensor:
    """Every second number of another tensor."""
    return torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0]


@pytest.mark.parametrize("name", ["x", "h", "c", *LayerWeights._fields])
@pytest.mark.parametrize("B", [2, 7])
def test_a_step_reads_what_is_not_contiguous(B, name):
    weights, x, state = args = acting(B, I=17, H=9, P=3 if name == "w_hr" else 0)
    wanted = plain_step(*args)
    for moved in (spaced, transposed):
        given = {"x": x, **state._asdict(), **weights._asdict()}
        given[name] = moved(given[name])
        parts = LayerWeights(*(given[f] for f in LayerWeights._fields)), given["x"], State(given["h"], given["c"])
        assert_near(plugin.step(*parts), wanted, 1e-13)


def test_a_step_of_a_row_of_another_tensor():
    weights, x, _ = acting(B=1, I=5, H=5)
    wide = torch.randn(1, 12, dtype=torch.float64)
    args = weights, x, State(wide[:, :5], wide[:, 6:11])
    assert_near(plugin.step(*args), plain_step(*args), 1e-13)


@pytest.mark.parametrize("P", [0, 3])
def test_a_layer_reads_what_is_not_contiguous(case, P):
    weights, x, entry, starts = args = case(T=6, B=5, I=17, H=9, P=P)
    moved = LayerWeights(*(None if v is None else transposed(v) for v in weights))
    given = moved, spaced(x), State(spaced(entry.h), entry.c.transpose(0, 2).contiguous().transpose(0, 2))
    assert_near(plugin.layer(*given, starts.t().contiguous().t()), plugin.layer(*args), 1e-13)


def test_gradients_that_arrive_in_another_layout(case, leaves):
    args = case(T=6, B=5, H=9)
    out = plugin.layer(*args)
    cotangents = [torch.randn_like(v) for v in out]
    want = torch.autograd.grad(out, leaves(args), cotangents, retain_graph=True)
    for moved in (spaced, lambda v: v.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_near(
            torch.autograd.grad(out, leaves(args), list(map(moved, cotangents)), retain_graph=True), want, 1e-13
        )


def test_what_does_not_fit_a_step_raises():
    """Without a check, most of these would be read past their end."""
    weights, x, state = acting(B=2, I=5, H=5)
    for wrong in (
        (weights, torch.zeros(2, 7, dtype=torch.float64), state),
        (weights._replace(w_hh=weights.w_hh[:, :-1].contiguous()), x, state),
        (weights._replace(w_ih=weights.w_ih[:-4]), x, state),
        (weights._replace(b_ih=weights.b_ih[:-1]), x, state),
        (weights, x, State(state.h[:1], state.c)),
        (weights, x, State(state.h.float(), state.c)),
        (weights._replace(w_hh=weights.w_hh.float()), x, state),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            plugin.step(*wrong)


def test_the_default_device_does_not_count():
    lstm, x, is_init = LSTM(3, 5, 2, lstm_backend="cpp", dtype=torch.float64), torch.randn(9, 2, 3).double(), None
    state = State(torch.zeros(2, 2, 5).double(), torch.zeros(2, 2, 5).double())

    def everything() -> tuple:
        y, ends = lstm(x, state, is_init=is_init)
        with torch.no_grad():
            acted = lstm.step(x[0], state), lstm.step(x[:, 0], State(*(v[:, :1].expand(-1, 9, -1) for v in state)))
        return y, ends, torch.autograd.grad(y.sum(), list(lstm.parameters())), acted

    want = everything()
    torch.set_default_device("meta")
    try:
        found = everything()
    finally:
        torch.set_default_device(None)
    assert_near(found, want, 0)


def test_resets_of_a_step_that_do_not_fit_raise(case):
    weights, x, entry, _ = case(T=1, B=6)
    with torch.no_grad(), pytest.raises(InputError, match="is_init must be"):
        plugin.act(weights, x[0], State(entry.h[0], entry.c[0]), torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_float32_rounded_at_the_end(case, run, dtype):
    weights, x, entry, starts = args = case(T=20, B=6, H=17, P=3, dtype=dtype)

    def wide(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.detach().float().requires_grad_()

    in_float32 = LayerWeights(*map(wide, weights)), wide(x), State(*map(wide, entry)), starts
    found, wanted = run("cpp", args), run("cpp", in_float32)
    rounded = torch.utils._pytree.tree_map(lambda v: v.to(dtype), wanted[0])
    torch.testing.assert_close(found[0], rounded, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        torch.testing.assert_close(plugin.layer(*args), rounded, rtol=0, atol=0)


@pytest.fixture
def filled_memory():
    """Allocated memory is filled with NaN, bytes with 255."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize(("H", "P"), [(5, 0), (5, 3), (16, 0), (16, 3), (130, 0), (130, 3), (130, 65)])
def test_nothing_is_read_before_it_is_written(case, run, filled_memory, threads, H, P):
    threads(2)
    for read, B in product(("hc", "h", "c"), (1, 7, 33)):
        args = case(T=9, B=B, I=17, H=H, P=P, spread=0.1)
        assert_near(run("cpp", args, read), run("vmap", args, read), 1e-12)


def test_the_process_has_one_openmp_library(case, run):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no /proc to look at")
    run("cpp", case(T=40, B=70, H=40))
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    assert len({f for f in files if re.search(r"/lib(g|i)?omp[^/]*\.so", f)}) == 1
