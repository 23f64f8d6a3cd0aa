"""The fused kernel with resets, against the plain unroll."""

import pytest
import torch
from rnn_backends import LSTM, LayerWeights, LSTMSpec, State, explain, get_backend
from rnn_backends.resets import ends_of
from rnn_backends.unroll import unroll
from rnn_backends_plugins.cudnn import flush

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6}


def problem(seed, T=12, B=5, features=3, H=6, P=0, bias=True, dtype=torch.float64, rate=0.3, stored="none"):
    torch.manual_seed(seed)
    draw = lambda *shape: (torch.rand(*shape, dtype=dtype) * 2 - 1).requires_grad_()  # noqa: E731
    b = [draw(4 * H), draw(4 * H)] if bias else [None, None]
    weights = LayerWeights(draw(4 * H, features), draw(4 * H, P or H), *b, draw(P, H) if P else None)
    starts = torch.rand(T, B) < rate
    starts[0] = True
    entry = State(draw(T, B, P or H), draw(T, B, H))
    if stored == "none":
        entry = State(*(torch.zeros_like(v[:1, :1]).expand_as(v) for v in entry))
    if stored == "some":
        keep = torch.rand(T, B, 1) < 0.3
        entry = State(*(torch.where(keep, v.detach(), 0) for v in entry))
    return weights, draw(T, B, features), entry, starts


def run(layer, problem, mask):
    weights, x, entry, starts = problem
    h, c = layer(weights, x, entry, starts)
    torch.manual_seed(1)
    loss = (h * torch.randn_like(h)).sum() + (c * torch.randn_like(c))[mask].sum()
    leaves = [v for v in (*weights, x, *entry) if v is not None and v.requires_grad]
    return h, c[mask], torch.autograd.grad(loss, leaves)


def near(got, expected, tolerance):
    scale = expected.abs().max().clamp_min(1e-3)
    assert ((got - expected).abs().max() / scale).item() < tolerance


@pytest.mark.parametrize("stored", ["none", "some", "gradient"])
@pytest.mark.parametrize("P", [0, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("every_end", [True, False])
def test_equals_the_unroll(stored, P, bias, rate, dtype, every_end):
    made = problem(7, P=P, bias=bias, rate=rate, dtype=dtype, stored=stored)
    backend = get_backend("cudnn")
    mask = ends_of(made[3])
    if not every_end:
        mask[:-1] = False
    h, c, grads = run(backend.layer if every_end else backend.layer_last, made, mask)
    h_, c_, grads_ = run(unroll, made, mask)
    near(h, h_, TOLERANCE[dtype])
    near(c, c_, TOLERANCE[dtype])
    for got, expected in zip(grads, grads_, strict=True):
        near(got, expected, 4 * TOLERANCE[dtype])


def tile_only(monkeypatch):
    """Make buckets too expensive, so that cuts are used."""
    from rnn_backends_plugins import cudnn

    cost = cudnn.plan._cost
    monkeypatch.setattr(
        cudnn.plan,
        "_cost",
        lambda places, costs: cost(places, costs) + 10**9 * (len(places[0].which) == places[0].rows),
    )
    monkeypatch.setattr(cudnn.plan, "_best_rows", lambda length, gap, B, costs: min(B, len(length)))
    cudnn._cached_plan.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("every_end", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_cuts_equal_the_unroll(monkeypatch, dtype, every_end, bias):
    tile_only(monkeypatch)
    calls = []
    real = flush.run_plan
    monkeypatch.setattr("rnn_backends_plugins.cudnn.run_plan", lambda plan, *a: calls.append(plan) or real(plan, *a))
    for seed in range(5):
        test_equals_the_unroll("none", 0, bias, 0.3, dtype, every_end)
        made = problem(seed, T=40, B=3, dtype=dtype, rate=0.2, bias=bias)
        assert near(*(run(f, made, ends_of(made[3]))[0] for f in (get_backend("cudnn").layer, unroll)), 1e-5) is None
    assert any((plan.kind == flush.FLUSH).any() for plan in calls)
    assert not every_end or any(len(plan.probes) for plan in calls)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("every_end", [True, False])
def test_what_was_before_a_cut_is_not_seen_after_it(monkeypatch, poison, every_end):
    tile_only(monkeypatch)
    weights, x, entry, starts = problem(3, T=20, B=3, rate=0.3, dtype=torch.float32)
    clean = get_backend("cudnn").layer(weights, x, entry, starts)
    t = int(starts[1:, 0].nonzero()[0])  # the step before the second sequence of row 0
    bad = x.detach().clone()
    bad[: t + 1, 0] = poison
    layer = get_backend("cudnn").layer if every_end else get_backend("cudnn").layer_last
    h, c = layer(weights, bad, entry, starts)
    keep = torch.ones_like(starts)
    keep[: t + 1, 0] = False
    torch.testing.assert_close(h[keep], clean.h[keep])
    last = ends_of(starts) & keep
    if not every_end:
        last[:-1] = False
    torch.testing.assert_close(c[last], clean.c[last])


def test_large_weights_do_not_open_a_closed_gate(monkeypatch):
    tile_only(monkeypatch)
    weights, x, entry, starts = problem(5, T=20, B=3, rate=0.3)
    weights = LayerWeights(*(v if v is None else (v * 3e4).detach() for v in weights))
    layer = get_backend("cudnn").layer
    torch.testing.assert_close(layer(weights, x, entry, starts).h, unroll(weights, x, entry, starts).h)


def test_huge_cell_states_are_still_exact(monkeypatch):
    tile_only(monkeypatch)
    weights, x, entry, starts = problem(5, T=20, B=3, rate=0.2, dtype=torch.float32)
    head = torch.where(torch.arange(20)[:, None, None] == 0, 3e5, torch.zeros_like(entry.c))
    keep = LayerWeights(*(v if v is None else v.detach() for v in weights))
    keep.b_ih[6:12] = 100.0  # the forget gate stays open, so the cell state stays huge
    entry = State(entry.h, head)
    ends = ends_of(starts)
    got, expected = (f(keep, x, entry, starts).c[ends] for f in (get_backend("cudnn").layer, unroll))
    torch.testing.assert_close(got, expected, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_with_resets(dtype):
    lstm = LSTM(4, 8, 2, batch_first=True, lstm_backend="cudnn")
    x, is_init = torch.randn(3, 12, 4), torch.rand(3, 12) < 0.3
    expected, _ = lstm(x, is_init=is_init)
    got, _ = lstm.to(dtype)(x.to(dtype), is_init=is_init)
    assert (got.float() - expected).abs().max() < 3e-2


def test_double_backward_is_not_silently_wrong():
    """Not claimed, since cuDNN has no double backward; torch's kernel on a CPU has one, and it is right."""
    plain = LSTM(3, 4, lstm_backend="vmap", dtype=torch.float64)
    x, is_init = torch.randn(9, 3, 3, dtype=torch.float64, requires_grad=True), torch.rand(9, 3) < 0.3

    def second(lstm):
        output, _ = lstm(x, is_init=is_init)
        (grad,) = torch.autograd.grad(output.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), [x, *lstm.parameters()])

    for got, expected in zip(second(plain.with_backend("cudnn")), second(plain), strict=True):
        torch.testing.assert_close(got, expected)


def test_torch_func_grad():
    lstm = LSTM(3, 4, 2, lstm_backend="cudnn")
    x, is_init = torch.randn(9, 2, 3), torch.rand(9, 2) < 0.4
    weights = dict(lstm.named_parameters())

    def loss(weights):
        return torch.func.functional_call(lstm, weights, (x,), {"is_init": is_init})[0].sum()

    expected = torch.autograd.grad(lstm(x, is_init=is_init)[0].sum(), list(weights.values()))
    for got, wanted in zip(torch.func.grad(loss)(weights).values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_other_devices_are_declined_with_a_reason():
    verdicts = {v.name: v for v in explain(LSTMSpec(3, 4), "mps")}
    assert not verdicts["cudnn"].accepted
    assert "mps" in verdicts["cudnn"].reason


def test_the_plan_of_a_batch_seen_again_is_not_made_again():
    from rnn_backends_plugins.cudnn import _cached_plan

    _cached_plan.cache_clear()
    lstm = LSTM(3, 4, 2, lstm_backend="cudnn")
    x, is_init = torch.randn(9, 4, 3), torch.rand(9, 4) < 0.5
    for _ in range(3):
        lstm(x, is_init=is_init)
    assert _cached_plan.cache_info().misses == 1


def test_every_law_holds_for_plans_that_are_searched_for(monkeypatch):
    """The laws' batches are small, and a small batch stays aligned: here they run in tiles and buckets."""
    from rnn_backends_plugins import cudnn
    from rnn_conformance import check_backend
    from rnn_conformance.laws.catalogue import LAWS

    monkeypatch.setattr(cudnn.costs.Costs, "search", lambda costs, sequences: -1e9)
    cudnn._cached_plan.cache_clear()
    eager = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
    report = check_backend("cudnn", profile="smoke", laws=eager)
    cudnn._cached_plan.cache_clear()
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"
