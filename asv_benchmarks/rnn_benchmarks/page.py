"""The tables and plots of docs/performance.md, and README.md's table.

``python -m rnn_benchmarks.page measure`` (a quarter of an hour) writes docs/generated/figures.json; ``... fill`` makes
the pages' tables and docs/generated/plots/*.png from it. ``make figures`` does both.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rnn_backends.paths import write_whole

from .cases import DENSE, SHAPES
from .figures import KINDS
from .goals import lines as goal_lines
from .groups import Figures, Group, Row, where
from .plots import draw_all, draw_lines
from .schedule import (
    ACTING,
    ENDS,
    FAST,
    FULL,
    LONG,
    OURS,
    OVER_RESETS,
    OVER_TIME,
    SIXTEEN,
    STORED,
    VARIED,
    WITH,
    Q,
    R,
    full,
    name_of,
    run_all,
)
from .tables import percent, pivot, ratio_text, seconds

BETWEEN = re.compile(r"(<!-- figures: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
BY_BACKEND = ("memory", "error", "critics", "peak")
COSTS = {"cell": "a cell, us", "step": "a step, in cells", "call": "a call, in cells"}
KIND_OF = {reads: kind for kind, reads in KINDS.items()}


def measure(figures: Figures, file: Path, limit: float, titles: list[str]) -> None:
    """Measure the figures that ``figures`` lacks, and save after every group."""
    groups = [group for group in full() if not titles or group.title in titles]

    def begin(group: Group) -> None:
        print(f"{group.title}: {group.first.shape}, resets {group.first.resets}", flush=True)

    run_all(groups, figures, limit, begin, lambda: figures.save(file), slow=4.0)
    if not titles or "numbers" in titles:
        _numbers(figures)
    figures.save(file)


def _numbers(figures: Figures) -> None:
    """Measure the figures other than the times of calls: memory, errors, products, costs, compilation."""
    from . import figures as tracks

    for name, shape in SHAPES.items():
        for backend in (w for w in OURS if w != "auto"):
            for what, figure in (("memory", tracks.memory_over_dense), ("error", tracks.error)):
                key = f"{what}/{backend}/{name}"
                if key not in figures.numbers:
                    print(key, flush=True)
                    figures.numbers[key] = _or_reason(partial(figure, backend, shape, "0.03"))
    for name, shape in SHAPES.items():
        key = f"products/bare products/{name}"
        if key not in figures.numbers:
            print(key, flush=True)
            figures.numbers[key] = tracks.products_over_dense(shape)
        for backend, resets in ((DENSE, "0"), *((one, "0.03") for one in FAST)):
            if (key := f"peak/{backend}/{name}") not in figures.numbers:
                print(key, flush=True)
                figures.numbers[key] = tracks.share_of_peak(backend, shape, resets)
    for H in (64, 128, 256, 512):
        if (key := f"costs/{COSTS['cell']}/H = {H}") not in figures.numbers:
            print(key, flush=True)
            for what, cost in tracks.kernel_costs(H).items():
                figures.numbers[f"costs/{COSTS[what]}/H = {H}"] = cost
    if (key := "critics/vmap/S2") not in figures.numbers:
        print(key, flush=True)
        figures.numbers[key] = tracks.critics("vmap", SHAPES["S2"], "0.03")
    for T, then in ((16, (32, 64, 128, 256, 512)), (512, ())):
        key = f"compile/first call/T = {T}"
        if key not in figures.numbers:
            print(key, flush=True)
            figures.numbers[key] = _or_reason(partial(tracks.first_call, "compile", T, then))


def _or_reason(figure: Callable[[], object]) -> object:
    try:
        return figure()
    except NotImplementedError as reason:
        return str(reason)


def markdown(corner: str, heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, with numbers aligned right."""
    rule = ["---", *["---:"] * len(heads)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ([corner, *heads], rule, *lines))


def tables(figures: Figures) -> dict[str, str]:
    """Every table by the name in its marker."""
    here = figures.where
    r = [row for row in figures.of(R) if row.label != DENSE]
    fast = [row for row in r if row.label in FAST]
    kinds = [row for t in (R, ENDS, STORED) for row in figures.of(t) if row.label in FAST and row.resets == "0.03"]
    varied = [row for option in VARIED for row in figures.of(WITH + option) if row.label in FAST]
    long = [row for row in figures.of(LONG) if row.label in FAST]
    return {
        "R by option": _pivot("backend, option", sorted(varied, key=_label), _of_option, _shape, _over),
        "R at T = 512": _pivot("backend, shape", sorted(long, key=_label), _of_backend, _resets, _over),
        "bfloat16": _pivot("shape", figures.of(SIXTEEN), _shape, _label, _both),
        "products": _numbers_table(figures, "products", "{:.2f}"),
        "peak": _numbers_table(figures, "peak", "{:.0%}"),
        "costs": _numbers_table(figures, "costs", "{:.1f}"),
        "critics": _numbers_table(figures, "critics", "{:.1f}"),
        "where": f"Measured on {here['date']}: {here['processor']}, {here['cores']} cores, {here['threads']} threads; "
        f"Python {here['python']}, torch {here['torch']}, TorchRL {here['torchrl']}.",
        "R over resets": _pivot("backend, shape", sorted(fast, key=_label), _of_backend, _resets, _over),
        "R by backend": _pivot("shape", [row for row in r if row.resets == "0.03"], _shape, _label, _over),
        "R by kind": _pivot("backend, shape", sorted(kinds, key=_label), _of_backend, _kind, _over),
        "at 3 %": _pivot("shape", [row for row in figures.of(Q) if row.resets == "0.03"], _sizes, _label, _both),
        "Q": _pivot("shape, resets", figures.of(Q), lambda row: f"{_shape(row)}, {_resets(row)}", _label, _both),
        "over resets": _pivot("resets", figures.of(OVER_RESETS), _resets, _label, _time),
        "over time": _pivot("shape", figures.of(OVER_TIME), lambda row: row.shape, _label, _time),
        "acting": _pivot("shape", figures.of(ACTING), lambda row: row.shape, _label, _both),
        "memory": _numbers_table(figures, "memory", "{:.2f}"),
        "error": _numbers_table(figures, "error", "{:.1e}"),
        "compile": _compile_lines(figures),
        "goals": _goals(figures),
    }


def _shape(row: Row) -> str:
    return f"{name_of(row.shape)} {row.shape}"


def _sizes(row: Row) -> str:
    return ", ".join(f"{part[0]} = {part[1:]}" for part in str(row.shape).split("-"))


def _of_backend(row: Row) -> str:
    return f"{row.label}, {_shape(row)}" if name_of(row.shape) != row.shape else f"{row.label}, {row.shape}"


def _of_option(row: Row) -> str:
    return f"{row.label}, {row.title.removeprefix(WITH)}"


def _kind(row: Row) -> str:
    return KIND_OF[row.reads]


def _label(row: Row) -> str:
    return row.label


def _resets(row: Row) -> str:
    return percent(row.resets)


def _over(row: Row) -> str:
    return ratio_text(row.over)


def _pivot(
    corner: str, rows: list[Row], down: Callable[[Row], str], across: Callable[[Row], str], cell: Callable[[Row], str]
) -> str:
    return markdown(corner, *pivot(rows, down, across, cell)) if rows else "Not measured yet."


def _time(row: Row) -> str:
    once = "*" if row.seconds and row.seconds.samples == 1 else ""
    return seconds(row.seconds.median) + once if row.seconds else "-"


def _both(row: Row) -> str:
    return _time(row) + (f" ({ratio_text(row.over)})" if row.over and row.label != row.base else "")


def _numbers_table(figures: Figures, what: str, form: str) -> str:
    found: dict[str, dict[str, str]] = {}
    for key, value in figures.numbers.items():
        kind, backend, name = key.split("/")
        if kind == what:
            found.setdefault(backend, {})[name] = form.format(value) if isinstance(value, float) else "-"
    heads = sorted({name for cells in found.values() for name in cells}, key=_in_order)
    lines = [[backend, *(cells.get(name, "-") for name in heads)] for backend, cells in found.items()]
    return markdown("backend" if what in BY_BACKEND else "what", heads, lines) if lines else "Not measured yet."


def _in_order(head: str) -> int:
    """``S1`` to ``S5``, ``H = 64`` to ``H = 512``."""
    return int("".join(filter(str.isdigit, head)))


def _compile_lines(figures: Figures) -> str:
    found = {key.rsplit("/", 1)[1]: v for key, v in figures.numbers.items() if key.startswith("compile/")}
    if not found:
        return "Not measured yet."
    lines = [
        [T, f"{v['seconds']:.1f} s", str(v["recompilations"])] if isinstance(v, dict) else [T, str(v), "-"]
        for T, v in found.items()
    ]
    return markdown("first call at", ["forward + backward", "recompilations at other T"], lines)


def _goals(figures: Figures) -> str:
    made = goal_lines(figures)
    rule = ["| goal | limit | reached |", "| --- | ---: | --- |"]
    return "\n".join([*rule, *("| " + " | ".join(line) + " |" for line in made)]) if made else "Not measured yet."


def draw(figures: Figures, folder: Path) -> None:
    """Write those of docs/generated/plots/*.png whose figures exist."""
    draw_all(folder)
    here = figures.where
    about = f"{here['processor']}, {here['threads']} threads"
    for backend in FAST:
        if rows := [replace(row, label=name_of(row.shape)) for row in figures.of(R) if row.label == backend]:
            title = f"{backend}: forward + backward over dense nn.LSTM ({about})"
            draw_lines(rows, _resets, "over", title, "resets", folder / f"shapes_{backend}.png")
    if rows := figures.of(OVER_RESETS):
        title = f"LSTMModule, S2, forward + backward ({about})"
        draw_lines(rows, _resets, "seconds", title, "resets", folder / "resets.png")
    if rows := figures.of(OVER_TIME):
        title = f"LSTMModule, B = 32, H = 128, 3 % resets, forward + backward ({about})"
        draw_lines(rows, lambda row: row.shape.split("-")[1][1:], "seconds", title, "T", folder / "time.png")


def fill(figures: Figures, page: Path) -> None:
    """Write the tables between their markers.

    Raises:
        KeyError: the page has a marker without a table.
    """
    made = tables(figures)
    text = BETWEEN.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", page.read_text(encoding="utf-8"))
    write_whole(page, text)


def _begun(file: Path, resume: bool, only: list[str]) -> Figures:
    """The figures to start with: none; with ``only`` those of the other parts; with ``resume`` all."""
    if not file.exists() or not (resume or only):
        return Figures(where())
    figures = Figures.load(file)
    if not resume:
        figures = Figures(where(), [row for row in figures.rows if row.title not in only], figures.numbers)
        if "numbers" in only:
            figures.numbers = {}
    return figures


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=["measure", "fill"])
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=FULL, help="seconds for all times; default: %(default)s")
    parser.add_argument(
        "--only", action="append", default=[], help="part to measure: a title, or numbers; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of torch threads; default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="measure only the figures that the JSON file lacks")
    return parser.parse_args()


def main() -> None:
    """Measure, fill, or both."""
    import torch

    options = _options()
    file = options.docs / "generated" / "figures.json"
    if "measure" in options.what:
        torch.set_num_threads(options.threads)
        figures = _begun(file, options.resume, options.only)
        measure(figures, file, options.seconds, options.only)
    if "fill" in options.what:
        figures = Figures.load(file)
        for page in (options.docs / "performance.md", options.docs.parent / "README.md"):
            fill(figures, page)
        draw(figures, options.docs / "generated" / "plots")


if __name__ == "__main__":
    main()
