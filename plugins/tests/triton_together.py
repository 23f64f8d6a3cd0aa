"""The Triton kernels in Triton's interpreter, the programs of a launch in turns: here they really wait for each other.

Each program is a thread, of which one runs at a time; before each access to memory the next is drawn at random. What is
computed is compared like that of ``triton_interpreted.py``.
"""

import inspect
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from triton.runtime import interpreter
from triton_recorded import builder, patched_once, result_of_asm

INT = interpreter.tl.int32

PATIENCE = 2000
"""So often the programs may find one after the other that they have to wait, and then nobody is coming."""


class StuckError(Exception):
    """The programs wait for ever."""


class Turns:
    """Whose turn it is among the programs of a launch.

    Args:
        seed: of the draws.
        often: how likely another program goes on at an access to memory.
    """

    def __init__(self, seed: int, often: float) -> None:
        self.random, self.often = random.Random(seed), often

    def launch(self, executor: interpreter.GridExecutor, *given: Any, **options: Any) -> None:
        """Run the programs of a launch in turns."""
        fn = executor.fn
        known = inspect.signature(fn).parameters
        bound = inspect.getcallargs(fn, *given, **{k: v for k, v in options.items() if k in known})
        grid = (*executor.grid, *(1,) * (3 - len(executor.grid)))
        with patched_once():
            interpreter._patch_lang(fn)
            arguments = {k: v if k in executor.constexprs else interpreter._implicit_cvt(v) for k, v in bound.items()}
            builder.set_grid_dim(*grid)
            places = [(p, g, 0) for p in range(grid[0]) for g in range(grid[1])]
            self.turn = {place: threading.Semaphore(0) for place in places}
            self.ended, self.failed, self.idle = threading.Semaphore(0), [], 0
            for place in places:
                threading.Thread(target=self._program, args=(fn, arguments, place), daemon=True).start()
            self._go_on(self.random.choice(places))
            self.ended.acquire()
        if self.failed:
            raise self.failed[0]

    def _program(self, fn: Any, arguments: dict[str, Any], place: tuple[int, int, int]) -> None:
        self.turn[place].acquire()
        try:
            if not self.failed:
                fn(**arguments)
        except BaseException as error:
            self.failed.append(error)
        del self.turn[place]
        if self.turn:
            self._go_on(self.random.choice(list(self.turn)))
        else:
            self.ended.release()

    def _go_on(self, place: tuple[int, int, int]) -> None:
        self.now = place
        builder.set_grid_idx(*place)
        self.turn[place].release()

    def maybe_another(self, surely: bool = False) -> None:
        """Another program's turn, perhaps."""
        here = self.now
        if surely or self.random.random() < self.often:
            other = self.random.choice(list(self.turn))
            if other != here:
                self._go_on(other)
                self.turn[here].acquire()
        if self.failed:
            raise StuckError

    def arrived(self) -> None:
        """After an addition to a counter."""
        self.idle = 0
        self.maybe_another()

    def polled(self) -> None:
        """After a look at a counter."""
        self.idle += 1
        if self.idle > PATIENCE:
            raise StuckError
        self.maybe_another(surely=True)


@contextmanager
def together(seed: int = 0, often: float = 0.2) -> Iterator[None]:
    """Within it the programs of each launch run in turns."""
    turns = Turns(seed, often)
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def first(original: Any) -> Any:
        def run(*given: Any) -> Any:
            turns.maybe_another()
            turns.idle = 0
            return original(*given)

        return run

    def atomic(op: Any, pointer: Any, value: Any, *rest: Any) -> Any:
        found = rmw(op, pointer, value, *rest)
        turns.arrived()
        return found

    def inline_asm(text: str, constraints: str, values: Any, *rest: Any) -> Any:
        """A poll: the only assembler text that the kernels have."""
        pointer = interpreter.TensorHandle(values[0].data.astype(np.uint64), interpreter.tl.pointer_type(INT))
        mask = interpreter.TensorHandle(np.ones_like(pointer.data, bool), interpreter.tl.int1)
        found = load(pointer, mask, None, None, None)
        turns.polled()
        return result_of_asm(values[0], int(found.data.max()))

    replaced = {
        "create_masked_load": first(load), "create_masked_store": first(store), "create_atomic_rmw": atomic,
        "create_inline_asm": inline_asm,
    }  # fmt: skip
    with (
        mock.patch.multiple(builder, **replaced),
        mock.patch.object(
            interpreter.GridExecutor, "__call__", lambda self, *given, **options: turns.launch(self, *given, **options)
        ),
    ):
        yield
