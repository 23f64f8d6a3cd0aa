"""What the Triton kernels need on GPUs that are not here: registers, spills, shared memory, the matrix instruction.

Each kernel of each plan is compiled for a card of its own with the assembler that Triton brings; nothing runs.

    python tools/triton_resources.py                      # H100, the sizes of the benchmarks
    python tools/triton_resources.py --capability 86 --hidden 256 --dtype bfloat16
    python tools/triton_resources.py --hidden 256 --plan 32 32 64 8     # another cut: units, rows, piece, warps
    python tools/triton_resources.py --all --write        # docs/generated/triton_resources.md, half an hour of one core
    python tools/triton_resources.py --all --write --resume    # goes on where it was stopped
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
import triton
from rnn_backends.authoring import write_whole
from rnn_backends_plugins.triton import kernels, plan, product_kernels, products, run
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

PAGE = Path(__file__).parents[1] / "docs/generated/triton_resources.md"
CAPABILITIES = (90, 86, 80, 89, 100)
ITEMSIZE = {"float32": 4, "bfloat16": 2, "tf32x3": plan.SPLIT}
HIDDEN = (16, 64, 128, 256, 512, 1024)
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
NUMBERS = (
    *(*kernels.VARIES, *kernels.STRIDES, *kernels.OF_THE_LAYER),
    *(*product_kernels.SIZES, *product_kernels.STRIDES),
)
ELSEWHERE = {"starts": "*u8", "carry": "*fp32", "counters": "*i32", "parts": "*fp32"}


@dataclass(frozen=True)
class Needs:
    """What one compiled kernel needs: registers and bytes of stack a thread, bytes of shared memory a program."""

    registers: int
    stack: int
    shared: int
    instruction: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The last columns of a row."""
        return str(self.registers), str(self.stack), str(-(-self.shared // 1024)), self.instruction


def compiled(
    kernel: Any, sizes: dict[str, int], constants: dict[str, Any], dtype: torch.dtype, capability: int, **options: Any
) -> Needs:
    """Compile ``kernel`` for a GPU of this compute capability and a layer of these sizes."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in NUMBERS:
            types[name] = "i32"
        else:
            types[name] = ELSEWHERE.get(name, POINTER[dtype])
    aligned = {
        (k,): [["tt.divisibility", 16]]
        for k, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") and not kernel.params[k].do_not_specialize_on_alignment
    }
    aligned |= {
        (k,): [["tt.divisibility", 16]] for k, name in enumerate(kernel.arg_names) if sizes.get(name, 1) % 16 == 0
    }
    source = ASTSource(kernel, types, constants, aligned)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = re.findall(r"REG:(\d+)", said), re.findall(r"STACK:(\d+)", said)
    text = found.asm["ptx"]
    instruction = (
        "tcgen05" if "tcgen05.mma" in text else "wgmma" if "wgmma" in text else "mma" if "mma.sync" in text else "fma"
    )
    return Needs(int(registers), int(stack), found.metadata.shared, instruction)


def of_kernel(H: int, dtype: torch.dtype, chosen: plan.Plan, capability: int, precision: str, backward: bool) -> Needs:
    """What one kernel of a plan needs."""
    sizes = {
        **{"U": chosen.units, "G": chosen.slices, "BB": chosen.rows, "KP": chosen.padded, "BK": chosen.piece},
        **({} if backward else {"AHEAD": chosen.ahead}),
        **{"RESIDENT": chosen.resident, "STEPS": False, "WAITS": chosen.slices > 1},
        **{"PRECISION": precision, "OPERAND": run.operand_of(dtype)},
    }
    options = {
        "num_warps": chosen.warps,
        "num_stages": 1,
        "launch_cooperative_grid": chosen.slices > 1,
        "enable_fp_fusion": True,
    }
    if not backward:
        return compiled(
            kernels.forward_kernel, {"H": H}, {**sizes, "KEEP": True, "ONE_ENTRY": False}, dtype, capability, **options
        )
    flags = {"HAS_GRAD_H": True, "HAS_GRAD_C": False, "NEED_ENTRY_H": False, "NEED_ENTRY_C": False, "ONE_ENTRY": False}
    return compiled(kernels.backward_kernel, {"H": H}, {**sizes, **flags}, dtype, capability, **options)


def of_product(
    kind: str, tile: products.Tile, dtype: torch.dtype, capability: int, precision: str, size: int = 256
) -> Needs:
    """What a product that needs no recurrence needs; ``kind`` is of ``PRODUCTS``, ``size`` of every dimension."""
    flags: dict[str, Any] = {
        **{"ALIGNED": True, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth // dtype.itemsize},
        **{"STAGES": tile.stages, "PRECISION": precision, "OPERAND": run.operand_of(dtype)},
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    if kind == "weights' gradients":
        sizes = {"I": size, "H": size}
        found = compiled(product_kernels.weight_gradients_kernel, sizes, flags, dtype, capability, **options)
    else:
        flags |= {"TRANSPOSED": kind != "inputs", "HAS_BIAS": kind == "inputs"}
        found = compiled(product_kernels.product_kernel, {"N": size, "K": size}, flags, dtype, capability, **options)
    return found


PRODUCTS = ("inputs", "inputs' gradients", "weights' gradients")
HEADS_OF_PRODUCTS = (
    "compute capability",
    "dtype",
    "product",
    "rows, columns, bytes of depth, warps, stages",
    "registers",
    "stack",
    "shared, KiB",
    "unit",
)


@dataclass(frozen=True)
class ProductRow:
    """One of the products that need no recurrence, on one card."""

    capability: int
    precision: str
    kind: str
    tile: products.Tile

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's first columns."""
        tile = self.tile
        words = f"{tile.rows}, {tile.columns}, {tile.depth}, {tile.warps}, {tile.stages}"
        return str(self.capability), self.precision, self.kind, words

    def compiled(self) -> Needs:
        """Compile it."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        precision = "tf32x3" if self.precision == "tf32x3" else "tf32"
        return of_product(self.kind, self.tile, dtype, self.capability, precision)


def product_rows() -> list[ProductRow]:
    """Every product in every tile that can be chosen; in bfloat16 torch multiplies all but the weights' gradients."""
    found = []
    for capability, precision, kind in product(CAPABILITIES, ITEMSIZE, PRODUCTS):
        card = next(card for card in plan.CARDS.values() if card.capability == capability)
        for tile in (products.LARGE, products.SMALL):
            fits = tile is products.SMALL or (card.shared >= products.ROOM_OF_LARGE and precision != "tf32x3")
            if fits and (kind == PRODUCTS[2] or precision != "bfloat16"):
                found.append(ProductRow(capability, precision, kind, tile))
    return found


HEADS = (
    "compute capability",
    "H",
    "dtype",
    "batch",
    "kernel",
    "G, U, BB, BK, warps",
    "registers",
    "stack",
    "shared, KiB",
    "unit",
)
INTRODUCTION = """# What the Triton kernels need

By `python tools/triton_resources.py --all --write`: each kernel as `plan.py` cuts it, compiled with Triton {version}
for GPUs that are not there. Registers and bytes of stack (spilled registers) a thread, shared memory a program, and the
matrix instruction. `float32` is TF32; `tf32x3` is float32 where torch's switch forbids TF32. `few`, `many` and `large`
are batches (`plan.batch_of`); `read again`: the weights do not stay on the chip. A plan that several batches share is
compiled once. `float16` is compiled like `bfloat16`. Nothing here was measured on a GPU.
"""
ABOUT_PRODUCTS = """## Products that need no recurrence

Of `products.py`; `tf32x3` is used for the inputs only where torch's switch for products allows TF32 and its switch for
recurrent networks does not.
"""


@dataclass(frozen=True)
class Row:
    """One kernel of one plan on one card."""

    capability: int
    H: int
    precision: str
    batch: plan.Batch
    backward: bool
    chosen: plan.Plan

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's first columns."""
        cut = self.chosen
        words = f"{cut.slices}, {cut.units}, {cut.rows}, {cut.piece}, {cut.warps}" + (
            "" if cut.resident else ", read again"
        )
        kind = "backward" if self.backward else "forward"
        return str(self.capability), str(self.H), self.precision, self.batch, kind, words

    def compiled(self) -> Needs:
        """Compile it."""
        dtype = torch.float32 if self.precision == "tf32x3" else getattr(torch, self.precision)
        precision = "tf32x3" if self.precision == "tf32x3" else "tf32"
        return of_kernel(self.H, dtype, self.chosen, self.capability, precision, self.backward)


def rows() -> list[Row]:
    """Every plan that can be chosen, once; where torch forbids TF32, on one card."""
    found: dict[tuple[object, ...], Row] = {}
    for capability, precision, H in product(CAPABILITIES, ITEMSIZE, HIDDEN):
        card = next(card for card in plan.CARDS.values() if card.capability == capability)
        for batch, backward in product(get_args(plan.Batch), (False, True)):
            chosen = plan.plan(H, ITEMSIZE[precision], batch, card, backward)
            if precision != "tf32x3" or capability == 90:
                found.setdefault(
                    (capability, precision, H, backward, chosen), Row(capability, H, precision, batch, backward, chosen)
                )
    return list(found.values())


def read_page() -> dict[tuple[str, ...], tuple[str, ...]]:
    """The rows that the page has: what each needs (the last four columns), by its first columns."""
    if not PAGE.exists():
        return {}
    lines = [line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {tuple(cells[:-4]): tuple(cells[-4:]) for cells in lines if cells[0].isdigit()}


def write_page(found: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    """The page with these rows."""
    parts = [INTRODUCTION.format(version=triton.__version__)]
    for heads, about in ((HEADS, ""), (HEADS_OF_PRODUCTS, ABOUT_PRODUCTS)):
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        own = [(cells, needs) for cells, needs in found.items() if len(cells) == len(heads) - 4]
        parts += [about] if about else []
        parts.append("\n".join([*lines, *("| " + " | ".join((*cells, *needs)) + " |" for cells, needs in own)]) + "\n")
    write_whole(PAGE, "\n".join(parts))


def all_rows(write: bool, resume: bool) -> None:
    """Compile every row, with progress; the page is written after each."""
    known = read_page() if resume else {}
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    todo = [*rows(), *product_rows()]
    for k, row in enumerate(todo, 1):
        found[row.cells] = known.get(row.cells) or row.compiled().cells
        print(f"{k} of {len(todo)}:", *row.cells, "->", *found[row.cells], flush=True)
        if write:
            write_page({**known, **found} if k < len(todo) else found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--precision", default="tf32")
    parser.add_argument("--plan", type=int, nargs="+", help="units rows piece warps")
    parser.add_argument("--batch", nargs="+", default=list(get_args(plan.Batch)), choices=get_args(plan.Batch))
    parser.add_argument("--all", action="store_true", help="every plan that can be chosen")
    parser.add_argument("--write", action="store_true", help=f"with --all: fill {PAGE.name}")
    parser.add_argument("--resume", action="store_true", help="with --all: keep the rows that the page has")
    args = parser.parse_args()
    if args.all:
        all_rows(args.write, args.resume)
        return
    card = next(card for card in plan.CARDS.values() if card.capability == args.capability)
    for H in args.hidden:
        for name in args.dtype:
            dtype = getattr(torch, name)
            for batch, backward in product(args.batch, (False, True)):
                chosen = plan.plan(H, dtype.itemsize, batch, card, backward)
                if args.plan:
                    units, rows, piece, warps = args.plan
                    chosen = plan.Plan(
                        units, -(-H // units), rows, max(16, plan.power_of_two(H)), piece or chosen.padded, warps
                    )
                needs = of_kernel(H, dtype, chosen, args.capability, args.precision, backward)
                print(H, name, batch, "backward" if backward else "forward", chosen, needs, flush=True)


if __name__ == "__main__":
    main()
