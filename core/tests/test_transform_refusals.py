"""A transform is refused only if a tensor of the call is part of it, at any depth and on every path."""

from functools import partial

import pytest
import torch
from rnn_backends import LSTM, LSTMBackend, LSTMModule, LSTMNet, State, Trait, UnsupportedError
from rnn_backends.unroll import unroll
from tensordict import TensorDict
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from torch.testing import assert_close

T, B, I, H = 5, 2, 3, 4  # noqa: E741


def stack(weights, x, state, spec):
    starts = torch.zeros(len(x), x.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(0), True)
    out = unroll(weights[0], x, State(state.h.expand(len(x), -1, -1), state.c.expand(len(x), -1, -1)), starts)
    return out.h, State(out.h[-1:], out.c[-1:])


PLAIN = LSTMBackend("plain", unroll, traits=frozenset())
STACKED = LSTMBackend("stacked", unroll, stack=stack)
VMAP_ONLY = LSTMBackend("vmap_only", unroll, traits=frozenset({Trait.VMAP}))
FORWARD_ONLY = LSTMBackend("forward_only", unroll, traits=frozenset({Trait.FORWARD_AD}))


def inputs():
    return {
        "x": torch.randn(T, B, I),
        "h": torch.randn(1, B, H),
        "c": torch.randn(1, B, H),
        "is_init": torch.rand(T, B) < 0.4,
        "weight_hh_l0": torch.randn(4 * H, H),
    }


def over_time(lstm, x, h, c, is_init, weight_hh_l0):
    return functional_call(lstm, {"weight_hh_l0": weight_hh_l0}, (x, (h, c)), {"is_init": is_init})[0].sum()


def without_resets(lstm, x, h, c, is_init, weight_hh_l0):
    return functional_call(lstm, {"weight_hh_l0": weight_hh_l0}, (x, (h, c)))[0].sum()


def one_step(lstm, x, h, c, is_init, weight_hh_l0):
    module = LSTMModule(lstm=_batch_first(lstm), in_key="x", out_key="y")
    return _through(module, x[0], h, c, is_init[0], weight_hh_l0)


def recurrent(lstm, x, h, c, is_init, weight_hh_l0):
    module = LSTMModule(lstm=_batch_first(lstm), in_key="x", out_key="y", default_recurrent_mode=True)
    h, c = (v.transpose(0, 1).unsqueeze(1).expand(B, T, 1, H) for v in (h, c))
    return _through(module, x.transpose(0, 1), h, c, is_init.transpose(0, 1), weight_hh_l0)


def _through(module, x, h, c, is_init, weight):
    lead = x.shape[:-1]
    if h.ndim == 3:
        h, c = h.transpose(0, 1), c.transpose(0, 1)
    td = TensorDict({"x": x, "is_init": is_init, "recurrent_state_h": h, "recurrent_state_c": c}, lead)
    return functional_call(module, {"lstm.weight_hh_l0": weight}, (td,))["y"].sum()


def _batch_first(lstm):
    lstm.batch_first = True
    return lstm


PATHS = {"over time": over_time, "stack": without_resets, "one step": one_step, "recurrent": recurrent}


@pytest.fixture(params=PATHS)
def call(request):
    """``call(backend, **changed)``: the summed output on one of the paths."""
    values = inputs()
    one = LSTM(I, H, lstm_backend=STACKED if request.param == "stack" else PLAIN)
    lstms = {PLAIN: one} | {backend: one.with_backend(backend) for backend in (VMAP_ONLY, FORWARD_ONLY)}

    def run(backend, **changed):
        return PATHS[request.param](lstms[backend], **{**values, **changed})

    run.values, run.path = values, request.param
    return run


LEVELS = {
    "vmap": lambda f: vmap(f)(torch.ones(3)).sum(),
    "jvp": lambda f: jvp(f, (torch.tensor(1.0),), (torch.tensor(1.0),))[0],
    "grad": lambda f: grad(f)(torch.tensor(1.0)),
    "vmap of grad": lambda f: vmap(grad(f))(torch.ones(3)).sum(),
    "grad of vmap": lambda f: grad(lambda s: vmap(f)(s * torch.ones(3)).sum())(torch.tensor(1.0)),
    "vmap of jvp": lambda f: vmap(lambda s: jvp(f, (s,), (s,))[0])(torch.ones(3)).sum(),
    "hessian": lambda f: hessian(f)(torch.tensor(1.0)),
    "jacfwd": lambda f: jacfwd(f)(torch.tensor(1.0)),
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_no_tensor_of_the_call_is_part_of_is_not_refused(call, level):
    with torch.no_grad():
        alone = call(PLAIN).item()
    LEVELS[level](lambda s: s * _checked(call, alone))


def _checked(call, alone):
    found = call(PLAIN)
    assert_close(found.detach(), torch.tensor(alone))
    return found


def test_an_open_forward_level_without_tangents_is_not_refused(call):
    with torch.no_grad(), forward_ad.dual_level():
        call(PLAIN)


NAMES = ("x", "h", "c", "is_init", "weight_hh_l0")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("around", ["nothing", "grad inside", "grad outside", "vmap inside"])
def test_vmap_over_any_one_input_is_refused_at_any_depth(call, name, around):
    value = call.values[name]
    many = torch.stack([value, value])

    def run(v, s=1.0):
        return call(PLAIN, **{name: v}) * s

    one = torch.tensor(1.0)
    programs = {
        "nothing": lambda: vmap(run)(many),
        "grad inside": lambda: vmap(lambda v: grad(lambda s: run(v, s))(one))(many),
        "grad outside": lambda: grad(lambda s: vmap(lambda v: run(v, s))(many).sum())(one),
        "vmap inside": lambda: vmap(lambda v: vmap(lambda s: run(v, s))(torch.ones(2)))(many),
    }
    if call.path == "stack" and name == "is_init":  # not read there, so it does not matter
        assert torch.isfinite(programs[around]()).all()
        return
    with pytest.raises(UnsupportedError, match=r"does not support torch\.vmap: .*Backends that can: .*vmap"):
        programs[around]()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"is_init"}))
@pytest.mark.parametrize("around", ["nothing", "dual tensors", "vmap inside", "vmap outside", "jvp inside"])
def test_a_tangent_of_any_one_input_is_refused_at_any_depth(call, name, around):
    value, one = call.values[name], torch.tensor(1.0)

    def run(v, s=1.0):
        return call(PLAIN, **{name: v}) * s

    def dual():
        with torch.no_grad(), forward_ad.dual_level():
            run(forward_ad.make_dual(value, value))

    programs = {
        "nothing": lambda: jvp(run, (value,), (value,)),
        "dual tensors": dual,
        "vmap inside": lambda: jvp(lambda v: vmap(lambda s: run(v, s))(torch.ones(2)).sum(), (value,), (value,)),
        "vmap outside": lambda: vmap(lambda s: jvp(lambda v: run(v, s), (value,), (value,))[0])(torch.ones(2)),
        "jvp inside": lambda: jvp(lambda v: jvp(lambda s: run(v, s), (one,), (one,))[0], (value,), (value,)),
    }
    with pytest.raises(UnsupportedError, match="does not support forward-mode AD"):
        programs[around]()


def test_a_backend_that_claims_one_of_two_nested_transforms_is_refused_for_the_other(call):
    x = call.values["x"]
    both = {
        "inside": lambda backend: vmap(lambda v: jvp(lambda w: call(backend, x=w), (v,), (v,))[1])(torch.stack([x, x])),
        "outside": lambda backend: jvp(
            lambda v: vmap(lambda w: call(backend, x=w))(torch.stack([v, v])).sum(), (x,), (x,)
        ),
    }
    for program in both.values():
        with pytest.raises(UnsupportedError, match="does not support forward-mode AD"):
            program(VMAP_ONLY)
        with pytest.raises(UnsupportedError, match=r"does not support torch\.vmap"):
            program(FORWARD_ONLY)


def test_nets_and_built_in_backends_run_inside_unrelated_levels(eager_backend):
    net = LSTMNet(2, {"input_size": I, "hidden_size": H}, {"out_features": I}, lstm_backend=eager_backend)
    x = torch.randn(B, T, 6)
    alone = net(x)[0].detach()
    found = vmap(lambda s: net(x)[0].detach() * s)(torch.ones(2))
    assert_close(found, torch.stack([alone, alone]))
    with torch.no_grad(), forward_ad.dual_level():
        assert_close(net(x)[0], alone)


def test_functionalize_alone_is_no_transform_that_needs_a_trait():
    lstm, x = LSTM(I, H, lstm_backend=PLAIN), torch.randn(T, B, I)
    with torch.no_grad():
        assert_close(torch.func.functionalize(lambda v: lstm(v)[0])(x), lstm(x)[0])


def test_a_forward_derivative_is_refused_in_compiled_code_too(call):
    """An operator of a backend's author without a forward derivative would have tangents of zero there."""
    value = call.values["x"]
    torch.compiler.reset()

    @partial(torch.compile, backend="eager")
    def along(x):
        return jvp(lambda v: call(PLAIN, x=v), (x,), (x,))

    with pytest.raises(UnsupportedError, match="forward-mode AD"):
        along(value)


def test_a_forward_derivative_is_refused_in_an_export_too():
    class Along(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = LSTM(I, H, lstm_backend=PLAIN)

        def forward(self, x):
            return jvp(lambda v: self.lstm(v)[0], (x,), (x,))

    with pytest.raises(UnsupportedError, match="forward-mode AD"):
        torch.export.export(Along(), (torch.randn(T, B, I),))
