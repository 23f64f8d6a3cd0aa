"""TorchRL's losses over recurrent nets: they vmap over parameters and set TorchRL's own recurrent mode."""

import pytest
import torch
import torchrl.modules
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, QValueActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, SACLoss, SoftUpdate
from torchrl.objectives.value import GAE

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"


def batch(B=3, T=5, action=None):
    """Rows of steps as an environment writes them; trajectories end within."""
    steps = {
        "observation": torch.randn(B, T, 4),
        "is_init": torch.rand(B, T, 1) < 0.3,
        H_IN: torch.randn(B, T, 1, 8),
        C_IN: torch.randn(B, T, 1, 8),
    }
    following = {"is_init": torch.rand(B, T, 1) < 0.3, "reward": torch.randn(B, T, 1)}
    following |= {key: torch.zeros(B, T, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
    following |= {key: torch.randn_like(steps[key]) for key in ("observation", H_IN, C_IN)}
    td = TensorDict({**steps, "next": TensorDict(following, [B, T])}, [B, T])
    td["action"] = torch.rand(B, T, 2) * 2 - 1 if action is None else action
    return td


def recurrent_critic():
    """``Q(observation, action)`` with an LSTM in the middle."""
    together = TensorDictModule(
        lambda observation, action: torch.cat([observation, action], -1), ["observation", "action"], ["both"]
    )
    return TensorDictSequential(
        together,
        LSTMModule(6, 8, in_keys=["both", H_IN, C_IN], out_key="features", lstm_backend="vmap"),
        ValueOperator(nn.Linear(8, 1), in_keys=["features"], out_keys=["state_action_value"]),
    )


def gaussian_actor(module):
    head = nn.Sequential(nn.Linear(8, 4), NormalParamExtractor())
    body = TensorDictSequential(module, TensorDictModule(head, ["features"], ["loc", "scale"]))
    return ProbabilisticActor(
        body, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True, spec=Bounded(-1, 1, (2,))
    )


@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_sac_vmaps_a_recurrent_critic_over_its_parameters(deactivate_vmap):
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend="vmap")
    loss = SACLoss(gaussian_actor(module), recurrent_critic(), num_qvalue_nets=2, deactivate_vmap=deactivate_vmap)
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.1)
    values = loss(batch())
    sum(value for key, value in values.items() if key.startswith("loss_")).backward()
    critics = dict(loss.qvalue_network_params.named_parameters())
    assert any("lstm" in name for name in critics)
    for name, parameter in critics.items():
        assert parameter.shape[0] == 2, name
        assert parameter.grad.flatten(1).any(-1).all(), f"{name}: no gradient in one of two critics"


def test_the_vmapped_loss_is_that_of_the_critics_one_by_one():
    torch.manual_seed(1)
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend="vmap")
    loss = SACLoss(gaussian_actor(module), recurrent_critic(), num_qvalue_nets=2)
    td = batch()
    with set_recurrent_mode(True):
        together = loss._vmap_qnetworkN0(
            td.select(*loss.qvalue_network.in_keys, strict=False), loss.qvalue_network_params
        )
        for k in range(2):
            with loss.qvalue_network_params[k].to_module(loss.qvalue_network):
                alone = loss.qvalue_network(td.clone())
            assert_close(together["state_action_value"][k], alone["state_action_value"])


def test_dqn_trains_a_recurrent_net(eager_backend):
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend=eager_backend)
    head = TensorDictModule(nn.Linear(8, 2), ["features"], ["action_value"])
    actor = QValueActor(TensorDictSequential(module, head), action_space="one-hot", spec=None)
    loss = DQNLoss(actor, action_space="one-hot", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.1)
    td = batch(action=nn.functional.one_hot(torch.randint(2, (3, 5)), 2))
    loss(td)["loss"].backward()
    assert all(p.grad.any() for p in loss.value_network_params.parameters())


def test_ppo_trains_actor_and_critic_on_one_shared_lstm(eager_backend):
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend=eager_backend)
    actor = gaussian_actor(module)
    critic = TensorDictSequential(module, ValueOperator(nn.Linear(8, 1), in_keys=["features"]))
    loss = ClipPPOLoss(actor, critic)
    loss.make_value_estimator(gamma=0.9, lmbda=0.9, deactivate_vmap=True)
    td = batch()
    with torch.no_grad(), set_recurrent_mode(True):
        acted = actor(td.clone())
    for key in ("action", "action_log_prob"):
        td[key] = acted[key]
    values = loss(td)
    sum(value for key, value in values.items() if key.startswith("loss_")).backward()
    assert_close(values["kl_approx"], torch.tensor(0.0), atol=1e-5, rtol=0)
    trained = dict(loss.actor_network_params.named_parameters())
    assert any("lstm" in name for name in trained)
    assert all(p.grad.any() for p in trained.values())


def with_actions(td, module):
    with torch.no_grad(), set_recurrent_mode(True):
        acted = gaussian_actor(module)(td.clone())
    for key in ("action", "action_log_prob"):
        td[key] = acted[key]
    return td


@pytest.mark.parametrize("mode", [True, False, None])
def test_a_loss_sets_the_mode_inside_whatever_context_is_around(mode):
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend="vmap")
    critic = TensorDictSequential(module, ValueOperator(nn.Linear(8, 1), in_keys=["features"]))
    loss = ClipPPOLoss(gaussian_actor(module), critic, entropy_bonus=False)
    loss.make_value_estimator(gamma=0.9, lmbda=0.9, deactivate_vmap=True)
    td = with_actions(batch(), module)
    td["action_log_prob"] = td["action_log_prob"] - 0.1
    with torch.no_grad():
        expected = loss(td.clone())["loss_objective"]
        for set_mode in (set_recurrent_mode, torchrl.modules.set_recurrent_mode):
            with set_mode(mode):
                assert_close(loss(td.clone())["loss_objective"], expected)


def test_gae_alone_runs_in_either_librarys_context():
    module = LSTMModule(4, 8, in_key="observation", out_key="features", lstm_backend="vmap")
    critic = TensorDictSequential(module, ValueOperator(nn.Linear(8, 1), in_keys=["features"]))
    gae, td, found = GAE(gamma=0.9, lmbda=0.9, value_network=critic, deactivate_vmap=True), batch(), []
    for set_mode in (set_recurrent_mode, torchrl.modules.set_recurrent_mode):
        for mode in (True, False):
            with torch.no_grad(), set_mode(mode):
                found.append(gae(td.clone())["advantage"])
    assert_close(found[:2], found[2:])
    assert not torch.allclose(found[0], found[1])
