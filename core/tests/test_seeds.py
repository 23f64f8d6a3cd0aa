"""The two seed documents: their examples, unchanged except for the import line, and their sentences."""

import doctest
import re

import pytest
import rnn_backends
import torch
from rnn_backends import LSTM, InputError, LSTMModule, LSTMNet
from torch import nn

POLICY = """
>>> from torchrl.envs import TransformedEnv, InitTracker
>>> from torchrl.envs import GymEnv
>>> from torchrl.modules import MLP
>>> from torch import nn
>>> from tensordict.nn import TensorDictSequential as Seq, TensorDictModule as Mod
>>> env = TransformedEnv(GymEnv("Pendulum-v1"), InitTracker())
>>> lstm_module = LSTMModule(
...     input_size=env.observation_spec["observation"].shape[-1],
...     hidden_size=64,
...     in_keys=["observation", "rs_h", "rs_c"],
...     out_keys=["intermediate", ("next", "rs_h"), ("next", "rs_c")])
>>> mlp = MLP(num_cells=[64], out_features=1)
>>> policy = Seq(lstm_module, Mod(mlp, in_keys=["intermediate"], out_keys=["action"]))
>>> policy(env.reset())
TensorDict(
    fields={
        action: Tensor(shape=torch.Size([1]), device=cpu, dtype=torch.float32, is_shared=False),
        done: Tensor(shape=torch.Size([1]), device=cpu, dtype=torch.bool, is_shared=False),
        intermediate: Tensor(shape=torch.Size([64]), device=cpu, dtype=torch.float32, is_shared=False),
        is_init: Tensor(shape=torch.Size([1]), device=cpu, dtype=torch.bool, is_shared=False),
        next: TensorDict(
            fields={
                rs_c: Tensor(shape=torch.Size([1, 64]), device=cpu, dtype=torch.float32, is_shared=False),
                rs_h: Tensor(shape=torch.Size([1, 64]), device=cpu, dtype=torch.float32, is_shared=False)},
            batch_size=torch.Size([]),
            device=cpu,
            is_shared=False),
        observation: Tensor(shape=torch.Size([3]), device=cpu, dtype=torch.float32, is_shared=False)},
        terminated: Tensor(shape=torch.Size([1]), device=cpu, dtype=torch.bool, is_shared=False),
        truncated: Tensor(shape=torch.Size([1]), device=cpu, dtype=torch.bool, is_shared=False)},
    batch_size=torch.Size([]),
    device=cpu,
    is_shared=False)
"""

RECURRENT_MODE = """
>>> from torchrl.envs import TransformedEnv, InitTracker, step_mdp
>>> from torchrl.envs import GymEnv
>>> from torchrl.modules import MLP
>>> from tensordict import TensorDict
>>> from torch import nn
>>> from tensordict.nn import TensorDictSequential as Seq, TensorDictModule as Mod
>>> env = TransformedEnv(GymEnv("Pendulum-v1"), InitTracker())
>>> lstm = nn.LSTM(input_size=env.observation_spec["observation"].shape[-1], hidden_size=64, batch_first=True)
>>> lstm_module = LSTMModule(lstm=lstm, in_keys=["observation", "hidden0", "hidden1"], \
out_keys=["intermediate", ("next", "hidden0"), ("next", "hidden1")])
>>> mlp = MLP(num_cells=[64], out_features=1)
>>> # building two policies with different behaviours:
>>> policy_inference = Seq(lstm_module, Mod(mlp, in_keys=["intermediate"], out_keys=["action"]))
>>> policy_training = Seq(lstm_module.set_recurrent_mode(True), Mod(mlp, in_keys=["intermediate"], out_keys=["action"]))
>>> traj_td = env.rollout(3) # some random temporal data
>>> traj_td = policy_training(traj_td)
>>> # let's check that both return the same results
>>> td_inf = TensorDict({}, traj_td.shape[:-1])
>>> for td in traj_td.unbind(-1):
...     td_inf = td_inf.update(td.select("is_init", "observation", ("next", "observation")))
...     td_inf = policy_inference(td_inf)
...     td_inf = step_mdp(td_inf)
...
>>> torch.testing.assert_close(td_inf["hidden0"], traj_td[..., -1]["next", "hidden0"])
"""

NET = """
>>> batch = 7
>>> time_steps = 6
>>> in_features = 4
>>> out_features = 10
>>> hidden_size = 5
>>> net = LSTMNet(
...     out_features,
...     {"input_size": hidden_size, "hidden_size": hidden_size},
...     {"out_features": hidden_size},
... )
>>> # test single step vs multi-step
>>> x = torch.randn(batch, time_steps, in_features)  # >3 dims = multi-step
>>> y, hidden0_in, hidden1_in, hidden0_out, hidden1_out = net(x)
>>> x = torch.randn(batch, in_features)  # 2 dims = single step
>>> y, hidden0_in, hidden1_in, hidden0_out, hidden1_out = net(x)
"""

ENTRY = re.compile(r"(\w+): (Tensor\(shape=torch\.Size\(\[[\d, ]*\]\)|TensorDict).*?(dtype=[\w.]+|$)", re.MULTILINE)


class SameEntries(doctest.OutputChecker):
    """Printed TensorDicts agree if names, nesting order, shapes and dtypes do: the seed's braces are not even
    balanced."""

    def check_output(self, want, got, optionflags):
        if want.startswith("TensorDict("):
            return ENTRY.findall(want) == ENTRY.findall(got)
        return super().check_output(want, got, optionflags)


@pytest.mark.parametrize("example", [POLICY, RECURRENT_MODE, NET], ids=["policy", "recurrent_mode", "net"])
def test_the_examples_run_as_they_stand(example, capsys):
    if "torchrl" in example:
        pytest.importorskip("torchrl", reason="TorchRL is an extra")
    names = {"torch": torch, "LSTMModule": LSTMModule, "LSTMNet": LSTMNet}
    test = doctest.DocTestParser().get_doctest(example, names, "seed", None, None)
    assert len(test.examples) >= 8
    result = doctest.DocTestRunner(SameEntries()).run(test)
    assert result.failed == 0, capsys.readouterr().out


def test_the_comparison_of_printed_tensordicts_sees_a_wrong_shape():
    printed = POLICY[POLICY.index("TensorDict(\n") :]
    assert len(ENTRY.findall(printed)) == 10
    assert SameEntries().check_output(printed, printed, 0)
    assert not SameEntries().check_output(printed, printed.replace("[1, 64]", "[64]"), 0)


def test_module_after_construction_is_not_in_recurrent_mode():
    assert LSTMModule(3, 4, in_key="x", out_key="y").recurrent_mode is False


def test_module_takes_any_batch_size_in_recurrent_mode(rows):
    module = LSTMModule(3, 4, in_key="x", out_key="y").set_recurrent_mode(True)
    for batch in ((5,), (2, 5), (2, 1, 5), (1, 2, 2, 5)):
        assert module(rows(batch))["y"].shape == (*batch, 4)


def test_module_parameters_are_in_the_documents_order_and_have_its_defaults():
    module = LSTMModule(3, 4, 2, False, True, 0.5, in_key="x", out_key="y", lstm_backend="vmap")
    lstm = module.lstm
    assert (lstm.num_layers, lstm.bias, lstm.batch_first, lstm.dropout) == (2, False, True, 0.5)
    plain = LSTMModule(3, 4, in_key="x", out_key="y").lstm
    assert (plain.num_layers, plain.bias, plain.dropout) == (1, True, 0)


def test_module_python_based_is_the_vmap_backend():
    assert LSTMModule(3, 4, python_based=True, in_key="x", out_key="y").lstm_backend == "vmap"
    with pytest.raises(InputError, match="python_based"):
        LSTMModule(3, 4, python_based=True, in_key="x", out_key="y", lstm_backend="torchscript")


@pytest.mark.parametrize("key", ["x", ("agents", "x")], ids=str)
def test_module_default_recurrent_keys(key):
    module = LSTMModule(3, 4, in_key=key, out_key=key)
    assert module.in_keys[:3] == [key, "recurrent_state_h", "recurrent_state_c"]
    assert module.out_keys == [key, ("next", "recurrent_state_h"), ("next", "recurrent_state_c")]


def test_module_device_and_wrapped_lstm():
    assert LSTMModule(3, 4, in_key="x", out_key="y", device="meta").lstm.weight_ih_l0.device.type == "meta"
    lstm = nn.LSTM(3, 4, batch_first=True)
    assert LSTMModule(lstm=lstm, in_key="x", out_key="y").lstm.weight_ih_l0 is lstm.weight_ih_l0


def test_module_set_recurrent_mode_returns_a_copy_that_shares_the_lstm():
    module = LSTMModule(3, 4, in_key="x", out_key="y")
    training = module.set_recurrent_mode(True)
    assert training is not module
    assert training.lstm is module.lstm
    assert (module.recurrent_mode, training.recurrent_mode) == (False, True)
    assert module.set_recurrent_mode(False) is module
    assert training.set_recurrent_mode() is training, "mode defaults to True"


def test_net_backends_of_the_document():
    for name, backend in (("torchrl", "vmap"), ("torch", "cudnn"), (None, LSTM(5, 5).lstm_backend)):
        net = LSTMNet(2, {"input_size": 5, "hidden_size": 5}, {"out_features": 5}, lstm_backend=name)
        assert net.lstm.lstm_backend == backend


def test_all_names_of_the_documents_are_public():
    assert {"LSTMNet", "LSTMModule", "set_recurrent_mode"} <= set(rnn_backends.__all__)
