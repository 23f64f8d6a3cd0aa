"""Bad input to ``LSTM`` and ``LSTMNet``: which error, and what it says."""

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMNet

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
