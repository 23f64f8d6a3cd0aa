"""What matters on a GPU alone: how often the host waits, and that acting can be captured; and its path on a CPU."""

import dataclasses
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from rnn_backends import LSTM, LayerWeights, LSTMModule, State
from rnn_backends.resets import ends_of
from rnn_backends.unroll import unroll
from rnn_backends_plugins import _torch, cudnn
from rnn_backends_plugins.cudnn import device, device_plan
from rnn_backends_plugins.cudnn.costs import Costs
from rnn_backends_plugins.cudnn.inputs import inspect_inputs
from rnn_backends_plugins.cudnn.plan import FLUSH, HOLD, REAL, Sequences, aligned_plan
from rnn_backends_plugins.cudnn.widened import FEATURES
from rnn_backends_plugins.testing.cudnn import cuda_on_cpu, guarded
from rnn_conformance import check_backend
from rnn_conformance.laws.catalogue import LAWS
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode


def on_a_gpu(test):
    """The test needs CUDA: ``-m cuda`` selects it."""
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


@pytest.fixture
def as_on_a_gpu():
    """A stand-in for cuDNN, and an error where the host reads what it may not."""
    with cuda_on_cpu() as stand_in:
        yield stand_in


def aligned(monkeypatch):
    monkeypatch.setattr(device_plan, "NEAR", 1e9)


def bucketed(monkeypatch):
    """Nothing stays in its row, and a call costs so little that there are many blocks."""
    monkeypatch.setattr(device, "_must_head", lambda *args: True)
    monkeypatch.setattr(device, "costs_on_cuda", lambda H: Costs(100, 1, 0))


def as_it_is(monkeypatch):
    """By the model of a GPU's time."""


OF_THE_LAYER = {"resets", "values", "gradients", "batch", "options", "layout", "rollouts"}
"""Subjects of laws whose numbers depend on a layout; the others test modules, keys, modes and errors."""
LAYOUTS = pytest.mark.parametrize("layout", [as_it_is, aligned, bucketed])


@LAYOUTS
def test_every_law_holds_on_the_path_of_a_gpu(as_on_a_gpu, monkeypatch, layout):
    layout(monkeypatch)
    eager = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
    if layout is not as_it_is:
        eager = [name for name in eager if LAWS[name].subject in OF_THE_LAYER]
    report = check_backend(guarded(cudnn.lstm_backend()), profile="smoke", laws=eager)
    assert report.ok, f"seed {report.header.seed}: {report.failures[0]}"


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("every_end", [True, False])
def test_what_is_before_a_cut_stays_there(as_on_a_gpu, poison, every_end):
    weights, x, entry, starts = inputs()
    x[2, 1] = poison  # in the last step of a sequence of row 1
    zeros = State(*(v[:1, :1].expand_as(v) for v in entry))
    came, expected = cudnn.layer(weights, x, zeros, starts, every_end), unroll(weights, x, zeros, starts)
    torch.testing.assert_close(came.h, expected.h, equal_nan=True)
    torch.testing.assert_close(came.c[-1], expected.c[-1])


def inputs(T=6, B=3, H=4, P=0, **options):
    torch.manual_seed(0)
    lstm = LSTM(2, H, proj_size=P, lstm_backend="cudnn", **options)
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[0], starts[3, 1], starts[4, 2] = True, True, True
    entry = State(torch.zeros(T, B, P or H), torch.zeros(T, B, H))
    return lstm.layer_weights()[0], torch.randn(T, B, 2), entry, starts


@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_an_inspection_sees_starts_and_stored_states(P, bias):
    weights, x, entry, starts = inputs(P=P, bias=bias)
    entry.h[1, 1, 0], entry.c[5, 0, 1] = 2.0, float("nan")  # nothing starts there
    entry.h[0, 1, 0] = 2.0  # where its row starts
    call = inspect_inputs([weights], x, [entry], starts)
    assert torch.from_numpy(call.mask).equal(starts)
    assert call.most == 2
    assert call.lengths.tolist() == [6, 4, 3, 3, 2]
    assert not call.layers[0].is_stored
    assert call.layers[0].is_bounded
    entry.c[3, 1, 2] = -1.0
    layer = inspect_inputs([weights], x, [entry], starts).layers[0]
    assert layer.is_stored
    assert layer.is_bounded
    entry.h[4, 2, 0] = float("nan")
    layer = inspect_inputs([weights], x, [entry], starts).layers[0]
    assert layer.is_stored
    assert not layer.is_bounded  # a state that is read is NaN


@pytest.mark.parametrize("stored", [False, True])
def test_the_largest_values_are_of_dense_tensors(monkeypatch, stored):
    """Of others torch would launch one kernel each."""
    weights, x, entry, starts = inputs()
    entry = entry if stored else State(*(v[:1, :1].expand_as(v) for v in entry))
    seen, largest = [], _torch.largest
    monkeypatch.setattr(_torch, "largest", lambda values: seen.extend(values) or largest(values))
    inspect_inputs([weights], x, [entry], starts)
    assert len(seen) == 7
    assert all(value.is_contiguous() for value in seen)


def test_zeros_that_are_one_number_are_no_stored_states():
    weights, x, entry, starts = inputs()
    zeros = State(*(v[:1, :1].expand_as(v) for v in entry))
    layer = inspect_inputs([weights], x, [zeros], starts).layers[0]
    assert not layer.is_stored
    assert layer.is_bounded


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "h", "c"])
def test_what_could_come_through_a_cut_is_not_bounded_nor_is_what_follows_it(value, where):
    weights, x, entry, starts = inputs(P=2)
    above = inputs(P=2)[0]
    both = lambda: [v.is_bounded for v in inspect_inputs([weights, above], x, [entry, entry], starts).layers]  # noqa: E731
    assert both() == [True, True]
    values = {**weights._asdict(), "x": x, "h": entry.h.clone(), "c": entry.c.clone()}
    with torch.no_grad():
        values[where].view(-1)[0] = value  # of a state: at t = 0, where one is read
    own = State(values["h"], values["c"])
    found = inspect_inputs([weights, above], x, [own, entry], starts).layers
    assert [layer.is_bounded for layer in found] == [False, False]


@LAYOUTS
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("every_end", [True, False])
def test_the_host_reads_once_a_call_whatever_the_layers(as_on_a_gpu, monkeypatch, layout, bidirectional, every_end):
    layout(monkeypatch)
    torch.manual_seed(0)
    lstm = LSTM(3, 4, 3, bidirectional=bidirectional, lstm_backend=guarded(cudnn.lstm_backend()))
    x, starts = torch.randn(9, 5, 3), torch.rand(9, 5) < 0.3
    starts[0] = True
    zeros = torch.zeros(1, 1, 4).expand(9, 5, 4)
    output, states = lstm.sequences(x, [State(zeros, zeros)] * (6 if bidirectional else 3), starts, every_end)
    assert as_on_a_gpu.reads == 1
    expected, right = lstm.with_backend("vmap").sequences(
        x, [State(zeros, zeros)] * (6 if bidirectional else 3), starts, every_end
    )
    torch.testing.assert_close(output, expected)
    ends = ends_of(starts) if every_end else ...
    for one, other in zip(states, right, strict=True):
        torch.testing.assert_close(one.c[ends], other.c[ends])


@pytest.mark.parametrize("resets", [False, True])
def test_one_step_is_never_read(as_on_a_gpu, resets):
    lstm = LSTM(3, 4, 2, lstm_backend=guarded(cudnn.lstm_backend()))
    x = torch.randn(1, 5, 3)
    lstm(x, is_init=torch.ones(1, 5, dtype=torch.bool) if resets else None)
    lstm(torch.randn(7, 5, 3))  # without resets there is nothing to read either
    lstm.step(x[0], None)
    assert as_on_a_gpu.reads == 0


@pytest.mark.parametrize("every_end", [True, False])
@pytest.mark.parametrize("bias", [0.0, 1e15])
def test_extreme_weights_neither_open_a_cut_nor_change_a_state_that_is_held(as_on_a_gpu, every_end, bias):
    """Of tiny inputs: on synthetic steps the inputs are ones, and gates are driven by a constant, if that is enough."""
    weights, x, entry, starts = inputs(H=3)
    with torch.no_grad():
        weights.w_ih[:, 0] = 1e20
        x *= 1e-21
        weights.b_hh[3:6] = torch.tensor([-bias, bias, 0.0])
        zeros = State(*(v[:1, :1].expand_as(v) for v in entry))
        found, expected = cudnn.layer(weights, x, zeros, starts, every_end), unroll(weights, x, zeros, starts)
        ends = ends_of(starts)
        if not every_end:
            ends[:-1] = False
        torch.testing.assert_close(found.h, expected.h)
        torch.testing.assert_close(found.c[ends], expected.c[ends])


@pytest.mark.parametrize("T", [2, 255, 256, 300])
def test_a_sequence_may_start_at_every_step(as_on_a_gpu, T):
    weights = inputs()[0]
    x, starts = torch.randn(T, 2, 2), torch.ones(T, 2, dtype=torch.bool)
    zeros = State(*torch.zeros(2, 1, 1, 4).expand(2, T, 2, 4))
    assert inspect_inputs([weights], x, [zeros], starts).most == T
    expected = unroll(weights, x, zeros, starts).h
    torch.testing.assert_close(cudnn.layer(weights, x, zeros, starts, False).h, expected)


@pytest.mark.parametrize(
    ("layout", "mode", "most"),
    [
        (aligned, "last", 38),
        (aligned, "given", 55),
        (aligned, "ends", 64),
        (aligned, "stored", 112),
        (bucketed, "last", 99),
        (bucketed, "ends", 100),
    ],
)
def test_the_number_of_operators_grows_with_nothing(as_on_a_gpu, monkeypatch, layout, mode, most):
    layout(monkeypatch)
    monkeypatch.setattr(torch, "lstm", lambda x, hx, *rest: (x.new_zeros(*x.shape[:2], 4), hx[0] + 0, hx[1] + 0))
    monkeypatch.setattr(device_plan, "_cuts", lambda lengths, costs: [(0, 1), (1, len(lengths))])

    def count(T, B, rate, layers=1):
        torch.manual_seed(0)
        lstm = LSTM(3, 4, layers, lstm_backend=guarded(cudnn.lstm_backend()))
        starts = torch.rand(T, B) < rate
        starts[0], starts[T // 2] = True, True
        state = torch.zeros(1, 1, 4).expand(T, B, 4)
        if mode == "stored":
            state = state + 1
        elif mode == "given":
            state = torch.cat([state[:1] + 1, state[1:]])
        x = torch.randn(T, B, 3)
        with Counted() as counted:
            lstm.sequences(x, [State(state, state)] * layers, starts, mode in ("ends", "stored"))
        return counted.number

    count(6, 4, 0.1)  # this reads cuDNN's layout once
    numbers = {count(*sizes) for sizes in [(6, 4, 0.1), (60, 4, 0.1), (6, 100, 0.1), (60, 100, 0.5), (200, 3, 0.02)]}
    assert len(numbers) == 1
    number = numbers.pop()
    assert number <= most
    assert count(6, 4, 0.1, layers=3) < 3 * number


class Counted(TorchDispatchMode):
    """How many operators ran; none of them may hand a number to the host."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


@LAYOUTS
def test_where_steps_go_is_where_the_hosts_planner_puts_them(as_on_a_gpu, monkeypatch, layout):
    layout(monkeypatch)
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        T, B = (int(torch.randint(2, 12, (), generator=g)) for _ in range(2))
        starts = torch.rand(T, B, generator=g) < 0.4
        starts[0], starts[1, 0] = True, True
        weights = inputs()[0]
        x, entry = torch.randn(T, B, 2), State(torch.zeros(T, B, 4), torch.zeros(T, B, 4))
        call = inspect_inputs([weights], x, [entry], starts)
        seqs = Sequences.of(starts.numpy())
        assert call.lengths.tolist() == sorted(seqs.length.tolist(), reverse=True)
        ahead = call.most - torch.from_numpy(call.mask.sum(0))  # gaps that are in front of a row if rows end together
        for every_end, from_zeros in ((True, False), (True, True), (False, False), (False, True)):
            costs = Costs(1, 1, 0)
            plan = device_plan.make_device_plan(call, starts, layout is bucketed, from_zeros, every_end, costs)
            assert len(set(plan.cell.tolist())) == T * B
            assert plan.cell.max() < plan.blocks[-1].first_cell + plan.blocks[-1].steps * plan.blocks[-1].rows
            if plan.heads is not None:
                assert plan.kinds == (HOLD,)
                continue
            host = aligned_plan(seqs, every_end)
            if plan.kinds == (FLUSH,):
                assert from_zeros
                assert (plan.cell.view(T, B) - ahead * B).equal(host.cell.view(T, B))
                continue
            assert plan.cell.equal(host.cell)
            assert set(plan.kinds) == set(host.kind.tolist()) - {REAL}
            plan.features[plan.cell] = 0
            shown = torch.zeros(4, 8, dtype=torch.int8)
            for kind, values in FEATURES.items():
                shown[kind] = torch.tensor(values)
            assert plan.features.equal(shown[host.kind])


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("bias", [0.5, 30.0])
def test_a_probe_shows_a_cell_state_as_well_as_the_kernel_computes_it(monkeypatch, rounds, bias):
    """One factor of few bits would not cancel the biases; two parts do."""
    aligned(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    weights, x, entry, starts = inputs(T=20, B=16, H=8)
    starts = torch.rand(20, 16) < 0.2
    starts[0] = True
    with torch.no_grad():
        for value in (weights.b_ih, weights.b_hh):
            value.uniform_(0.3 * bias, bias)
        entry = State(*(v[:1, :1].expand(20, 16, -1) for v in entry))
        x = torch.randn(20, 16, 2)
        with cuda_on_cpu(rounds) as _:
            found = cudnn.layer(weights, x, entry, starts, True).c[ends_of(starts)]
        wide = LayerWeights(*(v if v is None else v.double() for v in weights))
        double = State(*(v.double() for v in entry))
        expected = unroll(wide, x.double(), double, starts).c[ends_of(starts)]
    assert ((found - expected).abs() / expected.abs().amax()).max() < (3e-5 if rounds else 5e-6)


def test_derivatives_of_what_probes_show():
    torch.manual_seed(0)
    y = torch.rand(5, 3, 2, dtype=torch.float64).sub(0.5).requires_grad_()
    shows = torch.randperm(15)[:8]
    expected = y.reshape(15, 2)[shows].view(4, 2, 2).atanh() * device.UNPROBED
    torch.testing.assert_close(device._shown(y, shows, 4, 2), expected)
    torch.autograd.gradcheck(lambda y: device._shown(y, shows, 4, 2), y, check_batched_grad=True)
    torch.autograd.gradgradcheck(lambda y: device._shown(y, shows, 4, 2), y)
    beyond = torch.ones_like(y).requires_grad_()  # where no sequence ends
    (grad,) = torch.autograd.grad(device._shown(beyond, shows, 4, 2), beyond, torch.zeros(4, 2, 2, dtype=y.dtype))
    assert not grad.any()


@LAYOUTS
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_the_cell_states_that_probes_show(as_on_a_gpu, monkeypatch, layout, bias):
    """A PROBE cancels the biases, so its columns of ``w_ih`` take away the gradient that the biases get there."""
    layout(monkeypatch)
    weights, _, _, starts = inputs(T=20, B=4, H=5, bias=bias, dtype=torch.float64)
    weights = LayerWeights(*(v if v is None else v.detach().requires_grad_() for v in weights))
    starts = torch.rand(20, 4) < 0.2
    starts[0] = True
    x = torch.randn(20, 4, 2, dtype=torch.float64, requires_grad=True)
    entry = State(*x.new_zeros(2, 1, 1, 5).expand(2, 20, 4, 5))
    scale, ends = torch.rand(20, 4, 5, dtype=torch.float64), ends_of(starts)
    wanted = [v for v in (x, *weights) if v is not None]

    def gradients(layer):
        return torch.autograd.grad((layer(weights, x, entry, starts).c * scale)[ends].sum(), wanted)

    actual = gradients(partial(cudnn.layer, every_end=True))
    for one, other in zip(actual, gradients(unroll), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@contextmanager
def synchronizations(mode):
    """Within it torch warns of what makes the host wait, or raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


ACROSS_STREAMS = pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
"""torch warns where a weight's gradient is computed on another stream than that on which its node was made."""


@on_a_gpu
@pytest.mark.parametrize("every_end", [True, False])
def test_the_host_waits_once_for_a_call(every_end):
    lstm = LSTM(8, 16, device="cuda", lstm_backend="cudnn")
    x = torch.randn(32, 16, 8, device="cuda", requires_grad=True)
    entry = [State(torch.zeros(32, 16, 16, device="cuda"), torch.zeros(32, 16, 16, device="cuda"))]
    starts = [torch.rand(32, 16, device="cuda") < 0.1 for _ in range(3)]
    for one in starts:
        one[0] = True

    def call(k):
        output, _ = lstm.sequences(x, entry, starts[k], every_end)
        output.sum().backward()

    call(0)
    torch.cuda.synchronize()
    with synchronizations("warn"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(1)
        first = len(said)
        call(1)  # the plan is known
    assert first <= 1, [str(w.message) for w in said]
    assert len(said) - first <= 1


@on_a_gpu
@pytest.mark.parametrize("backend", ["cudnn", "vmap"])
def test_acting_is_captured_in_a_graph(backend):
    module = LSTMModule(3, 8, in_key="observation", out_key="features", device="cuda", lstm_backend=backend)
    zeros = torch.zeros(4, 1, 8, device="cuda")
    td = TensorDict(
        {
            "observation": torch.randn(4, 3, device="cuda"),
            "is_init": torch.zeros(4, 1, dtype=torch.bool, device="cuda"),
            "recurrent_state_h": zeros.clone(),
            "recurrent_state_c": zeros.clone(),
        },
        [4],
        device="cuda",
    )
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                module(td.clone(False))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(td.clone(False))
        for _ in range(2):
            td["observation"].normal_()
            td["is_init"][1] = True
            td["recurrent_state_h"].normal_()
            graph.replay()
            expected = module(td.clone())
            torch.testing.assert_close(out["features"], expected["features"])
            torch.testing.assert_close(out["next", "recurrent_state_c"], expected["next", "recurrent_state_c"])


def triton_case(T=9, B=37, I=5, H=40, seed=0, dtype=torch.float32, device="cuda", num_layers=1):  # noqa: E741
    """An LSTM on ``triton`` with several tiles and slices, an input, and resets."""
    torch.manual_seed(seed)
    lstm = LSTM(I, H, num_layers, lstm_backend="triton", device=device, dtype=dtype)
    x = torch.randn(T, B, I, device=device, dtype=dtype, requires_grad=True)
    return lstm, x, torch.rand(T, B, device=device) < 0.2


def triton_call(lstm, x, starts):
    """The output and all gradients."""
    output, _ = lstm(x, is_init=starts)
    grad = torch.linspace(-1, 1, output.numel(), device=x.device, dtype=x.dtype).view_as(output)
    return output, *torch.autograd.grad(output, [x, *lstm.parameters()], grad)


def assert_close_by_row(found, expected, most):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).abs().max() <= most * other.double().abs().max().clamp(min=1e-3)


@pytest.fixture
def exact_products():
    """No TF32, in torch's products nor in recurrent networks."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


TRITON_SIZES = pytest.mark.parametrize(
    ("B", "H"), [(1, 1), (37, 40), (16, 256), (300, 64), (33, 512), (3000, 128), (5, 1000)]
)


@on_a_gpu
@TRITON_SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_equals_the_unroll(exact_products, B, H, dtype):
    """Slices that wait for each other, tiles one after another, weights that do not stay on the chip."""
    case = triton_case(T=12, B=B, H=H, dtype=dtype)
    wide, x, starts = case[0].with_backend("vmap").double(), case[1].detach().double().requires_grad_(), case[2]
    found = triton_call(*triton_case(T=12, B=B, H=H, dtype=dtype))
    assert_close_by_row(found, triton_call(wide, x, starts), 1e-5 if dtype == torch.float32 else 4e-2)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_with_a_launch_for_each_step_equals_the_unroll(exact_products, monkeypatch, dtype):
    """As where the GPU has fewer multiprocessors than a tile has slices."""
    from rnn_backends_plugins.triton import run

    lstm, x, starts = triton_case(H=100, dtype=dtype)
    wide = lstm.with_backend("vmap").double(), x.detach().double().requires_grad_(), starts
    lstm, x, starts = triton_case(H=100, dtype=dtype)
    card = run.card_of(x.device)
    monkeypatch.setattr(run, "card_of", lambda device: dataclasses.replace(card, sms=1))
    monkeypatch.setattr(run, "_plan_of", run._plan_of.__wrapped__)  # which keeps no plan for this card
    found = triton_call(lstm, x, starts)
    assert_close_by_row(found, triton_call(*wide), 1e-5 if dtype == torch.float32 else 4e-2)


@on_a_gpu
def test_triton_gives_the_same_bits_again():
    """A race shows as another number, now and then."""
    lstm, x, starts = triton_case(T=64, B=200, H=256)
    first = triton_call(lstm, x, starts)
    for _ in range(20):
        for one, other in zip(triton_call(lstm, x, starts), first, strict=True):
            assert one.equal(other)


@on_a_gpu
def test_triton_never_waits_for_the_device():
    lstm, x, starts = triton_case()
    triton_call(lstm, x, starts)
    torch.cuda.synchronize()
    with synchronizations("error"):
        triton_call(lstm, x, starts)


@on_a_gpu
@ACROSS_STREAMS
def test_triton_is_captured_in_a_graph_with_its_resets_and_gradients():
    lstm, x, starts = triton_case()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            triton_call(lstm, x, starts)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton_call(lstm, x, starts)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.normal_()
            starts.copy_(torch.rand_like(x[..., 0]) < 0.3 * seed)
        graph.replay()
        for one, other in zip(captured, triton_call(lstm, x, starts), strict=True):
            assert one.equal(other)


@on_a_gpu
@ACROSS_STREAMS
def test_triton_on_streams_side_by_side_and_in_several_modules():
    """Each of them has programs enough to fill the GPU, and must neither mix with the others nor wait for ever."""
    cases = [triton_case(T=40, B=64, H=256, seed=seed) for seed in range(6)]
    expected = [triton_call(*case) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    for _ in range(5):
        found = []
        for stream, case in zip(streams, cases, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found.append(triton_call(*case))
        torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.equal(b)


@on_a_gpu
def test_triton_compiles_nothing_for_another_length_batch_or_other_resets(monkeypatch):
    import triton

    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **about: compiled.append(about) and None)
    for B in (16, 17):  # a new size compiles; 16 is a number that Triton likes to specialise on
        triton_call(*triton_case(T=8, B=B, H=72))
    compiled.clear()
    for T, B, rate in ((1, 16, 0.5), (2, 1, 0.0), (33, 48, 0.9), (128, 3, 1.0)):
        lstm, x, _ = triton_case(T=T, B=B, H=72)
        triton_call(lstm, x, torch.rand(T, B, device="cuda") < rate)
    assert not compiled


@pytest.fixture
def launched(monkeypatch):
    """For each launch of a kernel of ``triton`` whether it took the shorter way."""
    from rnn_backends_plugins.triton import launch, run

    shorter, original = [], launch.Launcher._launch

    def launching(self, index, *given):
        compiled, ways = self._compiled.get(index), []
        if compiled is not None:
            own = compiled.launch
            monkeypatch.setattr(compiled, "launch", lambda *given: ways.append(own(*given)) or ways[-1])
        original(self, index, *given)
        shorter.append(ways == [True])
        if compiled is not None:
            monkeypatch.setattr(compiled, "launch", own)

    monkeypatch.setattr(launch.Launcher, "_launch", launching)
    run._launcher.cache_clear()
    run._step_launcher.cache_clear()
    return shorter


def misaligned(lstm):
    """The same LSTM with each weight one number further in memory than a multiple of 16 bytes."""
    found = {}
    for name, value in lstm.named_parameters():
        memory = torch.empty(value.numel() + 1, dtype=value.dtype, device=value.device)
        found[name] = memory[1:].view_as(value).copy_(value.detach()).requires_grad_()
    return lambda x, is_init: torch.func.functional_call(lstm, found, (x,), {"is_init": is_init}), found


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_launches_again_in_a_shorter_way_and_gives_the_same_bits(launched, monkeypatch, dtype):
    from rnn_backends_plugins.triton import launch, run

    lstm, x, starts = triton_case(dtype=dtype)
    elsewhere, weights = misaligned(lstm)

    def calls():
        output, _ = elsewhere(x, starts)
        grads = torch.autograd.grad(output, [x, *weights.values()], torch.ones_like(output))
        with torch.no_grad():
            stepped = lstm.step(x[0], State(*x.new_ones(2, 1, 37, 40)), starts[0])[1]
        return *triton_call(lstm, x, starts), output, *grads, *stepped

    with monkeypatch.context() as patch:
        patch.setattr(launch, "known", lambda *about: None)
        expected = calls()
    assert launched == [False] * 5
    run._launcher.cache_clear()
    run._step_launcher.cache_clear()
    calls()
    launched.clear()
    found = calls()
    torch.cuda.synchronize()
    assert launched == [False, False, True, True, True]  # the misaligned weights take the kernels compiled for them
    for one, other in zip(found, expected, strict=True):
        assert one.equal(other)


@on_a_gpu
def test_a_graph_takes_the_shorter_way_of_triton(launched):
    lstm, x, starts = triton_case()
    expected = triton_call(lstm, x, starts)
    torch.cuda.synchronize()
    launched.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton_call(lstm, x, starts)
    assert launched == [True, True]
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, expected, strict=True):
        assert one.equal(other)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_triton_runs_on_the_gpu_of_its_tensors():
    expected = triton_call(*triton_case(device="cuda:0"))
    for _ in range(2):
        lstm, x, starts = triton_case(device="cuda:0")
        moved = x.detach().to("cuda:1").requires_grad_()
        found = triton_call(lstm.to("cuda:1"), moved, starts.to("cuda:1"))
        for one, other in zip(found, expected, strict=True):
            assert one.device.index == 1
            torch.testing.assert_close(one.to("cuda:0"), other)


@on_a_gpu
@pytest.mark.parametrize("layers", [1, 3])
def test_triton_acts_in_one_launch_a_layer_that_a_graph_takes(layers):
    lstm, x, _ = triton_case(H=64, num_layers=layers)
    state = State(*torch.randn(2, layers, 37, 64, device="cuda"))
    with torch.no_grad():
        expected = lstm.with_backend("vmap").step(x[0], state)
        lstm.step(x[0], state)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = lstm.step(x[0], state)
        graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(
        torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


@on_a_gpu
@pytest.mark.parametrize("backend", ["triton", "cudnn"])
def test_a_module_acts_in_tensordicts_graph_and_follows_weights_that_change_in_place(backend):
    """``CudaGraphModule`` is the one switch: it captures a step after a few calls and replays it."""
    from tensordict.nn import CudaGraphModule

    module = LSTMModule(3, 64, in_key="observation", out_key="features", device="cuda", lstm_backend=backend)
    graph = CudaGraphModule(module)
    with torch.no_grad():
        for k in range(6):
            if k == 4:
                for weight in module.parameters():
                    weight.mul_(1.1)
            state = torch.randn(2, 5, 1, 64, device="cuda")
            td = TensorDict(
                {
                    "observation": torch.randn(5, 3, device="cuda"),
                    "is_init": torch.rand(5, 1, device="cuda") < 0.3,
                    "recurrent_state_h": state[0],
                    "recurrent_state_c": state[1],
                },
                [5],
                device="cuda",
            )
            found, expected = graph(td.clone()), module(td.clone())
            for key in ("features", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")):
                torch.testing.assert_close(found[key], expected[key])


@on_a_gpu
@pytest.mark.parametrize("backend", ["triton", "cudnn", "vmap", "torchscript"])
@pytest.mark.parametrize("deterministic", [False, True])
@ACROSS_STREAMS
def test_a_stream_of_its_own_and_deterministic_algorithms_change_nothing(monkeypatch, backend, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or torch refuses products in deterministic mode
    lstm = LSTM(5, 40, device="cuda", lstm_backend=backend)
    torch.manual_seed(0)
    x = torch.randn(9, 7, 5, device="cuda", requires_grad=True)
    starts = torch.rand(9, 7, device="cuda") < 0.3
    expected = triton_call(lstm, x, starts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    try:
        with torch.cuda.stream(stream):
            found = triton_call(lstm, x, starts)
        torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
