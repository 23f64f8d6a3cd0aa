"""Recurrent: LSTMModule's modes and hidden outputs on this backend."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..suite.compare import demand, identical
from ..suite.law import law
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import LawBroken
from ._shared import C_KEY, H_KEY, ran_from


def _steps(trial: Trial, replaced: float | None = None) -> Ran:
    """The results of sequential mode, step by step, with the state carried from step to step.

    In the contiguous layout a step reads contiguous entries. In the others it reads the column of a rollout that is
    stored batch first, ``td[:, t]``.

    Args:
        trial: provides the module and the rows.
        replaced: the value of states that ``is_init`` replaces by zeros; default: the carried state.
    """
    module, td, columns = trial.module(), trial.tensordict().contiguous(), trial.case.layout != "contiguous"
    outputs, hs, cs = [], [], []
    h, c = td[H_KEY][:, 0], td[C_KEY][:, 0]
    for t in range(trial.case.T):
        now = td[:, t].select("observation", "is_init")
        if columns:
            h, c = (torch.stack([v, v], 1)[:, 1] for v in (h, c))
        else:
            now, h, c = now.clone(), h.contiguous(), c.contiguous()
        now[H_KEY], now[C_KEY] = h, c
        if replaced is not None:
            begin = now["is_init"].unsqueeze(-1)
            now[H_KEY], now[C_KEY] = torch.where(begin, replaced, h), torch.where(begin, replaced, c)
        now = module(now)
        h, c = now["next", H_KEY], now["next", C_KEY]
        outputs.append(now["features"])
        hs.append(h.transpose(0, 1))
        cs.append(c.transpose(0, 1))
    return Ran(torch.stack(outputs), torch.stack(hs, 1), torch.stack(cs, 1))


@law(wide=True, rollouts=True)
def recurrent_mode_starts_from_stored_states(trial: Trial) -> None:
    """In recurrent mode sequences start at t = 0 and at every is_init, from the state stored at that position."""
    ran = ran_from(trial.module().set_recurrent_mode(True)(trial.tensordict()))
    trial.agree("features", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(wide=True)
def hidden_outputs_are_zero_padded(trial: Trial) -> None:
    """In recurrent mode the hidden outputs are the final state where a sequence ends, and exactly +0 elsewhere."""
    ran = ran_from(trial.module().set_recurrent_mode(True)(trial.tensordict()))
    for name, value, expected in (("h", ran.h, trial.expected.end_h), ("c", ran.c, trial.expected.end_c)):
        _demand_padding(trial, name, value)
        trial.agree(f"hidden {name}", value, expected, 2, "layer t b unit")


def _demand_padding(trial: Trial, name: str, value: Tensor) -> None:
    """Check for +0, not -0, where no sequence ends: a result's inverse and sign differ between the two."""
    zero = (value == 0) & ~value.signbit()
    holds = trial.ends.unsqueeze(-1) | zero
    demand(f"hidden {name} where no sequence ends", holds, value, "exactly +0", "layer t b unit")


@law(T=(3, 4, 5, 6), profiles=("quick", "full"))
def padding_is_zero_where_states_are_nan(trial: Trial) -> None:
    """With NaN or infinity in a sequence's states, hidden outputs within it are still zero."""
    td = trial.tensordict()
    td["observation"] = torch.full_like(td["observation"], torch.nan)
    ran = ran_from(trial.module().set_recurrent_mode(True)(td))
    for name, value in (("h", ran.h), ("c", ran.c)):
        _demand_padding(trial, name, value)


@law(wide=True, bidirectional=(False,), rollouts=True)
def sequential_mode_starts_from_zero(trial: Trial) -> None:
    """In sequential mode a step with is_init starts from zeros, any other from the given state."""
    is_init, inputs = trial.is_init, trial.inputs
    first = torch.zeros_like(inputs.starts)
    first[0] = ~is_init[0]
    kept = first.unsqueeze(-1)
    expected = trial.reference(inputs._replace(h=torch.where(kept, inputs.h, 0), c=torch.where(kept, inputs.c, 0)))
    ran = _steps(trial)
    trial.agree("features", ran.output, expected.output)
    trial.agree("hidden h", ran.h, expected.h, 2, "layer t b unit")
    trial.agree("hidden c", ran.c, expected.c, 2, "layer t b unit")


@law(rollouts=True)
def acting_needs_no_gradient(trial: Trial) -> None:
    """Steps without gradients, resets included, equal those with; a state that is_init replaces may be NaN."""
    steps = _steps(trial)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            quiet = _steps(trial, replaced=torch.nan)
        if quiet.output.requires_grad or quiet.c.requires_grad:
            raise LawBroken(f"a result requires a gradient under {mode.__name__}")
        trial.agree(f"features under {mode.__name__}", quiet.output, steps.output, scale=2)
        trial.agree(f"hidden h under {mode.__name__}", quiet.h, steps.h, 2, "layer t b unit", 2)
        trial.agree(f"hidden c under {mode.__name__}", quiet.c, steps.c, 2, "layer t b unit", 2)


@law(bidirectional=(False,), stored=("zeros",), rollouts=True, profiles=("quick", "full"))
def steps_equal_recurrent_mode(trial: Trial) -> None:
    """With zeros stored at every is_init, sequential steps equal recurrent mode."""
    whole = ran_from(trial.module().set_recurrent_mode(True)(trial.tensordict()))
    steps = _steps(trial)
    trial.agree("features", steps.output, whole.output, scale=2)
    trial.agree_states("the end state", steps, whole.h, whole.c)


@law(bidirectional=(False,), profiles=("quick", "full"))
def carried_hidden_outputs_are_exact(trial: Trial) -> None:
    """The hidden output of a batch's last step, stored at the next batch's first, continues the sequence exactly."""
    module, td = trial.module().set_recurrent_mode(True), trial.tensordict()
    whole = ran_from(module(td.clone()))
    for cut in range(1, trial.case.T):
        head, tail = module(td[:, :cut].clone()), td[:, cut:].clone()
        fresh = tail["is_init"][:, 0]
        for key in (H_KEY, C_KEY):
            stored = tail[key].clone()
            keep = fresh.reshape(-1, *[1] * (stored.ndim - 2))
            stored[:, 0] = torch.where(keep, stored[:, 0], head["next", key][:, -1])
            tail[key] = stored
        tail = module(tail)
        trial.agree(
            f"features cut at {cut}",
            torch.cat([head["features"], tail["features"]], 1),
            whole.output.transpose(0, 1),
            0,
            "b t unit",
            scale=2,
        )


@law(stored=("zeros",))
def absent_states_are_zeros(trial: Trial) -> None:
    """Without hidden keys sequences start from zeros in both modes; acting in the middle of one warns once."""
    td = trial.tensordict().exclude(H_KEY, C_KEY)
    laid_out = trial.module().canonicalize(td)
    if set(laid_out.keys(True, True)) != set(td.keys(True, True)) or not laid_out["observation"].is_contiguous():
        raise LawBroken("canonicalize does not give the same entries, contiguous")
    identical("the observation after canonicalize", laid_out["observation"], td["observation"], "")
    ran = ran_from(trial.module().set_recurrent_mode(True)(td.clone()))
    trial.agree("features in recurrent mode", ran.output, trial.expected.output)
    step = trial.module()(td[:, 0].clone())
    alone = trial.reference(trial.inputs._replace(
        x=trial.inputs.x[:1], h=trial.inputs.h[:, :1], c=trial.inputs.c[:, :1], starts=trial.inputs.starts[:1]
    ))  # fmt: skip
    trial.agree("features in sequential mode", step["features"], alone.output[0], 0, "b unit")
    module = trial.module()
    for call, (begins, number) in enumerate(((True, 0), (False, 0), (True, 0), (False, 1), (False, 0)), 1):
        first = td[:, 0].clone().set("is_init", torch.full((trial.case.B, 1), begins, device=trial.device))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module(first)
        found = sum("without memory" in str(warning.message) for warning in caught)
        if found != number:
            raise LawBroken(f"step {call} without a state warned {found} times, expected {number}")


@law()
def the_tensordict_is_filled_in_place(trial: Trial) -> None:
    """The module returns the TensorDict it was given, its entries unchanged and only the output keys added."""
    td = trial.tensordict()
    before = td.clone()
    out = trial.module().set_recurrent_mode(True)(td)
    if out is not td:
        raise LawBroken("the module returned another TensorDict than the one it was given")
    for key in before.keys():  # noqa: SIM118
        identical(f"the entry {key!r}", td[key], before[key], "")
    added = set(td.keys(True, True)) - set(before.keys(True, True))
    if added != {"features", ("next", H_KEY), ("next", C_KEY)}:
        raise LawBroken(f"the module wrote {sorted(map(str, added))}")


@law(wide=True, profiles=("quick", "full"))
def gradients_flow_through_recurrent_mode(trial: Trial) -> None:
    """Gradients of features and hidden outputs equal the reference's; those on padding reach no input."""
    module = trial.module()
    inputs = trial.fresh()
    for value in (inputs.x, inputs.h, inputs.c):
        value.requires_grad_()
    ran = ran_from(module.set_recurrent_mode(True)(trial.tensordict(inputs)))
    leaves: dict[str, Tensor] = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c}
    leaves |= dict(module.lstm.named_parameters())
    trial.agree_gradients(differentiate(_everywhere(trial, ran), leaves), trial.expected_gradients(trial.loss))


@law(stored=("zeros",), profiles=("quick", "full"))
def gradients_flow_without_stored_states(trial: Trial) -> None:
    """In recurrent mode without hidden keys the gradients for the input and every weight equal the reference's."""
    module, inputs = trial.module(), trial.fresh()
    inputs.x.requires_grad_()
    td = trial.tensordict(inputs).exclude(H_KEY, C_KEY)
    ran = ran_from(module.set_recurrent_mode(True)(td))
    leaves: dict[str, Tensor] = {"x": inputs.x, **dict(module.lstm.named_parameters())}
    expected = trial.expected_gradients(trial.loss)
    trial.agree_gradients(differentiate(_everywhere(trial, ran), leaves), {name: expected[name] for name in leaves})


def _everywhere(trial: Trial, ran: Ran) -> Tensor:
    """The trial's loss, with random cotangents on the padding too: it is constant, so they must reach nothing."""
    total = ran.output.new_zeros(())
    for key, value in enumerate(ran):
        total = total + (value * trial.noise(value, key).to(value)).sum()
    return total


@law(B=(2, 4), T=(3,), profiles=("quick", "full"))
def any_batch_shape(trial: Trial) -> None:
    """The batch may have one dimension or several: each row's results are the same."""
    td, module = trial.tensordict(), trial.module().set_recurrent_mode(True)
    flat = module(td.clone())
    deep = module(td.clone().reshape(2, -1, trial.case.T))
    identical_shape = deep["features"].reshape(flat["features"].shape)
    trial.agree("features", identical_shape, flat["features"], 0, "b t unit", scale=2)
    for key in (H_KEY, C_KEY):
        actual = deep["next", key].reshape(flat["next", key].shape)
        trial.agree(f"hidden {key}", actual, flat["next", key], 0, "b t layer unit", scale=2)
