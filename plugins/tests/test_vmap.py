"""The ``vmap`` backend under torch.func: over weights, data, both; second order, forward mode."""

import pytest
import torch
from rnn_backends import LSTM, LayerWeights, State
from rnn_backends.unroll import unroll
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

T, B, I, H, N = 6, 3, 2, 4, 5  # noqa: E741 - N: how many are mapped over


@pytest.fixture(params=[{}, {"proj_size": 2}, {"num_layers": 2, "bidirectional": True}], ids=str)
def lstms(request) -> list[LSTM]:
    torch.manual_seed(0)
    return [LSTM(I, H, dtype=torch.float64, lstm_backend="vmap", **request.param) for _ in range(N)]


def data(*lead: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    is_init = torch.rand(*lead, T, B) < 0.3
    is_init[..., 3, 0] = True
    return torch.randn(*lead, T, B, I, dtype=torch.float64), is_init


def output(lstm: LSTM, params: dict[str, Tensor], x: Tensor, is_init: Tensor) -> Tensor:
    return functional_call(lstm, params, (x,), {"is_init": is_init})[0]


def loss(lstm: LSTM, params: dict[str, Tensor], x: Tensor, is_init: Tensor) -> Tensor:
    return output(lstm, params, x, is_init).square().sum()


def params_of(lstm: LSTM) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in lstm.named_parameters()}


CASES = {"weights": (0, None, None), "data": (None, 0, 0), "both": (0, 0, 0), "resets alone": (None, None, 0)}


@pytest.mark.parametrize("dims", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("function", [output, lambda lstm, *args: grad(loss, argnums=(1, 2))(lstm, *args)])
def test_mapped_is_the_loop(lstms, dims, function):
    stacked = stack_module_state(lstms)[0]
    over_weights, over_x, over_is_init = dims
    x, _ = data(N) if over_x == 0 else data()
    _, is_init = data(N) if over_is_init == 0 else data()

    def of(k: int) -> object:
        params = params_of(lstms[k if over_weights == 0 else 0])
        return function(lstms[0], params, x[k] if over_x == 0 else x, is_init[k] if over_is_init == 0 else is_init)

    params = {k: v.detach() for k, v in stacked.items()} if over_weights == 0 else params_of(lstms[0])
    got = vmap(lambda p, v, r: function(lstms[0], p, v, r), in_dims=dims)(params, x, is_init)
    for k in range(N):
        torch.testing.assert_close(_pick(got, k), of(k))


def _pick(tree: object, k: int) -> object:
    return torch.utils._pytree.tree_map(lambda v: v[k], tree)


def test_per_sample_gradients(lstms):
    lstm, (x, is_init) = lstms[0], data()
    params = params_of(lstm)

    def of_one_row(p: dict[str, Tensor], row: Tensor, init: Tensor) -> Tensor:
        return loss(lstm, p, row, init)

    got = vmap(grad(of_one_row), in_dims=(None, 1, 1))(params, x, is_init)  # rows without a batch dimension
    for b in range(B):
        torch.testing.assert_close(_pick(got, b), grad(of_one_row)(params, x[:, b], is_init[:, b]))


def layer_case() -> tuple[tuple[Tensor, ...], Tensor]:
    torch.manual_seed(2)
    starts = torch.zeros(4, 2, dtype=torch.bool)
    starts[0], starts[2, 1] = True, True
    shapes = [(4, 2, I), (4, 2, 2), (4, 2, 3), (12, I), (12, 2), (12,), (12,), (2, 3)]  # T = 4, B = 2, H = 3, P = 2
    return tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes), starts


def layer(starts: Tensor, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> State:
    return unroll(LayerWeights(*weights), x, State(h, c), starts)


def test_first_and_second_gradients_are_those_of_finite_differences():
    values, starts = layer_case()
    assert torch.autograd.gradcheck(lambda *v: tuple(layer(starts, *v)), values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *v: tuple(layer(starts, *v)), values)


def test_jvp_of_the_module_is_its_finite_difference(lstms):
    lstm, (x, is_init) = lstms[0], data()
    params, tangent = params_of(lstm), torch.randn_like(x)
    pushed = {name: torch.randn_like(value) for name, value in params.items()}

    def at(step: float) -> Tensor:
        return output(lstm, {k: v + step * pushed[k] for k, v in params.items()}, x + step * tangent, is_init)

    value, derivative = jvp(lambda p, v: output(lstm, p, v, is_init), (params, x), (pushed, tangent))
    torch.testing.assert_close(value, at(0.0))
    torch.testing.assert_close(derivative, (at(1e-5) - at(-1e-5)) / 2e-5, atol=1e-7, rtol=1e-7)


def test_mapped_jvp_is_the_loop(lstms):
    lstm, (x, is_init) = lstms[0], data(N)
    params, tangent = params_of(lstm), torch.randn_like(x)

    def push(v: Tensor, t: Tensor, init: Tensor) -> Tensor:
        return jvp(lambda v: output(lstm, params, v, init), (v,), (t,))[1]

    loop = torch.stack([push(*args) for args in zip(x, tangent, is_init, strict=True)])
    torch.testing.assert_close(vmap(push)(x, tangent, is_init), loop)
