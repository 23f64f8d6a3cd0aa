"""What matters on a GPU alone: how often the host waits, and that acting can be captured; and its path on a CPU."""

import warnings

import pytest
import torch
from rnn_backends import LSTM, LSTMModule, State
from rnn_backends.unroll import unroll
from rnn_backends_plugins import cudnn
from rnn_backends_plugins.cudnn.inputs import inspect_inputs
from rnn_backends_plugins.testing.cudnn import cuda_on_cpu, guarded
from rnn_conformance import check_backend
from rnn_conformance.laws.catalogue import LAWS
from tensordict import TensorDict

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A stand-in for cuDNN, everything is read at once, and no cut is looked at afterwards."""
    monkeypatch.setattr(cudnn, "is_clean", None)
    cudnn._cached_plan.cache_clear()
    with cuda_on_cpu() as stand_in:
        yield stand_in
    cudnn._cached_plan.cache_clear()


@pytest.mark.parametrize("searching", [False, True])
def test_every_law_holds_where_everything_is_read_at_once(as_on_a_gpu, monkeypatch, searching):
    if searching:
        monkeypatch.setattr(cudnn.costs.Costs, "search", lambda costs, sequences: -1e9)
    eager = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]
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
def test_a_look_sees_starts_and_stored_states(P, bias):
    weights, x, entry, starts = inputs(P=P, bias=bias)
    entry.c[3, 1, 2], entry.h[4, 2, 0] = -1.0, float("nan")
    entry.h[1, 1, 0], entry.c[5, 0, 1] = 2.0, float("nan")  # nothing starts there
    seen = inspect_inputs(weights, x, entry, starts)
    assert torch.from_numpy(seen.starts).equal(starts)
    assert seen.stored.nonzero()[0].tolist() == [3, 4]
    assert seen.stored.nonzero()[1].tolist() == [1, 2]
    assert not seen.is_bounded  # a state that is read is NaN
    entry.h[4, 2, 0] = 0.0
    assert inspect_inputs(weights, x, entry, starts).is_bounded


def test_a_look_at_zeros_takes_no_memory_for_them():
    weights, x, entry, starts = inputs()
    zeros = State(*(v[:1, :1].expand_as(v) for v in entry))
    seen = inspect_inputs(weights, x, zeros, starts)
    assert not seen.stored.any()
    assert seen.is_bounded


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h", "c"])
def test_what_could_come_through_a_cut_is_not_bounded(value, where):
    weights, x, entry, starts = inputs()
    assert inspect_inputs(weights, x, entry, starts).is_bounded
    values = {**weights._asdict(), "x": x, "h": entry.h, "c": entry.c}
    with torch.no_grad():
        values[where].view(-1)[0] = value  # of a state: at t = 0, where one is read
    assert not inspect_inputs(weights, x, entry, starts).is_bounded


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
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call(1)
            first = len(said)
            call(1)  # the plan is known
    finally:
        torch.cuda.set_sync_debug_mode("default")
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
