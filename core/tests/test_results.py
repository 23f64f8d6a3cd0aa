"""Outputs and states of a call are separate results, for autograd too, as with torch.nn.LSTM."""

import pytest
import torch
from rnn_backends import LSTM, LSTMModule, State
from tensordict import TensorDict
from torch.testing import assert_close

OPTIONS = [{}, {"num_layers": 2}, {"proj_size": 2}, {"bidirectional": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("resets", [False, True])
def test_the_gradient_for_a_result_lacks_that_of_the_others(backend, options, T, resets):
    lstm = LSTM(3, 4, lstm_backend=backend, **options)
    is_init = torch.arange(T * 2).reshape(T, 2) % 3 == 1 if resets else None
    output, (h, c) = lstm(torch.randn(T, 2, 3), is_init=is_init)
    loss = 2 * output.sum() + 5 * h.sum() + 7 * c.sum()
    for factor, grad in zip((2, 5, 7), torch.autograd.grad(loss, (output, h, c)), strict=True):
        assert_close(grad, torch.full_like(grad, factor))


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_gradient_for_features_lacks_that_of_the_states(backend, recurrent):
    module = LSTMModule(3, 4, in_key="x", out_key="f", lstm_backend=backend).set_recurrent_mode(recurrent)
    out = module(TensorDict({"x": torch.randn(2, 3, 3), "is_init": torch.zeros(2, 3, 1, dtype=torch.bool)}, [2, 3]))
    found = out["f"], out["next", "recurrent_state_h"], out["next", "recurrent_state_c"]
    loss = sum(factor * value.sum() for factor, value in zip((2, 5, 7), found, strict=True))
    for factor, grad in zip((2, 5, 7), torch.autograd.grad(loss, found), strict=True):
        assert_close(grad, torch.full_like(grad, factor))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_states_are_detached_and_zeroed_in_place(backend, options, T, resets, grad):
    """The loops of truncated backpropagation do so between two pieces of a row."""
    lstm = LSTM(3, 4, lstm_backend=backend, **options)
    is_init = torch.arange(T * 2).reshape(T, 2) % 3 == 1 if resets else None
    with torch.set_grad_enabled(grad):
        output, state = lstm(torch.randn(T, 2, 3), is_init=is_init)
    kept = output.detach().clone()
    for value in state:
        value.detach_()
        value.zero_()
    assert not any(value.requires_grad for value in state)
    assert_close(output, kept)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("resets", [False, True])
def test_an_edit_of_the_states_does_not_reach_the_backward_pass(backend, options, T, resets):
    """A loop over steps clears the states of finished episodes before the loss is differentiated."""
    lstm, x = LSTM(3, 4, lstm_backend=backend, **options), torch.randn(T, 2, 3)
    is_init = torch.arange(T * 2).reshape(T, 2) % 3 == 1 if resets else None
    weights = list(lstm.parameters())
    expected = torch.autograd.grad(lstm(x, is_init=is_init)[0].sum(), weights)
    output, state = lstm(x, is_init=is_init)
    with torch.no_grad():
        for value in state:
            value[:, 1] = 9
    assert_close(torch.autograd.grad(output.sum(), weights), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("T", [1, 3, "step"])
@pytest.mark.parametrize("resets", [False, True])
def test_gradients_share_no_memory(backend, options, T, resets):
    """``all_reduce`` and clipping edit the results of ``torch.autograd.grad`` in place, one after the other."""
    lstm, rows = LSTM(3, 4, lstm_backend=backend, **options), 1 if T == "step" else T
    x, K = torch.randn(rows, 2, 3, requires_grad=True), lstm.spec.num_states
    state = State(*(torch.randn(K, 2, size, requires_grad=True) for size in (lstm.spec.output_size, 4)))
    is_init = torch.arange(rows * 2).reshape(rows, 2) % 3 == 1 if resets else None
    if T == "step":
        output, after = lstm.step(x[0], state, None if is_init is None else is_init[0])
    else:
        output, after = lstm(x, state, is_init=is_init)
    grads = torch.autograd.grad(output.sum() + after[1].sum(), [x, *state, *lstm.parameters()])
    kept = [grad.clone() for grad in grads]
    for grad in grads:
        grad.add_(1)
    assert_close(grads, tuple(grad + 1 for grad in kept))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("resets", [False, True])
def test_an_edit_of_the_output_of_a_step_leaves_the_state_alone(backend, options, resets):
    """A policy may change its features in place before the state goes into the next step."""
    lstm, B = LSTM(3, 4, lstm_backend=backend, **options), 2
    K = lstm.spec.num_states
    state = State(torch.zeros(K, B, lstm.spec.output_size), torch.zeros(K, B, 4))
    with torch.no_grad():
        output, after = lstm.step(torch.randn(B, 3), state, torch.tensor([True, False]) if resets else None)
        kept = [value.clone() for value in after]
        output.fill_(9)
    assert_close(list(after), kept)
