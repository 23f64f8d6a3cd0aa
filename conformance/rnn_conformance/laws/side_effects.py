"""Purity: a call reads what it is given, changes nothing, keeps nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..suite.compare import identical
from ..suite.law import law
from ..suite.trial import Trial
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
    """A call does not change what the one before it gave, nor do the calls and the steps after that."""
    lstm = trial.lstm()
    with torch.no_grad():
        inputs = trial.inputs
        output, states = lstm.sequences(inputs.x, inputs.entry, inputs.starts)
        stepped, state = lstm.step(inputs.x[0], None)
        once = {"output": output, "the output of a step": stepped, "h of a step": state.h, "c of a step": state.c}
        for k, state in enumerate(states):  # its own tensors: a run of the trial's stacks them, which copies
            once |= {f"h of row {k}": state.h, f"c of row {k}": state.c}
        kept = {name: value.clone() for name, value in once.items()}
        next_state = None
        for x in (inputs.x + 1, inputs.x - 1):
            lstm.sequences(x, inputs.entry, inputs.starts)
            _, next_state = lstm.step(x[0], next_state)
    for name, actual in once.items():
        identical(f"{name} after the next calls", actual, kept[name], "")


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


@law()
def trained_over_what_was_seen_in_inference_mode(trial: Trial) -> None:
    """What ran under inference_mode first can be trained over next: nothing kept from there is in the way."""
    lstm, loss = trial.lstm(), trial.loss
    with torch.inference_mode():
        trial.run(lstm)
    try:
        actual = trial.gradients(loss, lstm)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        raise LawBroken(f"after the same in inference_mode the backward pass fails: {error}") from error
    trial.agree_gradients(actual, trial.expected_gradients(loss))


@law(T=(2, 3, 5), profiles=("quick", "full"))
def gradients_handed_in_are_not_written(trial: Trial) -> None:
    """The gradients that a backward pass is handed are the same afterwards."""
    lstm, inputs = trial.lstm(), trial.fresh()
    output, _ = lstm.sequences(inputs.x.requires_grad_(), inputs.entry, inputs.starts)
    handed = trial.noise(output, 31).to(output)
    kept = handed.clone()
    torch.autograd.grad(output, [inputs.x, *lstm.parameters()], handed)
    identical("the gradient by the output, after the backward pass", handed, kept, "t b unit")


@law(profiles=("quick", "full"))
def results_may_be_written_over_before_the_backward_pass(trial: Trial) -> None:
    """Where the output was changed in place, the backward pass is right or torch's own error stops it."""
    lstm, inputs = trial.lstm(), trial.fresh()
    leaves = {"x": inputs.x.requires_grad_(), **dict(lstm.named_parameters())}
    output, _ = lstm.sequences(inputs.x, inputs.entry, inputs.starts)
    loss = (output * trial.noise(output, 0).to(output)).sum()
    with torch.no_grad():
        output.zero_()
    try:
        actual = torch.autograd.grad(loss, list(leaves.values()))
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return
        raise
    expected = trial.expected_gradients(lambda ran: trial.loss(ran, "y"))
    trial.agree_gradients(dict(zip(leaves, actual, strict=True)), {n: expected[n] for n in leaves})


@law()
def results_share_no_memory_with_inputs(trial: Trial) -> None:
    """Writing into the outputs changes neither inputs nor weights."""
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
    """Writing into h changes no c, and writing into one layer's state no other's."""
    inputs = trial.inputs
    with torch.no_grad():
        _, states = trial.lstm().sequences(inputs.x, inputs.entry, inputs.starts)
        kept = [state.c.clone() for state in states]
        for state in states:
            state.h.fill_(7)
        for k, (state, c) in enumerate(zip(states, kept, strict=True)):
            identical(f"c of row {k} after writing into h", state.c, c, "t b unit")


@law()
def global_state_is_left_alone(trial: Trial) -> None:
    """A call leaves torch's random state, gradient mode, default dtype and threads as they were."""
    lstm = trial.lstm()
    torch.manual_seed(0)
    before = _globals()
    trial.run(lstm)
    for name, value in _globals().items():
        if value != before[name]:
            raise LawBroken(f"the call changed {name} from {before[name]} to {value}")


def _globals() -> dict[str, object]:
    return {
        "the random state": torch.random.get_rng_state().sum().item(),
        "gradient mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
    }
