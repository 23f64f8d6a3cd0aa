"""Draws docs/images/resets.svg: `python tools/draw_resets.py`. Starts and ends are computed by the library."""

from __future__ import annotations

from pathlib import Path

import torch
from rnn_backends.contract import State
from rnn_backends.resets import at_ends, starts_of

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "resets.svg"
RESETS = (3, 5)
STEPS = 8
WIDTH, HEIGHT, LEFT, CELL = 820, 300, 150, 80
COLOURS = ("#cfe3ff", "#ffe2b8", "#cdeccd")
ROWS = {"is_init": 70, "stored state": 110, "sequence": 160, "output": 210, "hidden output": 250}


def picture() -> str:
    """The SVG's text."""
    is_init = torch.tensor([[t in RESETS] for t in range(STEPS)])
    starts = starts_of(is_init)
    ones = torch.ones(STEPS, 1, 1)
    written = at_ends(State(ones, ones), starts).h.flatten().bool().tolist()
    begins = starts.flatten().tolist()
    sequence = (starts.flatten().cumsum(0) - 1).tolist()
    parts = [_text(LEFT - 12, y + 5, name, "end", "bold") for name, y in ROWS.items()]
    for t in range(STEPS):
        parts += _step(t, bool(is_init[t]), begins[t], sequence[t], written[t])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="14" aria-label="A row of {STEPS} steps with resets at t = {RESETS[0]} and t = {RESETS[1]}">'
    )
    arrow = '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
    arrow += '<path d="M0,0 L6,3 L0,6 z" fill="#333"/></marker></defs>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', arrow, *parts, "</svg>", ""])


def _step(t: int, reset: bool, begins: bool, sequence: int, written: bool) -> list[str]:
    x = LEFT + t * CELL
    middle = x + CELL // 2
    parts = [
        _text(middle, 35, f"t = {t}", "middle"),
        _text(middle, ROWS["is_init"] + 5, "true" if reset else "false", "middle", "bold" if reset else "normal"),
        _text(middle, ROWS["stored state"] + 5, f"read: s{t}" if begins else "not read", "middle", grey=not begins),
        f'<rect x="{x + 2}" y="{ROWS["sequence"] - 18}" width="{CELL - 4}" height="36" rx="4" '
        f'fill="{COLOURS[sequence]}" stroke="#333"/>',
        _text(middle, ROWS["sequence"] + 5, "LSTM", "middle"),
        _text(middle, ROWS["output"] + 5, f"y{t}", "middle"),
        _text(middle, ROWS["hidden output"] + 5, f"h{t}, c{t}" if written else "0", "middle", grey=not written),
    ]
    if begins:
        parts.append(_arrow(middle, ROWS["stored state"] + 10, middle, ROWS["sequence"] - 20))
    else:
        parts.append(_arrow(x - 3, ROWS["sequence"], x + 4, ROWS["sequence"]))
    return parts


def _text(x: int, y: int, text: str, anchor: str, weight: str = "normal", grey: bool = False) -> str:
    colour = "#767676" if grey else "#111"
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{text}</text>'


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#333" stroke-width="1.5" marker-end="url(#a)"/>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture())
