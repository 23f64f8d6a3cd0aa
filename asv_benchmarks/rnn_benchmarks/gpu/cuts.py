"""Other cuts of a layer by the Triton kernels, measured against the plan's: what the plan's formula is tuned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any
from unittest import mock

from rnn_backends_plugins.triton.plan import Plan, ahead_of

from ..cases import Contestant, Shape, build
from ..tables import seconds as time_text
from ..timing import interleaved
from .by_shape import by_shape
from .model import ITEMSIZE, cuts, predict
from .settings import DTYPES, PRECISIONS, name_of, precision

FILE = "cuts.json"
BACKEND = "triton"
MOST = 4
"""Cuts of a shape beside the plan's: the fastest by the model."""
LONGEST = 1.0
"""Seconds for one shape's cuts, once they are compiled."""


def measure_cuts(
    device: str, folder: Path, seconds: float, shapes: Sequence[str] = (), say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure forward, and forward with backward, of a few cuts a shape, into ``cuts.json`` after each shape.

    Args:
        device: where.
        folder: of the file.
        seconds: no cut begins later.
        shapes: names or numbers; none for S1 to S5 and G1.
        say: takes a line for each cut.

    Returns:
        What the file has: a table row for each cut, with its times in seconds or the reason why it has none.
    """
    until = monotonic() + seconds

    def rows(shape: Shape, which: str) -> Iterator[dict[str, Any]]:
        return _measured(shape, which, device, until)

    return by_shape(BACKEND, rows, _line, ITEMSIZE, device, folder / FILE, until, shapes, say)


def candidates(shape: Shape, which: str, device: str) -> list[Plan]:
    """The plan's own cut forward, then the fastest by the model; in pieces of 256 bytes a row, as the plan's."""
    import torch
    from rnn_backends_plugins.triton import run
    from rnn_backends_plugins.triton.device import card_of

    own = run.plan_for(shape.H, shape.B, DTYPES[which], torch.device(device))
    others = sorted(cuts(shape, which), key=lambda cut: predict(shape, which, cut).ms())
    itemsize, card = ITEMSIZE[which], card_of(torch.device(device))
    pieces = [replace(cut, piece=min(cut.padded, 256 // itemsize)) for cut in others]
    pieces = [replace(cut, ahead=ahead_of(cut, itemsize, card)) for cut in pieces]
    return [own, *dict.fromkeys(cut for cut in pieces if cut != own)][: 1 + MOST]


@contextmanager
def cut_as(cut: Plan | None) -> Iterator[None]:
    """Within it the backend cuts every layer so, forward and backward; ``None``: as the plan says."""
    from rnn_backends_plugins.triton import run

    if cut is None:
        yield
        return
    with mock.patch.object(run, "plan_for", return_value=cut):
        yield


def _measured(shape: Shape, which: str, device: str, until: float) -> Iterator[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[int], Any]] = {}
    with precision(which):
        for k, cut in enumerate(candidates(shape, which, device)):
            about = {"shape": name_of(shape), "precision": which, "by": "plan" if k == 0 else "other", **asdict(cut)}
            taken = cut if k else None
            about["predicted"] = predict(shape, which, taken).ms() / 1000
            for mode in ("forward", "train"):
                contestant = Contestant(BACKEND, shape, "0.03", mode, "output", device, PRECISIONS[which])
                try:
                    if monotonic() > until:
                        raise TimeoutError("the time was up")
                    with cut_as(taken):
                        call = build(contestant)
                        call(0)
                except Exception as error:  # does not fit, does not launch: the other cuts go on
                    about["note"] = f"{type(error).__name__}: {error}".splitlines()[0]
                else:
                    calls[f"{k}/{mode}"] = _as(taken, call)
            rows[str(k)] = about
        seconds = min(LONGEST, max(until - monotonic(), 0.05))
        for name, times in interleaved(calls, seconds, (3, 31), slow=1.0).items() if calls else ():
            number, mode = name.split("/")
            rows[number][mode] = median(times)
    yield from rows.values()


def _as(cut: Plan | None, call: Callable[[int], Any]) -> Callable[[int], Any]:
    def run(k: int) -> Any:
        with cut_as(cut):
            return call(k)

    return run


def _line(row: dict[str, Any]) -> str:
    cut = f"G {row['slices']}, U {row['units']}, BB {row['rows']}, BK {row['piece']}, {row['warps']} warps"
    times = ", ".join(f"{mode} {time_text(row[mode])}" for mode in ("forward", "train") if mode in row)
    said = [times, row.get("note", ""), f"on paper {time_text(row['predicted'])}"]
    return f"{row['shape']:4} {row['precision']:9} {row['by']:5} {cut}: {'; '.join(filter(None, said))}"
