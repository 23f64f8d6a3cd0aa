"""Number for number with TorchRL's ``LSTMModule``: outputs, end states and every gradient, over its CPU backends."""

import warnings

import pytest
import torch
import torchrl.modules
from rnn_backends import LSTMModule

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"
RESULTS = ("y", ("next", H_IN), ("next", C_IN))
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6}
THEIRS = {"pad": {}, "scan": {"recurrent_backend": "scan"}, "python": {"python_based": True}}
RESETS = {"no step": (), "first": (0,), "last": (5,), "consecutive": (2, 3), "all": range(6), "some": (1, 4)}
# TorchRL's own warnings about its scan, and torch's deprecation warnings for it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchrl", "ignore::FutureWarning:torchrl")


def worst_row(value, expected):
    """Largest difference in a row over the largest entry of that row; a row of zeros must be zeros."""
    value, expected = (v.detach().reshape(-1, v.shape[-1]) for v in (value, expected))
    apart = (value - expected).abs().amax(-1)
    return (apart / expected.abs().amax(-1).clamp_min(torch.finfo(value.dtype).tiny)).max().item()


def theirs_with(module, kind, **options):
    """TorchRL's module with the same parameters."""
    theirs = torchrl.modules.LSTMModule(
        3, 4, in_key="x", out_key="y", default_recurrent_mode=module.recurrent_mode, **THEIRS[kind], **options
    )
    theirs.to(module.lstm.weight_ih_l0.dtype)
    theirs.lstm.load_state_dict(module.lstm.state_dict())
    return theirs


def run(module, td):
    """Results and gradients by name: of every input, stored state and weight, through output and both ends."""
    td = td.clone()
    inputs = {key: td[key].requires_grad_() for key in ("x", H_IN, C_IN)}
    module.zero_grad()
    out = module(td)
    results = {key: out[key] for key in RESULTS}
    generator = torch.Generator().manual_seed(5)
    loss = sum((v * torch.rand(v.shape, generator=generator, dtype=v.dtype)).sum() for v in results.values())
    loss.backward()
    gradients = {f"gradient of {key}": value.grad for key, value in inputs.items()}
    gradients |= {f"gradient of {key}": value.grad for key, value in module.lstm.named_parameters()}
    return results, gradients


def assert_same_numbers(ours, theirs, td, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of TorchRL's scan are not ours
        expected = run(theirs, td)
    for one, other, tolerance in zip(run(ours, td), expected, (TOLERANCE[dtype], 4 * TOLERANCE[dtype]), strict=True):
        for key, value in other.items():
            error = worst_row(one[key], value)
            assert error <= tolerance, f"{key}: worst row is {error:.1e} off, {tolerance:.1e} is allowed"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", THEIRS)
def test_resets_from_stored_states(eager_backend, rows, mask, dtype, kind):
    """One row for each pattern of resets."""
    ours = LSTMModule(3, 4, in_key="x", out_key="y", dtype=dtype, lstm_backend=eager_backend)
    ours = ours.set_recurrent_mode(True)
    td = rows((len(RESETS), 6), dtype=dtype)
    td["is_init"] = torch.stack([mask(6, *steps) for steps in RESETS.values()]).unsqueeze(-1)
    assert_same_numbers(ours, theirs_with(ours, kind), td, dtype)


@pytest.mark.parametrize("steps", RESETS.values(), ids=RESETS)
def test_the_same_resets_in_every_row(eager_backend, rows, mask, steps):
    dtype = torch.float64
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": True}
    ours = LSTMModule(3, 4, dtype=dtype, lstm_backend=eager_backend, **options)
    td = rows((3, 6), dtype=dtype)
    td["is_init"] = mask(6, *steps).repeat(3, 1).unsqueeze(-1)
    assert_same_numbers(ours, theirs_with(ours, "pad"), td, dtype)


@pytest.mark.parametrize("batch", [(6,), (3, 6), (2, 3, 6), (3, 1), (1, 6), (1, 1), (1,)], ids=str)
@pytest.mark.parametrize("recurrent", [True, False])
def test_batch_ranks_one_step_and_one_row(eager_backend, rows, batch, recurrent):
    dtype = torch.float64
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent}
    ours = LSTMModule(3, 4, dtype=dtype, lstm_backend=eager_backend, **options)
    assert_same_numbers(ours, theirs_with(ours, "pad"), rows(batch, dtype=dtype), dtype)


OPTIONS = [{"num_layers": 3}, {"bias": False}, {"proj_size": 2}, {"bidirectional": True, "num_layers": 2}]
# Its projection fails in one step: it zeroes c with h's mask.
CASES = [(options, mode) for options in OPTIONS for mode in (True, False) if mode or "proj_size" not in options]


@pytest.mark.parametrize(("options", "recurrent"), CASES, ids=str)
def test_options(eager_backend, rows, options, recurrent):
    dtype = torch.float64
    ours = LSTMModule(
        3,
        4,
        **options,
        in_key="x",
        out_key="y",
        dtype=dtype,
        default_recurrent_mode=recurrent,
        lstm_backend=eager_backend,
    )
    spec = ours.lstm.spec
    td = rows((3, 6), K=spec.num_states, P=spec.output_size, dtype=dtype)
    assert_same_numbers(ours, theirs_with(ours, "pad", **options), td, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_compile_backend_too(rows, dtype):
    options = {"in_key": "x", "out_key": "y", "default_recurrent_mode": True}
    ours = LSTMModule(3, 4, dtype=dtype, lstm_backend="compile", **options)
    for batch in ((3, 6), (2, 1, 9)):
        assert_same_numbers(ours, theirs_with(ours, "pad"), rows(batch, dtype=dtype), dtype)


def test_the_comparison_sees_one_wrong_row():
    value = torch.ones(3, 2)
    wrong = value.clone()
    wrong[1, 0] += 1e-4
    assert worst_row(value, value) == 0
    assert worst_row(wrong, value) > 5e-5
    assert worst_row(torch.full((1, 2), 1e-9), torch.zeros(1, 2)) > 1
