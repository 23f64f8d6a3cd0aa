"""TorchRL's losses with the default backend give the values and gradients that backend ``vmap`` gives."""

import pytest
import torch
from rnn_backends import LSTMModule
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, QValueActor, TanhModule, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, REDQLoss, SACLoss, SoftUpdate, TD3Loss
from torchrl.objectives.value import GAE

H, C = "recurrent_state_h", "recurrent_state_c"
BOUNDS = Bounded(-1, 1, (2,))


def batch(action=None):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(3, 5, *shape, generator=g)

    steps = {"observation": draw(4), "is_init": draw(1) < -0.5, H: draw(1, 8), C: draw(1, 8)}
    following = {"observation": draw(4), "is_init": draw(1) < -0.5, H: draw(1, 8), C: draw(1, 8), "reward": draw(1)}
    following |= {key: torch.zeros(3, 5, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
    td = TensorDict({**steps, "next": TensorDict(following, [3, 5])}, [3, 5])
    td["action"] = draw(2).tanh() if action is None else action
    return td


def body(backend):
    return LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend=backend)


def gaussian(backend):
    head = nn.Sequential(nn.Linear(8, 4), NormalParamExtractor())
    net = TensorDictSequential(body(backend), TensorDictModule(head, ["features"], ["loc", "scale"]))
    return ProbabilisticActor(
        net, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True, spec=BOUNDS
    )


def critic(backend):
    both = TensorDictModule(lambda o, a: torch.cat([o, a], -1), ["observation", "action"], ["both"])
    lstm = LSTMModule(6, 8, in_keys=["both", H, C], out_key="features", lstm_backend=backend)
    value = ValueOperator(nn.Linear(8, 1), in_keys=["features"], out_keys=["state_action_value"])
    return TensorDictSequential(both, lstm, value)


def sac(backend):
    return SACLoss(gaussian(backend), critic(backend), num_qvalue_nets=3), batch()


def redq(backend):
    return REDQLoss(gaussian(backend), critic(backend), num_qvalue_nets=3, sub_sample_len=2), batch()


def td3(backend):
    head = TensorDictModule(nn.Linear(8, 2), ["features"], ["action"])
    actor = TensorDictSequential(body(backend), head, TanhModule(in_keys=["action"], spec=BOUNDS))
    return TD3Loss(actor, critic(backend), bounds=(-1, 1), num_qvalue_nets=2), batch()


def dqn(backend):
    head = TensorDictModule(nn.Linear(8, 2), ["features"], ["action_value"])
    actor = QValueActor(TensorDictSequential(body(backend), head), action_space="one-hot", spec=None)
    action = nn.functional.one_hot(torch.arange(15).view(3, 5) % 2, 2)
    return DQNLoss(actor, action_space="one-hot", delay_value=True), batch(action)


def value_net(backend):
    return TensorDictSequential(body(backend), ValueOperator(nn.Linear(8, 1), in_keys=["features"]))


def ppo(backend):
    loss, td = ClipPPOLoss(gaussian(backend), value_net(backend)), batch()
    td["action_log_prob"] = torch.full((3, 5), -1.0)
    return loss, td


def values_and_gradients(make, backend):
    torch.manual_seed(0)
    loss, td = make(backend)
    options = {"lmbda": 0.9, "deactivate_vmap": True} if make is ppo else {}
    loss.make_value_estimator(gamma=0.9, **options)
    if make is not ppo:
        SoftUpdate(loss, tau=0.1)
    torch.manual_seed(1)
    values = {key: value for key, value in loss(td).items() if key.startswith("loss")}
    sum(value.sum() for value in values.values()).backward()
    gradients = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    assert any("lstm" in name for name in gradients)
    return values, gradients


@pytest.mark.parametrize("make", [sac, redq, td3, dqn, ppo])
def test_a_loss_and_its_gradients(make):
    assert_close(values_and_gradients(make, None), values_and_gradients(make, "vmap"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_generalised_advantages(shifted):
    found = []
    for backend in (None, "vmap"):
        torch.manual_seed(0)
        options = {"deactivate_vmap": True} if not shifted else {}
        estimator = GAE(gamma=0.9, lmbda=0.9, value_network=value_net(backend), shifted=shifted, **options)
        found.append(estimator(batch())["advantage"])
    assert_close(*found, atol=1e-5, rtol=1e-4)
