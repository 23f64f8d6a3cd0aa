"""Acting without a carried state: one warning, and none if no state is needed."""

import copy
import pickle
import warnings

import pytest
import torch
from rnn_backends import LSTMModule, set_recurrent_mode
from tensordict import TensorDict

WORDS = r"acts without memory: 'recurrent_state_h' and 'recurrent_state_c' are absent.*make_tensordict_primer\(\)"


def made(**options):
    torch.manual_seed(0)
    return LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap", **options)


def step(*starts, state=False):
    td = TensorDict({"x": torch.randn(len(starts), 3), "is_init": torch.tensor(starts)[:, None]}, [len(starts)])
    if state:
        td["recurrent_state_h"] = td["recurrent_state_c"] = torch.zeros(len(starts), 1, 4)
    return td


def run(module, *tds):
    """The number of warnings."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for td in tds:
            module(td)
    return len(found)


def test_the_second_step_that_lacks_its_state_warns_and_no_other():
    module = made()
    assert run(module, step(True, True), step(True, False)) == 0
    with pytest.warns(UserWarning, match=WORDS):
        module(step(False, False))
    assert run(module, *(step(False, False) for _ in range(3))) == 0
    assert run(made(), *(step(False, False) for _ in range(9))) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m])
def test_copies_go_on_counting(copied):
    module = made()
    module(step(False, False))
    assert run(copied(module), step(False, False)) == 1


def test_steps_that_need_no_state_or_have_one_do_not_warn():
    assert run(made(), *(step(True, True) for _ in range(5))) == 0
    assert run(made(), *(step(False, True, state=True) for _ in range(5))) == 0
    rows = TensorDict({"x": torch.randn(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}, [2, 5])
    assert run(made(default_recurrent_mode=True), *(rows.clone() for _ in range(5))) == 0
    with set_recurrent_mode(True):
        assert run(made(), *(rows.clone() for _ in range(5))) == 0


def test_nothing_is_looked_at_where_it_is_compiled_traced_or_has_no_numbers():
    module = made()

    def call(x, is_init):
        return module(TensorDict({"x": x, "is_init": is_init}, [2]))["y"]

    given = torch.randn(2, 3), torch.zeros(2, 1, dtype=torch.bool)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    on_meta = made(device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            compiled(*given)
            torch.vmap(call)(*(torch.stack([v, v]) for v in given))
            on_meta(step(False, False).to("meta"))
    assert module._stateless_steps == on_meta._stateless_steps == 0


def test_an_environment_without_the_primer_is_told_of_it_and_one_with_it_is_not():
    envs = pytest.importorskip("torchrl.envs", reason="TorchRL is an extra")
    pytest.importorskip("gymnasium", reason="Gymnasium is an extra")
    module = LSTMModule(4, 8, in_key="observation", out_key="f")
    policy = torch.nn.Linear(8, 2)

    def act(td):
        return module(td).set("action", torch.nn.functional.one_hot(policy(td["f"]).argmax(-1), 2))

    def env(*more):
        return envs.TransformedEnv(envs.GymEnv("CartPole-v1"), envs.Compose(envs.InitTracker(), *more))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*acts without memory")
        env(module.make_tensordict_primer()).rollout(5, act)
        with pytest.raises(UserWarning, match="acts without memory"):
            env().rollout(5, act)


@pytest.mark.parametrize("capturing", [True, False])
def test_no_mask_is_read_into_a_cuda_graph(monkeypatch, capturing):
    """A read during the capture of a stream is a CUDA error that ends the capture. Only the device is simulated
    here."""
    module, given, read = made(), step(False, False), []

    def reads(value):
        read.append(value)
        return torch.zeros((), dtype=torch.bool)

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.Tensor, "all", reads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            module(given.clone())
    assert len(read) == module._stateless_steps == (0 if capturing else 2)
    assert len(caught) == (0 if capturing else 1)
