"""The backends with a hand-written layer: the same numbers as ``vmap``, one node in a graph, no second gradient."""

from threading import Thread

import pytest
import torch
from rnn_backends import LSTM, InputError, LayerWeights, LSTMSpec, State, UnsupportedError, get_backend
from torch import Tensor
from torch._dynamo.utils import counters


@pytest.fixture(params=["compile", "cpp"])
def name(request):
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float64)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def warm(name, request):
    """The name of a backend that has compiled its kernels; a further compilation fails the test."""
    if name == "compile":
        request.getfixturevalue("no_new_code")
    return name


@pytest.fixture
def layer(warm):
    return get_backend(warm).layer


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"P": 2},
        {"bias": False},
        {"P": 2, "bias": False},
        {"T": 1},
        {"B": 1},
        {"T": 1, "B": 1, "I": 1, "H": 1},
        {"B": 5, "H": 5, "I": 5},
        {"B": 4, "H": 1},
        {"T": 40, "B": 70},
        {"T": 40, "B": 70, "P": 3},
        {"rate": 0.0},
        {"rate": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("read", ["hc", "h", "c"])
def test_values_and_gradients_are_those_of_the_plain_unroll(warm, case, run, sizes, read):
    args = case(**sizes)
    torch.testing.assert_close(run(warm, args, read), run("vmap", args, read))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_other_dtypes(name, case, run, dtype, tolerance):
    args = case(dtype=dtype, P=2)
    torch.testing.assert_close(run(name, args), run("vmap", args), atol=tolerance, rtol=tolerance)


def test_gradients_are_exactly_zero_across_a_start_and_where_entry_is_not_read(layer, case):
    _, x, entry, starts = args = case()
    starts[4] = True  # every row
    out = layer(*args)
    grad_x, grad_h, grad_c = torch.autograd.grad(out.h[4:].sum() + out.c[4:].sum(), [x, *entry])
    assert not grad_x[:4].any()
    assert not grad_h[:4].any()
    assert not grad_h[~starts].any()
    assert not grad_c[~starts].any()


def test_only_what_wants_a_gradient_gets_one(warm, case):
    weights, x, entry, starts = case(P=2)
    frozen = LayerWeights(*(None if v is None else v.detach() for v in weights))
    mine = frozen._replace(w_hh=weights.w_hh)
    fixed = State(entry.h.detach(), entry.c)
    want = [weights.w_hh, entry.c]
    grads = [
        torch.autograd.grad(get_backend(name).layer(mine, x.detach(), fixed, starts).h.sum(), want)
        for name in (warm, "vmap")
    ]
    torch.testing.assert_close(*grads)


def test_a_second_backward_gives_the_same(layer, case, leaves):
    args = case()
    total = sum(v.sum() for v in layer(*args))
    first = torch.autograd.grad(total, leaves(args), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, leaves(args)), first, rtol=0, atol=0)


def test_a_gradient_of_a_gradient_raises(name, case):
    _, x, _, _ = args = case()
    (grad,) = torch.autograd.grad(get_backend(name).layer(*args).h.sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match=f"'{name}' does not support a gradient of a gradient"):
        torch.autograd.grad(grad.sum(), x)


def test_forward_mode_raises(name):
    lstm, x, is_init = two_layers(name)
    with pytest.raises(UnsupportedError, match=f"'{name}' does not support"):
        torch.func.jvp(lambda v: lstm(v, is_init=is_init)[0], (x.detach(),), (x.detach(),))


def test_layouts_of_a_batch_first_caller(layer, case):
    weights, x, entry, starts = case(T=6, B=4)

    def batch_first(v: Tensor) -> Tensor:
        return v.transpose(0, 1).contiguous().transpose(0, 1)

    with torch.no_grad():
        given = batch_first(x), State(*map(batch_first, entry)), batch_first(starts)
        torch.testing.assert_close(layer(weights, *given), layer(weights, x, entry, starts))


def test_an_expanded_entry_and_expanded_cotangents(warm, case):
    weights, x, _, starts = case()
    results = []
    for name in (warm, "vmap"):
        h0, c0 = torch.ones(4, 5, dtype=torch.float64), torch.ones(4, 5, dtype=torch.float64).requires_grad_()
        out = get_backend(name).layer(weights, x, State(h0.expand(7, -1, -1), c0.expand(7, -1, -1)), starts)
        results.append(torch.autograd.grad(out.h.sum() + out.c.sum(), [x, c0]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept_and_nothing_compiled_anew(layer, case, mode):
    args = case(T=40, B=70)
    want = layer(*args)
    with mode():
        got = layer(*args)
        inside = layer(args[0], args[1].clone(), State(*(v.clone() for v in args[2])), args[3].clone())
    assert not got.h.requires_grad
    torch.testing.assert_close((got, inside), (State(*(v.detach() for v in want)),) * 2)


def test_autocast_runs_in_its_dtype(name):
    lstm, x = LSTM(3, 5, lstm_backend=name), torch.randn(7, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = lstm(x)[0]
        out.float().sum().backward()
        want = lstm.with_backend("vmap")(x)[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, want, atol=0.02, rtol=0.02)
    assert lstm.weight_hh_l0.grad.dtype == torch.float32


def test_threads_run_at_once(warm, case, run):
    args, found = case(), []
    threads = [Thread(target=lambda: found.append(run(warm, args))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(found, [run("vmap", args)] * 4)


def test_tensors_that_do_not_fit_raise(layer, case):
    weights, x, entry, starts = case()
    with pytest.raises(InputError, match="entry_c must be"):
        layer(weights, x, State(entry.h, entry.c[:, :, :-1]), starts)
    with pytest.raises(InputError, match="w_hh must be"):
        layer(weights._replace(w_hh=weights.w_hh.float()), x, entry, starts)


def two_layers(name: str, **options) -> tuple[LSTM, Tensor, Tensor]:
    torch.manual_seed(0)
    lstm = LSTM(3, 5, num_layers=2, bidirectional=True, dtype=torch.float64, lstm_backend=name, **options)
    is_init = torch.rand(9, 4) < 0.3
    return lstm, torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True), is_init


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"bias": False}], ids=str)
def test_a_whole_module(warm, options):
    lstm, x, is_init = two_layers(warm, **options)
    results = []
    for module in (lstm, lstm.with_backend("vmap")):
        output, ends = module(x, is_init=is_init)
        total = output.square().sum() + sum(v.square().sum() for v in ends)
        results.append((output, ends, torch.autograd.grad(total, [x, *lstm.parameters()])))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("proj_size", [0, 2])
def test_one_step_is_a_row_of_length_one(name, proj_size):
    lstm, x, _ = two_layers(name, proj_size=proj_size)
    state = State(torch.randn(4, 4, proj_size or 5, dtype=torch.float64), torch.randn(4, 4, 5, dtype=torch.float64))
    output, after = lstm.step(x[0], state)
    want, ends = lstm(x[:1], state)
    torch.testing.assert_close((output, *after), (want[0], *ends))


@pytest.mark.slow
def test_inside_a_users_compiled_function(name):
    lstm, x, is_init = two_layers(name)

    def loss(x: Tensor, is_init: Tensor) -> Tensor:
        return lstm(x * 2, is_init=is_init)[0].square().mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    want, got = (torch.autograd.grad(f(x, is_init), [x, *lstm.parameters()]) for f in (loss, compiled))
    torch.testing.assert_close(got, want)
    counters.clear()
    longer, init = torch.cat([x, x]).detach().requires_grad_(), torch.cat([is_init, is_init])
    torch.testing.assert_close(compiled(longer, init), loss(longer, init))
    assert counters["stats"]["unique_graphs"] == 0


def test_export(name):
    lstm, x, is_init = two_layers(name)
    program = torch.export.export(lstm, (x.detach(),), {"is_init": is_init}, strict=False)
    torch.testing.assert_close(program.module()(x.detach(), is_init=is_init), lstm(x, is_init=is_init))


def test_operators_keep_torchs_rules(name, case):
    weights, x, entry, starts = case(P=2)
    args = (name, x, weights.w_ih, weights.w_hh, weights.b_ih, weights.w_hr, *entry, starts, True)
    operator = torch.ops.rnn_backends.layer.default
    torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))


def test_torch_func_grad_and_no_second_one(name):
    lstm = LSTM(3, 4, 2, lstm_backend=name)
    x, is_init = torch.randn(9, 2, 3), torch.rand(9, 2) < 0.4
    weights = dict(lstm.named_parameters())

    def loss(weights):
        return torch.func.functional_call(lstm, weights, (x,), {"is_init": is_init})[0].sum()

    def length(weights):
        return sum(v.square().sum() for v in torch.func.grad(loss)(weights).values())

    expected = torch.autograd.grad(lstm(x, is_init=is_init)[0].sum(), list(weights.values()))
    for came, wanted in zip(torch.func.grad(loss)(weights).values(), expected, strict=True):
        torch.testing.assert_close(came, wanted)
    with pytest.raises(UnsupportedError, match="gradient of a gradient"):
        torch.func.grad(length)(weights)
