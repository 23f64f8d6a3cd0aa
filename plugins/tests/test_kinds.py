"""Every kind of torch's tensors, on every backend: the right number or shape, or a refusal with a reason. Expected
values are those of plain tensors; a kind that ends the process would end pytest.
"""

import warnings

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMModule, LSTMSpec, State, UnsupportedError, _torch, get_backend, plain
from tensordict import TensorDict
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.testing._internal.logging_tensor import LoggingTensor, LoggingTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

T, B, I, H = 5, 2, 3, 4  # noqa: E741
REFUSALS = (UnsupportedError, InputError)


@pytest.fixture(params=["cpp", "compile", "cudnn", "vmap", "torchscript"])
def name(request):
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def numbers():
    g = torch.Generator().manual_seed(0)
    is_init = torch.rand(T, B, generator=g) < 0.4
    return torch.randn(T, B, I, generator=g), is_init, State(*torch.randn(2, 1, B, H, generator=g))


def made(name, **options):
    torch.manual_seed(0)
    return LSTM(I, H, lstm_backend=name, **options)


def same(v):
    return v


def dense(lstm, x, is_init, state, kind=same):
    return lstm(kind(x), tuple(state))[0]


def resets(lstm, x, is_init, state, kind=same):
    return lstm(kind(x), tuple(state), is_init=is_init)[0]


def step(lstm, x, is_init, state, kind=same):
    return lstm.step(kind(x[0]), state)[0]


def act(lstm, x, is_init, state, kind=same):
    return lstm.step(kind(x[0]), state, is_init[0])[0]


def module(lstm, x, is_init, state, kind, recurrent):
    keys = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
    run = LSTMModule(lstm=lstm, **keys, default_recurrent_mode=recurrent)
    values = {"x": x, "is_init": is_init, "h": state.h.expand(T, -1, -1).unsqueeze(2)}
    values["c"] = state.c.expand(T, -1, -1).unsqueeze(2)
    values = {k: v.transpose(0, 1) for k, v in values.items()}
    values["x"] = kind(values["x"])
    return run(TensorDict(values, [B, T]))["y"].transpose(0, 1)


def module_over_time(lstm, x, is_init, state, kind=same):
    return module(lstm, x, is_init, state, kind, recurrent=True)


def module_acting(lstm, x, is_init, state, kind=same):
    return module(lstm, x, is_init, state, kind, recurrent=False)


MODULES = (module_over_time, module_acting)
ways = pytest.mark.parametrize("way", [dense, resets, step, act, *MODULES])


def run(way, lstm, x, is_init, state, kind=same):
    """Calls with the input converted by ``kind`` to another kind of tensor."""
    if way in MODULES:
        lstm.batch_first = True
    return way(lstm, x, is_init, state, kind)


def expected(way, **options):
    with torch.no_grad():
        return run(way, made("vmap", **options), *numbers())


class Renamed(torch.Tensor):
    """A subclass with ``__torch_function__`` and memory."""


class Wrapper(torch.Tensor):
    """A subclass without its own memory."""

    @staticmethod
    def __new__(cls, inner):
        kind = {"strides": inner.stride(), "dtype": inner.dtype, "requires_grad": inner.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **kind)

    def __init__(self, inner):
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        given = torch.utils._pytree.tree_map_only(Wrapper, lambda v: v.held, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(torch.Tensor, Wrapper, func(*given[0], **given[1]))


def unwrapped(value):
    for inner in ("held", "elem", "a"):
        while hasattr(value, inner):
            value = getattr(value, inner)
    return value.as_subclass(torch.Tensor)


SUBCLASSES = {"two": lambda v: TwoTensor(v.clone(), v.clone()), "logging": LoggingTensor, "wrapper": Wrapper}
SUBCLASSES["renamed"] = lambda v: v.clone().as_subclass(Renamed)


@ways
@pytest.mark.parametrize("kind", list(SUBCLASSES))
@pytest.mark.parametrize("what", ["input", "all"])
def test_subclasses(name, way, kind, what):
    make, lstm = SUBCLASSES[kind], made(name).requires_grad_(False)
    x, is_init, state = numbers()
    given, kind_of_input = (x, is_init, state), make
    if what == "all":
        for key, parameter in list(lstm.named_parameters()):
            lstm._parameters[key] = nn.Parameter(make(parameter.data), requires_grad=False)
        given, kind_of_input = (make(x), make(is_init), State(*map(make, state))), same
    if name == "cudnn" and kind != "renamed" and way in (resets, module_over_time):
        with pytest.raises(UnsupportedError, match="does not show its numbers"):
            run(way, lstm, *given, kind_of_input)
        return
    assert_close(unwrapped(run(way, lstm, *given, kind_of_input)), expected(way))


@ways
@pytest.mark.parametrize("gradients", [False, True])
def test_fake_tensors_give_shapes(name, way, gradients):
    with FakeTensorMode(), torch.set_grad_enabled(gradients):
        lstm = made(name)
        given = torch.empty(T, B, I), torch.zeros(T, B, dtype=torch.bool), State(*torch.zeros(2, 1, B, H))
        if name == "cudnn" and way in (resets, module_over_time):
            with pytest.raises(UnsupportedError, match="does not show its numbers"):
                run(way, lstm, *given)
            return
        got = run(way, lstm, *given)
        assert isinstance(got, FakeTensor)
        assert got.shape == expected_shape(way)
        if gradients:
            got.sum().backward()
            assert lstm.weight_hh_l0.grad.shape == (4 * H, H)


def expected_shape(way):
    return (B, H) if way in (step, act) else (T, B, H)


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Overridden(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@ways
@pytest.mark.parametrize("mode", [Seen, Overridden, LoggingTensorMode, torch.inference_mode, torch.no_grad])
def test_modes(name, way, mode):
    with mode():
        assert_close(run(way, made(name), *numbers()), expected(way))


@ways
def test_tensors_made_in_inference_mode(name, way):
    with torch.inference_mode():
        lstm, given = made(name), numbers()
    with torch.no_grad():
        assert_close(run(way, lstm, *given), expected(way))


def negated(v):
    """A view with the negative bit."""
    return torch.complex(torch.zeros_like(v), -v).conj().imag


@ways
def test_lazy_negation_of_inputs_states_and_weights(name, way):
    lstm, (x, is_init, state) = made(name).requires_grad_(False), numbers()
    assert_close(run(way, lstm, negated(x), is_init, State(*map(negated, state))), expected(way))
    for key, parameter in list(lstm.named_parameters()):
        lstm._parameters[key] = nn.Parameter(negated(parameter.data), requires_grad=False)
    assert lstm.weight_ih_l0.is_neg()
    assert_close(run(way, lstm, x, is_init, state), expected(way))


@ways
def test_zero_tensors(name, way):
    lstm, (x, is_init, state) = made(name), numbers()
    zero, states = torch._efficientzerotensor(x.shape), State(*(torch._efficientzerotensor(v.shape) for v in state))
    with torch.no_grad():
        got = run(way, lstm, zero, is_init, states)
        want = run(way, made("vmap"), zero.clone(), is_init, State(*(v.clone() for v in states)))
    assert_close(got, want)


MISSING = r"memory was|needs \d+ elements|out of bounds for storage"
"""An error of core, of the kernel in C++, or of torch for a view."""


def freed(v):
    v = v.clone()
    v.untyped_storage().resize_(0)
    return v


def shrunk(v):
    v = v.clone()
    v.untyped_storage().resize_(v.untyped_storage().nbytes() // 16)
    return v


@ways
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("lose", [freed, shrunk])
@pytest.mark.parametrize("what", ["x", "is_init", "state", "weight", "after a call"])
def test_freed_memory_raises(name, way, lose, what, gradients):
    lstm, (x, is_init, state) = made(name).requires_grad_(gradients), numbers()
    kind = lose if what == "x" else same
    if what == "state":
        state = State(state.h, lose(state.c))
    elif what == "is_init":
        if way in (dense, step):
            pytest.skip("it takes no resets")
        is_init = lose(is_init)
    elif what == "weight":
        lstm.weight_hh_l0 = nn.Parameter(lose(lstm.weight_hh_l0.detach()), requires_grad=gradients)
    elif what == "after a call":  # the cached facts about a weight no longer hold
        run(way, lstm, x, is_init, state)
        storage = lstm.weight_hh_l0.untyped_storage()
        storage.resize_(0 if lose is freed else storage.nbytes() // 2)
    with pytest.raises(RuntimeError, match=MISSING):
        run(way, lstm, x, is_init, state, kind)


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("lose", [freed, shrunk])
def test_a_mask_whose_memory_was_freed_is_not_absent(name, steps, lose):
    """A row of one step has a path of its own."""
    lstm, (x, is_init, _) = made(name), numbers()
    with pytest.raises(RuntimeError, match=MISSING):
        lstm(x[:steps], is_init=lose(is_init[:steps]))


@pytest.mark.parametrize("name", ["cpp", "compile"], indirect=True)
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("lose", [freed, shrunk])
@pytest.mark.parametrize("what", [0, 1, 2], ids=["output", "h", "c"])
def test_a_gradient_whose_memory_was_freed_is_not_one_of_zeros(name, steps, lose, what):
    """Torch's own operators, those of the other backends, may read such memory and end the process."""
    lstm, (x, is_init, _) = made(name), numbers()
    output, (h, c) = lstm(x[:steps], is_init=is_init[:steps])
    given = (output, h, c)[what]
    with pytest.raises(RuntimeError, match=MISSING):
        given.backward(lose(torch.ones_like(given)))


def sparse(v):
    return v.to_sparse()


def nested(v):
    return torch.nested.nested_tensor(list(v))


def quantized(v):
    return torch.quantize_per_tensor(v, 0.1, 0, torch.quint8)


@ways
@pytest.mark.parametrize(
    "kind",
    [sparse, nested, quantized, lambda v: v.contiguous().to_mkldnn(), lambda v: v.to("meta")],
    ids=["sparse", "nested", "quantized", "mkldnn", "meta"],
)
def test_inputs_of_other_layouts_and_devices_are_refused_in_words(name, way, kind):
    if way in MODULES and kind is nested:
        pytest.skip("a TensorDict takes no nested tensor")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: nested tensors are a prototype
        with pytest.raises(REFUSALS):
            run(way, made(name), *numbers(), kind)


@ways
def test_functionalization(name, way):
    (x, is_init, state), wrap = numbers(), torch._to_functional_tensor
    if name == "cudnn" and way in (resets, module_over_time):
        with pytest.raises(UnsupportedError, match="functionalize does not show them"), torch.no_grad():
            torch.func.functionalize(lambda v: run(way, made(name), v, is_init, state))(x)
        return
    with torch.no_grad():
        assert_close(torch.func.functionalize(lambda v: run(way, made(name), v, is_init, state))(x), expected(way))
        lstm = made(name)
        for key, parameter in list(lstm.named_parameters()):
            lstm._parameters[key] = nn.Parameter(wrap(parameter.data), requires_grad=False)
        torch._enable_functionalization(reapply_views=True)
        try:
            got = run(way, lstm, wrap(x), wrap(is_init), State(*map(wrap, state)))
        finally:
            torch._disable_functionalization()
        torch._sync(got)
        assert_close(torch._from_functional_tensor(got), expected(way))


@ways
@pytest.mark.parametrize("kind", ["coo", "csr", "meta", "quantized"])
def test_weights_of_other_layouts_and_devices_are_refused_in_words(name, way, kind):
    convert = {
        "coo": lambda v: v.to_sparse(),
        "csr": lambda v: v.to_sparse_csr(),
        "meta": lambda v: v.to("meta"),
        "quantized": quantized,
    }[kind]
    lstm = made(name).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: CSR is in beta
        lstm._parameters["weight_hh_l0"] = nn.Parameter(convert(lstm.weight_hh_l0.data), requires_grad=False)
        with pytest.raises(REFUSALS):
            run(way, lstm, *numbers())


@ways
def test_a_wrapper_of_torch_func_that_outlived_its_transform(name, way):
    lstm, (x, is_init, state) = made(name), numbers()
    kept = []
    torch.func.grad(lambda v: (kept.append(v), v.sum())[1])(x)
    with torch.no_grad():
        assert_close(run(way, lstm, kept[0], is_init, state), expected(way))


@ways
def test_no_rows(name, way):
    lstm, (x, is_init, state) = made(name), numbers()
    empty = State(*(v[:, :0] for v in state))
    if way in MODULES:
        pytest.skip("its helper makes B rows")
    got = run(way, lstm, x[:, :0], is_init[:, :0], empty)
    assert got.shape == ((0, H) if way in (step, act) else (T, 0, H))
    got.sum().backward()


@ways
def test_where_torch_hides_its_modes_every_call_takes_the_operator(monkeypatch, way):
    reason = get_backend("cpp").rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(_torch, "_dispatch_modes", _torch._unknown)
    assert not plain.is_plain([torch.ones(2)])
    assert_close(run(way, made("cpp").requires_grad_(False), *numbers()), expected(way))


@ways
def test_where_torch_hides_dispatch_keys_every_call_takes_the_operator(monkeypatch, way):
    reason = get_backend("cpp").rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    plain.plain_keys.cache_clear()
    monkeypatch.setattr(_torch, "dispatch_keys", _torch._no_dispatch_keys)
    try:
        assert not plain.is_plain([torch.ones(2)])
        assert_close(run(way, made("cpp").requires_grad_(False), *numbers()), expected(way))
    finally:
        plain.plain_keys.cache_clear()


@pytest.mark.parametrize("way", [dense, resets, step, act])
def test_meta_tensors_with_meta_weights_give_shapes_or_are_refused_in_words(name, way):
    lstm, (x, is_init, state) = made(name).to("meta"), numbers()
    try:
        got = run(way, lstm, x.to("meta"), is_init.to("meta"), State(*(v.to("meta") for v in state)))
    except UnsupportedError as error:
        assert error.reason  # noqa: PT017 - most backends take meta tensors
    else:
        assert got.is_meta
        assert got.shape == expected_shape(way)
