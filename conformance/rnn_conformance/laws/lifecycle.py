"""Lifecycle: copied, pickled, moved, called with other weights or trained, a module never uses stale weights."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from typing import Any

import torch
from rnn_backends import LSTM, LSTMBackend, names
from torch import nn

from ..suite.inputs import materialise
from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import Declined, LawBroken
from ._shared import registered


@law(wide=True, dropout=(0, 30), L=(2, 3), profiles=("quick", "full"))
def a_pickle_keeps_everything(trial: Trial) -> None:
    """Pickled and loaded, LSTM and module keep their backend, options, mode, training flag and values.

    Both have run by then, and acted.
    """
    with registered(trial.backend):
        lstm, acting = trial.lstm().eval(), trial.module()
        trial.run(lstm)
        with torch.no_grad():
            acting(trial.tensordict()[:, 0].clone())
        module = acting.set_recurrent_mode(True).train()
        try:
            again, loaded = (pickle.loads(pickle.dumps(value)) for value in (lstm, module))
        except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
            raise LawBroken(f"after calls it cannot be pickled: {type(error).__name__}: {error}") from error
    pairs = {
        "the backend": (again.backend, lstm.backend),
        "the options": (again.spec, lstm.spec),
        "the training flag": ((again.training, loaded.training), (False, True)),
        "the mode": (loaded.recurrent_mode, True),
        "the module's backend": (loaded.lstm_backend, trial.backend.name),
    }
    for what, (actual, expected) in pairs.items():
        if actual != expected:
            raise LawBroken(f"a pickle changes {what} from {expected} to {actual}")
    trial.agree("output after pickling", trial.run(again).output, trial.expected.output)


@law(profiles=("quick", "full"))
def a_deepcopy_keeps_backend_and_shares_nothing(trial: Trial) -> None:
    """A deepcopy has the same backend, its own memory and its own training flag."""
    lstm = trial.lstm()
    trial.run(lstm)
    twin = copy.deepcopy(lstm).eval()
    if twin.backend is not lstm.backend or not lstm.training:
        raise LawBroken("a deepcopy changes the backend, or shares its training flag")
    theirs = {parameter.data_ptr() for parameter in lstm.parameters()}
    if theirs & {parameter.data_ptr() for parameter in twin.parameters()}:
        raise LawBroken("a deepcopy shares memory with the original")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    trial.agree("output of the original", trial.run(lstm).output, trial.expected.output)


@law(profiles=("quick", "full"))
def copies_keep_frozen_parameters(trial: Trial) -> None:
    """``requires_grad`` of each parameter stays the same in a deepcopy, in a pickle and on another backend."""
    lstm = trial.lstm()
    next(lstm.parameters()).requires_grad_(False)
    with registered(trial.backend):
        twins = {"a deepcopy": copy.deepcopy(lstm), "a pickle": pickle.loads(pickle.dumps(lstm))}
    twins["with_backend"] = lstm.with_backend(trial.backend)
    expected = {name: parameter.requires_grad for name, parameter in lstm.named_parameters()}
    for what, twin in twins.items():
        actual = {name: parameter.requires_grad for name, parameter in twin.named_parameters()}
        if actual != expected:
            raise LawBroken(f"{what} changes requires_grad from {expected} to {actual}")


@law(dtype=("f64",), profiles=("quick", "full"))
def moved_to_another_dtype_and_back(trial: Trial) -> None:
    """After ``.float()`` the module computes with the float32 weights, after ``.double()`` with those in float64."""
    lstm, case = trial.lstm(), trial.case
    trial.run(lstm)
    reason = trial.backend.rejects(case.spec, torch.device(trial.device), torch.float32)
    if reason is not None:
        raise Declined(reason)
    low = materialise(replace(case, dtype="f32"), trial.device)
    output = trial.run(lstm.float(), low).output
    if output.dtype != torch.float32:
        raise LawBroken(f"after .float() the output has dtype {output.dtype}")
    trial.agree("output after .float()", output, trial.expected.output, dtype=torch.float32)
    lstm.double()
    rounded = {n: w.float().double() for n, w in trial.inputs.weights.items()}
    right = trial.reference(trial.inputs._replace(weights=rounded)).output
    trial.agree("output after .double()", trial.run(lstm).output, right)


@law(profiles=("quick", "full"))
def functional_call_uses_the_weights_it_is_given(trial: Trial) -> None:
    """``torch.func.functional_call`` uses the given weights once; the next call uses the module's again."""
    lstm, inputs = trial.lstm(), trial.inputs
    trial.run(lstm)
    other = {n: w * -0.5 for n, w in inputs.weights.items()}
    hx = (inputs.h[:, 0].contiguous(), inputs.c[:, 0].contiguous())
    never = torch.zeros_like(trial.is_init)
    whole = torch.zeros_like(inputs.starts)
    whole[0] = True
    actual = torch.func.functional_call(lstm, other, (inputs.x, hx), {"is_init": never})[0]
    trial.agree(
        "output of functional_call", actual, trial.reference(inputs._replace(weights=other, starts=whole)).output
    )
    trial.agree("output after it", trial.run(lstm).output, trial.expected.output)


@law(T=(2, 3, 4), profiles=("quick", "full"))
def an_optimizer_step_takes_effect(trial: Trial) -> None:
    """After an optimizer's step forward and backward of the same module use the new weights."""
    lstm = trial.lstm()
    weights = {n: w.clone() for n, w in trial.inputs.weights.items()}
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    for step in range(3):
        own = {n: w.detach().double().cpu().requires_grad_() for n, w in weights.items()}
        right = trial.reference(trial.inputs._replace(weights=own)).output
        gradients = torch.autograd.grad(right.square().sum(), list(own.values()))
        optimizer.zero_grad()
        output = trial.run(lstm).output
        trial.agree(f"output before step {step + 1}", output, right, scale=10)
        output.square().sum().backward()
        optimizer.step()
        weights = {n: w.detach() - 0.1 * g for (n, w), g in zip(own.items(), gradients, strict=True)}


@law(profiles=("quick", "full"))
def parameters_are_torchs_and_nothing_else(trial: Trial) -> None:
    """Each weight is one parameter, registered once under torch.nn.LSTM's name; there are no buffers."""
    case, lstm = trial.case, trial.lstm()
    trial.run(lstm)
    other = nn.LSTM(case.I, case.H, case.L, case.bias, bidirectional=case.bidirectional, proj_size=case.P)
    actual = [(n, tuple(p.shape)) for n, p in lstm.named_parameters(remove_duplicate=False)]
    expected = [(n, tuple(p.shape)) for n, p in other.named_parameters(remove_duplicate=False)]
    if actual != expected:
        raise LawBroken(f"the parameters are {actual}, torch.nn.LSTM's {expected}")
    if list(lstm.buffers()):
        raise LawBroken(f"there are buffers: {[n for n, _ in lstm.named_buffers()]}")
    other.load_state_dict(lstm.state_dict())


@law(bidirectional=(False,), profiles=("quick", "full"))
def copies_in_another_mode_share_the_weights(trial: Trial) -> None:
    """A copy by ``set_recurrent_mode`` shares the LSTM permanently: edits, loading and moving reach both."""
    module = trial.module()
    twin = module.set_recurrent_mode(True)
    if twin is module or twin.set_recurrent_mode(True) is not twin or twin.lstm is not module.lstm:
        raise LawBroken(
            "set_recurrent_mode must return a copy that shares the LSTM, and the module itself where nothing differs"
        )
    negative = {n: -w for n, w in trial.inputs.weights.items()}
    right = trial.reference(trial.inputs._replace(weights=negative)).output
    module.load_state_dict({f"lstm.{n}": w.clone() for n, w in negative.items()}, assign=True)
    trial.agree("features of the copy", twin(trial.tensordict())["features"].transpose(0, 1), right)
    twin.lstm.load_state_dict(trial.inputs.weights)
    first = module(trial.tensordict().exclude("recurrent_state_h", "recurrent_state_c")[:, 0].clone())["features"]
    zero = trial.inputs._replace(h=torch.zeros_like(trial.inputs.h), c=torch.zeros_like(trial.inputs.c))
    trial.agree("features of the original", first, trial.reference(zero).output[0], 0, "b unit")


@law(dropout=(50,), L=(2,), bias=(True,), profiles=("quick", "full"))
def from_torch_keeps_the_training_flag(trial: Trial) -> None:
    """An LSTM made from a torch.nn.LSTM keeps its training flag."""
    case = trial.case
    trial.lstm()  # raises Declined for a rejected case
    for training in (True, False):
        source = nn.LSTM(
            case.I, case.H, case.L, case.bias, False, 0.5, case.bidirectional, case.P, trial.device, case.torch_dtype
        ).train(training)
        wrapped = LSTM.from_torch(source, trial.backend)
        if wrapped.training != training or wrapped.with_backend(trial.backend).training != training:
            raise LawBroken(f"made from torch.nn.LSTM with training={training}, it has training={not training}")


@law(profiles=("quick", "full"))
def a_copy_keeps_the_backend_value(trial: Trial) -> None:
    """A copy runs on the backend value of the original, even if an installed backend has the same name."""
    trial.lstm()  # raises Declined for a rejected case
    impostor = replace(trial.backend, name=names()[0], layer=_Own(trial.backend))
    twin = copy.deepcopy(trial.lstm().with_backend(impostor))
    if twin.backend is not impostor:
        raise LawBroken(f"a deepcopy runs on the installed {impostor.name!r} instead of the original's backend value")


class _Own:
    """A layer function that no other backend has."""

    def __init__(self, backend: LSTMBackend) -> None:
        self._layer = backend.layer

    def __call__(self, *args: Any) -> Any:
        return self._layer(*args)

    def __deepcopy__(self, memo: Any) -> _Own:
        return self


@law(profiles=("quick", "full"))
def from_torch_shares_the_weights(trial: Trial) -> None:
    """An LSTM made from torch.nn.LSTM, or by ``with_backend``, shares the parameters of the original."""
    case = trial.case
    source = nn.LSTM(
        case.I, case.H, case.L, case.bias, False, 0.0, case.bidirectional, case.P, trial.device, case.torch_dtype
    )
    trial.lstm()  # raises Declined for a rejected case
    wrapped = LSTM.from_torch(source, trial.backend)
    trial.run(wrapped)
    source.load_state_dict(trial.inputs.weights)
    trial.agree("output of the wrapped", trial.run(wrapped).output, trial.expected.output)
    trial.run(wrapped).output.sum().backward()
    if any(parameter.grad is None for parameter in source.parameters()):
        raise LawBroken("the wrapped LSTM's gradients do not reach torch.nn.LSTM's parameters")


@law(T=(2,), B=(2,), L=(1,), bidirectional=(False,), profiles=("quick", "full"))
def hooks_stay_with_their_copy(trial: Trial) -> None:
    """A forward hook on a copy in another mode, or on another backend, runs on calls of that copy alone."""
    module, ran = trial.module(), []
    for twin in (module.set_recurrent_mode(True), module.with_backend(trial.backend)):
        handle = twin.register_forward_hook(lambda *_: ran.append("twin"))
        module(trial.tensordict()[:, 0].clone())
        if ran:
            raise LawBroken("a hook registered on a copy ran on a call of the original")
        handle.remove()
    handle = module.register_forward_hook(lambda *_: ran.append("original"))
    module.set_recurrent_mode(True)(trial.tensordict())
    before = len(ran)
    module(trial.tensordict()[:, 0].clone())
    handle.remove()
    if len(ran) != before + 1:
        raise LawBroken(f"a hook of a module ran {len(ran) - before} times in one call")


@law(T=(3,), B=(2,), L=(1, 2), bidirectional=(False,), dropout=(0,), profiles=("quick", "full"))
def hooks_of_the_inner_lstm_run(trial: Trial) -> None:
    """If hooks on a module's LSTM replace its input and its result, the module computes with the replacements."""
    module, td = trial.module(), trial.tensordict()
    mirrored = td.clone().set("observation", -td["observation"])
    for recurrent, given, other in ((True, td, mirrored), (False, td[:, 0], mirrored[:, 0])):
        run = module.set_recurrent_mode(recurrent)
        expected = 2 * run(other.clone())["features"].double()
        negate = run.lstm.register_forward_pre_hook(lambda _, args: (-args[0], *args[1:]))
        double = run.lstm.register_forward_hook(lambda *call: (2 * call[2][0], call[2][1]))
        actual = run(given.clone())["features"]
        negate.remove()
        double.remove()
        where = "over time" if recurrent else "of a step"
        trial.agree(f"features {where} with hooks on the module's LSTM", actual, expected, 0, "b unit", scale=2)


@law(T=(3,), B=(2,), L=(1, 2), bidirectional=(False,), dropout=(0,), profiles=("quick", "full"))
def every_kind_of_hook_runs_on_the_inner_lstm(trial: Trial) -> None:
    """Backward hooks of a module's LSTM run, and so do hooks on all modules, over time and in a step."""
    module, td, lists = trial.module(), trial.tensordict(), nn.modules.module
    for recurrent, given, where in ((True, td, "over time"), (False, td[:, 0], "in a step")):
        run = module.set_recurrent_mode(recurrent)
        kinds: dict[str, Any] = {
            "a backward hook": run.lstm.register_full_backward_hook,
            "a backward pre-hook": run.lstm.register_full_backward_pre_hook,
            "a forward hook on all modules": lists.register_module_forward_hook,
            "a forward pre-hook on all modules": lists.register_module_forward_pre_hook,
            "a backward hook on all modules": lists.register_module_full_backward_hook,
        }
        for kind, register in kinds.items():
            ran: list[nn.Module] = []
            handle = register(lambda called, *_, ran=ran: ran.append(called))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch warns of inputs without gradients, and of TensorDicts
                    run(given.clone())["features"].sum().backward()
            finally:
                handle.remove()
            if ran.count(run.lstm) != 1:
                raise LawBroken(f"{kind} ran {ran.count(run.lstm)} times on a module's LSTM {where}, expected once")
