"""Layout: batch first or second, batched or not, with any strides."""

from __future__ import annotations

import torch
from rnn_backends import State
from torch import Tensor

from ..suite.case import LAYOUTS
from ..suite.compare import identical
from ..suite.law import law
from ..suite.trial import Trial


@law(wide=True, layout=LAYOUTS[1:])
def memory_layout_does_not_matter(trial: Trial) -> None:
    """Transposed, strided and offset inputs and states are read like contiguous ones."""
    inputs = trial.inputs
    x, h, c, starts = (value.clone(memory_format=torch.contiguous_format) for value in inputs[:4])  # with offsets too
    packed = inputs._replace(x=x, h=h, c=c, starts=starts)
    lstm = trial.lstm()
    ran, plain = trial.run(lstm), trial.run(lstm, packed)
    trial.agree("output", ran.output, plain.output, scale=2)
    trial.agree_states("the end state", ran, plain.h, plain.c)


@law(profiles=("quick", "full"))
def weights_may_have_any_layout(trial: Trial) -> None:
    """Weights that are transposed or strided in memory give the same values and gradients as contiguous ones."""
    lstm = trial.lstm()
    for parameter in lstm.parameters():
        value = parameter.data
        strided = value.T.contiguous().T if value.ndim == 2 else torch.stack([value, value], -1)[:, 0]
        parameter.data = strided
    trial.agree("output", trial.run(lstm).output, trial.expected.output)
    trial.agree_gradients(trial.gradients(trial.loss, lstm), trial.expected_gradients(trial.loss))


@law(profiles=("quick", "full"))
def expanded_states_are_read(trial: Trial) -> None:
    """States, inputs or reset masks expanded over the batch, over time or over both are read like full ones."""
    inputs, (rows, T, B, P) = trial.inputs, trial.inputs.h.shape
    for t, b in ((1, 1), (1, B), (T, 1)):
        h = inputs.h[:, :t, :b].expand(rows, T, B, P)
        c = inputs.c[:, :t, :b].expand(rows, T, B, trial.case.H)
        x = inputs.x[:t, :b].expand(T, B, trial.case.I)
        starts = inputs.starts[:, :b].expand(T, B)
        for expanded in (inputs._replace(h=h, c=c), inputs._replace(x=x), inputs._replace(starts=starts)):
            ran, expected = trial.run(trial.lstm(), expanded), trial.reference(expanded)
            trial.agree("output", ran.output, expected.output)


@law(B=(1, 2, 3))
def batch_first_is_a_transposition(trial: Trial) -> None:
    """With batch_first, input, output and is_init are transposed and the states are not."""
    inputs, is_init = trial.inputs, trial.is_init
    hx = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone())
    time_major = trial.stream(trial.lstm(), inputs.x, hx, is_init)
    first = trial.stream(trial.lstm(batch_first=True), inputs.x.transpose(0, 1), hx, is_init.T)
    trial.agree("output", first.output.transpose(0, 1), time_major.output, scale=2)
    trial.agree("h_n", first.h, time_major.h, 1, "layer b unit", scale=2)
    trial.agree("c_n", first.c, time_major.c, 1, "layer b unit", scale=2)


@law(B=(1,))
def unbatched_is_a_batch_of_one(trial: Trial) -> None:
    """An input without a batch dimension gives the results of a batch of one, without that dimension."""
    inputs, lstm, is_init = trial.inputs, trial.lstm(), trial.is_init
    hx = (inputs.h[:, 0].clone(), inputs.c[:, 0].clone())
    batched = trial.stream(lstm, inputs.x, hx, is_init)
    bare = trial.stream(lstm, inputs.x[:, 0], (hx[0][:, 0], hx[1][:, 0]), is_init[:, 0])
    trial.agree("output", bare.output, batched.output[:, 0], None, "t unit", scale=2)
    trial.agree("h_n", bare.h, batched.h[:, 0], None, "layer unit", scale=2)
    trial.agree("c_n", bare.c, batched.c[:, 0], None, "layer unit", scale=2)


@law(profiles=("quick", "full"))
def is_init_may_have_a_trailing_one(trial: Trial) -> None:
    """``is_init [T, B]`` and ``[T, B, 1]`` are the same."""
    lstm, x = trial.lstm(), trial.inputs.x
    flat = trial.stream(lstm, x, None, trial.is_init)
    trailing = trial.stream(lstm, x, None, trial.is_init.unsqueeze(-1))
    identical("output", trailing.output, flat.output, "t b unit")


@law(profiles=("quick", "full"))
def output_is_dense_and_plain(trial: Trial) -> None:
    """Every element of the results has its own memory, so that they can be edited in place."""
    with torch.no_grad():
        ran = trial.run(trial.lstm())
        before = [value.clone() for value in ran]
        for value in ran:
            value += 1
        for name, value, old in zip(("output", "h", "c"), ran, before, strict=True):
            identical(f"{name} after adding one in place", value, old + 1, "")


def _restrided(value: Tensor, stride: int) -> Tensor:
    """A view of the same memory with another stride for every dimension of size one."""
    own = zip(value.shape, value.stride(), strict=True)
    return value.as_strided(value.shape, [stride if size == 1 else usual for size, usual in own])


@law(wide=True, T=(3,), B=(3,), I=(1, 3), layout=("contiguous",), profiles=("quick", "full"))
def strides_of_sizes_of_one_are_not_read(trial: Trial) -> None:
    """With one row, one step or one feature the stride of that dimension may be any number, in calls and in steps."""
    inputs, lstm = trial.fresh(), trial.lstm()
    inputs.starts[1] = True
    for stride in (0, 1, 7, 10_000):
        for parameter in lstm.parameters():
            parameter.data = _restrided(parameter.data, stride)
        for T, B in ((3, 1), (1, 3), (1, 1)):
            plain = inputs._replace(
                x=inputs.x[:T, :B].contiguous(), h=inputs.h[:, :T, :B].contiguous(),
                c=inputs.c[:, :T, :B].contiguous(), starts=inputs.starts[:T, :B].contiguous(),
            )  # fmt: skip
            odd = inputs._replace(
                x=_restrided(plain.x, stride), h=_restrided(plain.h, stride),
                c=_restrided(plain.c, stride), starts=_restrided(plain.starts, stride),
            )  # fmt: skip
            where = f"{T} steps of {B} rows with a stride of {stride}"
            expected = trial.reference(plain)
            trial.agree(f"output of {where}", trial.run(lstm, odd).output, expected.output)
            if T == 1:
                output, _ = lstm.step(odd.x[0], State(odd.h[:, 0], odd.c[:, 0]))
                trial.agree(f"output of a step, {where}", output, expected.output[0], 0, "b unit")
