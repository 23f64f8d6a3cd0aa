"""Gradients through ``torch.func`` from inside and outside: the same as backend ``vmap``'s, layer and step."""

from functools import partial

import pytest
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, LSTMSpec, State, UnsupportedError, get_backend
from rnn_backends.authoring import unroll
from tensordict import TensorDict
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap


@pytest.fixture(params=["compile", "cpp"])
def name(request):
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float64)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def over_time(lstm, weights, x, is_init):
    y, (h, c) = functional_call(lstm, weights, (x,), {"is_init": is_init})
    return y.sum(0), torch.cat([h.sum(0), c.sum(0)], -1)


class Steps(torch.nn.Module):
    """Two steps, for ``functional_call``."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x, is_init):
        state = None
        for t in range(2):
            y, state = self.lstm.step(x[t], state, is_init[t])
        return y, torch.cat([state.h.sum(0), state.c.sum(0)], -1)


def by_steps(lstm, weights, x, is_init):
    return functional_call(Steps(lstm), {f"lstm.{k}": v for k, v in weights.items()}, (x, is_init))


runs = pytest.mark.parametrize("run", [over_time, by_steps])


def members(name, number=3, **options):
    torch.manual_seed(0)
    made = [LSTM(3, 4, dtype=torch.float64, lstm_backend=name, **options) for _ in range(number)]
    weights = {k: v.detach().requires_grad_() for k, v in stack_module_state(made)[0].items()}
    x, is_init = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True), torch.rand(5, 2) < 0.4
    return made[0], weights, x, is_init


def squares(out):
    return sum(v.square().sum() for v in out)


def compare(name, find, **options):
    """``find(lstm, stacked weights, x, is_init)`` on ``name`` and on ``vmap``."""
    torch.testing.assert_close(*(find(*members(backend, **options)) for backend in (name, "vmap")))


@runs
@pytest.mark.parametrize("options", [{}, {"proj_size": 2, "bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_backward_outside_of_vmap_over_weights(name, run, options):
    def find(lstm, weights, x, is_init):
        out = vmap(lambda w: run(lstm, w, x, is_init))(weights)
        return torch.autograd.grad(squares(out), [x, *weights.values()])

    compare(name, find, **options)


@runs
@pytest.mark.parametrize("dim", [0, 1])
def test_backward_outside_of_vmap_over_data(name, run, dim):
    def find(lstm, weights, x, is_init):
        single = {k: v[0] for k, v in weights.items()}
        many = torch.stack([x, 2 * x, -x], dim)
        out = vmap(lambda v: run(lstm, single, v, is_init), in_dims=dim)(many)
        return torch.autograd.grad(squares(out), [x, weights["weight_hh_l0"]])

    compare(name, find)


@runs
def test_grad_of_vmap(name, run):
    def find(lstm, weights, x, is_init):
        return grad(lambda w: squares(vmap(lambda v: run(lstm, v, x, is_init))(w)))(weights)

    compare(name, find)


@runs
def test_vmap_of_grad_and_a_backward_outside_of_vmap_of_vmap(name, run):
    def find(lstm, weights, x, is_init):
        many = torch.stack([x, 2 * x]).detach().requires_grad_()
        of_each = vmap(grad(lambda w: squares(run(lstm, w, x, is_init))))(weights)
        twice = vmap(lambda v: vmap(lambda w: run(lstm, w, v, is_init))(weights))(many)
        return of_each, torch.autograd.grad(squares(twice), [many, weights["weight_ih_l0"]])

    compare(name, find)


@runs
@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobian(name, run, vectorize):
    def find(lstm, weights, x, is_init):
        single = {k: v[0].detach() for k, v in weights.items()}
        return jacobian(lambda v: run(lstm, single, v, is_init), x, vectorize=vectorize)

    compare(name, find)


@runs
def test_jacrev_within_vmap_and_without(name, run):
    def find(lstm, weights, x, is_init):
        single = {k: v[0] for k, v in weights.items()}
        alone = jacrev(lambda w: run(lstm, w, x, is_init)[1])(single)
        each = vmap(jacrev(lambda w: run(lstm, w, x, is_init)[1]))(weights)
        return alone, each

    compare(name, find)


@runs
def test_batched_gradients(name, run):
    def find(lstm, weights, x, is_init):
        single = {k: v[0].detach().requires_grad_() for k, v in weights.items()}
        y, ends = run(lstm, single, x, is_init)
        cotangents = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
        read = [x, *single.values()]
        of_y = torch.autograd.grad(y, read, cotangents, is_grads_batched=True, retain_graph=True)
        both = [torch.randn(3, *v.shape, generator=torch.Generator().manual_seed(1)).double() for v in (y, ends)]
        return of_y, torch.autograd.grad((y, ends), read, both, is_grads_batched=True)

    compare(name, find)


@pytest.mark.parametrize("backend", ["cudnn", "torchscript"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 2}, {"bidirectional": True}], ids=str)
def test_a_batch_of_gradients_needs_no_batching_rule_of_the_forward_pass(backend, options):
    """Backends that do not claim VMAP have it too, with resets: their backward passes are torch's own operators."""

    def find(lstm, weights, x, is_init):
        single = {k: v[0].detach().requires_grad_() for k, v in weights.items()}
        y, ends = over_time(lstm, single, x, is_init)
        cotangents = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
        read = [x, *single.values()]
        at_once = torch.autograd.grad(
            (y, ends),
            read,
            (cotangents, torch.ones_like(ends).expand(len(y.flatten()), *ends.shape)),
            is_grads_batched=True,
        )
        plain = {k: v.detach() for k, v in single.items()}
        by_rows = jacrev(lambda v: over_time(lstm, plain, v, is_init)[0])(x.detach())
        return at_once, by_rows, jacobian(lambda v: over_time(lstm, plain, v, is_init)[1], x.detach(), vectorize=True)

    compare(backend, find, **options)


@runs
def test_no_grad_inside_a_transform_still_gives_the_gradients_further_out(name, run):
    def find(lstm, weights, x, is_init):
        def inner(v):
            with torch.no_grad():
                return squares(run(lstm, {k: w[0] for k, w in weights.items()}, v, is_init))

        return grad(lambda v: v.square().sum() + vmap(inner)(torch.stack([v, v])).sum())(x)

    compare(name, find)


def test_vmap_over_no_rows_gives_none(name):
    lstm, weights, x, is_init = members(name)
    none = {k: v[:0] for k, v in weights.items()}
    y, _ = vmap(lambda w: over_time(lstm, w, x, is_init))(none)
    assert y.shape == (0, 2, 4)


def test_a_second_gradient_is_declined_under_every_transform(name):
    lstm, weights, x, is_init = members(name)
    run = over_time

    def length(w):
        return squares(grad(lambda v: squares(run(lstm, v, x, is_init)))(w).values())

    with pytest.raises(UnsupportedError, match="gradient of a gradient"):
        vmap(grad(length))(weights)
    with pytest.raises(RuntimeError, match="gradient of a gradient"):  # torch's own kind of error too
        grad(lambda w: squares(vmap(grad(lambda v: squares(run(lstm, v, x, is_init))))(w).values()))(weights)


def test_a_layer_is_vmapped_with_one_state_for_all_and_one_for_each(name, case):
    results = []
    for backend in (name, "vmap"):
        weights, x, entry, starts = case()
        many = State(torch.stack([entry.h, 2 * entry.h], 1), entry.c)
        layer = get_backend(backend).layer
        out = vmap(lambda h, c, x=x: layer(weights, x, State(h, c), starts), in_dims=(1, None))(*many)  # noqa: B023
        results.append((out, torch.autograd.grad(squares(out), [x, weights.w_hh])))
    torch.testing.assert_close(*results)


DERIVATIVES = {
    "grad": lambda f: grad(lambda w, x: f(w, x).sum(), argnums=(0, 1)),
    "vmap of grad": lambda f: vmap(grad(lambda w, x: f(w, x).sum()), (None, 1)),
    "grad of vmap": lambda f: grad(lambda w, x: vmap(f, (None, 1))(w, x).sum()),
}


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_derivative_of_torch_func_within_torch_compile(name, derivative):
    lstm, stacked, x, is_init = members(name)
    weights = {k: v[0].detach() for k, v in stacked.items()}

    def call(w, x):
        rows = x if x.ndim == 3 else x.unsqueeze(1)
        return functional_call(lstm, w, (rows,), {"is_init": is_init[:, : rows.shape[1]]})[0].square()

    run = DERIVATIVES[derivative](call)
    torch.compiler.reset()
    found = torch.compile(run, backend="aot_eager")(weights, x.detach())
    torch.testing.assert_close(found, run(weights, x.detach()))


def opaque(weights, x, entry, starts):
    """A layer of somebody else's, which claims nothing and breaks every graph."""
    torch._dynamo.graph_break()
    return unroll(weights, x, entry, starts)


class Replayed(torch.nn.Module):
    """``LSTMModule`` over rows, with the tensors of a call of ``LSTM``."""

    def __init__(self, lstm):
        super().__init__()
        self.module = LSTMModule(lstm=lstm, in_key="x", out_key="y").set_recurrent_mode(True)

    def forward(self, x, is_init):
        return self.module(TensorDict({"x": x, "is_init": is_init.unsqueeze(-1)}, is_init.shape))["y"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's, about values of the level in tensordict's frames
@pytest.mark.parametrize("backend", ["compile", "cpp", "cudnn", "torchscript", "mine"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize(("around", "kind"), [("within", "LSTM"), ("outside", "LSTM"), ("outside", "LSTMModule")])
def test_a_compiled_call_is_differentiated_uncompiled_with_every_backend_and_debugger(backend, compiler, around, kind):
    """With ``"eager"`` torch makes graphs within a derivative, and cannot take that level's results as their inputs."""
    lstm = LSTM(3, 4, dtype=torch.float64, batch_first=True)
    lstm = lstm.with_backend(LSTMBackend("mine", opaque) if backend == "mine" else backend).requires_grad_(False)
    run = Replayed(lstm) if kind == "LSTMModule" else lambda x, is_init: lstm(x, is_init=is_init)[0]
    x, is_init = torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5) < 0.4

    def call(x):
        return run(x, is_init).square()

    def loss(x):
        return call(x).sum()

    compiled = partial(torch.compile, backend=compiler)
    torch.compiler.reset()
    find = compiled(grad(loss)) if around == "within" else grad(compiled(loss))
    torch.testing.assert_close(find(x), grad(loss)(x))


def test_in_one_graph_a_derivative_names_the_backend_that_can(name):
    lstm, _, x, is_init = members(name)
    find = torch.compile(grad(lambda x: lstm(x, is_init=is_init)[0].sum()), fullgraph=True, backend="eager")
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"does with_backend\(\"vmap\"\)"):
        find(x.detach())


@pytest.mark.parametrize(("around", "steps"), [("within", 5), ("within", 1), ("outside", 5)])
def test_a_forward_derivative_and_torch_compile_are_declined_together(name, around, steps):
    """Dynamo gives an operator without a forward derivative tangents of zero, and no error."""
    lstm, _, x, is_init = members(name)
    x = x.detach()[:steps]

    def call(x):
        return lstm(x, is_init=is_init[:steps])[0]

    compiled = partial(torch.compile, backend="aot_eager")
    torch.compiler.reset()
    run = compiled(lambda x: jvp(call, (x,), (x,))) if around == "within" else lambda x: jvp(compiled(call), (x,), (x,))
    with pytest.raises(UnsupportedError, match="forward-mode AD"):
        run(x)


@pytest.mark.parametrize("steps", [1, 5])
def test_nodes_of_the_graph_keep_the_methods_of_torchs_nodes(name, steps):
    lstm, _, x, is_init = members(name)
    y, _ = lstm(x[:steps], is_init=is_init[:steps])
    w_ih, w_hh, bias, _, w_hr = lstm.layer_weights()[0]
    entry = torch.zeros(2, steps, 2, 4, dtype=x.dtype)
    of_operator = torch.ops.rnn_backends.layer(name, x[:steps], w_ih, w_hh, bias, w_hr, *entry, is_init[:steps], True)
    for node in (y.grad_fn, of_operator[0].grad_fn):
        assert node.name()
        assert isinstance(node.metadata, dict)
