"""Weights that a step has cached: any change of them takes effect in the next step."""

from contextlib import nullcontext

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, State, registry, weight_cache
from rnn_backends.authoring import check_call, weight_info
from torch import nn
from torch.testing import assert_close

B, N = 3, 8


@pytest.fixture(params=["cpp", "cudnn", "vmap"])
def lstm(request):
    torch.manual_seed(0)
    return LSTM(N, N, lstm_backend=request.param)


def values():
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, N, generator=g), State(*torch.randn(2, 1, B, N, generator=g))


def expected(lstm, x, state):
    copy = nn.LSTM(N, N).to(lstm.weight_ih_l0.dtype)
    copy.load_state_dict({k: v.detach().resolve_neg() for k, v in lstm.state_dict().items()})
    return copy(x.unsqueeze(0), tuple(state))[0].squeeze(0)


def negated(v):
    return torch._neg_view(v)


def elsewhere(v):
    return v.clone() * 2


def turned(v):
    return v.flip(0) if v.ndim == 1 else v.t().contiguous().t() * 0.5


def overlapping(v):
    return v[:1].expand_as(v)


@pytest.mark.parametrize("change", [negated, elsewhere, turned, overlapping])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@torch.no_grad()
def test_a_weight_with_other_data_is_seen_by_the_next_step(lstm, change, name):
    x, state = values()
    lstm.step(x, state)
    parameter = getattr(lstm, name)
    parameter.data = change(parameter.data)
    assert_close(lstm.step(x, state)[0], expected(lstm, x, state))


@torch.no_grad()
def test_a_weight_of_another_object_is_seen_by_the_next_step(lstm):
    x, state = values()
    lstm.step(x, state)
    lstm.weight_hh_l0 = nn.Parameter(lstm.weight_hh_l0 * 2)
    assert_close(lstm.step(x, state)[0], expected(lstm, x, state))


@torch.no_grad()
def test_weights_of_another_dtype_are_seen_by_the_next_step(lstm):
    x, state = values()
    lstm.step(x, state)
    lstm.double()
    x, state = x.double(), State(*(v.double() for v in state))
    assert_close(lstm.step(x, state)[0], expected(lstm, x, state))


@pytest.mark.parametrize("size", [0, 4])
@torch.no_grad()
def test_memory_that_was_freed_is_an_error_in_the_next_step(lstm, size):
    x, state = values()
    lstm.step(x, state)
    lstm.weight_hh_l0.untyped_storage().resize_(size)
    with pytest.raises(InputError, match="freed or resized"):
        lstm.step(x, state)


@torch.no_grad()
def test_less_memory_at_the_same_address_is_an_error_in_the_next_step(lstm):
    x, state = values()
    weight = lstm.weight_hh_l0
    whole = weight.clone()
    for size in range(64, 4 * whole.numel(), 64):
        lstm.step(x, state)
        storage = weight.untyped_storage()
        storage.resize_(0)
        storage.resize_(size)
        with pytest.raises(InputError, match="freed or resized"):
            lstm.step(x, state)
        storage.resize_(whole.nbytes)
        weight.data.copy_(whole)


@torch.no_grad()
def test_weights_of_another_shape_are_an_error_in_the_next_step(lstm):
    x, state = values()
    lstm.step(x, state)
    lstm.weight_hh_l0.data = lstm.weight_hh_l0.data.view(2 * N, 2 * N)
    with pytest.raises(InputError, match="weight_hh_l0 must have shape"):
        lstm.step(x, state)


@torch.no_grad()
def test_parameters_can_be_swapped_after_a_step(lstm):
    x, state = values()
    lstm.step(x, state)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        lstm.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert lstm.step(x.double(), State(*(v.double() for v in state)))[0].dtype == torch.float64


@torch.no_grad()
def test_what_a_step_knows_ends_with_it():
    kept = []

    def step(weights, x, state):
        kept.append(weights)
        return State(state.h, state.c)

    def fails(weights, x, state):
        kept.append(weights)
        raise ValueError("of the backend")

    x, state = values()
    for run in (step, fails):
        lstm = LSTM(N, N, lstm_backend=LSTMBackend("kept", registry.get_backend("vmap").layer, step=run))
        with pytest.raises(ValueError, match="of the backend") if run is fails else nullcontext():
            lstm.step(x, state)
        weights = kept.pop()
        lstm.weight_hh_l0.data = negated(lstm.weight_hh_l0.data)
        assert weight_info(weights) is None


def test_the_cache_of_weights_has_a_limit(monkeypatch):
    monkeypatch.setattr(weight_cache, "MAX_LAYERS", 5)
    monkeypatch.setattr(weight_cache, "_cache", {})
    layers = [LSTM(2, 2, lstm_backend="vmap").layer_weights()[0] for _ in range(20)]
    assert all(weight_info(w) is not None and len(weight_cache._cache) <= 5 for w in layers)


@pytest.mark.parametrize("kind", ["zero", "subclass", "meta", "transposed", "freed"])
def test_a_call_is_usual_only_with_dense_tensors_that_have_memory(kind):
    weights, (x, state) = LSTM(N, N, lstm_backend="vmap").layer_weights()[0], values()
    state = State(*(v[0] for v in state))
    assert check_call("vmap", weights, x, state)
    if kind == "zero":
        assert not check_call("vmap", weights, torch._efficientzerotensor((B, N)), state)
    if kind == "subclass":
        assert not check_call("vmap", weights, nn.Buffer(x).as_subclass(type("Other", (torch.Tensor,), {})), state)
    if kind == "transposed":
        assert check_call("vmap", weights, x.t().contiguous().t(), state)
        assert check_call("vmap", weights, x[:1].expand(B, -1), state)
    if kind == "freed":  # the last element of a transposed tensor is the last of its memory
        x = x.t().contiguous().t()
        x.untyped_storage().resize_(x.nbytes - x.itemsize)
        with pytest.raises(InputError, match="input spans 24 elements, and its storage holds 23"):
            check_call("vmap", weights, x, state)
    if kind == "meta":
        with pytest.raises(Exception, match="several devices"):
            check_call("vmap", weights, x.to("meta"), state)


@pytest.mark.parametrize("starts", [[False] * B, [True] * B, [False, True, False]])
@torch.no_grad()
def test_a_step_is_the_same_with_and_without_a_start_in_it(lstm, starts):
    x, state = values()
    is_init = torch.tensor(starts)
    zeroed = State(*(torch.where(is_init.view(1, -1, 1), 0, v) for v in state))
    assert_close(lstm.step(x, state, is_init)[0], expected(lstm, x, zeroed))
