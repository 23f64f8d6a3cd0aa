"""The memory accesses of the Triton kernels, recorded while they run in Triton's interpreter: no number is computed.

The launches are those of ``run.py``, over tensors without memory (``device="meta"``), so any size can be tried. Every
access is checked against the tensor that its pointer belongs to, and outputs for being written once. A wait does not
wait: each poll is answered with one more, and where the kernel is content that was its goal.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from rnn_backends.authoring import Arguments, Needs, Run
from rnn_backends_plugins.triton import products, run
from rnn_backends_plugins.triton.plan import CARDS, Plan
from triton.runtime import interpreter
from triton_protocol import Event, Found, Model

APART = 44
"""Each tensor has addresses of its own, 2 to this power apart."""
EXCHANGED = ("into", "parts")
"""What the programs of a tile exchange."""
OUTPUTS = {"forward_kernel": ("h", "c"), "backward_kernel": ("grad_gates",)}
OUTPUTS_OF_PRODUCTS = {"product_kernel": ("out",), "weight_gradients_kernel": ("parts",)}
"""Of which every number is written exactly once."""
PLACE_OF_GATES = ("gates", "grad_gates")
"""Which may be one tensor."""


@dataclass
class Buffer:
    """A tensor as a kernel sees it: an address."""

    name: str
    tensor: torch.Tensor
    address: int

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def bytes(self) -> int:
        """From the first number to behind the last."""
        t = self.tensor
        last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        return (last + 1) * t.itemsize if t.numel() else 0

    def data_ptr(self) -> int:
        return self.address


@dataclass
class Launch:
    """One launch: the operations of its programs, and the errors of single accesses."""

    kernel: str
    constants: dict[str, Any]
    steps: int
    buffers: list[Buffer]
    traces: list[list[Event]] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    precisions: set[str] = field(default_factory=set)

    def exchanged(self, address: int) -> bool:
        """Whether the place belongs to what the programs of a tile exchange."""
        return self.buffer(address).name in EXCHANGED

    def found(self) -> Found:
        """The errors in any order of the programs' steps."""
        return self.model().explore()

    def model(self) -> Model:
        """Of the exchange between its programs."""
        by = "arrive" if self.constants["WAITS"] else "barrier"
        return Model(self.traces, self.steps, self.exchanged, by)

    def buffer(self, address: int) -> Buffer:
        return self.buffers[(address >> APART) - 1]


@contextmanager
def patched_once() -> Iterator[None]:
    """Within it a module's Triton functions are replaced by the interpreter's once: it does so again in every call."""
    original, scopes, known = interpreter._patch_lang, [], set()

    def once(fn: Any) -> Any:
        if id(fn.__globals__) not in known:
            known.add(id(fn.__globals__))
            scopes.append(original(fn))
        return SimpleNamespace(restore=lambda: None)

    try:
        with mock.patch.object(interpreter, "_patch_lang", once):
            yield
    finally:
        for scope in reversed(scopes):
            scope.restore()


class Recorder:
    """In place of the interpreter's memory and of its loop over programs.

    Args:
        starts: gives for places in ``starts`` whether a sequence starts there; at the first step one always does.
        window: replaces ``t0`` and ``t1``: a few steps of a long row.
        last: only the last programs run: those of the last rows of a large batch.
    """

    def __init__(self, starts: Callable[[np.ndarray], np.ndarray], window: tuple[int, int] | None, last: bool) -> None:
        self.starts, self.window, self.last = starts, window, last
        self.launches: list[Launch] = []
        self.polls = 0

    def launch(self, executor: interpreter.GridExecutor, *given: Any, **options: Any) -> None:
        """Run all programs of a launch, one after the other."""
        fn = executor.fn
        known = inspect.signature(fn).parameters
        bound = inspect.getcallargs(fn, *given, **{k: v for k, v in options.items() if k in known})
        if self.window is not None and "t0" in known:
            bound["t0"], bound["t1"] = self.window
            if "h" in known:
                bound["t0"] = max(bound["t0"], 0)  # forward has no step before the first
        buffers: list[Buffer] = []
        for name, value in bound.items():
            if isinstance(value, torch.Tensor):
                same = next((buffer for buffer in buffers if buffer.tensor is value), None)
                if same is None:
                    same = Buffer(name, value, (len(buffers) + 1) << APART)
                    buffers.append(same)
                bound[name] = same
        constants = {name: value for name, value in bound.items() if name in executor.constexprs}
        self.now = Launch(fn.__name__, constants, bound.get("t1", 1) - bound.get("t0", 0), buffers)
        self.launches.append(self.now)
        with patched_once():
            interpreter._patch_lang(fn)
            arguments = {k: v if k in executor.constexprs else interpreter._implicit_cvt(v) for k, v in bound.items()}
            grid = (*executor.grid, *(1,) * (3 - len(executor.grid)))
            builder.set_grid_dim(*grid)
            first = grid[0] - 1 if self.last else 0
            second = range(grid[1])
            if self.last and "splits" in bound:  # the last columns of x, and those of h
                second = (grid[1] - 1 - -(-bound["H"] // bound["BN"]), grid[1] - 1)
            for place in ((p, g, 0) for p in range(first, grid[0]) for g in second):
                builder.set_grid_idx(*place)
                self.now.traces.append([])
                self.polls = 0
                fn(**arguments)

    def _add(self, event: Event) -> None:
        self.now.traces[-1].append(event)

    def _places(self, kind: str, pointers: np.ndarray, mask: np.ndarray) -> frozenset[int]:
        found = np.broadcast_to(pointers, np.broadcast_shapes(pointers.shape, mask.shape))[
            np.broadcast_to(mask, np.broadcast_shapes(pointers.shape, mask.shape))
        ].ravel()
        for number in np.unique(found >> np.uint64(APART)).tolist():
            own = found[found >> np.uint64(APART) == number]
            if not 1 <= number <= len(self.now.buffers):
                self.now.wrong.add(f"a {kind} far from every tensor")
                continue
            buffer = self.now.buffers[number - 1]
            if int(own.max()) - buffer.address >= buffer.bytes or (own % np.uint64(buffer.tensor.itemsize)).any():
                self.now.wrong.add(f"a {kind} outside of {buffer.name}")
        return frozenset(found.tolist())

    def load(self, pointers: Any, mask: Any, other: Any, policy: Any, volatile: Any) -> Any:
        """Zeros, and for ``starts`` the given resets."""
        places = self._places("read", pointers.data, mask.data)
        self._add(Event("read", places))
        dtype = pointers.get_element_ty()
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        if places and self.now.buffer(next(iter(places))).name in EXCHANGED and policy[0] != "cg":
            self.now.wrong.add("a read of an exchanged value may find an old one in a cache of its own")
        found = np.zeros(shape, interpreter._get_np_dtype(dtype))
        if places and self.now.buffer(next(iter(places))).name == "starts":
            buffer = self.now.buffer(next(iter(places)))
            at = np.broadcast_to(pointers.data, shape) - np.uint64(buffer.address)
            found = ((at < buffer.tensor.stride(0)) | self.starts(at)).astype(found.dtype)
        self._starts_alone(places)
        if other is not None:
            found = np.where(mask.data, found, other.data)
        return interpreter.TensorHandle(found, dtype)

    def _starts_alone(self, places: frozenset[int]) -> None:
        """A stored state is read where a sequence starts, and nowhere else."""
        for place in places:
            buffer = self.now.buffer(place)
            if not buffer.name.startswith("entry_"):
                return
            at = np.uint64((place - buffer.address) // buffer.tensor.itemsize // buffer.tensor.shape[-1])
            if not (at < buffer.tensor.shape[1] or self.starts(at)):
                self.now.wrong.add(f"a read of {buffer.name} where no sequence starts")

    def store(self, pointers: Any, value: Any, mask: Any, policy: Any) -> None:
        self._add(Event("write", self._places("write", pointers.data, mask.data)))

    def barrier(self) -> None:
        self._add(Event("barrier"))

    def atomic(self, op: Any, pointer: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        """An arrival."""
        (address,), (amount,) = pointer.data.ravel().tolist(), value.data.ravel().tolist()
        self._places("write", pointer.data, mask.data)
        if scope.name != "GPU":
            self.now.wrong.add("a counter that other multiprocessors need not see")
        self.polls = 0
        self._add(Event("arrive", counter=address, amount=amount, ordered=sem.name in ("RELEASE", "ACQUIRE_RELEASE")))
        return interpreter.TensorHandle(np.zeros(value.data.shape, np.int32), value.dtype.scalar)

    def inline_asm(self, text: str, constraints: str, values: list[Any], types: Any, pure: bool, pack: int) -> Any:
        """A poll of a counter, which is told one more each time."""
        (address,) = values[0].data.ravel().tolist()
        self._places("read", values[0].data.astype(np.uint64), np.array(True))
        if ".gpu." not in text:
            self.now.wrong.add("a counter that other multiprocessors need not see")
        trace = self.now.traces[-1]
        if self.polls and trace[-1].kind == "wait":
            trace.pop()
        self.polls = self.polls + 1 if self.polls else 1
        self._add(Event("wait", counter=address, amount=self.polls, ordered=".acquire." in text))
        return result_of_asm(values[0], self.polls)

    def dot(self, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        self.now.precisions.add(precision.name)
        return d


def result_of_asm(like: Any, number: int) -> Any:
    """What the interpreter's builder gives for an assembler text with one int32 result."""
    value = interpreter.TensorHandle(np.full(like.data.shape, number, np.int32), interpreter.tl.int32)
    return SimpleNamespace(get_result=lambda k: value)


builder = interpreter.interpreter_builder


def some_start(places: np.ndarray) -> np.ndarray:
    """Some of them, the same every time."""
    return (places * np.uint64(2654435761) >> np.uint64(13)) % np.uint64(3) == 0


@contextmanager
def recording(
    starts: Callable[[np.ndarray], np.ndarray] = some_start, window: tuple[int, int] | None = None, last: bool = False
) -> Iterator[Recorder]:
    """Within it launches are written down and compute nothing."""
    recorder = Recorder(starts, window, last)
    replaced = {
        "create_masked_load": recorder.load,
        "create_masked_store": recorder.store,
        "create_barrier": recorder.barrier,
        "create_atomic_rmw": recorder.atomic,
        "create_inline_asm": recorder.inline_asm,
        "create_dot": recorder.dot,
        "get_cache_policy": lambda modifier, eviction: (modifier, eviction),
    }
    with (
        mock.patch.multiple(builder, **replaced),
        mock.patch.object(
            interpreter.GridExecutor,
            "__call__",
            lambda self, *given, **options: recorder.launch(self, *given, **options),
        ),
    ):
        yield recorder


def record(
    sizes: tuple[int, int, int],
    chosen: Plan,
    programs: int,
    dtype: torch.dtype = torch.float32,
    entry: bool = True,
    steps: bool = False,
    window: tuple[int, int] | None = None,
    last: bool = False,
) -> list[Launch]:
    """The launches of a layer, forward and backward, as ``run.py`` makes them.

    Args:
        sizes: ``T, B, H``.
        chosen: how it is cut.
        programs: of the first axis; the programs of a tile wait for each other.
        dtype: of the tensors.
        entry: stored states want a gradient.
        steps: a launch for each step; ``programs`` is then that of tiles.
        window: the steps that run; ``None``: all.
        last: only the last program of the first axis runs.
    """
    T, B, H = sizes

    def make(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    starts = torch.empty(T, B, dtype=torch.bool, device="meta")
    given = Arguments(make(T, B, 1), make(4 * H, 1), make(4 * H, H), None, None, make(T, B, H), make(T, B, H), starts)
    done = Run(make(T, B, H), make(T, B, H), make(T, B, 4, H), make(T, B, H), make(T, B, H))
    needs = Needs(True, True, True, False, False, entry, entry)
    with (
        recording(window=window, last=last) as recorder,
        mock.patch.object(run, "plan_for", return_value=chosen),
        mock.patch.object(run, "_grid", return_value=(programs, steps)),
        mock.patch.object(run.products, "of_inputs", return_value=make(T * B, 4 * H)),
        mock.patch.object(run.products, "of_grad_gates", return_value=None),
        mock.patch.object(run.products, "of_weights", return_value=(None, None, None)),
    ):
        run.forward(given, True)
        run.backward(given, done, needs)
    if window is None:
        for kernel, names in OUTPUTS.items():
            _written_once([launch for launch in recorder.launches if launch.kernel == kernel], names)
    for launch in recorder.launches:
        if launch.kernel == "backward_kernel":
            _gates_are_read_before_their_gradient_is_written(launch)
    _in_tf32_where_allowed(recorder.launches)
    return recorder.launches


def record_products(
    sizes: tuple[int, int, int, int], tile: products.Tile, rows: int | None = None, last: bool = False
) -> list[Launch]:
    """The launches of the products of a layer, forward and backward, whatever torch's own multiply in.

    Args:
        sizes: ``T, B, I, H``.
        tile: of every product.
        rows: of a split; ``None``: as ``products.py`` has it.
        last: only the programs of the last rows run.
    """
    T, B, I, H = sizes  # noqa: E741

    def make(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    starts = torch.empty(T, B, dtype=torch.bool, device="meta")
    x, w_ih, bias, h = make(T, B, I), make(4 * H, I), make(4 * H), make(T, B, H)
    given = Arguments(x, w_ih, make(4 * H, H), bias, None, make(T, B, H), make(T, B, H), starts)
    with (
        recording(last=last) as recorder,
        mock.patch.multiple(
            products, SMALL=tile, LARGE=tile, card_of=lambda device: CARDS["H100"], batch_for=lambda *_: "large"
        ),
        mock.patch.object(products, "torch_multiplies_alike", return_value=False),
        mock.patch.object(
            products, "splits_of", products.splits_of if rows is None else lambda n, *_: (n // rows, rows)
        ),
    ):
        products.of_inputs(x, w_ih, bias)
        products.of_grad_gates(make(T, B, 4 * H), w_ih)
        products.of_weights(given, h, make(T, B, 4, H))
    if not last:
        for kernel, names in OUTPUTS_OF_PRODUCTS.items():
            for launch in recorder.launches:
                if launch.kernel == kernel:
                    _written_once([launch], names)
    _in_tf32_where_allowed(recorder.launches)
    return recorder.launches


def _gates_are_read_before_their_gradient_is_written(launch: Launch) -> None:
    """And by the same program alone: the gradient may take the gates' place."""
    places = {name: next(buffer.address for buffer in launch.buffers if buffer.name == name) for name in PLACE_OF_GATES}
    writers: dict[int, int] = {}
    written: set[int] = set()
    for p, trace in enumerate(launch.traces):
        for event in (event for event in trace if event.kind == "write"):
            writers |= {
                q - places["grad_gates"]: p for q in event.places if q >> APART == places["grad_gates"] >> APART
            }
    for p, trace in enumerate(launch.traces):
        for event in trace:
            if event.kind == "read":
                own = {q - places["gates"] for q in event.places if q >> APART == places["gates"] >> APART}
                if not own.isdisjoint(written):
                    launch.wrong.add("gates are read when their gradient has been written")
                if any(writers.get(place, p) != p for place in own):
                    launch.wrong.add("gates are read by another program than the one that writes their gradient")
            elif event.kind == "write":
                written |= {
                    q - places["grad_gates"] for q in event.places if q >> APART == places["grad_gates"] >> APART
                }


def _in_tf32_where_allowed(launches: list[Launch]) -> None:
    if torch.backends.cudnn.rnn.fp32_precision != "tf32":
        for launch in launches:
            if "TF32" in launch.precisions:
                launch.wrong.add("a product in TF32 where torch's switch is off")


def _written_once(launches: list[Launch], names: Sequence[str]) -> None:
    """Every number of the outputs is written once, by all launches together."""
    events = [event for launch in launches for trace in launch.traces for event in trace if event.kind == "write"]
    for name in names:
        (buffer,) = (buffer for buffer in launches[-1].buffers if buffer.name == name)
        own = [place for event in events for place in event.places if place >> APART == buffer.address >> APART]
        if len(own) != buffer.tensor.numel() or len(set(own)) != len(own):
            launches[-1].wrong.add(f"not every number of {name} is written once")
