"""The figures of a GPU: each group of contestants is printed and written when it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from ..cases import Shape, build
from ..figures import Q_group, R_group, first_call, memory_over_dense
from ..groups import Figures, Group, Make, Row, run, where
from ..tables import percent, ratio_text
from ..tables import seconds as time_text
from .acting import TORCHRL, acting_group, build_acting
from .plan import accepting
from .settings import ACTING_SHAPES, DTYPES, GPU_SHAPES, PRECISIONS, chosen, name_of, precision

Say = Callable[[str], None]

SLOW = ("vmap", "torchscript", "compile")
"""Plain steps in a loop: measured at one share of resets alone."""
COMPILES = ("compile",)
"""Their first call takes long: they come last."""
ACTING, Q, R = "acting", "Q", "R, "
Q_TRITON = "Q, triton"
"""Q of ``triton`` by name: ``auto`` takes it where the shipped table says so, before the first run nowhere."""
SHORTEST, LONGEST = 0.2, 2.0
"""Seconds for one group."""
ROUNDS = (3, 41)
FIRST_CALL = 40.0
"""Seconds after which a first call is given up."""


@dataclass(frozen=True)
class Step:
    """One group, the precision that it is measured in, and what builds its contestants."""

    group: Group
    precision: str = "TF32"
    make: Make = build


def measure(
    device: str,
    folder: Path,
    seconds: float,
    backends: Sequence[str] = (),
    shapes: Sequence[str] = (),
    acting: Sequence[str] = (),
    say: Say = print,
) -> Figures:
    """Measure what the time suffices for, the most telling first, into ``figures.json``.

    Args:
        device: where.
        folder: of the file.
        seconds: no group begins later.
        backends: names; none for all that accept an LSTM there.
        shapes: names or numbers; none for S1 to S5 and G1.
        acting: the same of single steps.
        say: takes a line for each result.
    """
    until, file = monotonic() + seconds, folder / "figures.json"
    names = list(backends) or accepting(device)
    figures = Figures(where(device))
    over, single = chosen(shapes, GPU_SHAPES.values()), chosen(acting, ACTING_SHAPES)
    steps = list(_steps(device, names, over, single))
    for k, step in enumerate(steps):
        if (left := until - monotonic()) <= 0:
            say(f"the time is up: {len(steps) - k} groups are not measured")
            break
        share = min(LONGEST, max(SHORTEST, 0.5 * left / (len(steps) - k)))
        for row in _measured(step, share):
            figures.rows.append(row)
            say(_line(row))
        figures.save(file)
    _numbers(figures, file, names, over, device, until, say)
    return figures


def _steps(device: str, names: list[str], shapes: list[Shape], acting: list[Shape]) -> Iterator[Step]:
    fast = [name for name in names if name not in SLOW]
    slow = [name for name in names if name in SLOW and name not in COMPILES]
    for which in PRECISIONS:
        able = [name for name in (fast or slow) if name in accepting(device, DTYPES[which])]
        for shape in shapes:
            yield _R(which, able, shape, "0.03", device)
    peers = [TORCHRL] if find_spec("torchrl") else []
    for shape in acting:
        yield Step(acting_group(ACTING, fast or names[:1], shape, device, 1.0), make=build_acting)
    for resets in ("0.03", "0"):
        for shape in shapes if peers else []:
            yield Step(Q_group(Q, "auto", peers, shape, resets, 1.0, device))
            if "triton" in names:
                yield Step(Q_group(Q_TRITON, "triton", peers, shape, resets, 1.0, device))
    for which in PRECISIONS:
        able = [name for name in (fast or slow) if name in accepting(device, DTYPES[which])]
        for resets in ("0.20", "0"):
            for shape in shapes:
                yield _R(which, able, shape, resets, device)
    for shape in shapes if fast else []:
        yield _R("TF32", slow, shape, "0.03", device)
    for shape in shapes:
        yield _R("TF32", [name for name in names if name in COMPILES], shape, "0.03", device)


def _R(which: str, names: list[str], shape: Shape, resets: str, device: str) -> Step:
    group = R_group(R + which, names, shape, resets, option=PRECISIONS[which], device=device, seconds=1.0)
    return Step(group, which)


def _measured(step: Step, seconds: float) -> list[Row]:
    """A group's rows; where one of its calls fails, rows with the reason. One alone is no group."""
    if len(step.group.contestants) < 2:
        return []
    group = Group(step.group.title, step.group.contestants, step.group.base, seconds)
    try:
        with precision(step.precision):
            return run(group, make=step.make, rounds=ROUNDS, slow=1.0)
    except Exception as error:  # out of memory, a kernel that does not launch: the other groups go on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        contestants = group.contestants.items()
        return [
            Row(group.title, label, str(one.shape), one.resets, one.mode, one.reads, note=reason)
            for label, one in contestants
        ]


def _line(row: Row) -> str:
    about = f"{row.title:12} {name_of(row.shape):4} {percent(row.resets):>5} {row.label:24}"
    if row.seconds is None:
        return f"{about} {row.note}"
    over = f" x {ratio_text(row.over)}" if row.over and row.label != row.base else ""
    return f"{about} {time_text(row.seconds.median):>9}{over} {row.note}".rstrip()


def _numbers(
    figures: Figures, file: Path, names: list[str], shapes: list[Shape], device: str, until: float, say: Say
) -> None:
    """Memory at every shape, then first calls in fresh processes."""
    fast = [name for name in names if name not in SLOW] or names[:1]
    wanted = {f"memory/{name}/{name_of(shape)}": _memory(name, shape, device) for shape in shapes for name in fast} | {
        f"first call/{name}/seconds": _first_call(name, device, until) for name in names
    }
    for key, figure in wanted.items():
        if monotonic() > until:
            say(f"the time is up: {key} and what follows are not measured")
            return
        try:
            figures.numbers[key] = figure()
        except Exception as error:  # NotImplementedError with a reason, or out of memory
            figures.numbers[key] = f"{error or type(error).__name__}".splitlines()[0]
        say(f"{key}: {figures.numbers[key]}")
        figures.save(file)


def _memory(name: str, shape: Shape, device: str) -> Callable[[], float]:
    return lambda: memory_over_dense(name, shape, "0.03", device)


def _first_call(name: str, device: str, until: float) -> Callable[[], float]:
    def figure() -> float:
        limit = max(1.0, min(FIRST_CALL, until - monotonic()))
        return first_call(name, 16, timeout=limit, device=device)["seconds"]

    return figure
