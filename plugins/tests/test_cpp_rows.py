"""Rows of one step on ``cpp``, forward and backward: the fast path, and the cases of the general path. The numbers are
compared with those of ``vmap``; the conformance suite tests the promises of every call.
"""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from rnn_backends import LSTM, InputError, State, UnsupportedError
from rnn_backends_plugins import cpp
from rnn_backends_plugins.cpp import build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))

SHORT = "_OneStepBackward"


def made(B=3, I=5, H=17, P=0, dtype=torch.float64, resets=True, **options):  # noqa: E741
    """An LSTM on ``cpp``, its ``input`` and ``hx`` (leaves), and ``is_init``."""
    torch.manual_seed(B + I + H)
    lstm = LSTM(I, H, proj_size=P, dtype=dtype, lstm_backend="cpp", **options)
    lead = (B, 1) if lstm.batch_first else (1, B)
    x = torch.randn(*lead, I, dtype=dtype, requires_grad=True)
    h = torch.randn(1, B, P or H, dtype=dtype, requires_grad=True)
    c = torch.randn(1, B, H, dtype=dtype, requires_grad=True)
    return lstm, x, (h, c), (torch.arange(B) % 2 == 0).view(lead) if resets else None


def results(lstm, x, hx, is_init, read=(0, 1, 2)):
    """Outputs, and all gradients for cotangents that differ at every place."""
    output, (h, c) = lstm(x, hx, is_init=is_init)
    taken = [(output, h, c)[k] for k in read]
    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) for v in taken]
    leaves = [x, *(hx or ()), *lstm.parameters()]
    found = torch.autograd.grad(taken, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return [output, h, c, *found]


def assert_equal_to_vmap(lstm, x, hx, is_init, read=(0, 1, 2)):
    found, wanted = (results(m, x, hx, is_init, read) for m in (lstm, lstm.with_backend("vmap")))
    tolerance = 1e-12 if x.dtype == torch.float64 else 2e-5
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.fixture
def threads():
    """``threads(n)`` sets the number of threads, which is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("P", [0, 2])
def test_every_number_of_rows_and_size_about_a_register(dtype, P):
    for B, (I, H) in product((1, 2, 3, 4, 5, 8, 9, 33), ((1, 3), (4, 16), (17, 33), (70, 65), (33, 130))):  # noqa: E741
        for resets, bias in ((True, False), (False, True)):
            args = made(B, I, H, P, dtype, resets, bias=bias)
            assert args[0](*args[1:3], is_init=args[3])[0].grad_fn.name() == SHORT
            assert_equal_to_vmap(*args)


@pytest.mark.parametrize("B", [2, 12])
def test_threads_share_a_step(threads, B):
    threads(3)
    assert_equal_to_vmap(*made(B, 130, 257))


@pytest.mark.parametrize("read", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("B", [3, 12])
def test_whichever_result_a_loss_reads(B, read):
    assert_equal_to_vmap(*made(B), read)


@pytest.mark.parametrize("resets", ["none", "[1, B]", "[1, B, 1]", "strided"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_and_batch_first(batch_first, resets):
    lstm, x, hx, is_init = made(batch_first=batch_first)
    masks = {"none": None, "[1, B]": is_init, "[1, B, 1]": is_init.unsqueeze(-1)}
    masks["strided"] = torch.stack([is_init, ~is_init], -1)[..., 0]
    assert_equal_to_vmap(lstm, x, hx, masks[resets])


def test_without_a_state():
    lstm, x, _, is_init = made()
    assert_equal_to_vmap(lstm, x, None, is_init)


@pytest.mark.parametrize("B", [3, 12])
def test_a_reset_row_has_no_gradient_and_no_nan_from_before_it(B):
    lstm, x, (h, c), is_init = made(B)
    with torch.no_grad():
        h[is_init], c[is_init] = torch.nan, torch.inf
    found = results(lstm, x, (h, c), is_init)
    assert all(v.isfinite().all() for v in found)
    assert (found[4][is_init] == 0).all()
    assert (found[5][is_init] == 0).all()
    assert (found[4][~is_init] != 0).all()


def test_gradients_that_nobody_asked_for_are_not_computed():
    lstm, x, _, is_init = made()
    for name, p in lstm.named_parameters():
        p.requires_grad_(name == "bias_hh_l0")
    output = lstm(x.detach(), None, is_init=is_init)[0]
    (found,) = torch.autograd.grad(output.sum(), lstm.bias_hh_l0)  # an expanded gradient
    wanted = torch.autograd.grad(lstm.with_backend("vmap")(x.detach(), None, is_init=is_init)[0].sum(), lstm.bias_hh_l0)
    torch.testing.assert_close(found, wanted[0])


def test_without_gradients_it_has_no_graph_and_the_same_numbers():
    lstm, x, hx, is_init = made()
    with torch.no_grad():
        output, (h, c) = lstm(x, hx, is_init=is_init)
    torch.testing.assert_close([output, h, c], list(results(lstm, x, hx, is_init)[:3]))
    assert not output.requires_grad
    assert output.data_ptr() != h.data_ptr()


def test_what_is_not_contiguous():
    lstm, x, (h, c), is_init = made()
    for turned in (
        lambda v: v.repeat(1, 2, 1)[:, ::2],
        lambda v: v.mT.contiguous().mT,
        lambda v: v[:, :1].expand_as(v),
    ):
        assert_equal_to_vmap(lstm, turned(x), (turned(h), turned(c)), is_init)


def test_gradients_of_gradients_are_refused_also_where_a_loss_is_linear():
    lstm, x, hx, is_init = made()
    output = lstm(x, hx, is_init=is_init)[0]
    (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="a gradient of a gradient"):
        torch.autograd.grad(grad.sum(), lstm.weight_ih_l0)
    plain = results(lstm, x, hx, is_init)
    torch.testing.assert_close(torch.autograd.grad(lstm(x, hx, is_init=is_init)[0].sum(), x)[0], grad.detach())
    assert len(plain) == 10


def test_many_cotangents_at_once():
    lstm, x, hx, is_init = made()
    output = lstm(x, hx, is_init=is_init)[0]
    cotangents = torch.randn(2, *output.shape, dtype=x.dtype)
    found = torch.autograd.grad(output, (x, *hx), cotangents, is_grads_batched=True, retain_graph=True)
    for k in range(2):
        wanted = torch.autograd.grad(output, (x, *hx), cotangents[k], retain_graph=True)
        torch.testing.assert_close([v[k] for v in found], list(wanted))


@pytest.mark.parametrize("written", ["x", "h", "c", "w_hh", "output"])
def test_a_write_between_the_passes_is_noticed(written):
    lstm, x, (h, c), _ = made()
    x, h, c = x * 1, h * 1, c * 1
    output, (_, c_n) = lstm(x, (h, c))
    tensors = {"x": x, "h": h, "c": c, "w_hh": lstm.weight_hh_l0, "output": output}
    with torch.no_grad():
        tensors[written].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (output.sum() + c_n.sum()).backward()


def test_weights_replaced_between_the_passes_are_an_error_and_no_crash():
    lstm, x, hx, _ = made()
    output = lstm(x, hx)[0]
    lstm.weight_hh_l0.data = torch.zeros(2, 2, dtype=x.dtype)
    with pytest.raises((InputError, RuntimeError)):
        output.sum().backward()


def _floating(change):
    return lambda v: change(v) if v.is_floating_point() else v


def _turned(v):
    return v.mT.contiguous().mT if v.ndim > 1 else v


@pytest.mark.parametrize("change", [torch.Tensor.float, _turned], ids=["rounded", "of another layout"])
def test_hooks_on_what_is_saved(change):
    lstm, x, hx, is_init = made()
    wanted = results(lstm, x, hx, is_init)
    with torch.autograd.graph.saved_tensors_hooks(_floating(change), _floating(torch.Tensor.double)):
        found = results(lstm, x, hx, is_init)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_freed_memory_is_named():
    lstm, x, (h, c), _ = made()
    h.untyped_storage().resize_(0)
    with pytest.raises(InputError, match=re.escape("the hidden state spans")):
        lstm(x, (h, c))


class Sub(torch.Tensor):
    """A subclass without any change."""


def test_the_general_row_serves_where_something_is_at_work_or_special():
    lstm, x, hx, _ = made()

    def way(call):
        node = call().grad_fn
        return type(node).__name__

    def under_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return lstm.float()(x.float())[0]

    deep = LSTM(5, 17, 2, dtype=x.dtype, lstm_backend="cpp")
    assert way(lambda: lstm(x, hx)[0]) == SHORT
    assert way(lambda: lstm(x.as_subclass(Sub), hx)[0].as_subclass(torch.Tensor)) != SHORT
    assert way(lambda: lstm(torch.cat([x, x]), hx)[0]) != SHORT
    assert way(lambda: deep(x)[0]) != SHORT
    with FlopCounterMode(display=False):
        assert way(lambda: lstm(x, hx)[0]) != SHORT
    assert way(under_autocast) != SHORT
    lstm.double()
    jacobian = torch.func.jacrev(lambda v: lstm(v, hx)[0].sum())(x.detach())
    torch.testing.assert_close(jacobian, torch.autograd.grad(lstm(x, hx)[0].sum(), x)[0])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UnsupportedError, match="forward-mode AD"):
        lstm(torch.autograd.forward_ad.make_dual(x, x), hx)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, h, c, m: (x.float(), (h, c), m),
        lambda x, h, c, m: (x[..., :2], (h, c), m),
        lambda x, h, c, m: (x, (h[:, :1], c), m),
        lambda x, h, c, m: (x, (h, c[..., :2]), m),
        lambda x, h, c, m: (x, (h, None), m),
        lambda x, h, c, m: (x, h, m),
        lambda x, h, c, m: (x, (h, c), m.float()),
        lambda x, h, c, m: (x, (h, c), m[:, :1]),
        lambda x, h, c, m: (x, (h, c), m.tolist()),
        lambda x, h, c, m: (x[:0], (h, c), m[:0]),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_other_backends(wrong):
    lstm, x, (h, c), is_init = made()
    given, hx, mask = wrong(x, h, c, is_init)
    messages = []
    for module in (lstm, lstm.with_backend("vmap")):
        with pytest.raises(InputError) as error:
            module(given, hx, is_init=mask)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_policy_that_learns_a_step_at_a_time_learns_as_with_nn_lstm():
    torch.manual_seed(0)
    reference, heads = nn.LSTM(6, 24), nn.Linear(24, 3)
    losses = []
    for wrapped in (False, True):
        lstm = nn.LSTM(6, 24)
        lstm.load_state_dict(reference.state_dict())
        module = LSTM.from_torch(lstm, "cpp") if wrapped else lstm
        optimizer, found = torch.optim.SGD(lstm.parameters(), 0.5), []
        data = torch.randn(4, 7, 5, 6, generator=torch.Generator().manual_seed(2))
        for batch in data:
            state = (torch.zeros(1, 5, 24), torch.zeros(1, 5, 24))
            steps = []
            for t in range(7):
                state = tuple((t != 3) * v for v in state)
                output, state = module(batch[t : t + 1], state)
                steps.append(heads(output))
            loss = torch.cat(steps).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("P", [0, 3])
@pytest.mark.parametrize("B", [0, 1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_a_step_of_one_layer_in_one_call_equals_the_step_of_the_layer(monkeypatch, P, B, dtype):
    lstm, x, (h, c), is_init = made(B=B, P=P, dtype=dtype)
    single, calls = cpp.kernel.step, []
    monkeypatch.setattr(cpp.kernel, "step", lambda *given: calls.append(given) or single(*given))
    layer_by_layer = lstm.with_backend(replace(lstm.backend, act_stack=None))
    for reset in (None, is_init[0]):
        output, state = lstm.step(x[0], State(h, c), is_init=reset)
        expected, others = layer_by_layer.step(x[0], State(h, c), is_init=reset)
        assert output.equal(expected)
        assert state.h.equal(others.h)
        assert state.c.equal(others.c)
        if B:
            assert output.untyped_storage().data_ptr() != state.h.untyped_storage().data_ptr()
    assert [given[2].h.shape for given in calls] == [(B, 1, P or 17), (B, P or 17)] * 2


@torch.no_grad()
def test_a_step_of_two_layers_or_in_16_bits_goes_layer_by_layer():
    for options in ({"num_layers": 2}, {"dtype": torch.bfloat16}):
        lstm = LSTM(3, 4, lstm_backend="cpp", **options)
        x = torch.randn(2, 3, dtype=lstm.weight_ih_l0.dtype)
        state = State(*x.new_zeros(2, 2, lstm.num_layers, 4).unbind(0))
        assert lstm.backend.act_stack(lstm.layer_weights(), x, state, None) is None
        torch.testing.assert_close(lstm.step(x, None)[0], lstm.with_backend("vmap").step(x, None)[0])
