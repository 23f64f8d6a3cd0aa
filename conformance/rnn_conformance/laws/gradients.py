"""Gradients: equal to the reference's where a value is read, exactly zero where it is not."""

from __future__ import annotations

import torch
from rnn_backends import LSTM, State
from torch import Tensor

from ..suite.compare import demand, identical
from ..suite.inputs import Inputs, materialise
from ..suite.law import law
from ..suite.trial import Ran, Trial, differentiate
from ..suite.verdict import LawBroken


def _right(trial: Trial, parts: str = "yhc") -> None:
    def loss(ran: Ran) -> Tensor:
        return trial.loss(ran, parts)

    trial.agree_gradients(trial.gradients(loss), trial.expected_gradients(loss))


@law(wide=True, rollouts=True)
def gradients_equal_reference(trial: Trial) -> None:
    """The gradients for input, stored states and every weight equal the reference's."""
    _right(trial)


@law(wide=True, dtype=("f32",))
def gradients_equal_reference_in_float32(trial: Trial) -> None:
    """In float32 the gradients for input, stored states and every weight equal the float64 reference's."""
    _right(trial)


@law(profiles=("quick", "full"))
def gradients_of_the_output_alone(trial: Trial) -> None:
    """A loss of the output alone has the reference's gradients."""
    _right(trial, "y")


@law(profiles=("quick", "full"))
def gradients_of_the_end_states_alone(trial: Trial) -> None:
    """A loss of the end states alone, h or c, or of either with a part of the rest, has the reference's gradients."""
    _right(trial, "h")
    _right(trial, "c")
    t = torch.arange(trial.case.T, device=trial.device).view(-1, 1, 1)
    b = torch.arange(trial.case.B, device=trial.device).view(-1, 1)
    corner, sooner = (t == 0) & (b == 0), t < trial.case.T - 1

    def with_one_output(ran: Ran) -> Tensor:
        return trial.loss(ran._replace(output=torch.where(corner, ran.output, 0)), "yc")

    def with_earlier_states(ran: Ran) -> Tensor:
        return trial.loss(ran._replace(c=torch.where(sooner, ran.c, 0)), "yc")

    for loss in (with_one_output, with_earlier_states):
        trial.agree_gradients(trial.gradients(loss), trial.expected_gradients(loss))


@law(T=(2, 3, 4, 6), resets=("bits", "last", "all"))
def gradient_across_a_reset_is_zero(trial: Trial) -> None:
    """A loss after a row's last start, NaN or not, has exactly zero gradient for everything in the row before it."""
    starts = trial.inputs.starts
    t = torch.arange(trial.case.T, device=starts.device).unsqueeze(-1)
    last = torch.where(starts, t, 0).amax(0)
    after = (t >= last).unsqueeze(-1)

    def loss(ran: Ran) -> Tensor:
        return trial.loss(Ran(*(torch.where(after, value, 0) for value in ran)))

    def of_nan(ran: Ran) -> Tensor:
        return loss(ran) * torch.nan

    for what, own in (("", loss), (", of a loss of NaN", of_nan)):
        actual = trial.gradients(own)
        read = after & starts.unsqueeze(-1)
        for name, at, axes in (("x", after, "t b unit"), *((f"stored {s}", read, "layer t b unit") for s in "hc")):
            gradient = actual[name]
            demand(f"the gradient of {name} across a reset{what}", at | (gradient == 0), gradient, "exactly 0", axes)


@law(bidirectional=(False,))
def gradient_of_the_future_is_zero(trial: Trial) -> None:
    """A loss of one step of a forward LSTM has exactly zero gradient for all later steps."""
    at = trial.case.T // 2
    later = trial.gradients(lambda ran: ran.output[at].sum())["x"][at + 1 :]
    demand("the gradient for later steps", later == 0, later, "exactly 0", "t b unit")


@law()
def gradient_of_unread_stored_states_is_zero(trial: Trial) -> None:
    """States stored where no sequence starts have exactly zero gradient, even if they are NaN."""
    starts = trial.inputs.starts
    inputs = trial.fresh()
    inputs.h[:, ~starts], inputs.c[:, ~starts] = float("nan"), float("nan")
    actual = trial.gradients(trial.loss, inputs=inputs)
    for name in ("stored h", "stored c"):
        gradient = actual[name]
        read = starts.unsqueeze(-1)
        demand(
            f"the gradient of {name} where it is not read",
            read | (gradient == 0),
            gradient,
            "exactly 0",
            "layer t b unit",
        )
    trial.agree_gradients(actual, trial.expected_gradients(trial.loss))


@law(B=(2, 3), profiles=("quick", "full"))
def gradient_of_other_rows_is_zero(trial: Trial) -> None:
    """A loss of one row has exactly zero gradient for every other row."""
    actual = trial.gradients(lambda ran: ran.output[:, 0].sum())
    for name, dim in (("x", 1), ("stored h", 2), ("stored c", 2)):
        others = actual[name].narrow(dim, 1, trial.case.B - 1)
        demand(f"the gradient of {name} for other rows", others == 0, others, "exactly 0", "")


@law(profiles=("quick", "full"))
def backward_twice_gives_the_same(trial: Trial) -> None:
    """A second backward pass through a retained graph gives the same gradients, and for another loss that loss's.

    Another call lies between them, and no gradient changes when the next ones are computed. One loss is as large as
    :class:`torch.amp.GradScaler` makes it: gradients grow with their loss.
    """
    lstm, x = trial.lstm(), trial.inputs.x.requires_grad_()
    leaves = [x, *lstm.parameters()]
    held: list[tuple[Tensor, Tensor]] = []

    def grads(of: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(of, leaves, retain_graph=True)
        copies = [value.clone() for value in found]
        held.extend(zip(found, copies, strict=True))
        return copies

    ran = trial.run(lstm)
    loss, other = trial.loss(ran), trial.loss(ran, "y") * -0.5
    first = grads(other)
    trial.run(lstm, trial.inputs._replace(x=trial.inputs.x.detach() + 1))
    once, again, last = grads(loss), grads(loss), grads(other)
    scaled = [value / 65536 for value in grads(loss * 65536)]
    fresh = grads(trial.loss(trial.run(lstm)))
    for value, copy in held:
        identical("a gradient after the next backward pass", value, copy, "")
    for what, found, right in (
        ("the second gradient", again, once), ("the gradient of another loss", once, fresh),
        ("the gradient of the first loss", last, first), ("the gradient of a loss times 65536", scaled, once),
    ):  # fmt: skip
        for actual, expected in zip(found, right, strict=True):
            trial.agree(what, actual, expected, None, "")


@law(bias=(True,), profiles=("quick", "full"))
def frozen_weights_get_no_gradient(trial: Trial) -> None:
    """Weights that require no gradient get none, and the others' gradients do not change."""
    lstm = trial.lstm()
    for name, parameter in lstm.named_parameters():
        parameter.requires_grad_("weight_hh" not in name)
    trial.run(lstm).output.sum().backward()
    whole = trial.lstm()
    trial.run(whole).output.sum().backward()
    for (name, frozen), parameter in zip(lstm.named_parameters(), whole.parameters(), strict=True):
        if "weight_hh" in name:
            if frozen.grad is not None:
                raise LawBroken(f"{name} requires no gradient and got one")
        elif frozen.grad is None or parameter.grad is None:
            raise LawBroken(f"{name} requires a gradient and got none")
        else:
            trial.agree_gradient(f"the gradient of {name}", frozen.grad, parameter.grad)


@law()
def without_gradients_the_same_values(trial: Trial) -> None:
    """Under no_grad and inference_mode the values are the same, and no result requires a gradient."""
    lstm = trial.lstm()
    ran = trial.run(lstm)
    if not ran.output.requires_grad:
        raise LawBroken("the output of weights that require gradients does not require one")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            quiet = trial.run(lstm)
            trial.agree(f"output under {mode.__name__}", quiet.output, ran.output, scale=2)
            if quiet.output.requires_grad:
                raise LawBroken(f"the output requires a gradient under {mode.__name__}")


@law(profiles=("quick", "full"))
def gradients_do_not_depend_on_each_other(trial: Trial) -> None:
    """The gradient of the input, a stored state or a weight that alone needs one equals that of all together."""
    every, lstm = trial.gradients(trial.loss), trial.lstm().requires_grad_(False)
    for name, together in every.items():
        inputs = trial.fresh()
        leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(lstm.named_parameters())}
        leaf = leaves[name].requires_grad_()
        alone = differentiate(trial.loss(trial.run(lstm, inputs)), {name: leaf})[name]
        leaf.requires_grad_(False)
        trial.agree_gradient(f"the gradient of {name} alone", alone, together, None, "")


@law(profiles=("quick", "full"))
def gradients_of_the_stored_states_alone(trial: Trial) -> None:
    """Where neither input nor weights require gradients, the stored states still get the reference's."""
    lstm, inputs = trial.lstm().requires_grad_(False), trial.fresh()
    leaves = {"stored h": inputs.h.requires_grad_(), "stored c": inputs.c.requires_grad_()}
    actual = differentiate(trial.loss(trial.run(lstm, inputs)), leaves)
    expected = trial.expected_gradients(trial.loss)
    trial.agree_gradients(actual, {name: expected[name] for name in leaves})


@law(wide=True, profiles=("quick", "full"))
def gradients_of_a_call_with_hx(trial: Trial) -> None:
    """Gradients of ``lstm(x, hx, is_init=is_init)`` through output, h_n and c_n equal the reference's."""
    lstm, inputs = trial.lstm(), _needing(trial.fresh())
    ran = trial.stream(lstm, inputs.x, (inputs.h[:, 0], inputs.c[:, 0]), trial.is_init)
    _right_from_hx(trial, lstm, inputs, ran)


@law(wide=True, bidirectional=(False,), profiles=("quick", "full"))
def gradients_flow_through_steps(trial: Trial) -> None:
    """Gradients step by step, through ``LSTM.step`` and rows of one step in turn, equal those over the whole row."""
    check_gradients_through_steps(trial)


def check_gradients_through_steps(trial: Trial) -> None:
    """:func:`gradients_flow_through_steps`, for laws about other sizes."""
    lstm, inputs = trial.lstm(), _needing(trial.fresh())
    state, outputs = State(inputs.h[:, 0], inputs.c[:, 0]), []
    for t, (x, is_init) in enumerate(zip(inputs.x, trial.is_init, strict=True)):
        if t % 2:
            output, state = lstm.step(x, state, is_init)
        else:
            row, hx = lstm(x.unsqueeze(0), (state.h, state.c), is_init=is_init.unsqueeze(0))
            output, state = row[0], State(*hx)
        outputs.append(output)
    _right_from_hx(trial, lstm, inputs, Ran(torch.stack(outputs), state.h, state.c))


def _needing(inputs: Inputs) -> Inputs:
    """Input and stored states that require gradients."""
    for value in (inputs.x, inputs.h, inputs.c):
        value.requires_grad_()
    return inputs


def _right_from_hx(trial: Trial, lstm: LSTM, inputs: Inputs, ran: Ran) -> None:
    """Compare the gradients of a run from the first stored state, with later resets to zeros, with the reference's."""

    def loss(ran: Ran) -> Tensor:
        total = ran.output.new_zeros(())
        for key, value in enumerate(ran):
            total = total + (value * trial.noise(value, key).to(value)).sum()
        return total

    x, h, c, starts, weights = materialise(trial.case, "cpu", trial.rollout)
    own = Inputs(x.double(), h.double(), c.double(), starts, {n: w.double() for n, w in weights.items()})
    for value in own.leaves.values():
        value.requires_grad_()
    read = torch.zeros_like(starts)
    read[0] = ~trial.case.is_init[0]
    at = read.unsqueeze(-1)
    found = trial.reference(own._replace(h=torch.where(at, own.h, 0), c=torch.where(at, own.c, 0)))
    right = Ran(found.output, found.end_h[:, -1], found.end_c[:, -1])
    leaves = {"x": inputs.x, "stored h": inputs.h, "stored c": inputs.c, **dict(lstm.named_parameters())}
    trial.agree_gradients(differentiate(loss(ran), leaves), differentiate(loss(right), own.leaves))


@law(dtype=("f64", "f32"), profiles=("quick", "full"))
def gradients_around_an_infinite_input(trial: Trial) -> None:
    """An infinite input saturates its gates: output and gradients, except its weights', equal the reference's."""
    lstm, inputs, at = trial.lstm(), trial.fresh(), (trial.case.T // 2, 0, 0)
    x, h, c, starts, weights = materialise(trial.case, "cpu", trial.rollout)
    own = Inputs(x.double(), h.double(), c.double(), starts, {n: w.double() for n, w in weights.items()})
    for given in (inputs, own):
        given.x[at] = torch.inf
        given.x.requires_grad_()
    for weight in own.weights.values():
        weight.requires_grad_()
    ran, found = trial.run(lstm, inputs), trial.reference(own)
    trial.agree("output", ran.output, found.output)
    finite = [name for name in own.weights if not name.startswith("weight_ih_l0")]
    parameters = dict(lstm.named_parameters())
    actual = differentiate(trial.loss(ran), {"x": inputs.x, **{name: parameters[name] for name in finite}})
    reference = trial.loss(Ran(found.output, found.end_h, found.end_c))
    trial.agree_gradients(
        actual, differentiate(reference, {"x": own.x, **{name: own.weights[name] for name in finite}})
    )


@law(profiles=("quick", "full"))
def autograd_grad_leaves_grad_alone(trial: Trial) -> None:
    """``torch.autograd.grad`` returns the gradients and leaves an existing ``.grad`` unchanged."""
    lstm = trial.lstm()
    for k, parameter in enumerate(lstm.parameters()):
        parameter.grad = trial.noise(parameter, 51 + k).to(parameter)
    before = {name: parameter.grad.clone() for name, parameter in lstm.named_parameters() if parameter.grad is not None}
    trial.agree_gradients(trial.gradients(trial.loss, lstm), trial.expected_gradients(trial.loss))
    for name, parameter in lstm.named_parameters():
        assert parameter.grad is not None
        identical(f".grad of {name}", parameter.grad, before[name], "row column")


@law(costly=True, B=(131,), T=(5,), H=(3, 8), L=(1,), profiles=("quick", "full"))
def gradients_of_many_rows(trial: Trial) -> None:
    """In a large batch of odd size every row and step contributes to the gradients."""
    trial.agree_gradients(trial.gradients(trial.loss), trial.expected_gradients(trial.loss))


@law(T=(1, 2, 3), profiles=("quick", "full"))
def gradients_accumulate(trial: Trial) -> None:
    """Two backward passes add up in ``.grad``, as everywhere in torch."""
    lstm = trial.lstm()
    for _ in range(2):
        trial.run(lstm).output.sum().backward()
    both = {name: parameter.grad.clone() for name, parameter in lstm.named_parameters() if parameter.grad is not None}
    lstm.zero_grad()
    trial.run(lstm).output.sum().backward()
    for name, parameter in lstm.named_parameters():
        if parameter.grad is None or name not in both:
            raise LawBroken(f"{name} got no gradient")
        identical(f"the gradient of {name} after two passes", both[name], 2 * parameter.grad, "row column")
