"""Side effects: a call changes none of its inputs, and nothing global."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any, NoReturn

import torch
from rnn_backends import State
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..suite.compare import identical
from ..suite.law import law
from ..suite.torch_settings import read_settings, restored_settings
from ..suite.trial import Trial, differentiate
from ..suite.verdict import LawBroken


@law()
def nothing_passed_in_changes(trial: Trial) -> None:
    """Input, stored states, starts and weights are the same after forward and backward, and were never written to."""
    lstm, inputs, same = trial.lstm(), trial.fresh(), trial.fresh()
    tensors: dict[str, Tensor] = {"x": inputs.x, "h": inputs.h, "c": inputs.c, "starts": inputs.starts}
    tensors |= dict(lstm.named_parameters())
    expected: dict[str, Tensor] = {"x": same.x, "h": same.h, "c": same.c, "starts": same.starts} | same.weights
    versions = {name: value._version for name, value in tensors.items()}

    def unchanged(when: str) -> None:
        for name, value in tensors.items():
            identical(f"{name} after {when}", value.detach(), expected[name], "")
            if value._version != versions[name]:
                raise LawBroken(f"{name} was written to in place during {when}")

    loss = trial.loss(trial.run(lstm, inputs))
    unchanged("forward")
    loss.backward()
    unchanged("backward")


@law()
def same_call_same_answer(trial: Trial) -> None:
    """The same call twice gives the same bits, also after a call with other inputs in between."""
    lstm = trial.lstm()
    once = trial.run(lstm)
    other = trial.inputs._replace(x=trial.inputs.x + 1, h=-trial.inputs.h, starts=torch.ones_like(trial.inputs.starts))
    trial.run(lstm, other)
    again = trial.run(lstm)
    identical("output", again.output, once.output, "t b unit")
    identical("h at the ends", trial.at_ends(again.h), trial.at_ends(once.h), "layer t b unit")
    identical("c at the ends", trial.at_ends(again.c), trial.at_ends(once.c), "layer t b unit")


@law()
def a_result_outlives_the_next_call(trial: Trial) -> None:
    """No later call or step changes the results of an earlier one."""
    lstm = trial.lstm()
    with torch.no_grad():
        inputs = trial.inputs
        output, states = lstm.sequences(inputs.x, inputs.entry, inputs.starts)
        stepped, state = lstm.step(inputs.x[0], None)
        once = {"output": output, "the output of a step": stepped, "h of a step": state.h, "c of a step": state.c}
        for what, x in (("a row", inputs.x), ("a row of one step", inputs.x[:1])):
            ran = trial.stream(lstm, x)
            once |= {f"the output of {what}": ran.output, f"h_n of {what}": ran.h, f"c_n of {what}": ran.c}
        for k, state in enumerate(states):  # the backend's own tensors: Trial.run stacks them, which copies
            once |= {f"h of row {k}": state.h, f"c of row {k}": state.c}
        before = {name: value.clone() for name, value in once.items()}
        next_state = None
        for x in (inputs.x + 1, inputs.x - 1, inputs.x + 2, inputs.x - 2):  # buffers may take turns
            lstm.sequences(x, inputs.entry, inputs.starts)
            _, next_state = lstm.step(x[0], next_state)
            trial.stream(lstm, x)
            trial.stream(lstm, x[:1])
    for name, actual in once.items():
        identical(f"{name} after the next calls", actual, before[name], "")


@law(profiles=("quick", "full"))
def a_batch_with_nan_leaves_nothing_behind(trial: Trial) -> None:
    """After a batch of NaN, forward and backward, the next batch has the reference's values and gradients."""
    lstm = trial.lstm()
    for starts in (trial.inputs.starts, torch.ones_like(trial.inputs.starts)):
        bad = trial.fresh()
        bad = bad._replace(x=torch.full_like(bad.x, torch.nan), starts=starts)
        trial.gradients(lambda ran: ran.output.sum() + ran.c.sum(), lstm, inputs=bad)
    trial.agree("output", trial.run(lstm).output, trial.expected.output)
    trial.agree_gradients(trial.gradients(trial.loss, lstm), trial.expected_gradients(trial.loss))


@law(T=(9,), H=(6, 7, 10, 11, 12, 13, 14))
def training_after_inference_mode(trial: Trial) -> None:
    """A module that first ran without gradients can be trained, frozen weights too: no cached tensor prevents it.

    At sizes that no other law draws, since a cache may have been filled outside of inference mode before.
    """
    expected = trial.expected_gradients(trial.loss)
    for frozen, mode in product((True, False), (torch.inference_mode, torch.no_grad)):
        lstm, inputs = trial.lstm().requires_grad_(not frozen), trial.fresh()
        with mode():
            trial.run(lstm)
            trial.stream(lstm, inputs.x)
            lstm.step(inputs.x[0], None)
        leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c}
        for value in leaves.values():
            value.requires_grad_()
        leaves |= {} if frozen else dict(lstm.named_parameters())
        try:
            actual = differentiate(trial.loss(trial.run(lstm, inputs)), leaves)
        except NotImplementedError:
            raise
        except RuntimeError as error:
            what = "with frozen weights " if frozen else ""
            raise LawBroken(f"{what}after the same in {mode.__name__} the backward pass fails: {error}") from error
        trial.agree_gradients(actual, {name: expected[name] for name in leaves})


@law(T=(2, 3, 5), profiles=("quick", "full"))
def incoming_gradients_are_not_written(trial: Trial) -> None:
    """A backward pass does not change the gradients it is given."""
    lstm, inputs = trial.lstm(), trial.fresh()
    output, states = lstm.sequences(inputs.x.requires_grad_(), inputs.entry, inputs.starts)
    results = {"the output": output}
    for k, state in enumerate(states):
        results |= {f"h of row {k}": state.h, f"c of row {k}": state.c}
    leaves = [inputs.x, *lstm.parameters()]
    for k, (name, value) in enumerate(results.items()):  # one by one: autograd adds up several in memory of its own
        handed = trial.at_ends(trial.noise(value, 31 + k).to(value))
        before = handed.clone()
        torch.autograd.grad(value, leaves, handed, retain_graph=True, allow_unused=True)
        identical(f"the gradient by {name}, after the backward pass", handed, before, "t b unit")


@law(profiles=("quick", "full"))
def results_may_be_written_over_before_the_backward_pass(trial: Trial) -> None:
    """After a result, an input or a weight is edited in place, the backward pass is right or raises torch's error."""
    expected = trial.expected_gradients(lambda ran: trial.loss(ran, "y"))
    for edited in ("output", "x", "stored h", "stored c", *trial.inputs.weights):
        lstm, inputs = trial.lstm(), trial.fresh()
        for value in (inputs.x, inputs.h, inputs.c):
            value.requires_grad_()
        leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(lstm.named_parameters())}
        ran = trial.run(lstm, inputs)
        loss = trial.loss(ran, "y")
        with torch.no_grad():
            (leaves | {"output": ran.output})[edited].zero_()
        try:
            actual = differentiate(loss, leaves)
        except RuntimeError as error:
            if "inplace" in str(error):  # torch has one message for a tensor and one for its views
                continue
            raise
        try:
            trial.agree_gradients(actual, expected)
        except LawBroken as error:
            raise LawBroken(f"after an edit of {edited}: {error}", error.error_ratio) from error


@law()
def results_share_no_memory_with_inputs(trial: Trial) -> None:
    """Editing the outputs in place changes neither inputs nor weights."""
    lstm, inputs, same = trial.lstm(), trial.fresh(), trial.fresh()
    with torch.no_grad():
        output, states = lstm.sequences(inputs.x, inputs.entry, inputs.starts)
        for value in (output, *(v for state in states for v in state)):
            value.fill_(7)
    for name, value, expected in zip(("x", "h", "c", "starts"), inputs[:4], same[:4], strict=True):
        identical(f"{name} after writing into the results", value, expected, "")
    for name, parameter in lstm.named_parameters():
        identical(f"{name} after writing into the results", parameter.detach(), same.weights[name], "")


@law(profiles=("quick", "full"))
def h_and_c_share_no_memory(trial: Trial) -> None:
    """Editing h in place changes no c, and editing one layer's state no other layer's."""
    inputs = trial.inputs
    with torch.no_grad():
        _, states = trial.lstm().sequences(inputs.x, inputs.entry, inputs.starts)
        kept = [state.c.clone() for state in states]
        for state in states:
            state.h.fill_(7)
        for k, (state, c) in enumerate(zip(states, kept, strict=True)):
            identical(f"c of row {k} after writing into h", state.c, c, "t b unit")


class _Interrupted(Exception):
    """Raised in a call, where it keeps its first tensor for the backward pass."""


def _interrupt(error: type[Exception], value: Any) -> NoReturn:
    raise error("a tensor cannot be saved")


@law(T=(8, 9, 10, 33), I=(4, 6, 7))
def global_state_is_left_alone(trial: Trial) -> None:
    """Calls, backward passes and steps change no random state and no process-wide setting, of torch or of Python.

    At sizes that no other law draws, so that a call is the first at its sizes, and with three threads, so that one
    alone would be a change. One call is interrupted by an exception, as a checkpoint ends its recomputation, and one by
    an error of torch's own kind: either reaches the caller.
    """
    _check_global_state(trial, threads=3)


@law(time_limit=120.0, once=True, T=(3,), B=(2,), L=(1,), profiles=("quick", "full"))
def the_first_call_of_a_process_changes_no_setting(trial: Trial) -> None:
    """The first call, backward pass and step of a process change no random state and no process-wide setting."""
    _check_global_state(trial, threads=1)  # a fork waits for ever for the threads that its parent had


def _check_global_state(trial: Trial, threads: int) -> None:
    """Check the settings after construction, calls, backward passes and steps."""
    with restored_settings():
        torch.set_num_threads(threads)
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", ".")  # not for every message: a filter that a call adds is then seen
        before = read_settings()
        lstm = trial.lstm()
        _unchanged("construction", before)
        random = random_state(trial.device)
        trial.gradients(trial.loss, lstm)
        _unchanged("a call and its backward pass", before)
        x = trial.fresh().x.requires_grad_()
        trial.stream(lstm, x[:1]).output.sum().backward()
        _unchanged("a row of one step and its backward pass", before)
        for error in (_Interrupted, RuntimeError):
            with suppress(error), saved_tensors_hooks(partial(_interrupt, error), partial(_interrupt, error)):
                if not trial.stream(lstm, x).output.requires_grad:
                    raise LawBroken("an error while a tensor is saved gives a result without gradients")
            _unchanged("a call that an exception interrupts", before)
        _drew_nothing("a call or its backward pass", random, trial.device)
        with torch.no_grad():
            before = before | {"gradient mode": False}
            trial.run(lstm)
            _unchanged("a call without gradients", before)
            module, td = trial.module(), trial.tensordict()
            _unchanged("construction", before)
            restore_random_state(random, trial.device)  # construction draws the weights
            lstm.step(trial.inputs.x[0], None)
            module(td[:, 0].clone())
            _unchanged("a step without gradients", before)
            module.set_recurrent_mode(True)(td)
            _unchanged("recurrent mode", before)
        _drew_nothing("a call, its backward pass or a step", random, trial.device)


@law(dropout=(0, 30), L=(2,))  # torch warns of dropout in one layer
def evaluation_draws_no_random_numbers(trial: Trial) -> None:
    """In evaluation neither a step nor a call over time draws random numbers, with gradients or without."""
    module, inputs, td = trial.module().eval(), trial.inputs, trial.tensordict()
    state = State(inputs.h[:, 0], inputs.c[:, 0])
    calls: dict[str, Callable[[], object]] = {
        "a step of the LSTM": lambda: module.lstm.step(inputs.x[0], state),
        "a step of the module": lambda: module(td[:, 0].clone()),
        "a call of the LSTM": lambda: module.lstm(inputs.x.transpose(0, 1), is_init=trial.is_init.T),
        "recurrent mode": lambda: module.set_recurrent_mode(True)(td.clone()),
    }
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for what, call in calls.items():
            before = random_state(trial.device)
            with mode():
                call()
            _drew_nothing(f"{what} under {mode.__name__}", before, trial.device)


def random_state(device: str) -> tuple[Tensor, ...]:
    """The states of torch's random generators that a call on the device could use."""
    on_cuda = torch.device(device).type == "cuda"
    return (torch.random.get_rng_state(), *((torch.cuda.get_rng_state(device),) if on_cuda else ()))


def restore_random_state(state: tuple[Tensor, ...], device: str) -> None:
    """The inverse of :func:`random_state`."""
    torch.random.set_rng_state(state[0])
    for of_the_device in state[1:]:
        torch.cuda.set_rng_state(of_the_device, device)


def _drew_nothing(what: str, before: tuple[Tensor, ...], device: str) -> None:
    if not all(map(torch.equal, before, random_state(device))):
        raise LawBroken(f"{what} draws from torch's global random generator")


def _unchanged(what: str, before: dict[str, Any]) -> None:
    for name, value in read_settings().items():
        if value != before[name]:
            raise LawBroken(f"{what} changes {name} from {before[name]} to {value}")
