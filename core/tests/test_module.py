"""``LSTMModule`` over TensorDicts: keys, values, ends, calls; one step and over time."""

import pytest
import torch
from rnn_backends import LSTM, InputError, LSTMBackend, LSTMModule, Trait, UnsupportedError, get_backend
from rnn_backends.unroll import unroll
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close

H_IN, C_IN = "recurrent_state_h", "recurrent_state_c"
H_OUT, C_OUT = ("next", H_IN), ("next", C_IN)


def make(*args, recurrent=False, **kwargs):
    if not args and "lstm" not in kwargs:
        args = (3, 4)
    return LSTMModule(*args, **{"in_key": "x", "out_key": "y", "default_recurrent_mode": recurrent, **kwargs})


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "proj_size": 2}, {"bidirectional": True}], ids=str)
def test_over_time_it_starts_each_sequence_from_the_stored_state(backend, rows, witness, options):
    module = make(3, 4, recurrent=True, dtype=torch.float64, lstm_backend=backend, **options)
    spec = module.lstm.spec
    td = rows((4, 6), K=spec.num_states, P=spec.output_size, dtype=torch.float64)
    td["is_init"][0], td["is_init"][1], td["is_init"][2, -2:] = True, False, True
    out = module(td.clone())
    expected = witness(module.lstm, td["x"], td["is_init"].squeeze(-1), td[H_IN], td[C_IN])
    for key, value in zip(("y", H_OUT, C_OUT), expected, strict=True):
        assert_close(out[key], value, rtol=1e-11, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")


def test_between_the_ends_the_hidden_outputs_are_exactly_zero(backend, rows):
    module = make(recurrent=True, lstm_backend=backend)
    td = rows((1, 6))
    td["is_init"] = torch.tensor([0, 0, 0, 1, 0, 0]).bool().view(1, 6, 1)
    out = module(td)
    for key in (H_OUT, C_OUT):
        assert out[key].ne(0).all(-1).flatten().int().tolist() == [0, 0, 1, 0, 0, 1]
        assert out[key].ne(0).any(-1).flatten().int().tolist() == [0, 0, 1, 0, 0, 1]


def test_one_step_where_is_init_the_incoming_state_is_zero(backend, rows):
    module = make(3, 4, 2, lstm_backend=backend)
    td = rows((5,), K=2)
    td["is_init"] = torch.tensor([1, 0, 1, 0, 0]).bool().unsqueeze(-1)
    out = module(td.clone())
    fresh = ~td["is_init"].unsqueeze(-1)
    hx = [torch.where(fresh, td[key], 0).transpose(0, 1).contiguous() for key in (H_IN, C_IN)]
    torchs = nn.LSTM(3, 4, 2)
    torchs.load_state_dict(module.lstm.state_dict())
    y, (h, c) = torchs(td["x"].unsqueeze(0), tuple(hx))
    assert_close(out["y"], y.squeeze(0))
    assert_close((out[H_OUT], out[C_OUT]), (h.transpose(0, 1), c.transpose(0, 1)))


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_state_that_is_not_read_may_be_nan(eager_backend, rows, recurrent):
    """For one step where a sequence starts, over time where none starts."""
    module, td = make(recurrent=recurrent, lstm_backend=eager_backend), rows((3, 6))
    unread = td["is_init"].clone()
    if recurrent:
        unread[:, 0] = True
        unread = ~unread
    broken = td.clone()
    for key in (H_IN, C_IN):
        broken[key] = torch.where(unread.unsqueeze(-1), float("nan"), td[key])
    assert broken[H_IN].isnan().any()
    assert_close(module(broken).select("y", "next"), module(td).select("y", "next"))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "proj_size": 2}, {"bias": False}], ids=str)
def test_replay_equals_acting_and_ends_may_be_carried_over(eager_backend, rows, options):
    """The stored state at the start of a sequence is zero, as an environment writes it."""
    acting = make(3, 4, dtype=torch.float64, lstm_backend=eager_backend, **options)
    spec = acting.lstm.spec
    td = rows((3, 7), stored=False, dtype=torch.float64)
    lead = (3, spec.num_states)
    state = {H_IN: torch.zeros(*lead, spec.output_size).double(), C_IN: torch.zeros(*lead, 4).double()}
    steps = []
    for step in td.unbind(-1):
        steps.append(acting(step.clone().update(state)))
        state = {H_IN: steps[-1][H_OUT], C_IN: steps[-1][C_OUT]}
    acted = torch.stack(steps, -1)
    replayed = acting.set_recurrent_mode(True)(td)
    assert_close(replayed["y"], acted["y"], rtol=1e-11, atol=1e-11)
    ends = torch.cat([td["is_init"][:, 1:], torch.ones(3, 1, 1).bool()], 1).unsqueeze(-1)
    for key in (H_OUT, C_OUT):
        assert_close(replayed[key], torch.where(ends, acted[key], 0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("recurrent", [False, True])
def test_absent_hidden_keys_mean_zeros_and_nothing_else_is_written(eager_backend, rows, recurrent):
    module = make(recurrent=recurrent, lstm_backend=eager_backend)
    td = rows((2, 5))
    td[H_IN].zero_()
    td[C_IN].zero_()
    bare = td.select("x", "is_init")
    out = module(bare)
    assert out is bare
    assert set(out.keys(True, True)) == {"x", "is_init", "y", H_OUT, C_OUT}
    assert_close(out["y"], module(td)["y"])
    assert_close(out[C_OUT], td[C_OUT])


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_inputs_are_left_alone(eager_backend, rows, unchanged, recurrent):
    td = rows((2, 5), K=2)
    before = td.clone()
    make(3, 4, 2, recurrent=recurrent, lstm_backend=eager_backend)(td)
    unchanged(before, td.exclude("y", "next"))


def test_hidden_output_all_gives_the_state_after_every_step(rows):
    module = make(recurrent=True, hidden_output="all")
    assert Trait.CELL_STATES in get_backend(module.lstm_backend).traits
    td = rows((2, 6))
    out, ends = module(td.clone()), make(lstm=module.lstm, recurrent=True)(td.clone())
    assert_close(out[H_OUT].squeeze(-2), out["y"])
    stop = torch.cat([td["is_init"][:, 1:], torch.ones(2, 1, 1).bool()], 1).unsqueeze(-1)
    for key in (H_OUT, C_OUT):
        assert out[key].ne(0).all()
        assert_close(torch.where(stop, out[key], 0), ends[key])


ENDS_ONLY = LSTMBackend("ends only", unroll)


def test_hidden_output_all_is_refused_where_it_cannot_be():
    for request in ({"lstm_backend": ENDS_ONLY}, {"lstm": LSTM(3, 4, batch_first=True, lstm_backend=ENDS_ONLY)}):
        with pytest.raises(
            UnsupportedError, match=r"'ends only' does not support .*cell_states.*Backends that can: .*vmap"
        ):
            make(hidden_output="all", **request)
    with pytest.raises(InputError, match="bidirectional"):
        make(3, 4, bidirectional=True, hidden_output="all")
    with pytest.raises(InputError, match="'ends' or 'all'"):
        make(hidden_output="each")


def test_hidden_output_all_is_asked_of_a_later_backend_too():
    module = make(hidden_output="all", lstm_backend="vmap")
    with pytest.raises(UnsupportedError, match="cell_states"):
        module.with_backend(ENDS_ONLY)
    if Trait.CELL_STATES not in get_backend("cudnn").traits:
        with pytest.raises(UnsupportedError, match="cell_states"):
            module.make_cudnn_based()
    assert module.lstm_backend == "vmap"


@pytest.mark.parametrize("recurrent", [False, True])
def test_nested_keys_everywhere(eager_backend, rows, recurrent):
    flat = make(recurrent=recurrent, lstm_backend=eager_backend)
    nested = LSTMModule(
        in_keys=[("agents", "x"), ("agents", "h"), ("agents", "c")],
        out_keys=[("agents", "deep", "y"), ("next", "agents", "h"), ("next", "agents", "c")],
        is_init_key=("agents", "is_init"),
        lstm=flat.lstm,
        default_recurrent_mode=recurrent,
    )
    td = rows((2, 5))
    names = {"x": "x", "is_init": "is_init", "h": H_IN, "c": C_IN}
    inner = {new: td[old] for new, old in names.items()}
    out, expected = nested(TensorDict({"agents": inner}, [2, 5])), flat(td)
    assert_close(out["agents", "deep", "y"], expected["y"])
    assert_close(out["next", "agents", "c"], expected[C_OUT])


def test_the_reset_key_may_be_the_fourth_in_key(rows):
    module = LSTMModule(3, 4, in_keys=["x", H_IN, C_IN, "begin"], out_key="y")
    td = rows((2,)).rename_key_("is_init", "begin")
    assert module.in_keys[3] == "begin"
    assert module(td)["y"].shape == (2, 4)


def test_in_a_sequential_policy_with_head(rows):
    policy = TensorDictSequential(make(), TensorDictModule(nn.Linear(4, 1), in_keys=["y"], out_keys=["action"]))
    assert policy(rows((5,)))["action"].shape == (5, 1)
    assert {"x", H_IN, C_IN, "is_init"} == set(policy.in_keys)
    assert {"y", H_OUT, C_OUT, "action"} == set(policy.out_keys)
    training = TensorDictSequential(policy[0].set_recurrent_mode(True), policy[1])
    assert training(rows((2, 5)))["action"].shape == (2, 5, 1)
    assert {p.data_ptr() for p in training.parameters()} == {p.data_ptr() for p in policy.parameters()}


def test_with_backend_shares_the_parameters_and_keeps_keys_and_mode(rows):
    module = make(recurrent=True, hidden_output="all", lstm_backend="vmap")
    other = module.with_backend("torchscript")
    assert (module.lstm_backend, other.lstm_backend) == ("vmap", "torchscript")
    assert other.recurrent_mode
    assert other.in_keys == module.in_keys
    td = rows((2, 5))
    assert_close(other(td.clone()), module(td.clone()))
    assert module.lstm.weight_ih_l0 is other.lstm.weight_ih_l0


def test_torchrls_ways_to_change_the_implementation():
    module = make(lstm_backend="torchscript")
    weight = module.lstm.weight_ih_l0
    assert module.make_python_based().lstm_backend == "vmap"
    assert module.make_cudnn_based().lstm_backend == "cudnn"
    assert module.lstm.weight_ih_l0 is weight


def test_a_copy_in_another_mode_trains_the_same_lstm(rows):
    module = make()
    training = module.set_recurrent_mode(True)
    assert list(training.state_dict()) == list(module.state_dict()) == [f"lstm.{k}" for k in LSTM(3, 4).state_dict()]
    training(rows((2, 5)))["y"].sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module(rows((2,)))["y"].shape == (2, 4)
    assert "recurrent_mode=True" in repr(training)
