"""Keys: which entries of a TensorDict are read and written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rnn_backends import InputError, LSTMModule, Trait, UnsupportedError
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from tensordict.nn import set_skip_existing

from ..suite.compare import check_shape, identical
from ..suite.law import law
from ..suite.trial import Ran, Trial
from ..suite.verdict import Declined, LawBroken
from ._shared import C_KEY, H_KEY, agrees_with_reference, ran_from
from .refusals import other_dtype

NESTED_IN = [("agents", "observation"), ("agents", "state", "h"), ("agents", "state", "c"), ("agents", "is_init")]
NESTED_OUT = [("agents", "features"), ("next", "agents", "state", "h"), ("next", "agents", "state", "c")]


def _over_time(trial: Trial) -> LSTMModule:
    return trial.module().set_recurrent_mode(True)


@law()
def nested_keys(trial: Trial) -> None:
    """Every key may be nested, the reset mask's too, whatever other entries share its last name."""
    module = LSTMModule(lstm=trial.lstm(batch_first=True), in_keys=NESTED_IN, out_keys=NESTED_OUT)
    flat = trial.tensordict()
    td = TensorDict({}, flat.batch_size)
    for key, name in zip(NESTED_IN, ("observation", H_KEY, C_KEY, "is_init"), strict=True):
        td[key] = flat[name]
        td[key[-1]] = torch.full_like(flat[name], 1)  # decoys under the leaves' names
    td = module.set_recurrent_mode(True)(td)
    h, c = (td[key].permute(2, 1, 0, 3) for key in NESTED_OUT[1:])
    trial.agree("features", td[NESTED_OUT[0]].transpose(0, 1), trial.expected.output)
    trial.agree_states("the end state", Ran(h, h, c), trial.expected.end_h, trial.expected.end_c)


@law(B=(2, 3), T=(3, 4, 5), L=(1, 2), profiles=("quick", "full"))
def more_batch_dimensions_keep_their_order(trial: Trial) -> None:
    """A batch of two or three dimensions, of different sizes, gives every row's results at the row's place."""
    td, copies = trial.tensordict(), 6
    many = td.expand(copies, *td.batch_size).clone()  # [6, B, T]
    many["observation"] = many["observation"] * torch.linspace(0.5, 1, copies).to(td["observation"]).view(-1, 1, 1, 1)
    out = _over_time(trial)(many.clone())
    step = trial.module()(many[..., 0].clone())
    for k in range(copies):
        alone = _over_time(trial)(many[k].clone())
        trial.agree(f"features of batch {k}", out["features"][k], alone["features"], 0, "b t unit", scale=2)
        for key in (H_KEY, C_KEY):
            actual = out["next", key][k]
            trial.agree(f"{key} of batch {k}", actual, alone["next", key], 0, "b t layer unit", scale=2)
        first = trial.module()(many[k, :, 0].clone())
        trial.agree(f"features of a step of {k}", step["features"][k], first["features"], 0, "b unit", scale=2)
    deep = many.reshape(3, 2, *td.batch_size)
    for run, given, flat in ((_over_time(trial), deep, out), (trial.module(), deep[..., 0], step)):
        found = run(given.clone())
        for name in ("features", ("next", H_KEY), ("next", C_KEY)):
            trial.agree(f"{name} of three dimensions", found[name].flatten(0, 1), flat[name], None, "", scale=2)


@law(profiles=("quick", "full"))
def another_tensordict_may_be_written(trial: Trial) -> None:
    """With ``tensordict_out`` the results are written there, it is returned, and the input stays unchanged."""
    td, other = trial.tensordict(), TensorDict({}, [trial.case.B, trial.case.T], device=trial.device)
    before = set(td.keys(True, True))
    out = _over_time(trial)(td, tensordict_out=other)
    if out is not other:
        raise LawBroken("the module returned another TensorDict than tensordict_out")
    if set(td.keys(True, True)) != before:
        raise LawBroken("the TensorDict that was read was written to, in spite of tensordict_out")
    agrees_with_reference(trial, ran_from(other))
    elsewhere = TensorDict({}, other.batch_size, device=trial.device)
    try:
        _over_time(trial)(trial.tensordict().lock_(), tensordict_out=elsewhere)
    except ValueError as error:
        raise LawBroken(
            f"a locked TensorDict was rejected although the results are written elsewhere: {error}"
        ) from error
    agrees_with_reference(trial, ran_from(elsewhere))


@law(bidirectional=(False,), profiles=("quick", "full"))
def the_primer_fits_the_first_step(trial: Trial) -> None:
    """The entries of TorchRL's primer have the shapes and the dtype of the states that a step reads."""
    module, case = trial.module(), trial.case
    try:
        primer = module.make_tensordict_primer()
    except ImportError as error:
        raise Declined(f"TorchRL is not installed: {error}") from error
    sizes = {H_KEY: case.spec.output_size, C_KEY: case.H}
    actual = {key: (tuple(spec.shape), spec.dtype) for key, spec in primer.primers.items()}
    expected = {key: ((case.spec.num_states, size), trial.inputs.x.dtype) for key, size in sizes.items()}
    if actual != expected:
        raise LawBroken(f"the primer makes states of shape and dtype {actual}, a step reads {expected}")
    elsewhere = LSTMModule(
        lstm=trial.lstm(batch_first=True),
        in_keys=["observation", H_KEY, C_KEY],
        out_keys=["features", ("next", H_KEY), ("next", "other")],
    )
    try:
        elsewhere.make_tensordict_primer()
    except InputError:
        return
    raise LawBroken("a primer was made for a state that is written where no step reads it")


@law(B=(2, 3), profiles=("quick", "full"))
def lazily_stacked_tensordicts_are_read_and_written(trial: Trial) -> None:
    """A lazy stack of rows is read and written like a dense TensorDict, each row at its place."""
    lazy = LazyStackedTensorDict(*[row.clone() for row in trial.tensordict().unbind(0)], stack_dim=0)
    agrees_with_reference(trial, ran_from(_over_time(trial)(lazy)))
    last = lazy.tensordicts[-1]
    trial.agree("features of the last row", last["features"], trial.expected.output[:, -1], None, "t unit")


@law(profiles=("quick", "full"))
def a_locked_tensordict_is_refused_or_written_in_place(trial: Trial) -> None:
    """A locked TensorDict without room for the results is rejected; with room it is written in place."""
    module, td = _over_time(trial), trial.tensordict().lock_()
    _refused(lambda: module(td), td, "a locked TensorDict that lacks the output keys")
    rooms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "of another size": lambda v: torch.cat([v] * 2, -1),
        "of another dtype": other_dtype,
    }
    for what, change in rooms.items():
        for key in ("features", ("next", C_KEY)):
            other = module(trial.tensordict())
            other[key] = change(other[key])
            for result in ("features", ("next", H_KEY), ("next", C_KEY)):
                other[result].zero_()
            _refused(partial(module.__call__, other.lock_()), other, f"a locked TensorDict with room {what}")
    room = module(trial.tensordict())
    for key in ("features", ("next", H_KEY), ("next", C_KEY)):
        room[key].zero_()
    place = room["features"].data_ptr()
    out = module(room.lock_())
    if out["features"].data_ptr() != place:
        raise LawBroken("the locked TensorDict's features were replaced instead of written in place")
    agrees_with_reference(trial, ran_from(out))


def _refused(call: Callable[[], object], td: TensorDictBase, what: str) -> None:
    before = td.clone()
    try:
        call()
    except ValueError:
        pass
    except RuntimeError as error:
        raise LawBroken(f"{what} raises {type(error).__name__} ({error}), expected InputError") from error
    else:
        raise LawBroken(f"{what} was accepted, expected an error")
    if set(td.keys(True, True)) != set(before.keys(True, True)) or not bool((td == before).all()):
        raise LawBroken(f"{what} was rejected, but written to before")


@law(profiles=("quick", "full"))
def selected_outputs_are_the_only_ones(trial: Trial) -> None:
    """After ``select_out_keys`` only the selected keys are written, any of them, with the same values."""
    whole = _over_time(trial)(trial.tensordict())
    kinds: list[Any] = ["features", ("next", H_KEY), ("next", C_KEY)]
    for keys in (kinds[:1], kinds[1:2], kinds[2:], kinds[:2]):
        module = trial.module()
        module.select_out_keys(*keys)
        td = trial.tensordict()
        before = set(td.keys(True, True))
        out = module.set_recurrent_mode(True)(td)
        added = set(out.keys(True, True)) - before
        if added != set(keys):
            raise LawBroken(f"with select_out_keys(*{keys!r}) the module wrote {sorted(map(str, added))}")
        for key in keys:
            trial.agree(f"{key}", out[key], whole[key].double(), None, "b t ...", scale=2)


@law(profiles=("quick", "full"))
def keyword_calls_equal_the_tensordict(trial: Trial) -> None:
    """Called with the entries by keyword, the module returns the outputs as a tuple."""
    td = trial.tensordict()
    y, h, c = _over_time(trial)(**{key: td[key] for key in ("observation", H_KEY, C_KEY, "is_init")})
    ran = Ran(y.transpose(0, 1), h.permute(2, 1, 0, 3), c.permute(2, 1, 0, 3))
    trial.agree("features", ran.output, trial.expected.output)
    trial.agree_states("the end state", ran, trial.expected.end_h, trial.expected.end_c)


@law(B=(1, 2, 3), profiles=("quick", "full"))
def the_reset_mask_may_lack_its_last_dimension(trial: Trial) -> None:
    """``is_init [B, T]`` and ``[B, T, 1]`` are the same."""
    td = trial.tensordict()
    td["is_init"] = td["is_init"].squeeze(-1)
    agrees_with_reference(trial, ran_from(_over_time(trial)(td)))


@law(B=(0,), resets=("none",))
def an_empty_batch_passes_through(trial: Trial) -> None:
    """With no rows both modes write entries of the right shapes with no rows."""
    case, td = trial.case, trial.tensordict()
    spec = case.spec
    for mode, lead, given in ((True, (0, case.T), td), (False, (0,), td[:, 0])):
        out = trial.module().set_recurrent_mode(mode)(given.clone())
        check_shape("features", out["features"], torch.empty(*lead, spec.output_size * spec.directions))
        check_shape("h", out["next", H_KEY], torch.empty(*lead, spec.num_states, spec.output_size))
        check_shape("c", out["next", C_KEY], torch.empty(*lead, spec.num_states, spec.hidden_size))


@law(trait=Trait.CELL_STATES, bidirectional=(False,))
def every_hidden_state_on_request(trial: Trial) -> None:
    """``hidden_output="all"`` writes the state after every step, with gradients; without the trait it is rejected."""
    try:
        module = trial.module("all")
    except UnsupportedError as error:
        raise Declined(error.reason) from error
    ran = ran_from(module.set_recurrent_mode(True)(trial.tensordict()))
    trial.agree("features", ran.output, trial.expected.output)
    trial.agree("h", ran.h, trial.expected.h, 2, "layer t b unit")
    trial.agree("c", ran.c, trial.expected.c, 2, "layer t b unit")
    weights = {n: w.double().cpu().requires_grad_() for n, w in trial.fresh().weights.items()}
    found = trial.reference(trial.fresh()._replace(weights=weights))
    right = torch.autograd.grad(found.h.sin().sum() + found.c.cos().sum(), list(weights.values()))
    actual = torch.autograd.grad(ran.h.sin().sum() + ran.c.cos().sum(), list(module.lstm.parameters()))
    names = list(weights)
    trial.agree_gradients(dict(zip(names, actual, strict=True)), dict(zip(names, right, strict=True)))


@law()
def only_its_own_keys_are_written(trial: Trial) -> None:
    """All other entries, under ``next`` too, remain the same tensors with the same values."""
    td = trial.tensordict()
    td["reward"] = torch.ones(trial.case.B, trial.case.T, 1, device=trial.device)
    td["next", "observation"] = -td["observation"]
    others = {key: td[key] for key in ("reward", ("next", "observation"), "observation", "is_init", H_KEY, C_KEY)}
    before = {key: value.clone() for key, value in others.items()}
    out = _over_time(trial)(td)
    for key, value in others.items():
        if out[key] is not value:
            raise LawBroken(f"the entry {key!r} was replaced")
        identical(f"the entry {key!r}", value, before[key], "")
    if len(list(out.keys(True, True))) != len(others) + 3:
        raise LawBroken(f"unexpected keys were written: {sorted(map(str, out.keys(True, True)))}")


@law(bidirectional=(False,), profiles=("quick", "full"))
def only_complete_results_are_skipped(trial: Trial) -> None:
    """Under ``set_skip_existing`` a module runs unless all entries that it writes exist, and then changes none."""
    whole = _over_time(trial)(trial.tensordict())
    for missing in ("features", ("next", H_KEY), ("next", C_KEY)):
        td = trial.tensordict()
        for key in {"features", ("next", H_KEY), ("next", C_KEY)} - {missing}:
            td[key] = torch.zeros_like(whole[key])
        with set_skip_existing(True):
            _over_time(trial)(td)
        if missing not in td.keys(True):
            raise LawBroken(f"with set_skip_existing {missing} stays missing where the others exist")
        trial.agree(f"{missing}", td[missing], whole[missing].double(), None, "b t ...", scale=2)
    for key in ("features", ("next", H_KEY), ("next", C_KEY)):
        whole[key].zero_()
    with set_skip_existing(True):
        _over_time(trial)(whole)
    if bool(whole["features"].any()):
        raise LawBroken("with set_skip_existing the module ran although every entry existed")
