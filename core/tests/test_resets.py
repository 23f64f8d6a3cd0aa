"""``is_init=`` of the tensor interface: a sequence starts there from zeros, at the first step too."""

import pytest
import torch
from rnn_backends import LSTM, State
from rnn_backends.resets import at_ends, ends_of, entry_from_hx, first_steps, starts_of
from torch.testing import assert_close

PATTERNS = [(), (0,), (5,), (2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 3)]


def by_eye(*rows):
    """``["#..", "..#"]`` -> ``[T, B]`` bool."""
    return torch.tensor([[step == "#" for step in row] for row in rows]).T


def test_the_reset_rules_by_eye():
    is_init = by_eye("...#.", "##..#")
    starts = starts_of(is_init)
    assert torch.equal(starts, by_eye("#..#.", "##..#"))
    assert torch.equal(ends_of(starts), by_eye("..#.#", "#..##"))
    assert first_steps(starts).T.tolist() == [[0, 0, 0, 3, 3], [0, 1, 1, 1, 4]]
    assert torch.equal(starts_of(starts), starts)


def test_padding_is_zero_even_where_the_state_is_not_a_number():
    states = torch.full((5, 1, 2), float("nan"))
    states[2] = states[4] = 1.0
    for padded in at_ends(State(states, states), by_eye("...#.")):
        assert padded[:, 0, 0].tolist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("steps", PATTERNS, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str)
def test_every_sequence_runs_as_if_it_were_alone(backend, mask, witness, options, steps):
    lstm = LSTM(3, 4, **options, batch_first=True, dtype=torch.float64, lstm_backend=backend)
    K, P = lstm.spec.num_states, lstm.spec.output_size
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    is_init = torch.stack([mask(6, *steps), mask(6, 1, 4)])
    h0, c0 = torch.randn(K, 2, P, dtype=torch.float64), torch.randn(K, 2, 4, dtype=torch.float64)
    y, (h, c) = lstm(x, (h0, c0), is_init=is_init)
    stored = [torch.zeros(2, 6, K, size, dtype=torch.float64) for size in (P, 4)]
    for store, given in zip(stored, (h0, c0), strict=True):
        store[:, 0] = torch.where(is_init[:, :1, None], 0, given.transpose(0, 1))
    expected = witness(lstm, x, is_init, *stored)
    assert_close(y, expected[0], rtol=1e-11, atol=1e-11)
    assert_close((h, c), tuple(v[:, -1].transpose(0, 1) for v in expected[1:]), rtol=1e-11, atol=1e-11)


def test_forms_of_is_init(eager_backend, mask):
    lstm = LSTM(3, 4, batch_first=True, lstm_backend=eager_backend)
    x = torch.randn(2, 6, 3)
    is_init = torch.stack([mask(6, 2), mask(6, 0, 5)])
    expected = lstm(x, is_init=is_init)
    assert_close(lstm(x, is_init=is_init.unsqueeze(-1)), expected)
    assert_close(lstm(x[0], is_init=is_init[0])[0], expected[0][0])
    assert_close(lstm(x[0], is_init=is_init[0, :, None])[0], expected[0][0])
    time_first = LSTM(3, 4, lstm_backend=eager_backend)
    time_first.load_state_dict(lstm.state_dict())
    assert_close(time_first(x.transpose(0, 1), is_init=is_init.T)[0].transpose(0, 1), expected[0])


def test_no_reset_is_the_same_as_no_mask(eager_backend):
    lstm = LSTM(3, 4, 2, lstm_backend=eager_backend)
    x, hx = torch.randn(5, 2, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    assert_close(lstm(x, hx, is_init=torch.zeros(5, 2, dtype=torch.bool)), lstm(x, hx))


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_row_may_be_cut_anywhere_and_its_state_carried_over(eager_backend, mask, cut):
    lstm = LSTM(3, 4, 2, lstm_backend=eager_backend)
    x, is_init = torch.randn(6, 1, 3), mask(6, 0, 3)[:, None]
    whole, end = lstm(x, is_init=is_init)
    first, state = lstm(x[:cut], is_init=is_init[:cut])
    second, state = lstm(x[cut:], state, is_init=is_init[cut:])
    assert_close((torch.cat([first, second]), state), (whole, end))


def test_what_a_reset_drops_may_be_nan_and_has_no_gradient(eager_backend, mask):
    lstm = LSTM(3, 4, 2, lstm_backend=eager_backend)
    x, is_init = torch.randn(5, 1, 3), mask(5, 3)[:, None]
    x[:3] = float("nan")
    h0, c0 = (torch.full((2, 1, 4), float("nan"), requires_grad=True) for _ in range(2))
    y, _ = lstm(x, (h0, c0), is_init=is_init)
    assert y[3:].isfinite().all()
    assert_close(y[3:], lstm(x[3:])[0])


def test_gradients_stop_at_a_reset(eager_backend, mask):
    lstm = LSTM(3, 4, lstm_backend=eager_backend)
    x = torch.randn(5, 1, 3, requires_grad=True)
    h0, c0 = (torch.randn(1, 1, 4, requires_grad=True) for _ in range(2))
    lstm(x, (h0, c0), is_init=mask(5, 3)[:, None])[0][3:].sum().backward()
    assert not x.grad[:3].any()
    assert x.grad[3:].all()
    assert not h0.grad.any()
    assert not c0.grad.any()


def test_the_entry_of_one_step_has_time_first():
    """Also with several rows: ``[1, B, N]`` and not ``[B, 1, N]``."""
    h0 = torch.randn(3, 2)
    entry = entry_from_hx(h0, 1, torch.tensor([[False, True, False]]))
    assert_close(entry, torch.stack([h0[0], torch.zeros(2), h0[2]]).unsqueeze(0), rtol=0, atol=0)
    assert_close(entry, entry_from_hx(h0, 2, torch.tensor([[False, True, False]] * 2))[:1], rtol=0, atol=0)
