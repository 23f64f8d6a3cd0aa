"""Triton's intermediate code of the kernels: there is one for every flag in every dtype, and nothing in it overflows.

The interpreter knows no types and so takes code that the compiler rejects. For the products of 32 bits the code is read
line by line, with an upper bound for every number: an interval analysis.
"""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from rnn_backends_plugins.triton.plan import MOST_FEATURES, MOST_ROWS, MOST_UNITS

REASON = "the kernels come with triton, and it is not installed"
triton = pytest.importorskip("triton", reason=REASON)
compiler = pytest.importorskip("triton.compiler.compiler", reason=REASON)
backends = pytest.importorskip("triton.backends.compiler", reason=REASON)
libtriton = pytest.importorskip("triton._C.libtriton", reason=REASON)
kernels, product_kernels, run = (
    pytest.importorskip(f"rnn_backends_plugins.triton.{name}", reason=REASON)
    for name in ("kernels", "product_kernels", "run")
)

DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
POINTERS = {"starts": "*u8", "counters": "*i32", "carry": "*fp32", "parts": "*fp32"}
PRODUCTS = {"BM": 128, "BN": 128, "BK": 64, "STAGES": 3, "ALIGNED": False}
# One slice, so that a counter has an arrival a step; the number of slices is below.
TIME = {"U": 16, "BB": 16, "BK": 32, "G": 1, "KP": 1024, "RESIDENT": False, "STEPS": False, "WAITS": True}
FLAGS = ("HAS_", "NEED_", "KEEP", "TRANSPOSED")
CONSTANTS = {
    kernels.step_kernel: {"U": 16, "BB": 16, "BK": 64},
    kernels.forward_kernel: TIME | {"AHEAD": 1, "ONE_ENTRY": False},
    kernels.backward_kernel: TIME | {"ONE_ENTRY": False},
    product_kernels.product_kernel: PRODUCTS,
    product_kernels.weight_gradients_kernel: PRODUCTS,
}
AT_MOST_ALL_ROWS = {
    ("product_kernel", "m"): "programs are as many as tiles of M rows",
    ("product_kernel", "place"): "t * B with t = row // B",
    ("weight_gradients_kernel", "place"): "t * B with t = row // B",
    ("weight_gradients_kernel", "first"): "the splits' rows are the batch's, rounded up",
    ("weight_gradients_kernel", "last"): "T * B",
}
"""Products of two numbers that bound each other, by the kernel and the name in it."""


def code_of(kernel, dtype=torch.float32, **changed):
    """Triton's intermediate code of a kernel, of its usual constants but those ``changed``."""
    constants = dict(CONSTANTS[kernel])
    constants |= {name: True for name in kernel.arg_names if name.startswith(FLAGS)}
    constants |= {"PRECISION": "tf32", "OPERAND": run.operand_of(dtype)} | changed
    numbers = {p.name for p in kernel.params if re.fullmatch(r"[A-Z]|t[01]|tiles|rows|splits|layers?|\w+_[tb]", p.name)}
    types = {n: "constexpr" if n in constants else "i32" if n in numbers else DTYPES[dtype] for n in kernel.arg_names}
    types |= {n: POINTERS[n] for n in types if n in POINTERS}
    target = backends.GPUTarget("cuda", 90, 32)
    backend = compiler.make_backend(target)
    options = backend.parse_options({"enable_fp_fusion": True})
    context = libtriton.ir.context()
    libtriton.ir.load_dialects(context)
    backend.load_dialects(context)
    implementations = backend.get_codegen_implementation(options)
    source = triton.compiler.ASTSource(kernel, types, constants, {})
    return str(source.make_ir(target, options, implementations, backend.get_module_map(), context))


def sizes(rows=MOST_ROWS, features=MOST_FEATURES):
    """The largest value of each argument, of kernels and of the functions that they call, and of programs' numbers."""
    wide, tiles = max(4 * MOST_UNITS, features), rows // 16
    known = {"H": MOST_UNITS, "I": features, "N": wide, "K": wide, "splits": 1024, "layers": 1024, "layer": 1024}
    known |= dict.fromkeys(("T", "B", "M", "t1", "rows", "row", "arrivals"), rows)
    known |= {"t0": rows - 1, "tiles": tiles, "g": 64, "apart": MOST_UNITS, "column": 4 * MOST_UNITS}
    return SimpleNamespace(known=known, x=tiles, y=64)


def overflows(kernel, code, sizes):
    """The products of 32 bits that can pass 2**31, by their name and operands."""
    found, most = set(), {}

    def of(name):
        carried = "arrivals" if name.startswith("%arrivals") else name  # from one turn of a loop to the next
        return most.get(name, sizes.known.get(carried, math.inf))

    for line in code.splitlines():
        if "tt.func" in line:
            most |= {
                f"%{name}": sizes.known.get(name, math.inf) for name in re.findall(r"%(\w+): (?:i32|tensor)", line)
            }
        loop = re.search(r"scf\.for (%\w+) = %\w+ to (%\w+)", line)
        if loop:
            most[loop[1]] = of(loop[2]) - 1
        made = re.match(r"\s*(%[\w.]+) = ([\w.]+) (.*?) loc\(", line)
        if not made:
            continue
        name, operation, rest = made.groups()
        values = [of(used) for used in re.findall(r"%[\w.]+", rest)]
        constant = re.match(r"(?:dense<)?(-?\d+)", rest)
        if operation == "arith.constant" and constant:
            most[name] = abs(int(constant[1]))
        elif operation == "tt.make_range":
            most[name] = int(re.search(r"end = (\d+)", rest)[1])
        elif operation == "tt.get_program_id":
            of_weights = kernel is product_kernels.weight_gradients_kernel  # its first programs are over [4H]
            most[name] = sizes.x if rest.startswith("x") and not of_weights else sizes.y
        elif operation == "tt.call" and "gate_of" in rest:
            most[name] = 3
        elif operation == "tt.call" and "unit_of" in rest:
            most[name] = MOST_UNITS - 1  # a multiple of every slice's units
        elif operation == "arith.addi":
            most[name] = sum(values)
        elif operation == "arith.subi":
            most[name] = max(values)
        elif operation in ("arith.remsi", "arith.minsi"):
            most[name] = min(values)
        elif operation in ("arith.select", "arith.maxsi"):
            most[name] = max(values[-2:])
        elif operation == "arith.divsi":
            by = re.search(r", (%\w*?c?(\d+)_i32\w*)", rest)
            most[name] = values[0] // int(by[2]) if by else values[0]
        elif operation == "arith.muli":
            most[name] = 0 if 0 in values else values[0] * values[1]
            plain = re.sub(r"_\d+$", "", name[1:])
            if not rest.endswith(("i64", "i64>")) and most[name] >= 2**31:
                if (kernel.__name__, plain) in AT_MOST_ALL_ROWS:
                    most[name] = sizes.known["rows"]
                else:
                    found.add(f"{plain} = {rest}")
        elif len(values) == 1:
            most[name] = values[0]
    return found


def flags_of(kernel):
    """All flags on, all off, and each of them alone on or off."""
    names = [n for n in kernel.arg_names if n.startswith(FLAGS) or n in ("ONE_ENTRY", "RESIDENT", "STEPS", "ALIGNED")]
    for others in (False, True):
        every = dict.fromkeys(names, others)
        yield from (every, *(every | {name: not others} for name in names))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", CONSTANTS, ids=lambda kernel: kernel.__name__)
def test_every_flag_is_legal_in_every_dtype_and_with_sizes_of_one(kernel, dtype):
    """With STEPS too, which a GPU takes that has fewer multiprocessors than a tile has slices; a 1 is a constant."""
    ones = {name: 1 for name in kernel.arg_names if name in (*kernels.OF_THE_LAYER, "N", "K")}
    for flags in flags_of(kernel):
        apart = {"WAITS": not flags["STEPS"], "KP": 64} if "STEPS" in flags else {}
        for sizes_of_one in ({}, ones):
            assert "tt.return" in code_of(kernel, dtype, **flags, **apart, **sizes_of_one), flags


@pytest.mark.parametrize("kernel", CONSTANTS, ids=lambda kernel: kernel.__name__)
def test_no_product_of_32_bits_overflows_for_sizes_that_the_host_takes(kernel):
    assert overflows(kernel, code_of(kernel), sizes()) == set()


@pytest.mark.parametrize(
    ("kernel", "name", "larger"),
    [
        (kernels.step_kernel, "w", {"features": 2 * MOST_FEATURES + 2}),
        (kernels.forward_kernel, "gates_tile", {"rows": 2 * MOST_ROWS}),
    ],
    ids=["step", "forward"],
)
def test_beyond_those_sizes_one_would(kernel, name, larger):
    found = overflows(kernel, code_of(kernel), sizes(**larger))
    assert {product.split(" = ")[0] for product in found} == {name}, found
