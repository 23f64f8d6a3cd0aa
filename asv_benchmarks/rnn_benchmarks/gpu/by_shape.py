"""A table that is measured shape by shape in several precisions, and written after each shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from rnn_backends.paths import write_whole

from ..cases import Shape
from .plan import accepting
from .settings import DTYPES, GPU_SHAPES, chosen, name_of


def by_shape(
    backend: str,
    rows: Callable[[Shape, str], Iterable[dict[str, Any]]],
    line: Callable[[dict[str, Any]], str],
    precisions: Iterable[str],
    device: str,
    file: Path,
    until: float,
    shapes: Sequence[str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure every shape in every precision.

    Args:
        backend: a precision that it does not accept is skipped, with a line.
        rows: measures a shape in a precision.
        line: describes one of its rows.
        precisions: names, of ``DTYPES``.
        device: where.
        file: gets all rows so far, as JSON, after each shape.
        until: no shape begins later, by ``time.monotonic``.
        shapes: names or numbers; none for S1 to S5 and G1.
        say: takes a line for each row.

    Returns:
        The rows.
    """
    found: list[dict[str, Any]] = []
    write_whole(file, "[]\n")
    for which in precisions:
        if backend not in accepting(device, DTYPES[which]):
            say(f"{backend} does not accept an LSTM in {which} on {device}")
            continue
        for shape in chosen(shapes, GPU_SHAPES.values()):
            if monotonic() > until:
                say(f"the time is up: {name_of(shape)} in {which} and the rest are not measured")
                return found
            for row in rows(shape, which):
                found.append(row)
                say(line(row))
            write_whole(file, json.dumps(found, indent=1) + "\n")
    return found
