"""``rnn_backends.testing``: a right policy passes; each common mistake is planted, and the message names it with its
line."""

import pytest
import torch
from rnn_backends import InputError, LSTMModule, set_recurrent_mode
from rnn_backends.testing import assert_rollout_equals_replay, diagnose
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import (
    Compose,
    GymEnv,
    InitTracker,
    SerialEnv,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
)
from torchrl.modules import ProbabilisticActor


def policy_with(**options):
    torch.manual_seed(0)
    module = LSTMModule(4, 8, **{"in_key": "observation", "out_key": "features", **options})
    size = module.lstm.spec.output_size * (2 if module.lstm.bidirectional else 1)
    head = TensorDictModule(nn.Linear(size, 2), ["features"], ["logits"])
    return ProbabilisticActor(
        TensorDictSequential(module, head),
        in_keys=["logits"],
        distribution_class=torch.distributions.OneHotCategorical,
    )


def memory_of(policy):
    return next(module for module in policy.modules() if isinstance(module, LSTMModule))


def env_with(*transforms, base=None):
    env = TransformedEnv(base or GymEnv("CartPole-v1"), Compose(*transforms))
    env.set_seed(0)
    return env


def right(policy, **options):
    return env_with(InitTracker(), memory_of(policy).make_tensordict_primer(), **options)


def mistakes(policy, env, **options):
    found = diagnose(policy, env, **options)
    assert not found.healthy
    with pytest.raises(AssertionError) as raised:
        assert_rollout_equals_replay(policy, env, **options)
    for mistake in found.mistakes:  # the message has both
        assert mistake.name in str(raised.value)
        assert mistake.line in str(raised.value)
    return {mistake.name: mistake for mistake in found.mistakes}


def stored(policy, rows=4, T=20):
    env = right(policy, base=SerialEnv(rows, lambda: GymEnv("CartPole-v1")))
    with torch.no_grad():
        return env.rollout(T, policy, break_when_any_done=False)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 3}, {"dtype": torch.float64}], ids=str)
def test_a_right_policy_passes(options):
    policy = policy_with(**options)
    env = right(policy)
    if options.get("dtype"):
        from torchrl.envs import DTypeCastTransform

        env = env_with(
            DTypeCastTransform(torch.float32, torch.float64, in_keys=["observation"]),
            InitTracker(),
            memory_of(policy).make_tensordict_primer(),
        )
        memory_of(policy)
        policy = policy.double()
    found = diagnose(policy, env)
    assert found.healthy, str(found)
    assert found.steps == 64
    assert_rollout_equals_replay(policy, env)


@pytest.mark.parametrize("batched", [False, True])
def test_a_right_policy_passes_in_batched_environments_and_under_nested_keys(batched):
    keys = ("memory", "h"), ("memory", "c")
    policy = policy_with(
        in_key=None, in_keys=["observation", *keys], out_key=None, out_keys=["features", *(("next", *k) for k in keys)]
    )
    base = SerialEnv(3, lambda: GymEnv("CartPole-v1")) if batched else None
    assert_rollout_equals_replay(policy, right(policy, base=base))


def test_data_of_the_same_weights_passes():
    policy = policy_with()
    assert_rollout_equals_replay(policy, right(policy), data=stored(policy))


def test_no_init_tracker():
    policy = policy_with()
    env = env_with(memory_of(policy).make_tensordict_primer())
    found = mistakes(policy, env)
    assert found.keys() == {"no InitTracker"}
    assert found["no InitTracker"].line == "env.append_transform(InitTracker())"


def test_no_init_tracker_under_another_key():
    policy = policy_with(is_init_key="start")
    found = mistakes(policy, right(policy))  # its InitTracker writes "is_init"
    assert found["no InitTracker"].line == "env.append_transform(InitTracker(init_key='start'))"


def test_no_primer():
    policy = policy_with()
    found = mistakes(policy, env_with(InitTracker()))
    assert found.keys() == {"no primer"}
    assert found["no primer"].line == "env.append_transform(module.make_tensordict_primer())"
    assert diagnose(policy, env_with(InitTracker())).agrees is False


def test_neither_is_named_twice():
    policy = policy_with()
    assert mistakes(policy, env_with(Compose())).keys() == {"no InitTracker", "no primer"}


def test_hidden_keys_written_under_names_that_are_not_read():
    policy = policy_with(out_key=None, out_keys=["features", ("next", "h"), ("next", "c")])
    primer = policy_with().module[0][0].make_tensordict_primer()
    found = mistakes(policy, env_with(InitTracker(), primer))
    assert found.keys() == {"hidden keys not carried"}
    assert "('next', 'recurrent_state_h')" in found["hidden keys not carried"].line


def test_hidden_keys_dropped_by_the_policy():
    policy = policy_with()
    env = right(policy)
    policy.select_out_keys("action")
    found = mistakes(policy, env)
    assert found["hidden keys not carried"].line.startswith("policy.select_out_keys(")


def test_hidden_keys_that_the_module_itself_no_longer_writes():
    policy = policy_with()
    env = right(policy)
    memory_of(policy).select_out_keys("features")
    assert mistakes(policy, env)["hidden keys not carried"].line.startswith("module.reset_out_keys()")


def test_is_init_with_a_dimension_too_many():
    policy = policy_with()
    env = env_with(
        InitTracker(), UnsqueezeTransform(dim=-1, in_keys=["is_init"]), memory_of(policy).make_tensordict_primer()
    )
    found = mistakes(policy, env)
    assert "(1, 1)" in found["is_init of the wrong shape"].seen


class Writes(Transform):
    """Writes a constant under a key in every step: a faulty transform."""

    def __init__(self, key, value=0.0, at_reset=False):
        super().__init__(in_keys=[key], out_keys=[key])
        self.value, self.at_reset = value, at_reset

    def _apply_transform(self, entry):
        return torch.full_like(entry, self.value)

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset) if self.at_reset else tensordict_reset


@pytest.mark.parametrize("key", ["recurrent_state_h", "recurrent_state_c"])
def test_states_reset_by_a_transform(key):
    policy = policy_with()
    env = right(policy)
    env.append_transform(Writes(key))
    found = mistakes(policy, env)
    assert found.keys() == {"states reset by a transform"}
    assert found["states reset by a transform"].line == f"Writes(in_keys=[...])  # without {key!r}"


def test_starts_that_are_not_marked():
    policy = policy_with()
    env = right(policy)
    env.append_transform(Writes("is_init", False, at_reset=True))
    found = mistakes(policy, env)
    assert found.keys() == {"is_init not true after done"}
    assert "InitTracker()" in found["is_init not true after done"].line


OWN = {"in_keys": ["observation", "h2", "c2"], "out_keys": ["values", ("next", "h2"), ("next", "c2")]}
OTHERS = {
    "another with the same keys": lambda module: LSTMModule(4, 8, in_key="observation", out_key="values"),
    "itself": lambda module: module,
    "its twin": lambda module: module.with_backend("vmap"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_hidden_keys_of_two_modules(other):
    policy = policy_with()
    found = mistakes(TensorDictSequential(other(memory_of(policy)), policy), right(policy))
    assert found.keys() == {"hidden keys shared"}
    assert "('next', 'recurrent_state_h') is written 2 times in each step" in found["hidden keys shared"].seen


def test_two_modules_with_keys_of_their_own_are_right():
    policy, critic = policy_with(), LSTMModule(4, 8, **OWN)
    env = right(policy).append_transform(critic.make_tensordict_primer())
    assert_rollout_equals_replay(TensorDictSequential(critic, policy), env)


def test_a_twin_that_does_not_act_shares_the_keys():
    policy = policy_with()
    policy.trained = memory_of(policy).set_recurrent_mode(True)
    assert "hidden keys shared" not in str(diagnose(policy, right(policy)))


def test_bidirectional_while_acting():
    policy = policy_with(bidirectional=True)
    found = mistakes(policy, right(policy))
    assert found["bidirectional while acting"].line == "LSTMModule(..., bidirectional=False)"
    assert diagnose(policy, right(policy)).agrees is False


def test_recurrent_mode_while_acting():
    policy = policy_with(default_recurrent_mode=True)
    assert "recurrent mode while acting" in mistakes(policy, right(policy))


def test_dropout_while_acting():
    policy = policy_with(num_layers=2, dropout=0.5)
    assert mistakes(policy, right(policy)).keys() == {"dropout while acting"}
    assert_rollout_equals_replay(policy.eval(), right(policy))


def test_batch_and_time_swapped():
    policy = policy_with()
    found = mistakes(policy, right(policy), data=stored(policy).transpose(0, 1))
    assert found.keys() == {"batch and time swapped"}
    assert found["batch and time swapped"].line == "data = data.transpose(0, 1)"


@pytest.mark.parametrize("with_next", [True, False])
def test_stale_states_in_a_buffer(with_next):
    policy = policy_with()
    data = stored(policy)
    with torch.no_grad():
        memory_of(policy).lstm.weight_hh_l0.add_(0.1)
    found = mistakes(policy, right(policy), data=data if with_next else data.exclude("next"))
    assert found.keys() == {"stale states in a buffer"}
    assert "burn in" in found["stale states in a buffer"].line


def test_shuffled_rows():
    policy = policy_with()
    data = stored(policy)
    found = mistakes(policy, right(policy), data=data[:, torch.randperm(data.shape[1])])
    assert found.keys() == {"rows are not in order"}


def test_data_without_states_or_mask():
    policy = policy_with()
    data = stored(policy)
    assert mistakes(policy, right(policy), data=data.exclude("recurrent_state_c")).keys() == {"hidden keys not carried"}
    assert mistakes(policy, right(policy), data=data.exclude("is_init")).keys() == {"no InitTracker"}
    wrong = data.clone().set("is_init", data["is_init"].unsqueeze(-1))
    assert mistakes(policy, right(policy), data=wrong).keys() == {"is_init of the wrong shape"}


def test_a_difference_without_a_usual_mistake_says_where_it_is():
    policy = policy_with()
    calls = iter(range(10**6))
    observe = TensorDictModule(lambda x: x + 0.1 * (next(calls) > 5), ["observation"], ["observation"])
    with pytest.raises(AssertionError, match="none of the common mistakes was seen"):
        assert_rollout_equals_replay(TensorDictSequential(observe, policy), right(policy))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match=r"holds no rnn_backends\.LSTMModule: Linear"):
        diagnose(nn.Linear(2, 2), None)
    policy = policy_with()
    with pytest.raises(InputError, match="steps must be at least 2"):
        diagnose(policy, right(policy), steps=1)
    with pytest.raises(InputError, match="data needs a time dimension"):
        diagnose(policy, right(policy), data=stored(policy)[0, :1])


def test_no_hook_and_no_mode_stays_behind():
    policy = policy_with()
    diagnose(policy, right(policy), data=stored(policy))
    assert not memory_of(policy)._forward_hooks
    assert not memory_of(policy).recurrent_mode
    with set_recurrent_mode(True):
        assert diagnose(policy, right(policy)).mistakes[0].name == "recurrent mode while acting"
