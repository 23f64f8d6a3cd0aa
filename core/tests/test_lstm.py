"""``LSTM`` is a drop-in for torch.nn.LSTM: constructor, parameters, forms of call, returns, options, precision."""

import pytest
import torch
from rnn_backends import LSTM, InputError
from torch import nn
from torch.testing import assert_close

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"proj_size": 2},
    {"bidirectional": True},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 3, "bias": False, "batch_first": True},
]


def pair(backend, dtype=torch.float64, **options):
    """Ours and torch's, with the same parameters."""
    ours = LSTM(3, 4, **options, dtype=dtype, lstm_backend=backend)
    theirs = nn.LSTM(3, 4, **options, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def state(lstm, *batch, dtype=torch.float64):
    """A random ``hx``."""
    K = lstm.num_layers * (1 + lstm.bidirectional)
    sizes = lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    return tuple(torch.randn(K, *batch, size, dtype=dtype) for size in sizes)


def test_the_constructor_takes_torchs_arguments_in_torchs_order():
    arguments = (3, 4, 2, False, True, 0.5, True, 2, "cpu", torch.float64)
    ours, theirs = LSTM(*arguments), nn.LSTM(*arguments)
    for name in nn.LSTM.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.weight_ih_l0.dtype == torch.float64


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_seeded_parameters_are_torchs_bit_for_bit(options):
    torch.manual_seed(3)
    ours = LSTM(3, 4, **options).state_dict()
    torch.manual_seed(3)
    theirs = nn.LSTM(3, 4, **options).state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_it_is_an_rnnbase_with_torchs_attributes():
    lstm = LSTM(3, 4, 2)
    assert isinstance(lstm, nn.RNNBase)
    assert lstm.mode == "LSTM"
    assert [name for name, _ in lstm.named_parameters()] == [name for name, _ in nn.LSTM(3, 4, 2).named_parameters()]
    assert len(lstm.all_weights) == 2
    lstm.flatten_parameters()
    assert "LSTM(3, 4, num_layers=2" in repr(lstm)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_states_and_gradients_are_torchs(backend, options):
    ours, theirs = pair(backend, **options)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    hx = state(ours, 2 if not ours.batch_first else 5)
    results = []
    for lstm in (ours, theirs):
        inputs = [v.clone().requires_grad_() for v in (x, *hx)]
        y, (h, c) = lstm(inputs[0], tuple(inputs[1:]))
        (y.sin().sum() + h.cos().sum() + (c**2).sum()).backward()
        results.append((y, h, c, *(v.grad for v in inputs), *(p.grad for p in lstm.parameters())))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch_first", [False, True])
def test_forms_of_call(eager_backend, batch_first):
    ours, theirs = pair(eager_backend, batch_first=batch_first, num_layers=2)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for value, batch in ((x, (5 if batch_first else 2,)), (x[:, 0], ()), (x[:1], (1 if batch_first else 2,))):
        for hx in (None, state(ours, *batch)):
            assert_close(ours(value, hx), theirs(value, hx))
            assert isinstance(ours(value, hx)[1], tuple)
        assert_close(ours(input=value, hx=None), theirs(input=value, hx=None))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4, 3), (6, 1, 3)])
def test_one_step_or_one_row(eager_backend, shape):
    ours, theirs = pair(eager_backend)
    x = torch.randn(shape, dtype=torch.float64)
    assert_close(ours(x), theirs(x))


def test_an_empty_batch_gives_empty_results(eager_backend):
    ours, _ = pair(eager_backend, num_layers=2)
    y, (h, c) = ours(torch.randn(5, 0, 3, dtype=torch.float64))
    assert (y.shape, h.shape, c.shape) == ((5, 0, 4), (2, 0, 4), (2, 0, 4))


def test_no_time_step_is_refused(eager_backend):
    with pytest.raises(InputError, match="at least one time step"):
        LSTM(3, 4, lstm_backend=eager_backend)(torch.randn(0, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_keeps_its_dtype_and_stays_near(backend, dtype):
    ours = LSTM(3, 4, 2, dtype=dtype, lstm_backend=backend)
    exact = nn.LSTM(3, 4, 2)
    exact.load_state_dict({k: v.float() for k, v in ours.state_dict().items()})
    x = torch.randn(6, 2, 3, dtype=dtype)
    y, (h, c) = ours(x)
    assert {y.dtype, h.dtype, c.dtype} == {dtype}
    near = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert_close((y.float(), (h.float(), c.float())), exact(x.float()), rtol=near, atol=near)


def test_autocast_computes_in_bfloat16_and_trains_the_float32_weights(eager_backend):
    ours, theirs = pair(eager_backend, torch.float32, num_layers=2)
    x = torch.randn(6, 2, 3)
    exact = theirs(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, (h, c) = ours(x)
        reset = ours(x.bfloat16(), is_init=torch.ones(6, 2, dtype=torch.bool))[0]
    assert {v.dtype for v in (y, h, c, reset)} == {torch.bfloat16}
    assert_close(y.float(), exact, rtol=3e-2, atol=3e-2)
    assert not torch.equal(y.float(), exact), "autocast had no effect"
    y.float().sum().backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}


def test_autocast_leaves_float64_alone_like_torch(eager_backend):
    ours, theirs = pair(eager_backend)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x)[0].dtype == torch.float64
        assert_close(ours(x)[0], theirs(x)[0])


def test_a_packed_sequence_is_refused_and_the_message_shows_is_init(eager_backend):
    lstm = LSTM(3, 4, batch_first=True, lstm_backend=eager_backend)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 3), [5, 3], batch_first=True)
    with pytest.raises(InputError, match=r"PackedSequence .* is_init=\[B, T\] bool"):
        lstm(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_are_found_on_meta(dtype):
    lstm = LSTM(3, 4, 2, device="meta", dtype=dtype, lstm_backend="vmap")
    y, (h, c) = lstm(torch.empty(5, 2, 3, device="meta", dtype=dtype), is_init=torch.empty(5, 2, device="meta") > 0)
    assert (y.shape, h.shape, c.shape) == ((5, 2, 4), (2, 2, 4), (2, 2, 4))
    assert {v.device.type for v in (y, h, c)} == {"meta"}
