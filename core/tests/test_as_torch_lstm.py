"""torch's own tests of its modules, over torch's inputs for ``nn.LSTM``, with ours in its place.

A test that ``nn.LSTM`` passes is passed by every backend, or refused for the reason in docs/conformance.md. The tests
are our own and check the same as torch's test_modules.py; the inputs are torch's.
"""

import copy
import io
import pickle

import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, UnsupportedError, get_backend
from torch import nn
from torch.testing import assert_close

pytest.importorskip("expecttest", reason="torch's test tools need expecttest, which is in the dependency group test")
from torch.testing._internal.common_modules import module_inputs_torch_nn_LSTM

# The import above forbids every later test of this process to set torch.backends flags.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
assert not torch.backends.flags_frozen()

KINDS = ("nn.LSTM", "cpp", "compile", "cudnn", "vmap", "torchscript")


@pytest.fixture(params=KINDS)
def kind(request):
    """``nn.LSTM`` itself is among them: it has to pass the same tests as ours."""
    if request.param != "nn.LSTM":
        reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
        if reason is not None:
            pytest.skip(reason)
    return request.param


def made(kind, *args, **options):
    torch.manual_seed(0)
    return nn.LSTM(*args, **options) if kind == "nn.LSTM" else LSTM(*args, **options, lstm_backend=kind)


def samples(dtype=torch.float32, requires_grad=False):
    torch.manual_seed(1)
    return module_inputs_torch_nn_LSTM(None, "cpu", dtype, requires_grad, training=True)


def built(kind, sample, dtype=torch.float32):
    given = sample.constructor_input
    return made(kind, *given.args, **given.kwargs).to(dtype)


def flat(result):
    return torch.utils._pytree.tree_leaves(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_gives_the_numbers_of_torch_and_of_its_reference(kind, dtype):
    for sample in samples(dtype):
        lstm, args = built(kind, sample, dtype), sample.forward_input.args
        assert_close(lstm(*args), built("nn.LSTM", sample, dtype)(*args))
        assert_close(lstm(*args), sample.reference_fn(lstm, *args))


def test_factory_arguments_place_every_parameter(kind):
    for sample in samples():
        given = sample.constructor_input
        lstm = made(kind, *given.args, **given.kwargs, device="cpu", dtype=torch.float64)
        assert {(str(p.device), p.dtype) for p in lstm.parameters()} == {("cpu", torch.float64)}


def test_a_device_context_places_every_parameter(kind):
    with torch.device("cpu"):
        assert made(kind, 2, 3).weight_ih_l0.device.type == "cpu"
    with torch.device("meta"):
        assert {p.device.type for p in made(kind, 2, 3).parameters()} == {"meta"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_give_the_same_numbers(kind, copied):
    for sample in samples():
        lstm, args = built(kind, sample), sample.forward_input.args
        other = copied(lstm)
        assert_close(other(*args), lstm(*args), rtol=0, atol=0)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in lstm.parameters()}


def test_repr_is_that_of_torch_and_names_the_backend(kind):
    for sample in samples():
        words = repr(built("nn.LSTM", sample))
        expected = words if kind == "nn.LSTM" else f"{words[:-1]}, lstm_backend={kind!r})"
        assert repr(built(kind, sample)) == str(built(kind, sample)) == expected


def test_state_dicts_go_both_ways(kind):
    for sample in samples():
        args, file = sample.forward_input.args, io.BytesIO()
        lstm, theirs = built(kind, sample), built("nn.LSTM", sample)
        with torch.no_grad():
            for p in theirs.parameters():
                p.uniform_(-1, 1)
        torch.save(theirs.state_dict(), file)
        lstm.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        assert_close(lstm(*args), theirs(*args))
        again = built("nn.LSTM", sample)
        again.load_state_dict(lstm.state_dict())
        assert_close(again(*args), theirs(*args), rtol=0, atol=0)


@torch.no_grad()  # parameters are swapped only if no graph holds them
@pytest.mark.parametrize("swap", [False, True])
def test_to_moves_parameters_and_to_empty_makes_room_for_them(kind, swap):
    if swap and kind == "nn.LSTM":
        pytest.skip("torch cannot swap nn.LSTM's parameters for empty ones: it keeps weak references to them")
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for sample in samples():
            lstm, args = built(kind, sample), sample.forward_input.args
            expected = lstm(*args)
            identities = [id(p) for p in lstm.parameters()]
            lstm.to(torch.float64).to(torch.float32).to(memory_format=torch.contiguous_format)
            assert [id(p) for p in lstm.parameters()] == identities
            assert_close(lstm(*args), expected)
            weights = copy.deepcopy(lstm.state_dict())
            lstm = lstm.to("meta").to_empty(device="cpu")
            lstm.load_state_dict(weights)
            assert_close(lstm(*args), expected)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def test_training_and_evaluation_do_not_differ_without_dropout(kind):
    for sample in samples():
        lstm, args = built(kind, sample), sample.forward_input.args
        assert_close(lstm.train()(*args), lstm.eval()(*args))


def spread(value):
    """The same numbers with other strides."""
    if not isinstance(value, torch.Tensor):
        return type(value)(spread(v) for v in value)
    wide = torch.stack([value, torch.full_like(value, torch.nan)], -1).detach()[..., 0]
    assert not wide.is_contiguous()
    return wide.requires_grad_(value.requires_grad)


def test_inputs_and_gradients_that_are_not_contiguous(kind):
    for sample in samples(requires_grad=True):
        lstm, args = built(kind, sample), sample.forward_input.args
        expected, found = flat(lstm(*args)), flat(lstm(*map(spread, args)))
        assert_close(found, expected)
        given = [torch.randn_like(v) for v in expected]
        want = torch.autograd.grad(expected, [*flat(args), *lstm.parameters()], given)
        other = spread(tuple(args))
        again = torch.autograd.grad(flat(lstm(*other)), [*flat(other), *lstm.parameters()], [spread(v) for v in given])
        assert_close(again, want)


def function_of(lstm, args):
    """The LSTM as a function of its inputs and parameters, for gradcheck."""
    names = [name for name, _ in lstm.named_parameters()]
    shape = torch.utils._pytree.tree_structure(tuple(args))
    leaves = flat(args)

    def run(*values):
        read = torch.utils._pytree.tree_unflatten(list(values[: len(leaves)]), shape)
        weights = dict(zip(names, values[len(leaves) :], strict=True))
        return tuple(flat(torch.func.functional_call(lstm, weights, tuple(read))))

    return run, [*leaves, *(p.detach().requires_grad_() for p in lstm.parameters())]


def test_gradients_equal_finite_differences(kind):
    for sample in samples(torch.float64, requires_grad=True):
        run, values = function_of(built(kind, sample, torch.float64), sample.forward_input.args)
        assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_gradients_of_gradients_equal_finite_differences_or_are_refused(kind):
    for sample in samples(torch.float64, requires_grad=True)[::5]:
        run, values = function_of(built(kind, sample, torch.float64), sample.forward_input.args)
        if kind in ("cpp", "compile"):
            with pytest.raises(UnsupportedError, match="gradient of a gradient"):
                torch.autograd.gradgradcheck(run, values, fast_mode=True)
            continue
        assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


def test_batched_gradients_equal_those_one_by_one(kind):
    for sample in samples(requires_grad=True)[::5]:
        lstm, args = built(kind, sample), sample.forward_input.args
        output, read = flat(lstm(*args))[0], [*flat(args), *lstm.parameters()]
        given = torch.randn(3, *output.shape)
        expected = [torch.autograd.grad(output, read, one, retain_graph=True, allow_unused=True) for one in given]
        found = torch.autograd.grad(output, read, given, is_grads_batched=True, allow_unused=True)
        for n in range(3):
            assert_close([v[n] for v in found], list(expected[n]))


def wrong_calls():
    x, h, c = torch.randn(5, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    return {
        "a dimension less": (torch.randn(3),),
        "a dimension more": (x[None],),
        "another number of features": (torch.randn(5, 2, 4),),
        "h of another size": (x, (torch.randn(2, 2, 5), c)),
        "c of another size": (x, (h, torch.randn(2, 2, 5))),
        "states of another batch size": (x, (torch.randn(2, 3, 4), torch.randn(2, 3, 4))),
        "states of another number of layers": (x, (torch.randn(1, 2, 4), torch.randn(1, 2, 4))),
        "unbatched states": (x, (torch.randn(2, 4), torch.randn(2, 4))),
        "batched states of an unbatched input": (x[:, 0], (h, c)),
        "another dtype": (x.double(),),
        "whole numbers": (torch.ones(5, 2, 3, dtype=torch.long),),
        "another dtype of states": (x, (h.double(), c.double())),
    }


@pytest.mark.parametrize("call", list(wrong_calls()))
def test_a_wrong_call_raises_what_torch_raises(kind, call):
    args = wrong_calls()[call]
    with pytest.raises(Exception, match=r".") as theirs:
        nn.LSTM(3, 4, 2)(*args)
    with pytest.raises(theirs.type):
        made(kind, 3, 4, 2)(*args)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 0},
        {"hidden_size": 4.5},
        {"num_layers": 0},
        {"num_layers": -1},
        {"dropout": 2},
        {"dropout": -0.1},
        {"dropout": True},
        {"dropout": "0.5"},
        {"proj_size": 4},
        {"proj_size": -1},
    ],
    ids=str,
)
def test_wrong_options_raise_what_torch_raises(kind, options):
    options = {"input_size": 3, "hidden_size": 4} | options
    with pytest.raises(Exception, match=r".") as theirs:
        nn.LSTM(**options)
    with pytest.raises(theirs.type):
        made(kind, **options)
