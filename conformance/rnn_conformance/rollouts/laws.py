"""Laws over rollouts of real environments: what a training loop sees of a backend, through ``LSTMModule``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from rnn_backends import LSTMBackend, UnsupportedError
from torch import Tensor

from ..suite.compare import demand, judge
from ..suite.device import absent, exact_float32
from ..suite.law import LawBroken
from ..suite.tolerances import TOLERANCES
from ..suite.verdict import LawResult, Verdict
from .recorded import Rollout
from .trial import RolloutTrial, per_trajectory

HIDDEN_SIZES = {"smoke": (8,), "quick": (8, 32), "full": (1, 8, 32, 64), "deep": (1, 8, 32, 64, 128)}
"""Hidden sizes that a profile tries."""
TIMED_HIDDEN_SIZE = 64
FLOAT32 = TOLERANCES[torch.float32]
FLOOR = 0.05
"""Values are in (-1, 1): none is judged finer than against this."""


def rollout_equals_torch_lstm(trial: RolloutTrial) -> float:
    """The recurrent mode gives what torch.nn.LSTM gives for each trajectory from the state stored at its start."""
    return judge("output", trial.came.output, trial.expected.output, FLOAT32.values, 0, "b t unit", FLOOR)


def rollout_equals_steps(trial: RolloutTrial) -> float:
    """Running over a rollout gives what acting step by step gave: the same outputs, and the same state at each end."""
    td, ends = trial.data(stored=False), trial.scene.ends.to(trial.device)
    with torch.no_grad():
        output, h, c = trial.recurrent(td.clone())
        acted, acted_h, acted_c = trial.stepped(td)
    tolerance = 2 * FLOAT32.values  # both sides round
    return max(
        judge("output", output, acted, tolerance, 0, "b t unit", FLOOR),
        judge("h at the ends", h[ends], acted_h[ends], tolerance, 0, "end row unit", FLOOR),
        judge("c at the ends", c[ends], acted_c[ends], tolerance, 0, "end row unit", FLOOR),
    )


def rollout_hidden_outputs(trial: RolloutTrial) -> float:
    """The hidden outputs are the state at every trajectory's end, also in the middle of a row, and zero elsewhere."""
    came, expected, worst = trial.came, trial.expected, 0.0
    for name, got, want in (("h", came.h, expected.h), ("c", came.c, expected.c)):
        between = ~trial.scene.ends[..., None, None].to(got.device)
        demand(
            f"hidden output {name}",
            ~between | (got == 0),
            got,
            "exactly 0, as no trajectory ends there",
            "b t row unit",
        )
        worst = max(worst, judge(f"hidden output {name}", got, want, FLOAT32.values, 0, "b t row unit", FLOOR))
    return worst


def rollout_gradients(trial: RolloutTrial) -> float:
    """Gradients of observations, stored states and weights equal those through torch.nn.LSTM a trajectory at a time."""
    worst = 0.0
    for name, expected in trial.expected.gradients.items():
        rows = 0 if name in ("observation", "stored h", "stored c") else None
        axes = {"observation": "b t feature"}.get(name, "b t row unit" if rows == 0 else "i j")
        came = trial.came.gradients[name]
        worst = max(worst, judge(f"gradient of {name}", came, expected, FLOAT32.gradients, rows, axes, 0.0))
    return worst


RolloutLaw = Callable[[RolloutTrial], float]
LAWS: dict[str, RolloutLaw] = {
    law.__name__: law
    for law in (rollout_equals_torch_lstm, rollout_equals_steps, rollout_hidden_outputs, rollout_gradients)
}


def sentence(name: str) -> str:
    """The law in one sentence."""
    return (LAWS[name].__doc__ or "").strip()


class RolloutChecks:
    """The rollout laws for one backend; the module runs once for all of them.

    Args:
        backend: to try.
        rollouts: recorded.
        profile: says which hidden sizes.
        device: where to run.
        seed: of weights, stored states and cotangents.
        sizes: hidden sizes in place of the profile's.
    """

    def __init__(
        self,
        backend: LSTMBackend,
        rollouts: Sequence[Rollout],
        profile: str,
        device: str,
        seed: int,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self._backend, self._device, self._seed = backend, device, seed
        self._cases = [(rollout, size) for rollout in rollouts for size in sizes or HIDDEN_SIZES[profile]]
        self._trials: dict[tuple[str, int], RolloutTrial] = {}

    def run(self, name: str) -> LawResult:
        """Run one law over every rollout and hidden size; stops at the first case that breaks it."""
        reason = absent(self._device)
        if reason:
            return LawResult(self._backend.name, name, "declined", message=reason)
        started, worst, ran, refusals = time.perf_counter(), 0.0, 0, []
        verdict: Verdict = "passed"
        message = ""
        token: str | None = None
        for rollout, size in self._cases:
            try:
                with exact_float32(self._device):
                    worst = max(worst, LAWS[name](self._trial(rollout, size)))
                ran += 1
            except UnsupportedError as error:
                refusals.append(error.reason)
            except Exception as error:  # a backend is somebody else's code: whatever it raises is its answer
                verdict, message = _answer(error)
                worst = max(worst, getattr(error, "margin", None) or 0.0)
                token = f"{rollout.name}.H{size}.s{self._seed}"
                break
        if verdict == "passed" and not ran:
            verdict, message = "declined", "; ".join(dict.fromkeys(refusals))
        seconds = time.perf_counter() - started
        margin = worst if ran or verdict == "failed" else None
        return LawResult(self._backend.name, name, verdict, ran, len(refusals), margin, message, token, seconds)

    def _trial(self, rollout: Rollout, size: int) -> RolloutTrial:
        key = (rollout.name, size)
        if key not in self._trials:
            self._trials[key] = RolloutTrial(self._backend, rollout, size, self._device, self._seed)
        return self._trials[key]


def _answer(error: Exception) -> tuple[Verdict, str]:
    if isinstance(error, LawBroken):
        return "failed", str(error)
    return "crashed", f"{type(error).__name__}: {error}"


def time_ratio(backend: LSTMBackend, rollout: Rollout, device: str = "cpu", rounds: int = 5) -> float:
    """Time of forward and backward over a rollout, over torch.nn.LSTM's, one trajectory at a time; medians.

    The two take turns, so that a busy machine slows both.
    """
    trial = RolloutTrial(backend, rollout, TIMED_HIDDEN_SIZE, device)
    lstm, td = trial.scene.lstm, trial.data(stored=False)
    reference = type(lstm)(lstm.input_size, lstm.hidden_size, batch_first=True, device=device)
    x = td["observation"]
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(rounds + 1):
        t_ours = _timed(lambda: trial.recurrent(td.clone())[0], device)
        t_theirs = _timed(lambda: per_trajectory(reference, rollout, x, None)[0], device)
        if turn:  # the first turn warms up, and compiles
            ours.append(t_ours)
            theirs.append(t_theirs)
    return median(ours) / median(theirs)


def _timed(forward: Callable[[], Tensor], device: str) -> float:
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    forward().sum().backward()
    wait()
    return time.perf_counter() - started
