"""Tools made for ``torch.nn.LSTM``, used on ours: methods, attributes, initialisers, quantisers."""

import warnings

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMModule
from tensordict import TensorDict
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, get_default_qconfig, prepare, quantize_dynamic
from torch.nn.utils import prune
from torch.testing import assert_close

OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"proj_size": 2, "num_layers": 2},
    {"proj_size": 2, "bidirectional": True, "batch_first": True, "dtype": torch.float64},
]
options = pytest.mark.parametrize("given", OPTIONS, ids=str)


def both(given):
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, **given)
    ours = LSTM(3, 4, **given)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


@options
def test_the_methods_of_torchs_lstm_give_what_its_own_give(given):
    theirs, ours = both(given)
    x = torch.randn(5, 2, 3, dtype=given.get("dtype", torch.float32))
    h, c = (torch.zeros(theirs.get_expected_hidden_size(x, None)), torch.zeros(theirs.get_expected_cell_size(x, None)))
    lengths, order = torch.tensor([2, 2, 1]), torch.tensor([1, 0])
    wrong = torch.zeros(7, 7, 7)
    calls = {
        "names": lambda m: [name for name, _ in m.named_parameters()],
        "shapes": lambda m: [tuple(v.shape) for v in m.parameters()],
        "all_weights": lambda m: m.all_weights,
        "_flat_weights": lambda m: m._flat_weights,
        "flatten": lambda m: m.flatten_parameters(),
        "hidden size": lambda m: m.get_expected_hidden_size(x, None),
        "hidden size, packed": lambda m: m.get_expected_hidden_size(x, lengths),
        "cell size": lambda m: m.get_expected_cell_size(x, None),
        "cell size, packed": lambda m: m.get_expected_cell_size(x, lengths),
        "arguments": lambda m: m.check_forward_args(x, (h, c), None),
        "a wrong h": lambda m: m.check_forward_args(x, (wrong, c), None),
        "a wrong c": lambda m: m.check_forward_args(x, (h, wrong), None),
        "a wrong input": lambda m: m.check_input(x[..., :2], None),
        "a wrong dtype": lambda m: m.check_input(x.half(), None),
        "a wrong number of dimensions": lambda m: m.check_input(x[0, 0], None),
        "a wrong size": lambda m: m.check_hidden_size(h, (9, 9, 9)),
        "permuted": lambda m: m.permute_hidden((h, c), order),
        "not permuted": lambda m: m.permute_hidden((h, c), None),
        "mode": lambda m: m.mode,
        "options": lambda m: [
            getattr(m, k)
            for k in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        ],
        "proj_size": lambda m: m.proj_size,
    }
    for name, call in calls.items():
        expected, found = (outcome(lambda call=call, m=m: call(m)) for m in (theirs, ours))
        assert type(found) is type(expected), name
        if name in ("all_weights", "_flat_weights", "permuted", "not permuted"):
            assert_close(found, expected)
        else:
            assert found == expected, name
    assert ours.extra_repr().startswith(theirs.extra_repr())
    public = {name for name in dir(nn.LSTM) if not name.startswith("_")}
    assert not public - set(dir(LSTM))


def test_lstms_are_found_by_torchs_base_class_and_mode_and_their_weights_by_name():
    net = nn.ModuleList([nn.LSTM(4, 8), LSTM(4, 8), LSTMModule(4, 8, in_key="x", out_key="y"), nn.GRU(4, 8)])
    found = [m for m in net.modules() if isinstance(m, nn.RNNBase) and m.mode == "LSTM"]
    assert found == [net[0], net[1], net[2].lstm]
    for m in found:
        for name, parameter in m.named_parameters():
            (nn.init.zeros_ if name.startswith("bias") else nn.init.orthogonal_)(parameter)
    assert all((m.bias_ih_l0 == 0).all() for m in found)
    assert (net[3].bias_ih_l0 != 0).any()


@options
def test_to_torch_shares_the_parameters_and_computes_the_same(given):
    _, ours = both(given)
    theirs = ours.eval().to_torch()
    assert type(theirs) is nn.LSTM
    assert not theirs.training
    assert {k: id(v) for k, v in theirs.named_parameters()} == {k: id(v) for k, v in ours.named_parameters()}
    x = torch.randn(5, 2, 3, dtype=given.get("dtype", torch.float32))
    assert_close(theirs(x), ours(x))
    with torch.no_grad():
        ours.weight_hh_l0.zero_()
    assert_close(theirs(x), ours(x))
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    with pytest.raises(InputError, match="call to_torch"):
        ours.to_torch()


class Doubled(LSTM):
    def forward(self, *args, **kwargs):
        output, state = super().forward(*args, **kwargs)
        return 2 * output, state


class DoubledAsTheirs(LSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return 2 * output, state


def test_a_forward_with_torchs_arguments_runs_a_row_and_is_an_error_where_it_gets_others():
    torch.manual_seed(0)
    lstm = DoubledAsTheirs(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    assert_close(lstm(x)[0], 2 * LSTM.forward(lstm, x)[0])
    td = TensorDict({"x": x[:, 0], "is_init": torch.zeros(2, 1, dtype=torch.bool)}, [2])
    for call in (lambda: lstm.step(x[:, 0], None), lambda: LSTMModule(lstm=lstm, in_key="x", out_key="y")(td)):
        with pytest.raises(InputError, match=r"DoubledAsTheirs.forward takes no is_init= and form=, .* add \*\*kwargs"):
            call()
    assert Doubled(3, 4).step(x[:, 0], None)[0].shape == (2, 4)


class TheirsDoubled(nn.LSTM):
    def forward(self, *args, **kwargs):
        output, state = super().forward(*args, **kwargs)
        return 2 * output, state


def double(module, args, result):
    return 2 * result[0], result[1]


MORE = {
    "forward hook": lambda m: m.register_forward_hook(double),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda m, args: (2 * args[0],)),
    "backward hook": lambda m: m.register_full_backward_hook(lambda m, to, of: (2 * to[0], *to[1:])),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda m, of: (2 * of[0], *of[1:])),
    "parametrized": lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
    "old weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_ih_l0", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("make", ["to_torch", "scriptable", "torch.jit.script"])
@pytest.mark.parametrize("more", [*MORE, "overrides forward"])
def test_what_another_class_would_not_do_is_refused(make, more):
    lstm = (Doubled if more == "overrides forward" else LSTM)(3, 4, lstm_backend="torchscript")
    MORE.get(more, lambda m: None)(lstm)
    words = (
        "Doubled overrides forward" if more == "overrides forward" else "hooks" if "hook" in more else "parametrized"
    )
    with pytest.raises(InputError, match=words):
        torch.jit.script(lstm) if make == "torch.jit.script" else getattr(lstm, make)()


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_what_was_made_permanent_is_converted():
    lstm = LSTM(3, 4)
    nn.utils.weight_norm(lstm, "weight_hh_l0")
    nn.utils.remove_weight_norm(lstm, "weight_hh_l0")
    prune.l1_unstructured(lstm, "weight_ih_l0", 0.5)
    prune.remove(lstm, "weight_ih_l0")
    nn.utils.parametrizations.orthogonal(lstm, "weight_hh_l0")
    nn.utils.parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    assert_close(lstm.to_torch()(x), lstm(x))


def test_an_lstm_that_overrides_forward_is_not_wrapped():
    with pytest.raises(InputError, match=r"TheirsDoubled overrides forward.*subclass of rnn_backends\.LSTM"):
        LSTM.from_torch(TheirsDoubled(3, 4))
    with pytest.raises(InputError, match="TheirsDoubled overrides forward"):
        LSTMModule(lstm=TheirsDoubled(3, 4, batch_first=True), in_key="x", out_key="y")
    named = type("Named", (nn.LSTM,), {})(3, 4)  # a subclass that computes the same
    x = torch.randn(5, 2, 3)
    assert_close(LSTM.from_torch(named)(x), named(x))
    ours = Doubled(3, 4)
    assert LSTM.from_torch(ours) is ours
    assert_close(ours.with_backend("vmap")(x), ours(x))


@pytest.mark.parametrize("more", [name for name in MORE if "hook" in name])
def test_hooks_of_a_wrapped_lstm_run(more):
    theirs = nn.LSTM(3, 4)
    MORE[more](theirs)
    x = torch.randn(5, 2, 3, requires_grad=True)
    results = []
    for lstm in (theirs, LSTM.from_torch(theirs)):
        output, _ = lstm(x)
        results.append((output, torch.autograd.grad(output.sum(), x)))
    assert_close(*results)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min and quant_max")
def test_a_quantiser_does_not_pass_over_it_in_silence():
    net = nn.Sequential(LSTM(3, 4))
    with pytest.warns(UserWarning, match=r"passes over this rnn_backends\.LSTM.*to_torch"):
        quantize_dynamic(net, {nn.LSTM})
    assert not hasattr(net[0], "qconfig")
    for spec in ({LSTM}, {LSTM: default_dynamic_qconfig}, {"0": default_dynamic_qconfig}):
        given = {LSTM: default_dynamic_qconfig} if isinstance(spec, set) else spec
        with pytest.raises(InputError, match="has no quantised form"):
            quantize_dynamic(net, given)
    net.qconfig = get_default_qconfig("x86")
    with pytest.raises(InputError, match="has no quantised form"):
        prepare(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*passes over.*")
        net[0].qconfig = None
        assert net[0].qconfig is None
        again = quantize_dynamic(net, {nn.LSTM})
    x = torch.randn(5, 2, 3)
    assert_close(again(x), net(x))


@pytest.mark.filterwarnings("ignore")  # of torch's, about its deprecated quantisation
def test_to_torch_is_quantised():
    if not torch.backends.quantized.engine or torch.backends.quantized.engine == "none":
        pytest.skip("this torch has no quantised kernels")
    lstm = LSTM(3, 4)
    quantised = quantize_dynamic(nn.Sequential(lstm.to_torch()), {nn.LSTM})
    assert type(quantised[0]).__module__.startswith("torch.ao.nn.quantized")
    x = torch.randn(5, 2, 3)
    assert_close(quantised(x)[0], lstm(x)[0], rtol=0, atol=0.05)
