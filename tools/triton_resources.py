"""What the Triton kernels need on GPUs that are not here: registers, spills, shared memory, the matrix instruction.

Each kernel of each plan is compiled for a card of its own with the assembler that Triton brings; nothing runs.

    python tools/triton_resources.py                      # H100, the sizes of the benchmarks
    python tools/triton_resources.py --capability 86 --hidden 256 --dtype bfloat16
    python tools/triton_resources.py --all --write        # docs/generated/triton_resources.md, minutes
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rnn_backends_plugins.triton import kernels, plan, run
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
ELSEWHERE = {"starts": "*u8", "carry": "*fp32", "counters": "*i32", "parts": "*fp32"}


@dataclass(frozen=True)
class Needs:
    """What one compiled kernel needs: registers and bytes of stack a thread, bytes of shared memory a program."""

    registers: int
    stack: int
    shared: int
    instruction: str
    instructions: int


def compiled(kernel: Any, constants: dict[str, Any], dtype: torch.dtype, capability: int, **options: Any) -> Needs:
    """Compile ``kernel`` for a GPU of this compute capability."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in (*kernels.VARIES, *kernels.STRIDES):
            types[name] = "i32"
        else:
            types[name] = ELSEWHERE.get(name, POINTER[dtype])
    aligned = {
        (k,): [["tt.divisibility", 16]]
        for k, name in enumerate(kernel.arg_names)
        if types[name].startswith("*")
        and name not in ("starts", "entry_h", "entry_c", "x", "h" if "x" in types else "")
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
    return Needs(int(registers), int(stack), found.metadata.shared, instruction, found.asm.get("sass", "").count("\n"))


def of_layer(H: int, dtype: torch.dtype, chosen: plan.Plan, capability: int, precision: str) -> dict[str, Needs]:
    """Both kernels of a plan."""
    sizes = {
        **{"H": H, "U": chosen.units, "G": chosen.slices, "BB": chosen.rows, "KP": chosen.padded, "BK": chosen.piece},
        **{
            "RESIDENT": chosen.resident,
            "STEPS": False,
            "WAITS": chosen.slices > 1,
            "PRECISION": precision,
            "OPERAND": run.operand_of(dtype),
        },
    }
    options = {"num_warps": chosen.warps, "num_stages": 1, "launch_cooperative_grid": chosen.slices > 1}
    forward = {**sizes, "KEEP": True}
    backward = {**sizes, "HAS_GRAD_H": True, "HAS_GRAD_C": False, "NEED_ENTRY_H": False, "NEED_ENTRY_C": False}
    return {
        "forward": compiled(kernels.forward_kernel, forward, dtype, capability, **options),
        "backward": compiled(kernels.backward_kernel, backward, dtype, capability, **options),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--precision", default="tf32")
    parser.add_argument("--plan", type=int, nargs="+", help="units rows piece warps")
    parser.add_argument("--large", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    card = next(card for card in plan.CARDS.values() if card.capability == args.capability)
    for H in args.hidden:
        for name in args.dtype:
            dtype = getattr(torch, name)
            for large in args.large:
                chosen = plan.plan(H, dtype.itemsize, bool(large), card)
                if args.plan:
                    units, rows, piece, warps = args.plan
                    chosen = plan.Plan(
                        units, -(-H // units), rows, max(16, plan.power_of_two(H)), piece or chosen.padded, warps
                    )
                print(H, name, chosen, flush=True)
                for kind, needs in of_layer(H, dtype, chosen, args.capability, args.precision).items():
                    print(f"    {kind:9}", needs, flush=True)


if __name__ == "__main__":
    main()
