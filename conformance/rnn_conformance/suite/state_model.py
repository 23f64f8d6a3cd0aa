"""The module under test, its model, and the events so far."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from hypothesis.stateful import RuleBasedStateMachine
from rnn_backends import LSTMBackend, LSTMModule, State, recurrent_mode, set_recurrent_mode
from rnn_backends.unroll import unroll
from tensordict import TensorDict
from torch import Tensor

from .inputs import Inputs
from .trial import Trial
from .verdict import LawBroken

H_KEY, C_KEY = "recurrent_state_h", "recurrent_state_c"
PLAIN = LSTMBackend("rnn-conformance-plain", unroll)
"""Core's own loop over time: a second backend that exists wherever the suite runs."""


class ModelledModule(RuleBasedStateMachine):
    """One module under test, and the reference stepped by hand: weights in float64 and the state of each row."""

    trial: Trial
    first: list[LawBroken]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.numbers = torch.Generator().manual_seed(self.trial.case.seed)
        self.module: LSTMModule = self.trial.module()
        self.weights = {name: w.double().cpu() for name, w in self.trial.inputs.weights.items()}
        self.globals = settings_of_torch()
        K, B, spec = self.trial.case.spec.num_states, self.trial.case.B, self.trial.case.spec
        self.state = State(*(torch.zeros(K, B, n, dtype=torch.float64) for n in (spec.output_size, spec.hidden_size)))
        self.carried: State | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The module's."""
        return self.module.lstm.weight_ih_l0.dtype

    def tell(self, what: str) -> None:
        """Record an event; a failure's message lists all events."""
        self.events.append(what)

    def draw(self, *shape: int) -> Tensor:
        """Numbers from U(-1, 1) in the module's dtype."""
        drawn = torch.rand(*shape, generator=self.numbers, dtype=torch.float64) * 2 - 1
        return drawn.to(self.trial.device, self.dtype)

    def agree(self, what: str, actual: Tensor, expected: Tensor) -> None:
        """Compare within the dtype's tolerance, as errors add up over all events."""
        try:
            self.trial.agree(what, actual.detach(), expected, None, "", 10, dtype=self.dtype)
        except LawBroken as broken:
            self.fail(str(broken), broken.error_ratio)

    def fail(self, message: str, error_ratio: float | None = None) -> NoReturn:
        """Raise with the events so far, and keep the first message: a stateful backend may not fail a second time.

        Raises:
            LawBroken: always.
        """
        broken = LawBroken(f"after {', '.join(self.events)}: {message}", error_ratio)
        self.first.append(broken)
        raise broken

    def entries(self, T: int, is_init: Tensor) -> TensorDict:
        """``T`` steps with ``is_init [B, T]``, the carried state stored at the first and others at those after it."""
        B = self.trial.case.B
        entries: dict[str, Any] = {"observation": self.draw(B, T, self.trial.case.I), "is_init": is_init.unsqueeze(-1)}
        if self.carried is not None:
            for key, carried in zip((H_KEY, C_KEY), self.carried, strict=True):
                later = self.draw(B, T - 1, *carried.shape[1:])
                entries[key] = torch.cat([carried.to(self.dtype).unsqueeze(1), later], 1)
        return TensorDict(entries, [B, T], device=self.trial.device)

    def effective_of(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights that affect results: with all dropped between layers, those that read the layer below do not."""
        if not (self.module.training and self.trial.case.dropout):
            return weights
        unread = {name for name in weights if name.startswith("weight_ih") and not name.startswith("weight_ih_l0")}
        return {name: 0 * w if name in unread else w for name, w in weights.items()}

    def scale(self, module: LSTMModule) -> None:
        """Weights times -0.5, in place, and the model's."""
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(-0.5)
        self.weights = {name: w * -0.5 for name, w in self.weights.items()}

    def model_step(self, x: Tensor, is_init: Tensor, stored: State | None = None) -> Tensor:
        """Step the model with ``x [B, I]``; a sequence starts from ``stored``, in sequential mode from zeros."""
        at = is_init.cpu().reshape(1, -1, 1)
        fresh = stored or State(*(torch.zeros_like(v) for v in self.state))
        h, c = (torch.where(at, new, old).unsqueeze(1) for new, old in zip(fresh, self.state, strict=True))
        starts = torch.ones(1, len(is_init), dtype=torch.bool)
        found = self.trial.reference(Inputs(x.unsqueeze(0), h, c, starts, self.effective_of(self.weights)))
        self.state = State(found.h[:, 0], found.c[:, 0])
        return found.output[0]

    def model_steps(self, td: TensorDict, out: Any) -> Tensor:
        """Step the model through a row of sequences and compare; the features of the last step."""
        is_init, features, steps = td["is_init"].squeeze(-1), [], td.shape[1]
        for t in range(steps):
            stored = State(*(td[key][:, t].transpose(0, 1).double().cpu() for key in (H_KEY, C_KEY)))
            # the first step continues from the stored state, which is the model's
            starts = is_init[:, t] if t else torch.zeros_like(is_init[:, t])
            features.append(self.model_step(td["observation"][:, t], starts, stored))
            ends = is_init[:, t + 1] if t + 1 < steps else torch.ones_like(is_init[:, t])
            for key, state in zip((H_KEY, C_KEY), self.state, strict=True):
                expected = torch.where(ends.cpu().reshape(-1, 1, 1), state.transpose(0, 1), 0)
                self.agree(f"{key} at step {t} of {steps}", out["next", key][:, t], expected)
        self.agree("features over time", out["features"], torch.stack(features, 1))
        return features[-1]

    def expect(self, out: Any, features: Tensor) -> None:
        """Compare a step's results with the model's; the next step starts from them."""
        h, c = out["next", H_KEY], out["next", C_KEY]
        self.agree("features", out["features"], features)
        self.agree("h", h.transpose(0, 1), self.state.h)
        self.agree("c", c.transpose(0, 1), self.state.c)
        if h.dtype != self.dtype:
            self.fail(f"h has dtype {h.dtype}, the weights {self.dtype}")
        # both continue from the same numbers, so that rounding does not add up over the events
        self.carried = State(h.detach(), c.detach())
        self.state = State(*(v.transpose(0, 1).double().cpu() for v in self.carried))

    def recurrent(self, module: LSTMModule, td: TensorDict, how: str) -> Any:
        """A module in recurrent mode, entered in one of several ways."""
        if how == "by copy":
            return module.set_recurrent_mode(True)(td)
        if how == "by context":
            with set_recurrent_mode("recurrent"):
                return module(td)
        if how == "nested":
            with set_recurrent_mode(True):
                try:
                    with set_recurrent_mode(False):
                        raise KeyError
                except KeyError:
                    return module(td)
        with elsewhere(False), set_recurrent_mode(True):
            return module(td)


def settings_of_torch() -> dict[str, object]:
    """The settings that no call may change."""
    return {
        "the mode": recurrent_mode(),
        "gradient mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "the random state": hash(torch.random.get_rng_state().numpy().tobytes()),
    }


def accepts(trial: Trial, dtype: torch.dtype | None) -> bool:
    """Whether the backend accepts the case in this dtype."""
    return dtype is not None and trial.backend.rejects(trial.case.spec, torch.device(trial.device), dtype) is None


@contextmanager
def elsewhere(mode: bool) -> Iterator[None]:
    """Context manager: another thread is in this mode."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with set_recurrent_mode(mode):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    inside.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join(60)
