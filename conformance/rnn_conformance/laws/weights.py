"""Weights: those of torch.nn.LSTM, read at every call."""

from __future__ import annotations

import copy

import torch
from rnn_backends import State
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from ..suite.compare import identical
from ..suite.law import law
from ..suite.trial import Trial
from ..suite.verdict import LawBroken


def _torch(trial: Trial) -> nn.LSTM:
    case = trial.case
    return nn.LSTM(
        case.I, case.H, case.L, case.bias, False, 0.0, case.bidirectional, case.P, trial.device, case.torch_dtype
    )


@law(resets=("none",))
def state_dict_is_torchs(trial: Trial) -> None:
    """Names, order and shapes of the state_dict are torch.nn.LSTM's; with its weights the values are the same."""
    lstm, other = trial.lstm(), _torch(trial)
    if list(lstm.state_dict()) != list(other.state_dict()):
        raise LawBroken(f"state_dict has {list(lstm.state_dict())}, torch.nn.LSTM's {list(other.state_dict())}")
    lstm.load_state_dict(other.state_dict())
    hx = (trial.inputs.h[:, 0].contiguous(), trial.inputs.c[:, 0].contiguous())
    output, (h, c) = other(trial.inputs.x, hx)
    actual = trial.stream(lstm, trial.inputs.x, hx)
    trial.agree("output", actual.output, output)
    trial.agree("h_n", actual.h, h, 1, "layer b unit")
    trial.agree("c_n", actual.c, c, 1, "layer b unit")


@law(T=(1,), B=(1,))
def the_same_seed_draws_the_same_weights(trial: Trial) -> None:
    """With the same seed the initial weights are torch.nn.LSTM's, bit for bit."""
    lstm = trial.lstm()
    torch.manual_seed(trial.case.seed)
    expected = _torch(trial)
    torch.manual_seed(trial.case.seed)
    again = type(lstm)(
        lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bias, False, 0.0, lstm.bidirectional, lstm.proj_size,
        trial.device, trial.case.torch_dtype, lstm_backend=trial.backend,
    )  # fmt: skip
    for name, value in expected.named_parameters():
        identical(name, again.get_parameter(name), value, "row column")


@law()
def edited_weights_are_seen(trial: Trial) -> None:
    """Weights edited in place, loaded or stepped by an optimizer take effect at the next call."""
    lstm = trial.lstm()
    trial.run(lstm)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(-0.5)
    halved = trial.inputs._replace(weights={n: v * -0.5 for n, v in trial.inputs.weights.items()})
    trial.agree("output after an edit in place", trial.run(lstm).output, trial.reference(halved).output)
    lstm.load_state_dict(trial.inputs.weights)
    trial.agree("output after load_state_dict", trial.run(lstm).output, trial.expected.output)
    for parameter in lstm.parameters():
        parameter.data = parameter.data * -0.5
    trial.agree("output after assigning .data", trial.run(lstm).output, trial.reference(halved).output)


@law()
def edited_weights_are_seen_while_acting(trial: Trial) -> None:
    """Without gradients weights edited in place, all or one alone, take effect at the next call and the next step."""
    lstm, (x, h, c, starts, weights) = trial.lstm(), trial.inputs
    parameters, now = dict(lstm.named_parameters()), dict(weights)
    edits = [list(parameters), *([name] for name in parameters if name.endswith("_l0"))]
    with torch.no_grad():
        trial.run(lstm)
        lstm.step(x[0], None)
        for names in edits:
            for name in names:
                parameters[name].mul_(-0.5)
                now[name] = now[name] * -0.5
            edited, what = trial.inputs._replace(weights=now), names[0] if len(names) == 1 else "all weights"
            trial.agree(f"output after an edit of {what}", trial.run(lstm).output, trial.reference(edited).output)
            first = edited._replace(
                x=x[:1], h=torch.zeros_like(h[:, :1]), c=torch.zeros_like(c[:, :1]), starts=starts[:1]
            )
            step, _ = lstm.step(x[0], None)
            expected = trial.reference(first).output[0]
            trial.agree(f"output of a step after an edit of {what}", step, expected, 0, "b unit")


class _Scaled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight times -0.5."""
        return weight * -0.5


@law(bias=(False,))
def weights_without_bias_may_be_views_of_one_vector(trial: Trial) -> None:
    """Weights may be views of one longer vector: without bias, memory after a weight is never read as a bias."""
    lstm = trial.lstm()
    weights = list(lstm.parameters())
    behind = weights[0].new_full((8 * trial.case.H,), 2.0)
    vector = torch.cat([*(weight.detach().reshape(-1) for weight in weights), behind])
    torch.nn.utils.vector_to_parameters(vector, weights)
    trial.agree("output", trial.run(lstm).output, trial.expected.output)
    trial.agree_gradients(trial.gradients(trial.loss, lstm), trial.expected_gradients(trial.loss))


@law(profiles=("quick", "full"))
def parametrized_weights_are_read(trial: Trial) -> None:
    """A weight parametrized by torch.nn.utils.parametrize is used as computed, and its original is trained.

    Without gradients too, in calls and in steps, and after an edit of the originals.
    """
    lstm = trial.lstm()
    for name in trial.inputs.weights:
        register_parametrization(lstm, name, _Scaled())
    halved, first = trial.inputs.weighted(-0.5), State(trial.inputs.h[:, 0], trial.inputs.c[:, 0])
    output = trial.run(lstm).output
    trial.agree("output", output, trial.reference(halved).output)
    with torch.no_grad():
        for what, factor in (("", 1.0), (" after an edit of the originals", -2.0)):
            for parameter in lstm.parameters():
                parameter.mul_(factor)
            right = trial.reference(halved.weighted(factor))
            trial.agree(f"output without gradients{what}", trial.run(lstm).output, right.output)
            step, _ = lstm.step(trial.inputs.x[0], first)
            if not trial.case.bidirectional:
                trial.agree(f"output of a step{what}", step, right.output[0], 0, "b unit")
        for parameter in lstm.parameters():
            parameter.mul_(-0.5)
    output = trial.run(lstm).output
    output.sum().backward()
    without = [name for name, parameter in lstm.named_parameters() if parameter.grad is None]
    if without:
        raise LawBroken(f"no gradient reached {', '.join(without)}")


@law(profiles=("quick", "full"))
def copies_on_a_backend_follow_parametrizations(trial: Trial) -> None:
    """A copy by ``with_backend`` uses parametrized weights, whether parametrized before the copy or after it."""
    for early in (True, False):
        lstm = trial.lstm()
        twin = lstm if early else lstm.with_backend(trial.backend)
        for name in trial.inputs.weights:
            register_parametrization(lstm, name, _Scaled())
        twin = lstm.with_backend(trial.backend) if early else twin
        halved = trial.inputs._replace(weights={n: v * -0.5 for n, v in trial.inputs.weights.items()})
        when = "after" if early else "before"
        trial.agree(
            f"output of a copy made {when} the parametrization", trial.run(twin).output, trial.reference(halved).output
        )


@law(profiles=("quick", "full"))
def a_copy_is_independent(trial: Trial) -> None:
    """A deepcopy gives the same results and does not change with the original."""
    lstm = trial.lstm()
    trial.run(lstm)
    twin = copy.deepcopy(lstm)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
    trial.agree("output of the copy", trial.run(twin).output, trial.expected.output)


@law(profiles=("quick", "full"))
def two_modules_do_not_mix(trial: Trial) -> None:
    """Two LSTMs of the same sizes on one backend, called in turn, each use their own weights."""
    one, two = trial.lstm(), trial.lstm()
    negative = {name: -value for name, value in trial.inputs.weights.items()}
    two.load_state_dict(negative)
    for _ in range(2):
        trial.agree("output of the first", trial.run(one).output, trial.expected.output)
        other = trial.reference(trial.inputs._replace(weights=negative))
        trial.agree("output of the second", trial.run(two).output, other.output)


@law(profiles=("quick", "full"))
def each_weight_may_be_replaced_alone(trial: Trial) -> None:
    """A single weight replaced by ``functional_call`` or by a new parameter takes effect; the others are unchanged."""
    lstm, inputs = trial.lstm(), trial.inputs
    starts = torch.zeros_like(inputs.starts)
    starts[0] = True
    whole = inputs._replace(h=torch.zeros_like(inputs.h), c=torch.zeros_like(inputs.c), starts=starts)
    trial.stream(lstm, inputs.x)
    for name, weight in inputs.weights.items():
        other = weight * -0.5
        expected = trial.reference(whole._replace(weights={**inputs.weights, name: other})).output
        actual = torch.func.functional_call(lstm, {name: other}, (inputs.x,))[0]
        trial.agree(f"output of functional_call with another {name}", actual, expected)
    name, weight = next(reversed(inputs.weights.items()))
    setattr(lstm, name, nn.Parameter(weight * -0.5))
    trial.agree(f"output after {name} was replaced", trial.stream(lstm, inputs.x).output, expected)


@law(profiles=("quick", "full"))
def loading_is_strict_by_default(trial: Trial) -> None:
    """load_state_dict raises for missing and unexpected keys; with strict=False it loads the rest and names them."""
    for what, module, prefix in (("LSTM", trial.lstm(), ""), ("LSTMModule", trial.module(), "lstm.")):
        weights = {prefix + name: value * 0.5 for name, value in trial.inputs.weights.items()}
        missing, extra = f"{prefix}weight_hh_l0", f"{prefix}weight_hh_l{trial.case.L}"
        part = {name: value for name, value in weights.items() if name != missing}
        other = part | {extra: weights[missing]}
        for said, given in (("without one key", part), ("with an unexpected key", weights | {extra: weights[missing]})):
            try:
                module.load_state_dict(given)
            except RuntimeError as error:
                if (missing if given is part else extra) not in str(error):
                    raise LawBroken(f"{what}.load_state_dict {said} raises an error that does not name it") from error
            else:
                raise LawBroken(f"{what}.load_state_dict {said} raises no error")
        module.load_state_dict(weights)
        before = module.state_dict()[missing].clone()
        doubled = {name: value * 2 for name, value in other.items()}
        try:
            keys = module.load_state_dict(doubled, strict=False)
        except RuntimeError as error:
            raise LawBroken(f"{what}.load_state_dict with strict=False raises {error}") from error
        if keys.missing_keys != [missing] or keys.unexpected_keys != [extra]:
            raise LawBroken(f"{what}.load_state_dict with strict=False names {keys}, not {missing} and {extra}")
        for name, value in module.state_dict().items():
            identical(f"{name} after loading", value, before if name == missing else doubled[name], "row column")


@law(profiles=("quick", "full"))
def a_weight_of_another_shape_is_not_loaded(trial: Trial) -> None:
    """load_state_dict raises for a weight of another shape, one that would broadcast too, whatever ``strict`` says."""
    for what, module, prefix in (("LSTM", trial.lstm(), ""), ("LSTMModule", trial.module(), "lstm.")):
        weights = {prefix + name: value for name, value in trial.inputs.weights.items()}
        for name, value in weights.items():
            others = {
                "one number": value.flatten()[:1], "one row": value[:1], "one row more": torch.cat([value, value[:1]]),
                "another dimension": value.unsqueeze(0), "its transpose": value.t(), "one dimension": value.flatten(),
            }  # fmt: skip
            for kind, other in others.items():
                if other.shape == value.shape:
                    continue
                for strict in (True, False):
                    try:
                        module.load_state_dict(weights | {name: other}, strict=strict)
                    except RuntimeError as error:
                        if name not in str(error):
                            raise LawBroken(f"{what}.load_state_dict of {name} as {kind} does not name it") from error
                    else:
                        raise LawBroken(f"{what}.load_state_dict accepts {kind} for {name}, with strict={strict}")
                if module.state_dict()[name].shape != value.shape:
                    raise LawBroken(f"{what}.load_state_dict of {kind} for {name} changes the shape of the weight")
