"""Threads: calls and modes in several threads do not affect one another."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rnn_backends import set_recurrent_mode

from ..suite.inputs import Inputs
from ..suite.law import law
from ..suite.trial import Ran, Trial
from ..suite.verdict import LawBroken


def _together(*work: Callable[[], None]) -> None:
    """Run all functions at once, each in its own thread; raise the first error."""
    barrier, raised = threading.Barrier(len(work)), []

    def run(one: Callable[[], None]) -> None:
        try:
            barrier.wait(timeout=60)
            one()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if raised:
        raise raised[0]
    if any(thread.is_alive() for thread in threads):
        raise LawBroken("the threads wait for each other: not done after a minute")


@law(T=(3, 6, 16), profiles=("quick", "full"))
def two_threads_do_not_mix(trial: Trial) -> None:
    """Two LSTMs of one size, in two threads at once over different data, each give their own results."""
    negative = trial.inputs._replace(
        x=-trial.inputs.x, h=-trial.inputs.h, weights={n: -w for n, w in trial.inputs.weights.items()}
    )
    found: list[tuple[Inputs, Ran]] = []
    trial.run(trial.lstm())  # the backend compiles in this call

    def work(inputs: Inputs) -> Callable[[], None]:
        lstm = trial.lstm()
        lstm.load_state_dict(inputs.weights)

        def run() -> None:
            for _ in range(8):
                found.append((inputs, trial.run(lstm, inputs)))

        return run

    try:
        _together(work(trial.inputs), work(negative))
    except (AttributeError, LookupError, RuntimeError) as error:
        if isinstance(error, NotImplementedError):
            raise
        raise LawBroken(f"a call that runs in one thread raises in another: {type(error).__name__}: {error}") from error
    other = trial.reference(negative)
    for inputs, ran in found:
        expected = other if inputs is negative else trial.expected
        trial.agree("output in its thread", ran.output, expected.output)
        trial.agree_states("the end state in its thread", ran, expected.end_h, expected.end_c)


@contextmanager
def _switching_often() -> Iterator[None]:
    """Let Python switch threads every microsecond instead of every 5 ms, to provoke races."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@law(T=(16,), B=(3, 4), P=(0,), L=(1,), bidirectional=(False,), profiles=("quick", "full"))
def one_module_acts_in_two_threads(trial: Trial) -> None:
    """Without gradients, one LSTM called in two threads at once over different data gives each its own results."""
    lstm, inputs = trial.lstm(), trial.inputs
    negative = inputs._replace(x=-inputs.x, h=-inputs.h, c=-inputs.c)
    found: list[tuple[Inputs, Ran]] = []
    with torch.no_grad():
        trial.run(lstm)  # the backend compiles in this call

    def work(mine: Inputs) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            for _ in range(40):
                found.append((mine, trial.run(lstm, mine)))

        return run

    with _switching_often():
        _together(work(inputs), work(negative))
    other = trial.reference(negative)
    for mine, ran in found:
        expected = other if mine is negative else trial.expected
        trial.agree("output in its thread", ran.output, expected.output)
        trial.agree_states("the end state in its thread", ran, expected.end_h, expected.end_c)


@law(T=(3,), profiles=("quick", "full"))
def gradients_may_be_taken_in_another_thread(trial: Trial) -> None:
    """Backward in a different thread from forward gives the same gradients."""
    lstm = trial.lstm()
    loss = trial.loss(trial.run(lstm))
    _together(loss.backward)
    expected = trial.expected_gradients(trial.loss)
    actual = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in lstm.named_parameters()}
    trial.agree_gradients(actual, {n: v for n, v in expected.items() if n in actual})


@law(T=(2,), B=(2,))
def the_mode_stays_in_its_thread(trial: Trial) -> None:
    """``set_recurrent_mode`` in one thread does not change the mode of the same module in another."""
    module, inside, done = trial.module(), threading.Event(), threading.Event()
    modes: list[bool] = []

    def recurrent() -> None:
        with set_recurrent_mode(True):
            inside.set()
            done.wait(timeout=60)

    def sequential() -> None:
        try:
            inside.wait(timeout=60)
            modes.append(module.recurrent_mode)
            trial.agree("features", module(trial.tensordict()[:, 0].clone())["features"], _first(trial), 0, "b unit")
        finally:  # on failure too: the other thread waits
            done.set()

    _together(recurrent, sequential)
    if modes != [False]:
        raise LawBroken("set_recurrent_mode(True) in one thread made a module in another recurrent")


def _first(trial: Trial) -> torch.Tensor:
    """The reference's first step in sequential mode, from zeros where is_init is true."""
    x, h, c, starts, weights = trial.inputs
    keep = ~trial.is_init[:1].unsqueeze(-1)
    now = Inputs(x[:1], torch.where(keep, h[:, :1], 0), torch.where(keep, c[:, :1], 0), starts[:1], weights)
    return trial.reference(now).output[0]


@law(T=(2,), B=(2,), profiles=("quick", "full"))
def the_mode_stays_in_its_task(trial: Trial) -> None:
    """``set_recurrent_mode`` in one asyncio task does not change the mode of the same module in another."""
    module, modes = trial.module(), []

    async def recurrent() -> None:
        with set_recurrent_mode(True):
            for _ in range(3):
                await asyncio.sleep(0)
                modes.append(("recurrent", module.recurrent_mode))

    async def sequential() -> None:
        for _ in range(3):
            modes.append(("sequential", module.recurrent_mode))
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(recurrent(), sequential())

    _together(lambda: asyncio.run(both()))  # a new thread has no event loop yet
    wrong = [name for name, mode in modes if mode != (name == "recurrent")]
    if wrong or len(modes) != 6:
        raise LawBroken(f"of two tasks the {', '.join(sorted(set(wrong)))} one ran in the other's mode: {modes}")
