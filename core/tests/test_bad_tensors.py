"""Bad input to ``LSTM`` and ``LSTMNet``: the class of the error and its message."""

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, LSTMModule, LSTMNet, State, UnsupportedError
from tensordict import TensorDict
from torch.masked import masked_tensor
from torch.testing import assert_close

X, NO = torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
H = torch.zeros(1, 2, 4)

BAD = {
    "features": (torch.zeros(5, 2, 4), {}, r"input_size=3 features last, got shape \(5, 2, 4\)"),
    "one dimension": (torch.zeros(3), {}, r"2-D or 3-D"),
    "four dimensions": (torch.zeros(1, 5, 2, 3), {}, r"2-D or 3-D"),
    "no tensor": ([[[0.0] * 3]], {}, "must be a Tensor, got list"),
    "integers": (X.long(), {}, "floating point"),
    "dtype": (X.double(), {}, "float64, the weights torch.float32"),
    "device": (X.to("meta"), {}, "on meta, the weights on cpu"),
    "is_init dtype": (X, {"is_init": NO.float()}, r"bool tensor, got torch.float32"),
    "is_init no tensor": (X, {"is_init": True}, "bool tensor, got bool"),
    "is_init transposed": (X, {"is_init": NO.T}, r"\(5, 2\) or \(5, 2, 1\), got shape \(2, 5\)"),
    "is_init of one row": (X, {"is_init": NO[:, :1]}, r"got shape \(5, 1\)"),
    "is_init without rows": (X, {"is_init": NO[:, 0]}, r"got shape \(5,\)"),
    "is_init device": (X, {"is_init": NO.to("meta")}, "is_init is on meta"),
    "hx transposed": (X, {"hx": (H.transpose(0, 1), H.transpose(0, 1))}, r"h_0 must have shape \(1, 2, 4\)"),
    "hx of other rows": (X, {"hx": (H, H[:, :1])}, "c_0 must have shape"),
    "hx unbatched": (X, {"hx": (H[:, 0], H[:, 0])}, "h_0 must have shape"),
    "hx batched": (X[:, 0], {"hx": (H, H)}, r"h_0 must have shape \(1, 4\)"),
    "hx dtype": (X, {"hx": (H, H.double())}, "c_0 has dtype torch.float64"),
    "hx device": (X, {"hx": (H.to("meta"), H)}, "h_0 is on meta"),
    "hx of three": (X, {"hx": (H, H, H)}, "hx must be a pair"),
    "hx one tensor": (X, {"hx": H}, "hx must be a pair"),
    "hx half": (X, {"hx": (H, None)}, "c_0 must have shape .* got NoneType"),
}


@pytest.mark.parametrize(("x", "options", "says"), BAD.values(), ids=BAD)
def test_lstm(x, options, says):
    with pytest.raises(InputError, match=says):
        LSTM(3, 4)(x, **options)


def net(**options):
    return LSTMNet(2, {"input_size": 3, "hidden_size": 4, **options}, {"in_features": 3, "out_features": 3})


NET = {
    "no dimension": ((torch.zeros(()),), r"\[F\], \[B, F\] or \[B, T, F\]"),
    "four dimensions": ((torch.zeros(1, 5, 2, 3),), r"\[B, T, F\], got shape \(1, 5, 2, 3\)"),
    "h alone": ((X[0], torch.zeros(2, 1, 4)), "both hidden0_in and hidden1_in, or neither"),
    "c alone": ((X[0], None, torch.zeros(2, 1, 4)), "both hidden0_in and hidden1_in, or neither"),
    "h of one step": ((X, torch.zeros(5, 1, 4), torch.zeros(5, 1, 4)), r"hidden0_in must have shape \(5, 2, 1, 4\)"),
    "c of another size": ((X[0], torch.zeros(2, 1, 4), torch.zeros(2, 1, 5)), "hidden1_in must have shape"),
    "h in float64": ((X[0], torch.zeros(2, 1, 4).double(), torch.zeros(2, 1, 4)), "hidden0_in has dtype"),
    "no step": ((torch.zeros(5, 0, 3),), "at least one time step"),
}


@pytest.mark.parametrize(("arguments", "says"), NET.values(), ids=NET)
def test_net(arguments, says):
    with pytest.raises(InputError, match=says):
        net()(*arguments)


def test_net_where_the_mlp_does_not_fit_the_lstm():
    wrong = LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"in_features": 3, "out_features": 5})
    for x in (X, X[0], X[0, 0]):
        with pytest.raises(InputError, match=r"MLP gives 5 features, .* input_size=3"):
            wrong(x)


def test_net_arguments():
    with pytest.raises(InputError, match="batch_first=True"):
        net(batch_first=False)
    with pytest.raises(InputError, match="out_features"):
        LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {})
    with pytest.raises(InputError, match="contradicts"):
        LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3, "depth": 2, "num_cells": [4]})
    with pytest.raises(InputError, match="give depth too"):
        LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3, "num_cells": 4})


CALLS = {
    "a row": lambda lstm, x, no, h, c: lstm(x, (h, c))[0],
    "a row with resets": lambda lstm, x, no, h, c: lstm(x, (h, c), is_init=no)[0],
    "a row of one step": lambda lstm, x, no, h, c: lstm(x[:1], (h, c), is_init=no[:1])[0],
    "a step": lambda lstm, x, no, h, c: lstm.step(x[0], State(h, c), no[0])[0],
}
READ = {"input": X, "is_init": NO, "h": H, "c": H}


@pytest.fixture(params=["cpp", "cudnn", "vmap", "torchscript"])
def name(request):
    return request.param


def masked(value):
    return masked_tensor(value.clone(), torch.ones_like(value, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_masked_tensor_is_refused_in_words(call, what, gradients):
    lstm = LSTM(3, 4).requires_grad_(gradients)
    given = {name: masked(v) if name == what else v for name, v in READ.items()}
    if what == "is_init" and call is CALLS["a row"]:
        return  # it has none
    with pytest.raises(InputError, match=r"is a MaskedTensor: pass what get_data\(\) gives"):
        call(lstm, *given.values())


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
def test_a_masked_entry_of_a_tensordict_is_refused_in_words():
    for recurrent in (True, False):
        module = LSTMModule(3, 4, in_key="x", out_key="y", default_recurrent_mode=recurrent)
        td = TensorDict({"x": masked(X), "is_init": NO.unsqueeze(-1)}, [5, 2])
        with pytest.raises(InputError, match="'x' is a MaskedTensor"):
            module(td)


def in_inference_mode(value):
    with torch.inference_mode():
        return value.clone()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("what", [*READ, "a weight"])
def test_a_tensor_of_inference_mode_gives_the_right_gradient_or_a_refusal_in_words(name, call, what):
    def gradients(change):
        torch.manual_seed(0)
        lstm = LSTM(3, 4, lstm_backend=name)
        if what == "a weight":
            lstm.weight_hh_l0 = torch.nn.Parameter(change(lstm.weight_hh_l0.detach()), requires_grad=False)
        read = {key: change(v + (key != "is_init")) if key == what else v for key, v in READ.items()}
        with torch.no_grad():  # without gradients nothing is refused
            call(lstm, *read.values())
        out = call(lstm, *read.values()).square().sum()
        return torch.autograd.grad(out, [p for p in lstm.parameters() if p.requires_grad])

    expected = gradients(torch.clone)
    try:
        found = gradients(in_inference_mode)
    except InputError as error:
        word = {"a weight": "weight_hh_l0", "h": "hidden state", "c": "cell state"}.get(what, what)
        assert f"{word} was made under torch.inference_mode()" in str(error)  # noqa: PT017 - it may be right, too
        return
    assert_close(found, expected)


def test_an_error_of_torchs_that_has_another_cause_stays_as_it_is():
    def raises(w, x, entry, starts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        LSTM(3, 4, lstm_backend=LSTMBackend("mine", raises))(in_inference_mode(X))
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool], ids=str)
def test_a_dtype_in_which_torch_does_not_compute_is_refused_in_words(name, dtype):
    with pytest.raises(InputError, match="dtype must be floating point of 16 bits or more, got"):
        LSTM(3, 4, dtype=dtype, lstm_backend=name)
    lstm = LSTM(3, 4, lstm_backend=name)
    with pytest.raises(InputError, match="float"):
        lstm(X.to(dtype))
    if dtype.is_floating_point:
        for call in CALLS.values():
            with pytest.raises(UnsupportedError, match="torch does not compute in float8"):
                call(
                    LSTM(3, 4, lstm_backend=name).to(dtype), *(v.to(dtype) if v is not NO else v for v in READ.values())
                )
