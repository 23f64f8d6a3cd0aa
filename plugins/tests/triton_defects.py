"""Planted defects of the Triton kernels: each is an edit of their source, and each must be found.

    TRITON_INTERPRET=1 python plugins/tests/triton_defects.py            # all of them, two minutes
    TRITON_INTERPRET=1 python plugins/tests/triton_defects.py --only missed_wait_forward --only one_slot_forward
    TRITON_INTERPRET=1 python plugins/tests/triton_defects.py --write    # and docs/generated/triton_defects.md

Who finds them, in this order: ``orders`` (``triton_protocol.py``: all orders of the programs' steps), ``accesses``
(``triton_recorded.py``: accesses outside of tensors, outputs not written once, stored states read elsewhere, TF32),
``values`` (``triton_interpreted.py``: outputs and gradients against the unroll in float64), ``laws`` (of the suite).
The defect names the first that must find it; nothing before that one may.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import triton_interpreted
import triton_recorded
from rnn_backends import get_backend
from rnn_backends_plugins import triton as backend
from rnn_backends_plugins.triton import device, kernels, product_kernels, products, run
from rnn_conformance import check_backend
from triton_exchange import accesses, orders

PAGE = Path(__file__).parents[2] / "docs/generated/triton_defects.md"
FINDERS = ("orders", "accesses", "values", "laws")
FILES = {module.__name__.rpartition(".")[2]: module for module in (kernels, product_kernels, products, run, device)}


@dataclass(frozen=True)
class Defect:
    """One edit.

    Attributes:
        name: short and telling.
        sentence: the error.
        finder: who must find it first, one of ``FINDERS``.
        edits: pairs of a text that is in the source once, and what takes its place.
        file: that is edited, of ``FILES``.
        laws: for the finder ``laws``: their names.
    """

    name: str
    sentence: str
    finder: str
    edits: tuple[tuple[str, str], ...]
    file: str = "kernels"
    laws: tuple[str, ...] = ()


def edit(
    name: str, sentence: str, finder: str, *edits: str, file: str = "kernels", laws: tuple[str, ...] = ()
) -> Defect:
    return Defect(name, sentence, finder, tuple(zip(edits[::2], edits[1::2], strict=True)), file, laws)


WAIT_FORWARD, WAIT_BACKWARD = "wait(counters + tile * 32, G * (t - t0))", "wait(counters + p * 32, G * arrivals)"
PUBLISH = (
    "            tl.store(into_tile + ((t + 1) & 1) * slot + r[:, None] * KP + unit[None, :], entering, mask=live)\n"
)
ARRIVE = (
    "            if WAITS:\n                arrive(counters + tile * 32)\n"
    "            else:\n                tl.debug_barrier()\n"
)
DEFECTS = (
    edit("missed_wait_forward", "Nobody waits in the forward kernel.", "orders",
         WAIT_FORWARD, "wait(counters + tile * 32, 0)"),
    edit("missed_wait_backward", "Nobody waits in the backward kernel.", "orders",
         WAIT_BACKWARD, "wait(counters + p * 32, 0)"),
    edit("waits_for_all_but_one", "The forward kernel goes on when one program is still missing.", "orders",
         WAIT_FORWARD, "wait(counters + tile * 32, G * (t - t0) - 1)"),
    edit("waits_for_the_step_before", "The forward kernel waits for the step before the one that it needs.", "orders",
         WAIT_FORWARD, "wait(counters + tile * 32, G * (t - t0 - 1))"),
    edit("waits_for_its_own_step", "The forward kernel waits for the step that it is about to compute.", "orders",
         WAIT_FORWARD, "wait(counters + tile * 32, G * (t - t0 + 1))"),
    edit("stale_tile", "At a tile's first step nobody waits for those that still read the tile before.", "orders",
         "if arrivals > 0:", "if n > 0:"),
    edit("arrivals_of_this_tile_alone", "The backward kernel forgets the arrivals of earlier tiles.", "orders",
         WAIT_BACKWARD, "wait(counters + p * 32, G * n)"),
    edit("one_slot_forward", "What enters a step lies where the step before is still being read.", "orders",
         "slot = tiles.to(tl.int64) * BB * KP", "slot = tiles.to(tl.int64) * 0"),
    edit("one_slot_backward", "A step's parts of the gradient lie where those of the step after are still being read.",
         "orders", "slot = G * slice_of_parts", "slot = 0 * slice_of_parts"),
    edit("one_counter_for_all_tiles", "All tiles count their arrivals together.", "orders",
         WAIT_FORWARD, "wait(counters, G * (t - t0))", "arrive(counters + tile * 32)", "arrive(counters)"),
    edit("a_counter_for_each_program", "Each program counts its arrivals alone.", "orders",
         "arrive(counters + tile * 32)", "arrive(counters + tile * 32 + g)"),
    edit("arrival_without_barrier", "A program arrives while other threads of it still write.", "orders",
         'tl.debug_barrier()\n    tl.atomic_add(counter, 1, sem="release")',
         'tl.atomic_add(counter, 1, sem="release")'),
    edit("wait_without_barrier", "Other threads go on while one waits.", "orders",
         "        pass\n    tl.debug_barrier()", "        pass"),
    edit("arrival_releases_nothing", "An arrival is counted, and values written before it may be seen later.", "orders",
         'tl.atomic_add(counter, 1, sem="release")', 'tl.atomic_add(counter, 1, sem="relaxed")'),
    edit("wait_acquires_nothing", "A program that has waited may still see older values.", "orders",
         '"ld.acquire.gpu.global.b32', '"ld.relaxed.gpu.global.b32'),
    edit("published_after_the_arrival", "A program arrives first and then writes what it arrived with.", "orders",
         PUBLISH + ARRIVE, ARRIVE + PUBLISH),
    edit("alone_without_a_barrier", "One program holds all units, and its threads do not wait for each other.",
         "orders",
         "arrive(counters + tile * 32)\n            else:\n                tl.debug_barrier()",
         "arrive(counters + tile * 32)"),
    edit("writes_its_neighbours_slice", "Every slice's part of the gradient is written in the first one's place.",
         "orders", "part_at = part_tile + (t & 1) * slot + g * slice_of_parts + r",
         "part_at = part_tile + (t & 1) * slot + r"),
    edit("exchange_through_a_cache", "What neighbours wrote is read through a cache that they do not write to.",
         "accesses", "tl.load(part_at + own_units, mask=read, other=0.0, cache_modifier=\".cg\")",
         "tl.load(part_at + own_units, mask=read, other=0.0)"),
    edit("a_row_too_many", "The last tile has a row more than the batch.", "orders",
         "inside = row < B\n        live", "inside = row <= B\n        live"),
    edit("a_row_too_few", "The last row of the batch is left out.", "accesses",
         "inside = row < B\n        live", "inside = row < B - 1\n        live"),
    edit("a_unit_too_many", "The last slice has a unit more than the layer.", "orders",
         "    g = tl.program_id(1)\n    unit = g * U + tl.arange(0, U)\n    real = (unit < H)",
         "    g = tl.program_id(1)\n    unit = g * U + tl.arange(0, U)\n    real = (unit <= H)"),
    edit("padded_weights_are_read", "The weights of padding are what lies behind the matrix.", "accesses",
         "w += (tl.load(w_at + j * BK, mask=real_column & (j * BK + k < H)[:, None], other=0.0)",
         "w += (tl.load(w_at + j * BK, mask=real_column & (k < BK)[:, None], other=0.0)"),
    edit("entry_read_everywhere", "Stored states are read at every step.", "accesses",
         "mask=live & begins[:, None], other=0.0)", "mask=live, other=0.0)"),
    edit("int32_rows", "The place of a row is computed in 32 bits.", "accesses",
         "first = tile * tl.full((), BB, tl.int64)\n        into_tile",
         "first = tile * tl.full((), BB, tl.int32)\n        into_tile"),
    edit("int32_steps", "The place of a step is computed in 32 bits.", "accesses",
         "slice_of_parts\n    step_of_h = B.to(tl.int64) * H", "slice_of_parts\n    step_of_h = B * H"),
    edit("int32_starts", "The place of a step's resets is computed in 32 bits.", "accesses",
         "(start_at + (t + 1) * starts_t.to(tl.int64), mask=follows, other=1) != 0\n            enters",
         "(start_at + (t + 1) * starts_t, mask=follows, other=1) != 0\n            enters"),
    edit("tf32_where_it_is_off", "float32 is multiplied in TF32 whatever torch's switch says.", "accesses",
         'return "tf32" if', 'return "tf32" if True or', file="device"),
    edit("gradients_of_the_step_before", "The gates' gradients are written at the step before theirs.", "accesses",
         "store_four(grad_gates + 4 * of_h + gate_at,", "store_four(grad_gates + 4 * (of_h - step_of_h) + gate_at,"),
    edit("wrong_slice_of_units", "A slice multiplies with its neighbour's weights.", "values",
         "w_at = w_hh + (gate_of(column, U) * H + unit_of(column, g, U))[None, :] * H",
         "w_at = w_hh + (gate_of(column, U) * H + (unit_of(column, g, U) + U) % H)[None, :] * H"),
    edit("a_slice_is_missing", "The last slice's part of the gradient is not added.", "values",
         "tl.static_range(G)", "tl.static_range(max(G - 1, 1))"),
    edit("reset_a_step_late", "A reset of h is applied a step late.", "values",
         "tl.where(next_begins[:, None], next_h, h_new)", "tl.where(begins[:, None], next_h, h_new)"),
    edit("no_reset_of_c", "A reset leaves the cell state as it is.", "values",
         "now[1] * tl.where(begins[:, None], stored_c.to(tl.float32), c_new)", "now[1] * c_new"),
    edit("dh_crosses_a_start", "The gradient of h flows back across a start.", "values",
         "dh += tl.where(cut[:, None], 0.0, dh_next)", "dh += dh_next"),
    edit("dc_crosses_a_start", "The gradient of c flows back across a start.", "values",
         "dc += tl.where(cut[:, None], 0.0, dc_next) + dh", "dc += dc_next + dh"),
    edit("gradient_of_stored_states_everywhere", "Stored states get a gradient where no sequence starts.", "values",
         "tl.store(entry_at, dh_next.to(dtype), mask=read & cut[:, None])",
         "tl.store(entry_at, dh_next.to(dtype), mask=read)"),
    edit("no_gradient_of_the_first_state", "What reached the state at the first step is not added up.", "values",
         "first = -1 if", "first = 0 if", file="run"),
    edit("c_of_the_same_step", "The gradient of the forget gate takes the cell state of its own step.", "values",
         "tl.load(c + (of_h - step_of_h) + at, mask=before", "tl.load(c + of_h + at, mask=before"),
    edit("c_is_not_handed_on", "The gradient keeps the cell state of its first step.", "values",
         "            c_now = c_before\n", ""),
    edit("resets_are_not_handed_on", "The gradient keeps the resets of its first step.", "values",
         "            cut = begins\n", ""),
    edit("gates_of_the_same_step_again", "A step takes the inputs' part of the one before.", "values",
         "gates_tile + 4 * step_of_h + gate_at, H, follows", "gates_tile + gate_at, H, follows"),
    edit("cell_state_forgotten", "The cell state does not pass from launch to launch.", "values",
         "tl.store(carried, c_new)", "tl.store(carried, c_new * 0.0)"),
    edit("weights_see_no_resets", "The gradient of w_hh takes the h before a start for what entered.", "values",
         "mask=row < last_start, other=0)", "mask=row < tl.minimum(last_start, B), other=0)", file="product_kernels"),
    edit("weights_see_the_same_step", "The gradient of w_hh takes the h of each step for what entered it.", "values",
         "tl.where(is_x, x, h - step_of_h)", "tl.where(is_x, x, h)", file="product_kernels"),
    edit("a_split_is_left_out", "The gradients of the weights miss the last rows.", "values",
         "parts.sum(0) if splits > 1", "parts[:-1].sum(0) if splits > 1", file="products"),
    edit("a_split_reads_on", "A split of the rows adds its neighbour's first rows as well.", "values",
         "last = tl.minimum(first + rows, T * B)", "last = tl.minimum(first + 2 * rows, T * B)",
         file="product_kernels"),
    edit("no_ones_for_the_bias", "The gradient of the bias is that of a column of zeros.", "values",
         "tl.where(ones, 1.0, ", "tl.where(ones, 0.0, ", file="product_kernels"),
    edit("a_column_too_many_of_x", "A product reads what lies behind a row of x.", "accesses",
         "real = (n < width)[None, :]", "real = (n <= width)[None, :]", file="product_kernels"),
    edit("rows_of_x_side_by_side", "x is read as if its rows followed each other.", "values",
         "place = t.to(tl.int64) * stride_t + (row - t * B).to(tl.int64) * stride_b",
         "place = row.to(tl.int64) * stride_b", file="product_kernels"),
    edit("int32_rows_of_a_product", "The place of a product's row is computed in 32 bits.", "accesses",
         "at = m[:, None].to(tl.int64) * N", "at = m[:, None] * N", file="product_kernels"),
    edit("int32_rows_of_x", "The place of a row of x is computed in 32 bits.", "accesses",
         "place = t.to(tl.int64) * stride_t + (row - t * B).to(tl.int64) * stride_b",
         "place = t * stride_t + (row - t * B) * stride_b", file="product_kernels"),
    edit("int32_columns_of_the_weights", "The place of a row of w_ih is computed in 32 bits.", "accesses",
         "b_at = b + n[None, :].to(tl.int64) * K", "b_at = b + n[None, :] * K", file="product_kernels"),
    edit("gates_read_late", "A step reads its gates again when their gradient has been written.", "accesses",
         "load_four(gates + 4 * of_h + gate_at, H, before, dtype)",
         "load_four(gates + 4 * (of_h + step_of_h) + gate_at, H, before, dtype)"),
    edit("gates_written_over_though_kept", "A second backward pass finds a gradient in the gates' place.",
         "laws", "run.gates if run.last else torch.empty_like(run.gates)", "run.gates", file="run",
         laws=("backward_twice_gives_the_same",)),
    edit("step_without_resets", "One step takes the state in where a sequence starts.", "laws",
         "stays = inside & (tl.load(starts + row_64 * starts_b, mask=inside, other=1) == 0)", "stays = inside",
         laws=("acting_needs_no_gradient",)),
    edit("step_with_one_bias", "One step leaves the recurrent bias out.", "laws",
         "    if HAS_B_HH:\n", "    if HAS_B_HH and not HAS_B_IH:\n", laws=("acting_needs_no_gradient",)),
)  # fmt: skip


def edited(defect: Defect) -> str:
    """The source with the defect in it.

    Raises:
        LookupError: a text is not in the source exactly once.
    """
    source = Path(FILES[defect.file].__file__).read_text(encoding="utf-8")
    for old, new in defect.edits:
        if source.count(old) != 1:
            raise LookupError(f"{defect.name}: the text is {source.count(old)} times in {defect.file}.py: {old!r}")
        source = source.replace(old, new)
    return source


@contextmanager
def planted(defect: Defect) -> Iterator[None]:
    """Within it the backend, the recorder and the cases run the edited source."""
    source = edited(defect)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / f"{defect.file}_{defect.name}.py"
        file.write_text(source, encoding="utf-8")
        module = _loaded(f"{backend.__name__}.{file.stem}", file)
        for user, name, value in _users(FILES[defect.file], module):
            stack.enter_context(mock.patch.object(user, name, value))
        yield


def _users(original: ModuleType, edited: ModuleType) -> Iterator[tuple[ModuleType, str, Any]]:
    """The names that refer to the module or its functions: where they are, and their values after the edit."""
    for user in (backend, triton_recorded, triton_interpreted, *FILES.values()):
        for name, value in vars(user).items():
            if value is original:
                yield user, name, edited
            elif user is not original and getattr(value, "__module__", None) == original.__name__ and callable(value):
                yield user, name, getattr(edited, name)


def _loaded(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {name: module}):  # where a dataclass looks for its module
        spec.loader.exec_module(module)
    return module


def values() -> Iterator[str]:
    """The cases that are wrong."""
    with triton_recorded.patched_once():
        for words, error, most in triton_interpreted.cases():
            found = error()
            if not found < most:
                yield f"{words}: {found:.1e}"


def laws(names: tuple[str, ...]) -> Iterator[str]:
    """The laws that do not hold."""
    with redirect_stdout(StringIO()):
        report = check_backend(get_backend("triton"), profile="smoke", laws=list(names), seed=1)
    yield from (failure.law for failure in report.failures)


def first(problems: Iterator[str]) -> str:
    """The first of them, or nothing; an exception is one."""
    try:
        return next(problems, "")
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def found_by(defect: Defect) -> tuple[str, str]:
    """Who finds it first, and what it says; ``("nobody", "")``."""
    finders: dict[str, Callable[[], Iterator[str]]] = {"orders": orders, "accesses": accesses, "values": values}
    finders["laws"] = partial(laws, defect.laws)
    with planted(defect):
        # Products exchange nothing, so no order of programs can show a defect of theirs.
        start = FINDERS.index("accesses") if "product" in defect.file else 0
        for name in FINDERS[start : FINDERS.index(defect.finder) + 1] if defect.finder != "laws" else ("laws",):
            if said := first(finders[name]()):
                return name, said
    return "nobody", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a defect's name; may be repeated")
    parser.add_argument("--list", action="store_true", help="their names alone; their edits are tried on the source")
    parser.add_argument("--write", action="store_true", help=f"also {PAGE.name}")
    options = parser.parse_args()
    chosen = [defect for defect in DEFECTS if not options.only or defect.name in options.only]
    if options.list:
        for defect in chosen:
            edited(defect)
            print(defect.name)
        return 0
    lines, wrong = [], 0
    for defect in chosen:
        begun = time.perf_counter()
        who, said = found_by(defect)
        wrong += who != defect.finder
        lines.append(f"| `{defect.name}` | {defect.sentence} | {who}: {said} |")
        verdict = "died" if who == defect.finder else f"WRONG, for {defect.finder},"
        print(f"{verdict} {defect.name} by {who}: {said} ({time.perf_counter() - begun:.1f} s)", flush=True)
    if options.write:
        PAGE.write_text(page(lines), encoding="utf-8")
    return int(wrong > 0)


def page(lines: list[str]) -> str:
    """The table as a page."""
    about = (
        "# Planted defects of the Triton kernels\n\n"
        "Made by `make triton-defects`. Each defect is an edit of the kernels' source;\n"
        "[Tests and coverage](../testing.md#the-triton-kernels) says who looks for it.\n\n"
        "| defect | what is wrong | found by |\n| --- | --- | --- |\n"
    )
    return about + "\n".join(lines) + "\n"


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
