"""Used by TorchRL: rollouts, primers, collectors, GAE; acting and replay agree."""

from functools import partial

import pytest
import torch
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    GymEnv,
    InitTracker,
    ParallelEnv,
    SerialEnv,
    TensorDictPrimer,
    TransformedEnv,
    step_mdp,
)
from torchrl.modules import ProbabilisticActor, ValueOperator, recurrent_mode
from torchrl.modules import set_recurrent_mode as torchrls_set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives.value import GAE

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"


def cartpole():
    return GymEnv("CartPole-v1")


def make(**options):
    return LSTMModule(4, 8, 2, **{"in_key": "observation", "out_key": "features", **options})


def policy_with(module):
    head = TensorDictModule(nn.Linear(8, 2), in_keys=["features"], out_keys=["logits"])
    body = TensorDictSequential(module, head)
    options = {"distribution_class": torch.distributions.OneHotCategorical, "return_log_prob": True}
    return ProbabilisticActor(body, in_keys=["logits"], out_keys=["action"], **options)


def env_with(module, base=None):
    return TransformedEnv(base or cartpole(), Compose(InitTracker(), module.make_tensordict_primer()))


def ends_of(td):
    """The steps where a trajectory ends in the data: before an ``is_init``, and the last one."""
    is_init = td["is_init"].squeeze(-1)
    return torch.cat([is_init[..., 1:], torch.ones_like(is_init[..., :1])], -1)


def assert_replay_equals_acting(module, acted, tolerance=1e-5):
    """Outputs at every step, and end states at every trajectory's end, from the states stored while acting."""
    assert acted["is_init"].sum() > acted.batch_size[:-1].numel(), "no trajectory ends within the data"
    replayed = module.set_recurrent_mode(True)(acted.select("observation", "is_init", H_IN, C_IN))
    assert_close(replayed["features"], acted["features"], rtol=tolerance, atol=tolerance)
    stop = ends_of(acted)
    for key in (("next", H_IN), ("next", C_IN)):
        assert_close(replayed[key][stop], acted[key][stop], rtol=tolerance, atol=tolerance)
        assert not replayed[key][~stop].any()


@torch.no_grad()
def test_a_rollout_across_resets_is_replayed(eager_backend):
    module = make(lstm_backend=eager_backend)
    env, policy = env_with(module), policy_with(module)
    env.set_seed(0)
    assert_replay_equals_acting(module, env.rollout(60, policy, break_when_any_done=False))


@torch.no_grad()
def test_the_compile_backend_acts_and_replays_too():
    module = make(lstm_backend="compile")
    env = env_with(module)
    env.set_seed(0)
    assert_replay_equals_acting(module, env.rollout(40, policy_with(module), break_when_any_done=False))


@torch.no_grad()
def test_acting_on_one_backend_and_replaying_on_another(eager_backend):
    module = make(lstm_backend="vmap")
    env = env_with(module)
    env.set_seed(0)
    acted = env.rollout(60, policy_with(module), break_when_any_done=False)
    assert_replay_equals_acting(module.with_backend(eager_backend), acted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", ["around the workers", "in each worker"])
def test_a_collector_over_parallel_environments(wrap):
    """Also replayed from a batch's first step, where the stored state is not zero."""
    module = make(lstm_backend="cudnn")
    if wrap == "in each worker":
        env = ParallelEnv(2, partial(env_with, module), mp_start_method="fork")
    else:
        env = env_with(module, ParallelEnv(2, cartpole, mp_start_method="fork"))
    collector = Collector(env, policy_with(module), frames_per_batch=80, total_frames=160)
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    assert [tuple(batch.batch_size) for batch in batches] == [(2, 40), (2, 40)]
    for batch in batches:
        assert_replay_equals_acting(module, batch.detach())
    first = batches[1][:, 0]
    assert first[H_IN][~first["is_init"].squeeze(-1)].any(), "the second batch continues where the first stopped"


def test_the_primer_tells_the_environment_of_the_states():
    module = make()
    primer = module.make_tensordict_primer()
    assert isinstance(primer, TensorDictPrimer)
    env = env_with(module)
    td = env.reset()
    assert (td[H_IN].shape, td[C_IN].shape) == ((2, 8), (2, 8))
    assert not td[H_IN].any()
    assert env.observation_spec[H_IN].shape == (2, 8)
    env.check_env_specs()


def test_the_primer_takes_the_batch_size_of_the_environment():
    td = env_with(make(), SerialEnv(3, cartpole)).reset()
    assert (td[H_IN].shape, td[C_IN].shape) == ((3, 2, 8), (3, 2, 8))


def test_the_primer_with_projection_nested_keys_and_dtype():
    module = LSTMModule(
        4,
        8,
        proj_size=3,
        bidirectional=True,
        in_keys=["observation", ("deep", "h"), ("deep", "c")],
        out_keys=["features", ("next", "deep", "h"), ("next", "deep", "c")],
        dtype=torch.float64,
    )
    td = env_with(module).reset()
    assert (td["deep", "h"].shape, td["deep", "c"].shape) == ((2, 3), (2, 8))
    assert td["deep", "h"].dtype == torch.float64


def test_torchrl_finds_the_primer_in_a_policy():
    primer = get_primers_from_module(policy_with(make()))
    assert isinstance(primer, TensorDictPrimer)
    assert {H_IN, C_IN} == set(primer.primers.keys())


def test_a_primer_is_refused_where_an_environment_could_not_carry_the_state():
    module = LSTMModule(4, 8, in_keys=["x", "h", "c"], out_keys=["y", "h", "c"])
    with pytest.raises(ValueError, match="'next'"):
        module.make_tensordict_primer()


@torch.no_grad()
def test_without_a_primer_steps_go_on_by_step_mdp():
    env, module = TransformedEnv(cartpole(), InitTracker()), make()
    policy = policy_with(module)
    td = policy(env.reset())
    assert H_IN not in set(td.keys())
    td = step_mdp(env.step(td))
    assert td[H_IN].shape == (2, 8)


def test_torchrls_mode_takes_effect_on_ours_and_ours_wins_inside():
    module = make()
    with torchrls_set_recurrent_mode("recurrent"):
        assert module.recurrent_mode
        assert recurrent_mode() is True
        with set_recurrent_mode(False):
            assert not module.recurrent_mode
        with torchrls_set_recurrent_mode(False):
            assert not module.set_recurrent_mode(True).recurrent_mode
        assert module.recurrent_mode
    assert not module.recurrent_mode


@pytest.mark.parametrize("shifted", [False, True])
def test_gae_with_a_recurrent_value_net(eager_backend, shifted):
    module = make(lstm_backend=eager_backend)
    env = env_with(module)
    env.set_seed(0)
    value = TensorDictSequential(module, ValueOperator(nn.Linear(8, 1), in_keys=["features"]))
    with torch.no_grad():
        data = env.rollout(50, policy_with(module), break_when_any_done=False)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=value, shifted=shifted, deactivate_vmap=True)
    out = gae(data.unsqueeze(0))
    with set_recurrent_mode(True):
        replayed = value(data.clone())
    assert_close(out["state_value"].squeeze(0), replayed["state_value"])
    assert out["advantage"].isfinite().all()
