"""The life of a rollout as a state machine: the events of a policy's use, in any order, against a plain model.

The model is the reference, stepped by hand: weights in float64 and the state of each row. Hypothesis draws programs of
steps, resets, copies, edits and modes; after each rule the module under test must agree with the model.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from rnn_backends import State

from .compare import identical
from .inputs import Inputs
from .state_model import PLAIN, ModelledModule, accepts, elsewhere, settings_of_torch
from .trial import Trial
from .verdict import LawBroken

DTYPES = {torch.float64: torch.float32, torch.float32: torch.float64}
BITS = st.lists(st.booleans(), min_size=16, max_size=16)
"""Resets of four rows of four steps; a rule uses as many as it needs."""


class Rollout(ModelledModule):
    """The events; each ends with a comparison, or the next step compares."""

    @initialize(training=st.booleans(), resets=BITS)
    def begin(self, training: bool, resets: list[bool]) -> None:
        """Every row resets, and a sequence follows: random rules may miss this for many programs.

        With dropout, in training or in evaluation.
        """
        if self.trial.case.dropout:
            self.train_or_eval(training)
        self.step([True] * self.trial.case.B)
        self.sequence(3, "by copy", [resets[0], True, *resets[2:]])  # a start in the middle of a row, each time

    @rule(resets=st.lists(st.booleans(), min_size=4, max_size=4))
    def step(self, resets: list[bool]) -> None:
        """One step in sequential mode, with resets in some rows."""
        is_init = torch.tensor(resets[: self.trial.case.B])
        self.tell(f"a step with resets {''.join('01'[r] for r in is_init.tolist())}")
        td = self.entries(1, is_init.unsqueeze(-1)).squeeze(1)
        before = td.clone()
        out = self.module(td)
        for key in before.keys():  # noqa: SIM118
            identical(f"the entry {key!r}", out[key], before[key], "")
        self.expect(out, self.model_step(td["observation"], is_init))

    @rule(
        T=st.sampled_from([3, 1, 2, 4]),
        how=st.sampled_from(["by copy", "by context", "nested", "over another thread's mode"]),
        resets=BITS,
    )
    def sequence(self, T: int, how: str, resets: list[bool]) -> None:
        """Several steps in recurrent mode, entered in one of several ways; a sequence starts from the state stored at
        its first step."""
        bits = [resets[4 * b : 4 * b + T] for b in range(self.trial.case.B)]
        rows = "|".join("".join("01"[bit] for bit in row) for row in bits)
        self.tell(f"{T} steps in recurrent mode {how} with resets {rows}")
        td = self.entries(T, torch.tensor(bits))
        out = self.recurrent(self.module, td.clone(), how)
        self.expect(out[:, -1], self.model_steps(td, out))

    @rule(T=st.integers(1, 3), edit=st.booleans(), by=st.booleans())
    def on_another_backend(self, T: int, edit: bool, by: bool) -> None:
        """The rollout goes on for some steps on another backend, over the same parameters, and comes back."""
        there = self.module.with_backend(PLAIN)
        self.tell(f"{T} steps on another backend" + ", its weights times -0.5" * edit + ", back by with_backend" * by)
        if edit:
            self.scale(there)
        td = self.entries(T, torch.zeros(self.trial.case.B, T, dtype=torch.bool))
        out = self.recurrent(there, td.clone(), "by copy")
        self.expect(out[:, -1], self.model_steps(td, out))
        self.module = there.with_backend(self.trial.backend) if by else self.module
        self.step([False] * 4)

    @rule()
    def modeelsewhere(self) -> None:
        """Another thread enters recurrent mode, and this one steps."""
        self.tell("another thread in recurrent mode")
        with elsewhere(True):
            self.step([False] * 4)

    @rule(how=st.sampled_from(["deepcopy", "pickle", "set_recurrent_mode there and back", "with_backend"]))
    def copied(self, how: str) -> None:
        """The module is replaced by a copy of itself."""
        self.tell(how)
        if how == "pickle":
            self.module = pickle.loads(pickle.dumps(self.module))
        elif how == "deepcopy":
            old, self.module = self.module, copy.deepcopy(self.module)
            with torch.no_grad():
                for parameter in old.parameters():
                    parameter.fill_(float("nan"))
        elif how == "with_backend":
            self.module = self.module.with_backend(self.trial.backend)
        else:
            self.module = self.module.set_recurrent_mode(True).set_recurrent_mode(False)

    @rule(assign=st.booleans())
    def saved_and_loaded(self, assign: bool) -> None:
        """New weights by way of a state_dict."""
        self.tell(f"load_state_dict(assign={assign})")
        for name, value in self.weights.items():
            self.weights[name] = self.draw(*value.shape).double().cpu()
        new = {f"lstm.{n}": w.to(self.trial.device, self.dtype, copy=True) for n, w in self.weights.items()}
        self.module.load_state_dict(new, assign=assign)

    @rule()
    def edited_in_place(self) -> None:
        """The weights are scaled in place."""
        self.tell("weights times -0.5 in place")
        self.scale(self.module)

    @rule()
    def trained(self) -> None:
        """One step of gradient descent on one step of the rollout; the rollout stays where it is."""
        self.tell("an optimizer's step")
        x = self.draw(self.trial.case.B, self.trial.case.I)
        own = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
        lstm, zeros = self.module.lstm.requires_grad_(), State(*(torch.zeros_like(v).unsqueeze(1) for v in self.state))
        starts = torch.ones(1, len(x), dtype=torch.bool)
        right = self.trial.reference(Inputs(x.unsqueeze(0), *zeros, starts, self.effective_of(own))).output.sum()
        gradients = torch.autograd.grad(right, list(own.values()))
        optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
        optimizer.zero_grad()
        lstm.step(x, None)[0].sum().backward()
        optimizer.step()
        for (name, w), g in zip(own.items(), gradients, strict=True):
            actual = lstm.get_parameter(name)
            self.agree(f"{name} after the optimizer's step", actual, w.detach() - 0.1 * g)
            self.weights[name] = actual.detach().double().cpu().clone()

    @rule()
    def other_weights_for_once(self) -> None:
        """``functional_call`` with other weights, which must leave the module's alone."""
        self.tell("functional_call")
        other = {f"lstm.{n}": torch.zeros_like(p) for n, p in self.module.lstm.named_parameters()}
        td = self.entries(1, torch.ones(self.trial.case.B, 1, dtype=torch.bool)).squeeze(1)
        out = torch.func.functional_call(self.module, other, (td,))
        self.agree("features with zero weights", out["features"], torch.zeros_like(out["features"]).double().cpu())

    @rule(training=st.booleans())
    def train_or_eval(self, training: bool) -> None:
        """Training and evaluation: with dropout all or nothing is dropped; without it nothing changes."""
        self.tell("train()" if training else "eval()")
        self.module.train(training)

    @rule(mode=st.sampled_from([torch.no_grad, torch.inference_mode]))
    def without_gradients(self, mode: Callable[[], Any]) -> None:
        """A step without gradients gives results without gradients."""
        self.tell(mode.__name__)
        with mode():
            self.step([False] * 4)
        carried = self.carried
        assert carried is not None
        self.carried = State(carried.h.clone(), carried.c.clone())

    @precondition(lambda self: accepts(self.trial, DTYPES.get(self.dtype)))
    @rule()
    def moved(self) -> None:
        """The module changes to the other dtype, and the carried state with it."""
        other = DTYPES[self.dtype]
        self.tell(f"to {other}")
        self.module.to(other)
        if self.carried is not None:
            self.carried = State(*(v.to(other) for v in self.carried))
        # the model, too, loses the digits that float32 does not have
        self.weights = {n: w.to(other).double() for n, w in self.weights.items()}
        self.state = State(*(v.to(other).double() for v in self.state))

    @invariant()
    def nothing_leaked(self) -> None:
        """No mode, no global setting and no random number is left behind."""
        for name, value in settings_of_torch().items():
            if value != self.globals[name]:
                self.fail(f"{name} went from {self.globals[name]} to {value}")


def play(trial: Trial, programs: int, steps: int) -> None:
    """Draw programs and run them; a failure is shrunk to a short program, listed in its message."""
    first: list[LawBroken] = []
    machine = type("TrialRollout", (Rollout,), {"trial": trial, "first": first})
    settings = hypothesis.settings(
        max_examples=programs,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(hypothesis.seed(trial.case.seed)(machine), settings=settings)
    except Flaky as error:
        # the program did not fail a second time: the first failure counts all the same
        raise (LawBroken(f"{first[0]} (and not when run again)", first[0].error_ratio) if first else error) from error
