"""Wrong arguments of ``LSTM.step``: every backend raises an error with a message for each."""

import pytest
import torch
from rnn_backends import LSTM, InputError, State

X, STATE = torch.randn(5, 3), State(torch.randn(1, 5, 4), torch.randn(1, 5, 4))
STARTS = torch.tensor([True, False, True, False, False])
WRONG_STEPS = {
    "input without a batch": (X[0], None, None),
    "input with time": (X.unsqueeze(0), None, None),
    "input of other features": (torch.randn(5, 4), STATE, None),
    "input of one row": (X[:1], STATE, None),
    "input of another dtype": (X.double(), None, None),
    "integer input": (X.long(), None, None),
    "no tensor": (X.tolist(), None, None),
    "state of one row": (X, State(*(v[:, :1] for v in STATE)), None),
    "state of fewer rows": (X, State(*(v[:, :2] for v in STATE)), None),
    "state without layers": (X, State(*(v[0] for v in STATE)), None),
    "state batch first": (X, State(*(v.transpose(0, 1) for v in STATE)), None),
    "state of two layers": (X, State(*(v.repeat(2, 1, 1) for v in STATE)), None),
    "state of other units": (X, State(STATE.h[..., :3], STATE.c), None),
    "state of another dtype": (X, State(STATE.h.double(), STATE.c.double()), None),
    "one state of another dtype": (X, State(STATE.h, STATE.c.half()), None),
    "one state": (X, STATE.h, None),
    "state without c": (X, (STATE.h, None), None),
    "reset mask of one": (X, STATE, STARTS[:1]),
    "reset mask of no dimension": (X, STATE, STARTS[0]),
    "reset mask as a row": (X, STATE, STARTS.unsqueeze(0)),
    "reset mask of many steps": (X, None, STARTS.expand(5, 5)),
    "reset mask of the units": (X, STATE, STARTS[:4]),
    "float reset mask": (X, STATE, STARTS.float()),
    "uint8 reset mask": (X, None, STARTS.to(torch.uint8)),
    "reset mask in a list": (X, STATE, STARTS.tolist()),
}


@pytest.mark.parametrize("case", WRONG_STEPS)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_step_refuses_what_does_not_fit(eager_backend, case, gradients):
    """``step`` refuses what ``forward`` refuses: broadcasting gives another shape, and a cast hides a mistake."""
    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    with torch.set_grad_enabled(gradients), pytest.raises(InputError):
        lstm.step(*WRONG_STEPS[case])


def test_a_step_takes_what_forward_takes(eager_backend):
    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    expected = lstm.step(X, STATE, STARTS)
    for state, starts in [(tuple(STATE), STARTS), (list(STATE), STARTS.unsqueeze(-1))]:
        torch.testing.assert_close(lstm.step(X, state, starts), expected)
    output, end = lstm(X.unsqueeze(0), STATE, is_init=STARTS.unsqueeze(0))
    torch.testing.assert_close(expected, (output[0], State(*end)))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # dtypes may differ there
        lstm.step(X.double(), State(*(v.double() for v in STATE)), STARTS)
