"""The recorded rollouts, and the laws over them."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from rnn_backends import LayerWeights, LSTMBackend, State, get_backend
from rnn_backends.unroll import unroll
from rnn_conformance.check import check_backend, replay
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.rollouts.recorded import ENVIRONMENTS, record, rollouts, shipped, write_shipped
from rnn_conformance.rollouts.timing import time_ratio
from rnn_conformance.suite.inputs import Rollout
from rnn_conformance.suite.reference import trajectories
from rnn_conformance.suite.verdict import LawResult
from torch import Tensor

needs_torchrl = pytest.mark.skipif(importlib.util.find_spec("torchrl") is None, reason="TorchRL is not installed")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded() -> list[Rollout]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRL's own warnings at import
        return record()


def check_rollout(rollout: Rollout) -> None:
    rows, steps = ENVIRONMENTS[rollout.name]
    assert rollout.observation.shape[:2] == (rows, steps)
    assert rollout.observation.dtype == torch.float32
    assert rollout.is_init.shape == (rows, steps)
    assert rollout.is_init.dtype == torch.bool
    assert rollout.is_init[:, 0].all()
    assert rollout.is_init[:, 1:].any(), f"{rollout.name} has no reset in the middle of a row"


@pytest.mark.parametrize("rollout", shipped(), ids=lambda r: r.name)
def test_shipped_rollouts_have_resets_in_the_middle(rollout: Rollout) -> None:
    check_rollout(rollout)


@needs_torchrl
def test_recorded_rollouts_look_like_the_shipped_ones(recorded: list[Rollout]) -> None:
    assert [r.name for r in recorded] == [r.name for r in shipped()]
    for rollout, other in zip(recorded, shipped(), strict=True):
        check_rollout(rollout)
        assert rollout.observation.shape == other.observation.shape
        assert "torchrl" in rollout.source
        assert "package" in other.source


@needs_torchrl
def test_recording_twice_gives_the_same_and_leaves_the_random_state(recorded: list[Rollout]) -> None:
    state = torch.get_rng_state()
    again = record()
    assert torch.equal(state, torch.get_rng_state())
    for one, two in zip(recorded, again, strict=True):
        assert torch.equal(one.observation, two.observation)
        assert torch.equal(one.is_init, two.is_init)


@needs_torchrl
@pytest.mark.usefixtures("recorded")
def test_what_is_written_is_what_was_shipped(tmp_path) -> None:
    write_shipped(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").stat().st_size < 50_000


@pytest.mark.parametrize("missing", ["torchrl", "gymnasium"])
def test_without_torchrl_the_shipped_ones_serve(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    found = rollouts()
    assert all(f"{missing} is not installed" in rollout.source for rollout in found)
    assert torch.equal(found[0].observation, shipped()[0].observation)


def test_trajectories_cover_every_step_once() -> None:
    rollout = shipped()[0]
    covered = torch.zeros(rollout.is_init.shape, dtype=torch.int)
    for row, start, stop in trajectories(rollout.is_init.T):
        covered[row, start:stop] += 1
        assert start == 0 or rollout.is_init[row, start]
        assert not rollout.is_init[row, start + 1 : stop].any()
    assert (covered == 1).all()


def never_resets(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    first = torch.zeros_like(starts)
    first[0] = True
    return unroll(weights, x, entry, first)


def one_step_late(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    late = starts.roll(1, 0)
    late[0] = True
    return unroll(weights, x, entry, late)


def detached(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    return unroll(weights, x, State(entry.h.detach() + 0 * entry.h, entry.c), starts)


def last_end_only(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    h, c = unroll(weights, x, entry, starts)
    return State(h, torch.cat([torch.zeros_like(c[:-1]), c[-1:]]))


DEFECTS = [
    ("rollout_equals_torch_lstm", never_resets),
    ("rollout_equals_torch_lstm", one_step_late),
    ("rollout_equals_steps", never_resets),
    ("rollout_gradients", detached),
    ("rollout_hidden_outputs", last_end_only),
]


def run(backend: LSTMBackend, law: str, profile: str = "smoke", seed: int = 3) -> LawResult:
    return check_backend(backend, laws=[law], profile=profile, seed=seed, rollouts=shipped()).results[0]


@pytest.mark.parametrize(("law", "layer"), DEFECTS, ids=lambda v: getattr(v, "__name__", v))
def test_each_law_kills_its_defects(law: str, layer) -> None:
    result = run(LSTMBackend("defect", layer), law)
    assert result.verdict == "failed"
    assert "differs first at [" in result.message
    assert result.worst_error_ratio is not None
    assert result.worst_error_ratio > 100
    assert result.token == "CartPole-v1:H8.f32.s3"
    assert replay(LSTMBackend("defect", layer), law, result.token).message == result.message


@pytest.mark.parametrize("law", [name for name, law in LAWS.items() if not law.drawn])
def test_each_law_passes_the_plain_unroll(law: str) -> None:
    result = run(get_backend("vmap"), law, "quick", 5)
    assert (result.verdict, result.message) == ("passed", "")
    assert result.cases == 4
    assert result.worst_error_ratio is not None
    assert 0 <= result.worst_error_ratio < 0.5  # steps and rows may agree bit for bit in all four cases


def test_a_crash_is_not_a_failure_of_the_law() -> None:
    def raises(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        raise RuntimeError("the kernel is not there")

    result = run(LSTMBackend("crash", raises), "rollout_gradients")
    assert result.verdict == "crashed"
    assert result.message == "RuntimeError: the kernel is not there"


def test_a_refusal_is_declined_with_its_reason() -> None:
    picky = LSTMBackend("picky", unroll, rejects=lambda spec, device, dtype: "only on Mondays")
    result = run(picky, "rollout_equals_steps")
    assert (result.verdict, result.cases, result.declined) == ("declined", 0, 2)
    assert "only on Mondays" in result.message


def test_time_is_measured_against_torch_lstm() -> None:
    assert 0 < time_ratio(get_backend("vmap"), shipped()[0], rounds=1) < 100


@pytest.mark.parametrize(
    "token", ["CartPole-v1:T4.H8.f32.s0", "CartPole-v1:f32.s0", "T2.B1.I1.H1.f64.s0", "Chess:H8.s0"]
)
def test_a_token_of_another_kind_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"T4|lacks H|names no rollout|no rollout 'Chess'"):
        replay("vmap", "rollout_gradients", token)
