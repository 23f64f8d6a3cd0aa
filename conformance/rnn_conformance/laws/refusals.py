"""Refusals and errors: at construction, with the reason and what to do; no call is left half done."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from rnn_backends import (
    LSTM,
    InputError,
    LSTMModule,
    LSTMSpec,
    MissingKeyError,
    RNNBackendsError,
    State,
    Trait,
    UnsupportedError,
    names,
)
from tensordict import TensorDictBase
from torch import Tensor
from torch.func import grad

from ..suite.isolation import in_a_fork
from ..suite.law import law
from ..suite.reach import CHEAP_DTYPE
from ..suite.trial import Trial
from ..suite.verdict import Declined, LawBroken
from ._shared import C_KEY, H_KEY, registered

SPECS = (
    LSTMSpec(2, 3), LSTMSpec(2, 3, 2), LSTMSpec(2, 3, bias=False), LSTMSpec(2, 3, 2, dropout=0.5),
    LSTMSpec(2, 3, bidirectional=True), LSTMSpec(2, 3, proj_size=2), LSTMSpec(1, 1), LSTMSpec(3, 257),
)  # fmt: skip
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _build(trial: Trial, spec: LSTMSpec, dtype: torch.dtype, backend: Any = None) -> LSTM:
    return LSTM(
        spec.input_size, spec.hidden_size, spec.num_layers, spec.bias, False, spec.dropout, spec.bidirectional,
        spec.proj_size, trial.device, dtype, lstm_backend=backend or trial.backend,
    )  # fmt: skip


def _is_a_refusal(error: UnsupportedError, name: str, reason: str) -> None:
    """Check that the error names backend and reason, and that its message offers other installed backends."""
    if error.backend != name or error.reason != reason:
        raise LawBroken(f"the error names {error.backend!r} and {error.reason!r}, expected {name!r} and {reason!r}")
    for word in (name, reason, *error.alternatives):
        if word not in str(error):
            raise LawBroken(f"the error's message does not say {word!r}: {error}")
    unusable = [n for n in error.alternatives if n == name or n not in names()]
    if unusable:
        raise LawBroken(f"the error of {name!r} offers {unusable}")


@law(T=(2,), B=(2,), L=(1,), bidirectional=(False,))
def vmap_that_is_not_claimed_is_refused(trial: Trial) -> None:
    """Without the trait VMAP, torch.vmap is rejected, also around a gradient and within one."""
    lstm, x = trial.lstm(), torch.stack([trial.inputs.x, -trial.inputs.x])
    if Trait.VMAP in trial.backend.traits:
        raise Declined("it claims vmap")

    def loss(x: Tensor) -> Tensor:
        return lstm(x)[0].sum()

    def of_both(x: Tensor) -> Tensor:
        return torch.vmap(loss)(x).sum()

    nested: dict[str, Callable[[Tensor], object]] = {
        "vmap": torch.vmap(loss), "vmap of grad": torch.vmap(grad(loss)), "grad of vmap": grad(of_both),
    }  # fmt: skip
    for name, run in nested.items():
        try:
            run(x)
        except UnsupportedError as error:
            if error.backend != trial.backend.name:
                raise LawBroken(f"the error under {name} names {error.backend!r}") from error
        else:
            raise LawBroken(f"{name} is not claimed and was not rejected")


@law(costly=True, T=(1,), B=(1,))
def rejections_are_errors_at_construction(trial: Trial) -> None:
    """An LSTM that its backend rejects or cannot prepare raises UnsupportedError when built; any other is built."""
    device, reasons = torch.device(trial.device), []
    for spec in SPECS:
        for dtype in DTYPES:
            reason = trial.backend.rejects(spec, device, dtype)
            if reason is not None and (not isinstance(reason, str) or not reason.strip()):
                raise LawBroken(f"rejects() gave {reason!r} for {spec}: expected None or a reason as text")
            if reason is None:
                reason = trial.backend.prepare(spec, device, dtype)
            try:
                _build(trial, spec, dtype)
            except UnsupportedError as error:
                if reason is None:
                    raise LawBroken(f"rejects() accepts {spec} in {dtype}, but building it raised: {error}") from error
                _is_a_refusal(error, trial.backend.name, reason)
            else:
                if reason is not None:
                    raise LawBroken(f"{spec} in {dtype} is rejected ({reason}), but was built")
            reasons += [reason] if reason else []
    if len(reasons) == len(SPECS) * len(DTYPES):
        raise Declined(reasons[0])


@law(time_limit=60.0, once=True, T=(1,), B=(1,), profiles=("quick", "full"))
def rejects_is_deterministic(trial: Trial) -> None:
    """``rejects`` gives the same answer in every call, whatever it was asked before.

    In a process of its own, which has asked nothing: a fork answers each question alone, and one answers all in turn.
    """
    questions = list(product(SPECS, DTYPES))

    def answers(asked: list[tuple[LSTMSpec, torch.dtype]]) -> list[str | None]:
        return [trial.backend.rejects(spec, torch.device(trial.device), dtype) for spec, dtype in asked]

    in_turn = in_a_fork(partial(answers, [*questions, *questions]))
    for k, (spec, dtype) in enumerate(questions):
        (alone,) = in_a_fork(partial(answers, [(spec, dtype)]))
        for answer in (in_turn[k], in_turn[k + len(questions)]):
            if answer != alone:
                raise LawBroken(f"rejects() gave {alone!r} in one call and {answer!r} in another for {spec} in {dtype}")


@law(T=(2,), dtype=CHEAP_DTYPE)
def a_refusal_comes_before_anything_is_done(trial: Trial) -> None:
    """Moved to a dtype that it rejects, a module raises UnsupportedError with the reason and computes nothing."""
    calls: list[str] = []

    def counting(*args: Any) -> Any:
        calls.append("layer")
        return trial.backend.layer(*args)

    own, reason = trial.case.torch_dtype, "another dtype is made elsewhere"

    def only_this(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return trial.backend.rejects(spec, device, dtype) if dtype == own else reason

    counted = replace(trial.backend, layer=counting, layer_last=counting, step=None, act=None, stack=None)
    picky = replace(counted, rejects=only_this)
    module = trial.module().with_backend(picky)
    td = trial.tensordict()
    for key in ("observation", H_KEY, C_KEY):
        td[key] = other_dtype(td[key])
    before = set(td.keys(True, True))
    module.to(other_dtype(torch.ones(1, dtype=own)).dtype)
    for run in (module, module.set_recurrent_mode(True)):
        given = td if run is not module else td[:, 0]
        try:
            run(given)
        except UnsupportedError as error:
            _is_a_refusal(error, trial.backend.name, reason)
        else:
            raise LawBroken("it computed in a dtype that the backend rejects")
    if calls or set(td.keys(True, True)) != before:
        raise LawBroken("a dtype that the backend rejects raised the error only after some of the work was done")


Wrong = Callable[[TensorDictBase], None]


def other_dtype(value: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32, or in float64 if they are float32."""
    return value.double() if value.dtype == torch.float32 else value.float()


def _set(key: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    def spoil(td: TensorDictBase) -> None:
        value = change(td[key])
        td.del_(key)
        td[key] = value

    return spoil


def _into_the_deep(td: TensorDictBase) -> None:
    td["other", "deep"] = td["observation"]
    td.del_("observation")


WRONG: dict[str, tuple[Wrong, type[RNNBackendsError], str]] = {
    "no input": (lambda td: td.del_("observation"), MissingKeyError, "'observation'"),
    "no input, and what there is": (lambda td: td.del_("observation"), MissingKeyError, "has 'is_init'"),
    "no reset mask": (lambda td: td.del_("is_init"), MissingKeyError, "'is_init'"),
    "no reset mask, and what there is": (lambda td: td.del_("is_init"), MissingKeyError, "has 'observation'"),
    "no input, and what there is at depth": (_into_the_deep, MissingKeyError, "('other', 'deep')"),
    "h without c": (lambda td: td.del_(C_KEY), InputError, f"'{H_KEY}' is in the TensorDict and '{C_KEY}' is not"),
    "c without h": (lambda td: td.del_(H_KEY), InputError, f"'{C_KEY}' is in the TensorDict and '{H_KEY}' is not"),
    "too many features": (_set("observation", lambda v: torch.cat([v, v], -1)), InputError, "observation"),
    "another dtype": (_set("observation", other_dtype), InputError, "float32"),
    "an integer input": (_set("observation", lambda v: v.long()), InputError, "int64"),
    "a reset mask of numbers": (_set("is_init", lambda v: v.float()), InputError, "bool"),
    "a reset mask of bytes": (_set("is_init", lambda v: v.to(torch.uint8)), InputError, "bool"),
    "a reset mask of two": (_set("is_init", lambda v: torch.cat([v, v], -1)), InputError, "is_init"),
    "a wider h": (_set(H_KEY, lambda v: torch.cat([v, v], -1)), InputError, H_KEY),
    "one layer too many": (_set(C_KEY, lambda v: torch.cat([v, v], -2)), InputError, C_KEY),
    "h in another dtype": (_set(H_KEY, other_dtype), InputError, H_KEY),
}
"""Faults of a TensorDict: the error that each raises, and a word of its message."""


@law(L=(1, 2))
def wrong_entries_are_refused_and_nothing_is_written(trial: Trial) -> None:
    """A wrong key, shape or dtype raises the contract's error in both modes, and the TensorDict stays as it was."""
    for mode in (True, False):
        module = trial.module().set_recurrent_mode(mode)
        for what, (spoil, kind, word) in WRONG.items():
            td = trial.tensordict()
            td = td if mode else td[:, 0].clone()
            spoil(td)
            before = td.clone()
            _raises(lambda m=module, t=td: m(t), what, kind, word)  # type: ignore[misc]
            if set(td.keys(True, True)) != set(before.keys(True, True)) or not bool((td == before).all()):
                raise LawBroken(f"{what}: the TensorDict was changed before the error")


@law(L=(1,), profiles=("quick", "full"))
def results_are_not_written_under_a_tensor(trial: Trial) -> None:
    """A tensor in place of a result's TensorDict raises InputError, at any depth, and nothing is written."""
    keys = ["features", ("next", "deep", "h"), ("next", "deep", "c")]
    for place in ("next", ("next", "deep")):
        for mode in (True, False):
            lstm = trial.lstm(batch_first=True)
            module = LSTMModule(lstm=lstm, in_key="observation", out_keys=keys, default_recurrent_mode=mode)
            td = trial.tensordict()
            td = td if mode else td[:, 0].clone()
            td[place] = td["observation"] * 1
            before = td.clone()
            _raises(lambda m=module, t=td: m(t), f"a tensor under {place!r}", InputError, "is a tensor")  # type: ignore[misc]
            if set(td.keys(True, True)) != set(before.keys(True, True)):
                raise LawBroken(f"with a tensor under {place!r} some results were written before the error")


_KEYS: dict[str, Any] = {"in_key": "x", "out_key": "y"}


@law(costly=True, once=True, T=(1,), B=(1,), I=(2,), H=(3,), L=(1,), P=(0,), bidirectional=(False,), dtype=CHEAP_DTYPE)
def options_that_do_not_fit_are_refused(trial: Trial) -> None:
    """Keys, sizes and options of a module that contradict each other raise InputError, which names the given values."""
    mine: dict[str, Any] = {"lstm_backend": trial.backend, "device": trial.device, "dtype": trial.case.torch_dtype}
    lstm = trial.lstm(batch_first=True)
    make: Callable[..., LSTMModule] = partial(LSTMModule, 2, 3, **mine)
    calls: dict[str, tuple[Callable[[], object], str]] = {
        "another hidden_output": (lambda: make(**_KEYS, hidden_output="none"), "'none'"),
        "a hidden_output of both directions": (
            lambda: make(**_KEYS, hidden_output="all", bidirectional=True), "bidirectional"),
        "time first": (lambda: make(1, True, False, **_KEYS), "batch_first"),
        "no sizes": (lambda: LSTMModule(**_KEYS, **mine), "input_size"),
        "no keys": (lambda: make(), "in_key"),
        "a key and keys": (lambda: make(in_key="x", in_keys=["x", "h", "c"], out_key="y"), "in_key"),
        "two keys": (lambda: make(in_keys=["x", "h"], out_key="y"), "in_keys"),
        "five keys": (lambda: make(in_keys=["x", "h", "c", "r", "s"], out_key="y"), "in_keys"),
        "a string for keys": (lambda: make(in_keys="xhc", out_key="y"), "'xhc'"),
        "the same key twice": (lambda: make(in_keys=["x", "x", "c"], out_key="y"), "differ"),
        "an output in the mask's place": (lambda: make(in_key="x", out_key="is_init"), "is_init"),
        "an input in the mask's place": (lambda: make(in_key="is_init", out_key="y"), "is_init"),
        "a key within another": (lambda: make(in_key=("y", "x"), out_key="y"), "'y'"),
        "two masks": (lambda: make(in_keys=["x", "h", "c", "r"], out_key="y", is_init_key="s"), "'s'"),
        "an LSTM and sizes": (lambda: make(lstm=lstm, **_KEYS), "lstm="),
        "an LSTM and a bias": (lambda: LSTMModule(lstm=lstm, bias=False, **_KEYS), "bias"),
        "an LSTM with time first": (lambda: LSTMModule(lstm=trial.lstm(), **_KEYS), "batch_first"),
        "a GRU": (lambda: LSTMModule(lstm=torch.nn.GRU(2, 3, batch_first=True), **_KEYS), "GRU"),
        "no mode": (lambda: make(**_KEYS).set_recurrent_mode("sometimes"), "'sometimes'"),  # type: ignore[arg-type]
        "a mode that is assigned": (lambda: setattr(make(**_KEYS), "recurrent_mode", True), "set_recurrent_mode"),
        "python_based on another": (lambda: make(**_KEYS, python_based=True), "python_based"),
    }  # fmt: skip
    for what, (call, word) in calls.items():
        _raises(call, what, InputError, word)


def _raises(call: Callable[[], object], what: str, kind: type[Exception], word: str) -> None:
    try:
        call()
    except kind as error:
        if word not in str(error):
            raise LawBroken(f"{what}: the message does not say {word!r}: {error}") from error
    except Exception as error:
        raise LawBroken(f"{what}: raised {type(error).__name__} ({error}), expected {kind.__name__}") from error
    else:
        raise LawBroken(f"{what} was accepted, expected {kind.__name__}")


@law(B=(2, 3), T=(4, 5))
def wrong_tensors_are_refused(trial: Trial) -> None:
    """A wrong shape or dtype of input, state or reset mask raises InputError with its name, in a call and a step."""
    lstm, inputs, is_init = trial.lstm(), trial.inputs, trial.is_init
    x, h, c = inputs.x, inputs.h[:, 0], inputs.c[:, 0]
    calls: dict[str, tuple[Callable[[], object], str]] = {
        "too many features": (lambda: lstm(torch.cat([x, x], -1)), str(2 * trial.case.I)),
        "four dimensions": (lambda: lstm(x.unsqueeze(0)), "shape"),
        "no step": (lambda: lstm(x[:0]), "time step"),
        "another dtype": (lambda: lstm(other_dtype(x)), "float32"),
        "h in another dtype": (lambda: lstm(x, (other_dtype(h), c)), "h_0"),
        "c in another dtype": (lambda: lstm(x, (h, other_dtype(c))), "c_0"),
        "h for one row": (lambda: lstm(x, (h[:, :1], c[:, :1])), "h_0"),
        "c for one row": (lambda: lstm(x, (h, c[:, :1])), "c_0"),
        "a step with h in another dtype": (lambda: lstm.step(x[0], State(other_dtype(h), c)), "h_0"),
        "a step with c in another dtype": (lambda: lstm.step(x[0], State(h, other_dtype(c))), "c_0"),
        "a step with c for one row": (lambda: lstm.step(x[0], State(h, c[:, :1])), "c_0"),
        "h alone": (lambda: lstm(x, (h,)), "pair"),  # type: ignore[arg-type]
        "a reset mask of numbers": (lambda: lstm(x, is_init=is_init.float()), "bool"),
        "a reset mask of another length": (lambda: lstm(x, is_init=is_init[:-1]), "is_init"),
        "a reset mask with batch first": (lambda: lstm(x, is_init=is_init.T), "is_init"),
    }
    for what, (call, word) in calls.items():
        _raises(call, what, InputError, word)


@law(L=(1, 2), profiles=("quick", "full"))
def wrong_weights_are_refused(trial: Trial) -> None:
    """A weight of another shape, dtype or device raises InputError, which names it, in calls and in steps."""
    wrong: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "one row more": lambda v: torch.cat([v, v[:1]]),
        "another dtype": other_dtype,
        "no memory": lambda v: v.to("meta"),
    }
    inputs = trial.inputs
    state = State(inputs.h[:, 0], inputs.c[:, 0])
    for name in (n for n in inputs.weights if n != "weight_ih_l0"):
        for what, spoil in wrong.items():
            lstm = trial.lstm()
            calls = {"a call": lambda m=lstm: m(inputs.x), "a step": lambda m=lstm: m.step(inputs.x[0], state)}
            with torch.no_grad():
                for call in calls.values():  # facts about the weights of an earlier call must not be used
                    call()
                setattr(lstm, name, torch.nn.Parameter(spoil(lstm.get_parameter(name).detach())))
                for way, call in calls.items():
                    _raises(call, f"{name} with {what}, in {way}", InputError, name)


@law(costly=True, T=(1,), B=(1,))
def an_unknown_name_is_an_error(trial: Trial) -> None:
    """A backend name with one wrong letter raises an error that lists the installed ones; none replaces it."""
    for name in (f"{trial.backend.name}x", trial.backend.name.upper() + "_", "", "LSTM"):
        if name in names():
            continue
        try:
            lstm = _build(trial, SPECS[0], torch.float32, name or "none")
        except ValueError as error:
            if not all(known in str(error) for known in names()):
                raise LawBroken(f"the error for {name!r} does not name the installed backends: {error}") from error
        else:
            raise LawBroken(f"the unknown name {name!r} gave {lstm.lstm_backend!r}")


@law(costly=True, T=(2,), B=(2,), L=(1,), bidirectional=(False,), resets=("none",), profiles=("quick", "full"))
def loading_elsewhere_checks_the_backend(trial: Trial) -> None:
    """An LSTM that ``torch.load(map_location=)`` puts on a device that its backend rejects raises when called."""

    def not_there(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
        return "not there" if device.type == "meta" else trial.backend.rejects(spec, device, dtype)

    picky = replace(trial.backend, name="rnn-conformance-not-there", rejects=not_there)
    trial.lstm()  # raises Declined for a rejected case
    with registered(picky):
        buffer = io.BytesIO()
        torch.save(trial.lstm().with_backend(picky), buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, map_location="meta", weights_only=False)
        try:
            loaded(trial.inputs.x.to("meta"))
        except UnsupportedError as error:
            _is_a_refusal(error, picky.name, "not there")
        else:
            raise LawBroken("loaded onto a device that the backend rejects, it was called without an error")
