"""The stand-in for cuDNN refuses, warns and fails as torch's source does, and the laws hold over it on every path."""

from dataclasses import replace
from functools import wraps

import pytest
import torch
from rnn_backends import LSTM
from rnn_backends_plugins import cudnn
from rnn_backends_plugins.cudnn import flat, kernel
from rnn_backends_plugins.testing.cudnn import CHUNK_WARNING, HostSyncError, NoHostSync, cuda_on_cpu, guarded, order
from rnn_conformance import check_backend
from rnn_conformance.laws.catalogue import LAWS
from torch import nn

EAGER = [name for name, law in LAWS.items() if not law.costly and law.belongs("smoke")]


@pytest.fixture
def gpu():
    with cuda_on_cpu() as stand_in:
        yield stand_in


def check(laws=EAGER, backend=None, **options):
    return check_backend(backend or guarded(cudnn.lstm_backend()), profile="smoke", laws=laws, **options)


@pytest.fixture
def rounding_gpu(monkeypatch):
    """A GPU that rounds float32, for the suite: an accelerator with TF32."""
    monkeypatch.setattr("rnn_conformance.suite.trial.is_accelerator", lambda device: True)
    monkeypatch.setattr("rnn_conformance.suite.device.has_tf32", lambda device: True)
    with cuda_on_cpu(rounds=True) as stand_in:
        yield stand_in


def in_float32_alone(backend):
    """The backend without float64, so that every law that compares numbers runs in float32."""

    def rejects(spec, device, dtype):
        return "no float64" if dtype == torch.float64 else backend.rejects(spec, device, dtype)

    return replace(backend, rejects=rejects)


def without_biases(backend):
    """The backend, restricted to LSTMs without biases, so that every case is one."""

    def rejects(spec, device, dtype):
        return "no biases" if spec.bias else backend.rejects(spec, device, dtype)

    return replace(backend, rejects=rejects)


def problem(layers=1, bias=True, bidirectional=False, P=0, dtype=torch.float64):
    torch.manual_seed(3)
    lstm = LSTM(3, 5, layers, bias=bias, bidirectional=bidirectional, proj_size=P, dtype=dtype, lstm_backend="cudnn")
    return lstm, torch.randn(7, 4, 3, dtype=dtype), torch.rand(7, 4) < 0.3


def call(x, weights, h, c, bias=True, layers=1, bidirectional=False, train=True):
    return torch.lstm(x, (h, c), weights, bias, layers, 0.0, train, bidirectional, False)


def undo_contiguity(monkeypatch):
    monkeypatch.setattr(kernel, "contiguous", lambda state: state)


def undo_the_buffer(monkeypatch):
    monkeypatch.setattr(
        kernel, "flat_weights", lambda params, bias, *sizes: flat._with_biases(params, bias, *sizes[:2])
    )


def undo_the_biases(monkeypatch):
    """The parameters' memory unchanged, without biases too: the fault on the GPU."""
    original = torch.lstm

    def lstm(x, hx, params, bias, *rest):
        return original(x, hx, params, len(params) % 4 == 0 or len(params) % 5 == 0, *rest)

    monkeypatch.setattr(torch, "lstm", lstm)
    monkeypatch.setattr("rnn_backends_plugins.testing.cudnn.warnings.warn", lambda *args, **options: None)
    monkeypatch.setattr(kernel, "flat_weights", lambda params, *options: params)


@pytest.mark.parametrize(
    ("undo", "verdict", "message"),
    [
        (undo_contiguity, "crashed", "x is not contiguous"),
        (undo_the_buffer, "crashed", "not part of single contiguous chunk"),
        (undo_the_biases, "failed", "times its tolerance"),
    ],
)
def test_the_laws_would_have_shown_each_fault_of_the_gpu(gpu, monkeypatch, undo, verdict, message):
    undo(monkeypatch)
    backend = guarded(cudnn.lstm_backend())
    backend = without_biases(backend) if undo is undo_the_biases else backend
    report = check(["end_states_equal_reference", "one_step", "layers"], backend, shrink=False, rollouts=())
    assert any(r.verdict == verdict and message in r.message for r in report.failures), report.failures


NUMBERS = [
    "output_equals_reference_in_tf32",
    "gradients_equal_reference_in_float32",
    "without_gradients_the_same_values",
    "nan_stays_in_its_sequence",
    "two_modules_do_not_mix",
    "each_weight_may_be_replaced_alone",
    "copies_in_another_mode_share_the_weights",
]
"""Laws that fail over a GPU that rounds, if the suite's rule for float32 on a device is too narrow or wrong."""


OF_QUICK = [
    name
    for name, law in LAWS.items()
    if law.belongs("quick") and not law.belongs("smoke") and (law.subject in ("keys", "shapes") or law.costly)
    if not name.startswith(("long_rows", "sizes_of_training", "one_module_acts_in_two_threads"))  # seconds each
]
"""Laws of quick alone, on tensors of other kinds, recordings, keys and many rows."""


@pytest.mark.parametrize("laws", [NUMBERS, OF_QUICK], ids=["numbers", "of quick"])
def test_laws_hold_where_float32_is_rounded(rounding_gpu, laws):
    backend = in_float32_alone(guarded(cudnn.lstm_backend()))
    report = check_backend(backend, profile="quick", laws=laws, rollouts=(), seed=1, shrink=False)
    assert {result.law for result in report.results} >= set(laws)
    assert report.failures == []
    held = [result for result in report.results if result.verdict == "passed"]
    assert len(held) > 0.8 * len(report.results)  # it claims neither one graph nor a gradient of gradients


@pytest.mark.parametrize("which", [0, 1])
def test_a_state_that_is_not_contiguous_is_refused(gpu, which):
    lstm, x, _ = problem()
    state = [torch.zeros(1, 4, 5, dtype=x.dtype), torch.zeros(1, 4, 5, dtype=x.dtype)]
    state[which] = torch.zeros(1, 5, 4, dtype=x.dtype).mT
    with pytest.raises(RuntimeError, match=f"rnn: {['hx', 'cx'][which]} is not contiguous"):
        call(x, list(lstm.parameters()), *state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("P", [0, 2])
def test_flattened_parameters_are_taken_as_they_are_and_others_with_a_warning(gpu, bias, P):
    lstm, x, _ = problem(2, bias, True, P)
    state = torch.zeros(4, 4, P or 5, dtype=x.dtype), torch.zeros(4, 4, 5, dtype=x.dtype)
    weights = list(lstm.parameters())
    expected = call(x, weights, *state, bias, 2, True)
    weights[3] = weights[3].clone()
    with pytest.warns(UserWarning, match="not part of single contiguous chunk"):
        found = call(x, weights, *state, bias, 2, True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert "RNN module weights are not part" in CHUNK_WARNING


def test_one_layer_of_a_buffer_of_two_without_biases_is_silently_wrong(gpu):
    """The fault of torch that the plugin has to avoid: the next layer's matrix is read as biases."""
    lstm, x, _ = problem(2, bias=False)
    state = [torch.zeros(1, 4, 5, dtype=x.dtype) for _ in range(2)]
    first = [lstm.weight_ih_l0, lstm.weight_hh_l0]
    found = call(x, first, *state, bias=False)[0]
    with pytest.warns(UserWarning, match="contiguous chunk"):
        expected = call(x, [weight.clone() for weight in first], *state, bias=False)[0]
    assert (found - expected).abs().max() > 0.01


def test_torchs_own_lstm_without_biases_over_one_vector_is_silently_wrong_and_ours_is_not(gpu):
    torch.manual_seed(0)
    net = nn.Sequential(LSTM(3, 5, bias=False, dtype=torch.float64, lstm_backend="cudnn"))
    net.append(nn.Linear(5, 20, dtype=torch.float64))
    vector = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    expected = net[0](x)[0]
    torch.nn.utils.vector_to_parameters(vector, net.parameters())
    torch.testing.assert_close(net[0](x)[0], expected)
    state = [torch.zeros(1, 4, 5, dtype=x.dtype) for _ in range(2)]
    assert (call(x, list(net[0].parameters()), *state, bias=False)[0] - expected).abs().max() > 0.01


def test_without_train_there_is_no_backward_pass(gpu):
    lstm, x, _ = problem()
    state = [torch.zeros(1, 4, 5, dtype=x.dtype) for _ in range(2)]
    output = call(x, list(lstm.parameters()), *state, train=False)[0]
    with pytest.raises(RuntimeError, match="can only be called in training mode"):
        output.sum().backward()


def test_small_h_is_rounded_to_some_16_bits_and_large_h_is_not(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    errors = {}
    for H in (64, 200):
        torch.manual_seed(1)
        lstm, x = LSTM(8, H, lstm_backend="cudnn"), torch.randn(20, 4, 8)
        with torch.no_grad():
            expected = nn.LSTM(8, H).double()
            expected.load_state_dict(lstm.state_dict())
            right = expected(x.double())[0]
            with cuda_on_cpu(rounds=True):
                found = lstm(x)[0]
        errors[H] = float((found - right).abs().max() / right.abs().max())
    assert 1e-6 < errors[64] < 3e-5
    assert errors[200] < 1e-6


@pytest.mark.parametrize("H", [64, 200])
def test_tf32_rounds_to_11_bits_forward_and_backward(H):
    torch.manual_seed(1)
    lstm, x = LSTM(8, H, lstm_backend="cudnn"), torch.randn(20, 4, 8)
    wide = nn.LSTM(8, H).double()
    wide.load_state_dict(lstm.state_dict())
    expected = wide(x.double())[0]
    right = torch.autograd.grad(expected.sum(), wide.weight_hh_l0)[0]
    with cuda_on_cpu(rounds=True):
        found = lstm(x)[0]
        actual = torch.autograd.grad(found.sum(), lstm.weight_hh_l0)[0]
    for one, other in ((found, expected), (actual, right)):
        assert 5e-5 < float((one - other).detach().abs().max() / other.detach().abs().max()) < 2e-3


@pytest.mark.parametrize(
    "read",
    [
        lambda v: v.cpu(),
        lambda v: v.sum().item(),
        lambda v: v.numpy(),
        lambda v: v.tolist(),
        lambda v: bool(v.any()),
        lambda v: int(v.sum()),
        lambda v: v.nonzero(),
        lambda v: v[v > 0],
        lambda v: torch.where(v > 0),
        lambda v: torch.unique(v),
        lambda v: v.to("cpu"),
        lambda v: torch.equal(v, v),
        lambda v: torch.repeat_interleave(v, (v > 0).long()),
        lambda v: v[v.argmax()],
    ],
)
def test_to_read_the_device_raises(read):
    value = torch.randn(5)
    with NoHostSync(), pytest.raises(HostSyncError):
        read(value)


def test_what_stays_on_the_device_does_not_raise():
    value, index = torch.randn(5), torch.tensor([1, 2])
    with NoHostSync():
        value[index], value[1:], torch.where(value > 0, value, 0), value.double(), value.cumsum(0)


def test_the_order_has_all_matrices_first():
    assert order(3, 2, 0, 2, False).offsets == (0, 24, 72, 80, 40, 56, 88, 96)
    assert order(3, 2, 1, 1, False).offsets == (0, 24, 34, 42, 32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.filterwarnings("error")
def test_weights_are_never_stale_and_gradients_are_the_parameters(gpu, bias, P, resets):
    lstm, x, is_init = problem(2, bias, True, P)
    plain, is_init = lstm.with_backend("vmap"), is_init if resets else None

    def agree():
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found, expected = lstm(x, is_init=is_init)[0], plain(x, is_init=is_init)[0]
            torch.testing.assert_close(found, expected)
            if grad:
                ours, theirs = (torch.autograd.grad(v.pow(2).sum(), list(lstm.parameters())) for v in (found, expected))
                for one, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(one, other)

    agree()
    optimizer = torch.optim.SGD(lstm.parameters(), 0.3)
    lstm(x, is_init=is_init)[0].sum().backward()
    optimizer.step()
    agree()
    for parameter in lstm.parameters():
        parameter.data.mul_(0.5)  # no version counts it
    agree()
    lstm.load_state_dict({name: torch.randn_like(value) for name, value in lstm.state_dict().items()})
    agree()
    lstm.load_state_dict({name: torch.randn_like(value) for name, value in lstm.state_dict().items()}, assign=True)
    plain = lstm.with_backend("vmap")
    agree()
    swapped = {name: torch.randn_like(value).requires_grad_() for name, value in lstm.named_parameters()}
    run = torch.func.functional_call
    found, expected = (run(module, swapped, (x,), {"is_init": is_init})[0] for module in (lstm, plain))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(v.sum(), list(swapped.values())) for v in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_that_lie_right_are_handed_over_without_a_copy(gpu, monkeypatch):
    lstm, x, _ = problem(2)
    seen = []
    monkeypatch.setattr(
        torch, "lstm", lambda x, hx, params, *rest: seen.append(params) or gpu.lstm(x, hx, params, *rest)
    )
    lstm(x)
    assert [value.data_ptr() for value in seen[0]] == [value.data_ptr() for value in lstm.parameters()]
    lstm.weight_hh_l1 = nn.Parameter(lstm.weight_hh_l1.mT.contiguous().mT)
    lstm(x)
    assert all(value.is_contiguous() for value in seen[1])


def test_where_cudnn_names_no_layout_the_numbers_are_right_and_torch_warns(gpu, monkeypatch):
    monkeypatch.delattr(torch, "_cudnn_rnn_flatten_weight")
    lstm, x, is_init = problem(2, bias=False)
    with pytest.warns(UserWarning, match="contiguous chunk"):
        found = lstm(x, is_init=is_init)[0]
    torch.testing.assert_close(found, lstm.with_backend("vmap")(x, is_init=is_init)[0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_functional_gradients_are_the_parameters(gpu, layers, resets, bias):
    lstm, x, is_init = problem(layers, bias)
    weights, options = dict(lstm.named_parameters()), {"is_init": is_init if resets else None}

    def loss(weights):
        return torch.func.functional_call(lstm, weights, (x,), options)[0].pow(2).sum()

    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    for one, other in zip(torch.func.grad(loss)(weights).values(), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("stored", [False, True])
def test_every_dtype_runs_with_resets_and_stored_states(gpu, dtype, P, stored):
    lstm, x, is_init = problem(2, True, True, P, dtype)
    hx = (torch.randn(4, 4, P or 5).to(dtype), torch.randn(4, 4, 5).to(dtype)) if stored else None
    output, state = lstm(x, hx, is_init=is_init)
    output.float().sum().backward()
    wide = LSTM.from_torch(lstm, "vmap").float()
    expected, right = wide(x.float(), None if hx is None else tuple(v.float() for v in hx), is_init=is_init)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(state, right, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_float16_weights_that_are_too_large_to_be_cut_are_run_a_sequence_a_row(gpu, scale):
    lstm, x, is_init = problem(dtype=torch.float16)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(scale)
        found = lstm(x, is_init=is_init)[0]
        expected = lstm.with_backend("vmap").float()(x.float(), is_init=is_init)[0]
    assert not found.isnan().any()
    torch.testing.assert_close(found.float(), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("resets", [False, True])
def test_an_empty_batch_does_not_go_to_cudnn(gpu, resets):
    lstm, x, is_init = problem(2, dtype=torch.float32)
    output, _ = lstm(x[:, :0], is_init=is_init[:, :0] if resets else None)
    assert output.shape == (7, 0, 5)
    assert gpu.calls == []
    assert gpu.reads == 0


def test_deterministic_algorithms_are_enough(gpu):
    lstm, x, is_init = problem(2)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(lstm(x, is_init=is_init)[0].sum(), list(lstm.parameters())) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(one.equal(other) for one, other in zip(*runs, strict=True))


def test_a_wrapped_layer_that_changes_the_starts_is_not_surveyed(gpu):
    """The values that were read for the call would be wrong for it."""
    backend = cudnn.lstm_backend()

    def no_resets(weights, x, entry, starts):
        one = torch.zeros_like(starts)
        one[0] = True
        return backend.layer(weights, x, entry, one)

    lstm, x, is_init = problem(2)
    lstm = lstm.with_backend(replace(backend, layer=no_resets, layer_last=None))
    torch.testing.assert_close(lstm(x, is_init=is_init)[0], lstm.with_backend("vmap")(x)[0])
    wraps(backend.layer)(no_resets)
    torch.testing.assert_close(lstm(x, is_init=is_init)[0], lstm.with_backend("vmap")(x)[0])
