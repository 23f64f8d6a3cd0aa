"""Memory: no tensor is kept alive, results share no memory, uninitialised memory is not read."""

from __future__ import annotations

import gc
import weakref
from itertools import product

import torch
from torch import Tensor

from ..suite.compare import identical
from ..suite.law import law
from ..suite.poison import poisoned_memory
from ..suite.trial import Trial
from ..suite.verdict import LawBroken


@law(profiles=("quick", "full"))
def scratch_memory_is_written_before_it_is_read(trial: Trial) -> None:
    """With NaN in all memory from torch.empty, values and gradients are the same."""
    lstm, inputs = trial.lstm(), trial.fresh()
    trial.run(lstm)  # the backend compiles in this call
    for value in (inputs.x, inputs.h, inputs.c):
        value.requires_grad_()
    leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(lstm.named_parameters())}
    noise = [trial.noise(part, key) for key, part in enumerate(trial.run(lstm))]
    with poisoned_memory():
        ran = trial.run(lstm, inputs)
        parts = (ran.output, trial.at_ends(ran.h), trial.at_ends(ran.c))
        loss = sum((part * weight.to(part)).sum() for part, weight in zip(parts, noise, strict=True))
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
    trial.agree("output", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)
    pairs = zip(leaves.items(), found, strict=True)
    actual = {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs}
    trial.agree_gradients(actual, trial.expected_gradients(trial.loss))


@law(costly=True, T=(3,), B=(2,), profiles=("quick", "full"))
def a_call_keeps_nothing(trial: Trial) -> None:
    """A call keeps no tensor alive: once its results are deleted, with or without backward, all memory is freed."""
    lstm = trial.lstm()
    watched: dict[str, weakref.ref[Tensor]] = {}

    def call(backward: bool) -> None:
        inputs = trial.fresh()
        inputs.x.requires_grad_()
        ran = trial.run(lstm, inputs)
        streamed = trial.stream(lstm, inputs.x)
        if backward:
            (ran.output.sum() + streamed.output.sum()).backward()
        named = {"x": inputs.x, "the stored h": inputs.h, "the stored c": inputs.c, "the output": ran.output}
        watched.update({name: weakref.ref(value) for name, value in named.items()})
        watched["the streamed output"] = weakref.ref(streamed.output)

    for backward in (True, False):
        gc.freeze()  # then a collection looks only at what the call makes
        try:
            call(backward)
            gc.collect()
        finally:
            gc.unfreeze()
        for name, reference in watched.items():
            if reference() is not None:
                raise LawBroken(
                    f"{name} is still alive after the call, {backward=}, though all its results are deleted"
                )


@law(profiles=("quick", "full"))
def results_share_no_memory_with_each_other(trial: Trial) -> None:
    """Output, h_n, c_n and the entries of a TensorDict can each be edited in place without changing the others.

    With resets and without, from a given state and from none, over all steps and one: backends have a way for each.
    """
    inputs, lstm = trial.inputs, trial.lstm()
    with torch.no_grad():
        for T, hx, reset in product((trial.case.T, 1), (True, False), (True, False)):
            given = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone()) if hx else None
            ran = trial.stream(lstm, inputs.x[:T], given, trial.is_init[:T] if reset else None)
            results = dict(zip(("output", "h_n", "c_n"), ran, strict=True))
            _separate(results if given is None else results | {"the given h": given[0], "the given c": given[1]})
        td = trial.module().set_recurrent_mode(True)(trial.tensordict())
        step = trial.module()(trial.tensordict()[:, 0].clone())
        for when, actual in (("in recurrent mode", td), ("of a step", step)):
            entries = {f"{key} {when}": actual["next", key] for key in ("recurrent_state_h", "recurrent_state_c")}
            _separate({f"features {when}": actual["features"], **entries})


def _separate(results: dict[str, Tensor]) -> None:
    """Edit each result in place; raise if another changes, or if two of its elements share memory."""
    for name, value in results.items():
        others = {n: v.clone() for n, v in results.items() if n != name}
        before = value.clone()
        value += 1
        identical(f"{name} after adding one in place", value, before + 1, "")
        for other, kept in others.items():
            identical(f"{other} after writing into {name}", results[other], kept, "")


@law(bidirectional=(False,), profiles=("quick", "full"))
def results_in_a_tensordict_outlive_the_next_call(trial: Trial) -> None:
    """Called again on the same TensorDict, the module writes new tensors; results held from before do not change."""
    keys = ("features", ("next", "recurrent_state_h"), ("next", "recurrent_state_c"))
    step = trial.tensordict()[:, 0].clone()
    for module, td in ((trial.module().set_recurrent_mode(True), trial.tensordict()), (trial.module(), step)):
        with torch.no_grad():
            module(td)
            held = {key: (td[key], td[key].clone()) for key in keys}
            td["observation"] = td["observation"] + 1
            module(td)
        for key, (value, kept) in held.items():
            identical(f"{key} held over the next call", value, kept, "")
