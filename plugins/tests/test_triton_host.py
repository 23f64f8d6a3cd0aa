"""What the ``triton`` backend does on the host around its kernels: buffers, and launches with little Python.

Launches are compiled for a GPU and go to a driver without one, which writes them down.
"""

import gc
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from rnn_backends import LayerWeights, State, UnsupportedError
from rnn_backends.authoring import Arguments, Needs, Run
from rnn_backends_plugins.triton.plan import CARDS, Plan
from rnn_benchmarks.gpu.memory import least_of_dense, of_triton
from rnn_benchmarks.gpu.settings import DTYPES, GPU_SHAPES, PRECISIONS
from rnn_benchmarks.gpu.without import driver
from torch.utils._python_dispatch import TorchDispatchMode

REASON = "the kernels come with triton, and it is not installed"
triton = pytest.importorskip("triton", reason=REASON)
tl = pytest.importorskip("triton.language", reason=REASON)
device, kernels, launch, product_kernels, products, run = (
    pytest.importorskip(f"rnn_backends_plugins.triton.{name}", reason=REASON)
    for name in ("device", "kernels", "launch", "product_kernels", "products", "run")
)
Launcher, known = launch.Launcher, launch.known

OURS = (
    *(kernels.forward_kernel, kernels.backward_kernel, kernels.step_kernel),
    *(product_kernels.product_kernel, product_kernels.weight_gradients_kernel),
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def switches():
    """torch's switches for TF32, put back at the end."""
    rnn, conv, matmul = torch.backends.cudnn.rnn, torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [place.fp32_precision for place in (rnn, conv, matmul)]
    yield rnn, matmul
    for place, value in zip((rnn, conv, matmul), before, strict=True):
        place.fp32_precision = value


@pytest.mark.parametrize("recurrent", ["tf32", "ieee"])
@pytest.mark.parametrize("in_products", ["tf32", "ieee"])
def test_every_product_is_as_exact_as_the_switch_for_recurrent_networks_says(switches, recurrent, in_products):
    rnn, matmul = switches
    rnn.fp32_precision, matmul.fp32_precision = recurrent, in_products
    if recurrent == "ieee":  # the older name raises an error then; ours must not
        with pytest.raises(RuntimeError):
            _ = torch.backends.cudnn.allow_tf32
    assert device.precision_of(torch.float32) == ("tf32" if recurrent == "tf32" else "tf32x3")
    assert device.torch_multiplies_alike(torch.float32) == (recurrent == in_products)
    for dtype in (torch.bfloat16, torch.float16):
        assert device.precision_of(dtype) == "tf32"
        assert device.torch_multiplies_alike(dtype)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_torch_multiplies_where_it_is_as_exact(monkeypatch, alike, backward):
    asked = []
    monkeypatch.setattr(products, "torch_multiplies_alike", lambda dtype: alike)
    monkeypatch.setattr(products, "_product", lambda a, b, *_, **__: asked.append(a.shape) or a.new_zeros(6, 5))
    if backward:
        assert products.of_grad_gates(torch.ones(2, 3, 8), torch.ones(8, 5)).shape == (2, 3, 5)
    else:
        assert products.of_inputs(torch.ones(2, 3, 4), torch.ones(5, 4), None).shape == (6, 5)
    assert bool(asked) is not alike


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("offset", "width", "H", "aligned"),
    [(0, 16, 8, True), (8, 24, 8, True), (1, 16, 8, False), (0, 12, 8, False), (0, 16, 12, False)],
)
def test_rows_are_read_16_bytes_at_a_time_only_where_they_begin_at_such(monkeypatch, dtype, offset, width, H, aligned):
    """Strides alone do not say it: a slice of a wider tensor begins anywhere."""
    asked = []

    def launcher(*about, **constants):
        asked.append(constants["ALIGNED"])
        return lambda *given: None

    monkeypatch.setattr(products, "_launcher", launcher)
    T, B, I = 3, 2, 8  # noqa: E741
    x = torch.zeros(T * B * width + 64, dtype=dtype)[offset:].as_strided((T, B, I), (B * width, width, 1))
    products.of_weights(layer(T, B, I, H, dtype)._replace(x=x), torch.zeros(T, B, H), torch.zeros(T, B, 4, H))
    products._product(x, torch.zeros(4 * H, I, dtype=dtype), None)
    assert asked == [aligned, aligned or (offset == 0 and width == 16)]
    h = torch.zeros(T * B * H + 1, dtype=dtype)[1:].view(T, B, H)  # a hook of saved tensors may return it so
    products.of_weights(layer(T, B, I, H, dtype)._replace(x=x), h, torch.zeros(T, B, 4, H))
    assert asked[2:] == [False]


def test_a_bias_whose_numbers_are_apart_is_read_right(monkeypatch):
    seen = []
    monkeypatch.setattr(Launcher, "__call__", lambda self, grid, tensors, numbers: seen.append(tensors[2]))
    given, bias = layer(I=2, H=4), torch.randn(32)[::2]
    products._product(given.x, given.w_ih, bias)
    assert seen[0].equal(bias)
    assert seen[0].is_contiguous()


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 4096, 131_072, 131_073])
@pytest.mark.parametrize("blocks", [1, 24, 80, 1000])
def test_the_splits_of_the_rows_are_all_of_them_once(rows, blocks):
    for most in (1, 3, 1000):
        splits, each = products.splits_of(rows, blocks, 32, CARDS["H100"], most)
        assert each % 32 == 0
        assert (splits - 1) * each < rows <= splits * each
        assert splits * blocks <= max(blocks, 2 * CARDS["H100"].sms)
        assert splits <= most


MOST_MEMORY = {"S3": 1.07, "S5": 1.06}
"""Of the least that ``torch.nn.LSTM`` takes: in S3 the exchange of 32 slices is larger than the inputs' gradient; in
S5, whose call takes half a MiB, the weights' gradients are added up in float32."""


@pytest.mark.parametrize("which", PRECISIONS)
@pytest.mark.parametrize("name", GPU_SHAPES)
def test_a_training_call_takes_little_more_than_the_least_memory_of_torchs(name, which):
    shape = GPU_SHAPES[name]
    ours, least = of_triton(shape, which), least_of_dense(shape, DTYPES[which])
    assert least * 0.97 < ours <= MOST_MEMORY.get(name, 1.02) * least


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_large_tiles_are_for_many_rows_and_columns_on_cards_that_hold_them(switches, card, dtype):
    holds = CARDS[card].shared >= products.ROOM_OF_LARGE
    assert products.tile_of("few", 1000, dtype, CARDS[card]) is products.SMALL
    for batch in ("many", "large"):
        assert products.tile_of(batch, 65, dtype, CARDS[card]) is (products.LARGE if holds else products.SMALL)
        assert products.tile_of(batch, 64, dtype, CARDS[card]) is products.SMALL
    switches[0].fp32_precision = "ieee"
    split = products.tile_of("large", 1000, dtype, CARDS[card])
    assert split is (products.LARGE if holds and dtype != torch.float32 else products.SMALL)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("B", "H", "padded", "tiles"), [(1, 1, 16, 1), (37, 40, 64, 3), (16, 64, 64, 1), (64, 5, 16, 4)]
)
@pytest.mark.parametrize("expanded", [False, True])
def test_one_allocation_holds_what_enters_the_first_step_and_zeros(dtype, B, H, padded, tiles, expanded):
    first = torch.randn(1, H, dtype=dtype).expand(B, H) if expanded else torch.randn(B, H, dtype=dtype)
    cut = Plan(16, -(-H // 16), 16, padded, padded, 4)
    into, counters = run._exchanged(first, cut, tiles)
    rows = tiles * cut.rows
    assert into.is_contiguous()
    assert into.numel() == 2 * rows * padded
    slots = into.view(2, rows, padded)
    assert slots[0, :B, :H].equal(first)
    slots[0, :B, :H] = 0
    assert not into.any()
    assert counters.dtype == torch.int32
    assert counters.is_contiguous()
    assert counters.numel() >= 32 * tiles
    assert not counters.any()
    assert not counters.data_ptr() % 16
    assert into.untyped_storage().data_ptr() == counters.untyped_storage().data_ptr()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_products_see_neither_gradients_nor_autocast(autocast, gradients):
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, autocast):
        with run._as_it_is():
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu") == autocast


def launchers_of(shape, which):
    """Those of a training call; nobody can read its resets, which have no memory."""
    found = []
    of_triton(shape, which, lambda launcher, *given: found.append(launcher))
    return tuple(found)


@pytest.mark.parametrize("which", PRECISIONS)
@pytest.mark.parametrize("name", GPU_SHAPES)
def test_another_number_of_steps_takes_the_same_kernels_and_other_rows_one_of_three_sets(name, which):
    shape = GPU_SHAPES[name]
    usual = launchers_of(shape, which)
    assert len(usual) == (5 if which == "TF32" else 3)
    for T in (1, 7, 100, 5000):
        assert launchers_of(shape._replace(T=T), which) == usual
    sets = {launchers_of(shape._replace(B=B), which) for B in (1, 5, 16, 17, 64, 100, 512, 1024, 4096, 30_000)}
    assert len(sets) <= 3


class WrittenDown:
    """In place of the driver's launcher: its arguments, tensors as their addresses."""

    launches: ClassVar[list[tuple]] = []

    def __init__(self, src, metadata):
        self.metadata = metadata

    def __call__(self, x, y, z, stream, function, packed, metadata, before, after, *given):
        given = tuple(v.data_ptr() if isinstance(v, torch.Tensor) else v for v in given)
        self.launches.append(((x, y, z), stream, self.metadata.hash, packed, given))
        for hook in (before, after):
            if hook is not None:
                hook(metadata)


@pytest.fixture
def launches(monkeypatch):
    """The launches that a driver without a GPU received."""
    if device.INTERPRETED:
        pytest.skip("nothing is compiled: TRITON_INTERPRET=1")
    monkeypatch.setattr(triton.runtime.driver, "_active", driver(WrittenDown))
    monkeypatch.setattr(WrittenDown, "launches", [])
    yield WrittenDown.launches
    for kernel in (*OURS, move, broken):
        kernel.device_caches.clear()  # nothing that was loaded into no GPU stays
    for launchers in (run._launcher, run._step_launcher, products._launcher):
        launchers.cache_clear()
    gc.collect()  # a kernel asks its driver to unload it


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["anywhere"])
def move(here, anywhere, n, N: tl.constexpr):
    """``here[:n] = anywhere[:n]``."""
    k = tl.arange(0, N)
    tl.store(here + k, tl.load(anywhere + k, mask=k < n), mask=k < n)


@pytest.fixture
def compilations(launches, monkeypatch):
    """The compilations since."""
    found = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **about: found.append(about) and None)
    monkeypatch.setattr(launch, "processors", lambda: 2)  # with one of them nothing compiles side by side
    return found


def layer(T=3, B=2, I=1, H=3, dtype=torch.float32):  # noqa: E741
    starts = torch.ones(T, B, dtype=torch.bool)
    weights = torch.randn(4 * H, I, dtype=dtype), torch.randn(4 * H, H, dtype=dtype), torch.randn(4 * H, dtype=dtype)
    stored = torch.randn(T, B, H, dtype=dtype), torch.randn(T, B, H, dtype=dtype)
    return Arguments(torch.randn(T, B, I, dtype=dtype), *weights, None, *stored, starts)


def call(given):
    """Each kernel once, but for the product of the inputs' gradient."""
    h, c, gates = run.forward(given, True)
    run.backward(given, Run(h, c, gates, h, None), Needs(False, True, True, True, False, False, False))
    weights = LayerWeights(given.w_ih, given.w_hh, given.bias, given.bias, None)
    run.step(weights, given.x[0], State(given.entry_h[0], given.entry_c[0]), given.starts[0])


def test_the_shorter_way_launches_the_same_kernel_with_the_same_arguments(launches, monkeypatch):
    """All that the driver's launcher gets, by Triton's own way and by the shorter one, from the same memory."""
    original, kept = Launcher._launch, []

    def both(self, index, grid, tensors, numbers):
        original(self, index, grid, tensors, numbers)
        self.kernel[grid](*tensors, *numbers, **self.constants)
        compiled = self._compiled[index]
        assert compiled.launch(self.kernel, grid, tensors, numbers)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "_hooks_are_called", lambda: True)
            assert compiled.launch(self.kernel, grid, tensors, numbers)
        kept.append(compiled)

    monkeypatch.setattr(Launcher, "_launch", both)
    call(layer())
    assert len(launches) == 20
    assert len({hash_ for _, _, hash_, *_ in launches}) == 5
    for k in range(0, 20, 4):
        assert launches[k] == launches[k + 1] == launches[k + 2] == launches[k + 3]
        assert len(kept[k // 4].aligned) >= 3


def test_a_call_like_the_one_before_asks_triton_for_nothing(launches, compilations, monkeypatch):
    call(layer())
    assert len(compilations) == 5
    monkeypatch.setattr(type(kernels.forward_kernel), "run", None)
    call(layer(T=5, B=4))
    assert len(compilations) == 5
    assert len(launches) == 10


@pytest.mark.parametrize(("I", "H"), [(1, 1), (3, 1), (1, 16)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_size_of_one_compiles_which_triton_makes_a_constant(launches, I, H, bias):  # noqa: E741
    given = layer(I=I, H=H)
    given = given if bias else given._replace(bias=None)
    h, c, gates = run.forward(given, True)
    found = run.backward(given, Run(h, c, gates, h, h), Needs(True, True, True, True, False, True, True))
    assert [value.shape for value in found if value is not None] == [
        *((3, 2, I), (4 * H, I), (4 * H, H), (4 * H,)),
        *((3, 2, H), (3, 2, H)),
    ]
    assert len(launches) == 5
    weights = LayerWeights(given.w_ih, given.w_hh, given.bias, None, None)
    run.step(weights, given.x[0], State(given.entry_h[0], given.entry_c[0]))
    assert len(launches) == 6


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gpu_with_fewer_multiprocessors_than_slices_gets_a_launch_for_each_step(launches, monkeypatch, dtype):
    monkeypatch.setattr(run, "card_of", lambda device: replace(CARDS["L4"], sms=1))
    monkeypatch.setattr(run, "_plan_of", run._plan_of.__wrapped__)  # which keeps no plan for this card
    given = layer(T=4, B=3, H=100, dtype=dtype)
    h, c, gates = run.forward(given, True)
    products_of_inputs = dtype == torch.float32
    assert len(launches) == products_of_inputs + 4
    run.backward(given, Run(h, c, gates, h, None), Needs(False, True, True, True, False, True, True))
    assert len(launches) == products_of_inputs + 4 + 5 + 1  # one before the first step, and the weights' gradients
    assert {grid for grid, *_ in launches[products_of_inputs : products_of_inputs + 9]} == {
        (1, 4 if dtype == torch.float32 else 2, 1)
    }


@triton.jit
def broken(here, N: tl.constexpr):
    """Does not compile."""
    tl.static_assert(N < 16)
    tl.store(here, 0.0)


USUAL = (torch.float32, "ieee", False), (torch.float32, "tf32", True), (torch.bfloat16, "tf32", False)


@pytest.mark.parametrize(("dtype", "in_products", "of_inputs"), USUAL)
@pytest.mark.parametrize("one_entry", [False, True])
@pytest.mark.parametrize("entry_wants_a_gradient", [False, True])
def test_all_kernels_of_a_training_call_compile_together_before_the_first_launch(
    launches, compilations, switches, monkeypatch, dtype, in_products, of_inputs, one_entry, entry_wants_a_gradient
):
    """And they are those that the call launches: with one processor each compiles at its launch, and is the same."""
    switches[1].fp32_precision = in_products
    hashes = []
    for processors in (4, 1):
        monkeypatch.setattr(launch, "processors", lambda count=processors: count)
        for launchers in (run._launcher, products._launcher):
            launchers.cache_clear()
        for kernel in OURS:
            kernel.device_caches.clear()
        del launches[:], compilations[:]
        given = layer(I=8, H=16, dtype=dtype)
        if one_entry:
            given = given._replace(
                entry_h=given.entry_h[:1, :1].expand(3, 2, 16), entry_c=given.w_hh[0].expand(3, 2, 16)
            )
        for value in (given.entry_h, given.entry_c):
            value.requires_grad_(entry_wants_a_gradient)
        given.x.requires_grad_(of_inputs)
        h, c, gates = run.forward(given, True)
        ours = dtype == torch.float32 and in_products == "ieee"  # our own kernels multiply outside as well
        expected = 3 + ours * (1 + of_inputs)
        assert len(compilations) == (expected if processors == 4 else 1 + ours)
        entry = entry_wants_a_gradient
        run.backward(given, Run(h, c, gates, h, None), Needs(of_inputs, True, True, True, False, entry, entry))
        assert len(compilations) == expected == len(launches)
        hashes.append([hash_ for _, _, hash_, *_ in launches])
    assert hashes[0] == hashes[1]


def test_without_a_gradient_only_the_forward_pass_compiles(launches, compilations, monkeypatch):
    monkeypatch.setattr(launch, "processors", lambda: 4)
    run.forward(layer(), False)
    assert len(compilations) == 2


def test_what_does_not_compile_beside_others_is_an_error_at_its_launch_and_the_others_are_compiled(
    launches, compilations
):
    wrong, right = Launcher(broken, {"N": 16, "enable_fp_fusion": True}), Launcher(move, MOVE)
    threads = threading.active_count()
    launch.compile_together([(wrong, torch.float32, {}), (right, torch.float32, {})], torch.device("cpu"))
    assert threading.active_count() == threads
    assert len(compilations) == 2
    right((1, 1), moving(), (9,))
    assert len(compilations) == 2
    with pytest.raises(triton.CompilationError, match="static_assert"):
        wrong((1, 1), moving()[:1], (9,)[:0])


def test_a_callers_own_compilation_mode_is_not_in_the_way(launches, compilations):
    wanted = [(Launcher(move, {**MOVE, "N": n}), torch.float32, {}) for n in (16, 32)]
    with ThreadPoolExecutor(1) as pool, triton.AsyncCompileMode(pool):
        launch.compile_together(wanted, torch.device("cpu"))
    for one, *_ in wanted:
        one((1, 1), moving(), (9,))
    assert len(compilations) == 2


def test_hooks_before_a_run_see_no_compilation(launches, compilations, monkeypatch):
    monkeypatch.setattr(move, "pre_run_hooks", [lambda *given, **options: None])
    launch.compile_together([(Launcher(move, MOVE), torch.float32, {})] * 2, torch.device("cpu"))
    assert not compilations


@pytest.mark.parametrize("last", [False, True])
def test_the_gradient_of_the_gates_takes_their_place_in_the_last_pass(launches, last):
    given = layer()
    h, c, gates = run.forward(given, True)
    del launches[:]
    run.backward(given, Run(h, c, gates, h, None, last), Needs(True, True, True, True, False, True, True))
    names = [parameter.name for parameter in kernels.backward_kernel.params]
    _, _, _, _, arguments = launches[0]
    of_gates, of_gradient = (arguments[names.index(name)] for name in ("gates", "grad_gates"))
    assert of_gates == gates.data_ptr()
    assert (of_gates == of_gradient) is last


def test_the_compiler_lets_two_arguments_be_one_tensor(launches):
    """As the gates and their gradient are: no load may pass through a cache that sees no stores."""
    call(layer())
    compiled = [found for kernel in OURS for caches in kernel.device_caches.values() for found in caches[0].values()]
    assert len(compiled) == 5
    for found in compiled:
        assert "ld.global" in found.asm["ptx"]
        assert "ld.global.nc" not in found.asm["ptx"]
        assert "noalias" not in found.asm["llir"]


MACHINE_CODE = {
    "read": r"LDG\.E[.\d]*\.STRONG\.GPU",
    "forget": r"CCTL\.IVALL",  # values in the nearest cache
    "barrier": r"BAR\.SYNC",
    "write": r"STG\.E",
    "publish": r"MEMBAR\.\w+\.GPU",
    "arrive": r"(?:RED|ATOM)\w*\.E\.ADD\.STRONG\.GPU",
}
"""Instructions of NVIDIA's GPUs, by what they are in the exchange between programs."""


@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_machine_code_reads_after_the_wait_and_arrives_after_it_has_written(
    launches, monkeypatch, tmp_path, capability
):
    """Neither Triton's compiler nor the assembler moves an access of the exchange out of its place."""
    monkeypatch.setattr(triton.runtime.driver, "_active", driver(WrittenDown, capability))
    given = layer(T=4, B=3, H=40)
    h, c, gates = run.forward(given, True)
    run.backward(given, Run(h, c, gates, h, None), Needs(False, False, False, False, False, False, False))
    one, cuobjdump = tmp_path / "kernel.cubin", Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for kernel in (kernels.forward_kernel, kernels.backward_kernel):
        ((compiled,),) = (caches[0].values() for caches in kernel.device_caches.values())
        one.write_bytes(compiled.asm["cubin"])
        said = subprocess.run([cuobjdump, "-sass", one], capture_output=True, text=True, check=True).stdout
        pattern = "|".join(f"(?P<{name}>{text})" for name, text in MACHINE_CODE.items())
        order = " ".join(match.lastgroup for match in re.finditer(pattern, said))
        assert re.fullmatch(
            r"(?:write |barrier )*read forget barrier (?:read |barrier )*read (?:barrier )*"
            r"(?:write |barrier )*write (?:barrier )+publish arrive(?: write| barrier)*",
            order,
        ), order


class Operators(TorchDispatchMode):
    """The names of torch's operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("starts", [None, torch.tensor([True, False])])
def test_a_step_of_all_layers_is_one_launch_each_and_nothing_else_on_the_gpu(launches, layers, starts):
    B, H = 2, 3
    sizes = [5, *[H] * (layers - 1)]
    weights = [LayerWeights(torch.randn(4 * H, n), torch.randn(4 * H, H), None, None, None) for n in sizes]
    with Operators() as ran:
        output, state = run.step_stack(weights, torch.randn(B, 5), State(*torch.randn(2, B, layers, H)), starts)
    assert len(launches) == layers
    assert ran.names <= {"randn", "new_empty", "unbind", "select", "view", "detach"}  # memory and views of it
    assert output.shape == (B, H)
    assert state.h.shape == state.c.shape == (B, layers, H)
    assert len({value.untyped_storage().data_ptr() for value in (output, *state)}) == 3


MOVE = {"N": 16, "num_warps": 1, "enable_fp_fusion": True}


def moving(offset=0):
    return [torch.zeros(64)[offset : offset + 16], torch.zeros(64)[1:17]]


def test_a_tensor_of_another_alignment_takes_the_kernel_that_was_compiled_for_it(launches, compilations):
    start = Launcher(move, MOVE)
    for offset in (1, 0, 1, 4, 0, 2):
        start((1, 1), moving(offset), (9,))
    assert len(compilations) == 2
    hashes = [hash_ for _, _, hash_, *_ in launches]
    aligned = [offset % 4 == 0 for offset in (1, 0, 1, 4, 0, 2)]
    assert [hash_ == hashes[1] for hash_ in hashes] == aligned


def test_a_number_that_needs_64_bits_takes_the_kernel_that_was_compiled_for_it(launches, compilations):
    start = Launcher(move, MOVE)
    for n in (1, 2**31 - 1, -5, 2**31, 3, -(2**31) - 1):
        start((1, 1), moving(), (n,))
    assert len(compilations) == 2
    hashes = [hash_ for _, _, hash_, *_ in launches]
    assert [hash_ == hashes[0] for hash_ in hashes] == [True, True, True, False, True, False]
    assert [given[2] for *_, given in launches] == [1, 2**31 - 1, -5, 2**31, 3, -(2**31) - 1]


@pytest.mark.parametrize("sizes", [(2**29 + 1, 1), (2**20, 2**9 + 1)])
def test_more_rows_than_32_bits_count_are_declined_before_anything_is_allocated(sizes):
    (T, B), meta = sizes, torch.device("meta")
    x, starts = torch.empty(T, B, 1, device=meta), torch.empty(T, B, dtype=torch.bool, device=meta)
    weights = torch.empty(4, 1, device=meta), torch.empty(4, 1, device=meta), None, None
    given = Arguments(x, *weights, x, x, starts)
    done = Run(x, x, x.new_empty(T, B, 4, 1), x, None)
    calls = [lambda: run.forward(given, True), lambda: run.backward(given, done, Needs(*[True] * 7))]
    if T == 2**29 + 1:
        layer, rows = LayerWeights(*weights, None), x[:, 0]
        calls.append(lambda: run.step(layer, rows, State(rows, rows)))
        calls.append(lambda: run.step_stack([layer], rows, State(x, x), None))
    for start in calls:
        with pytest.raises(UnsupportedError, match="rows times steps in 32 bits, 536870912 at most: split the batch"):
            start()


def test_hooks_of_triton_are_called_in_either_way(launches, monkeypatch):
    start, before, launched = Launcher(move, MOVE), [], []
    start((1, 1), moving(), (9,))
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda about: launched.append(about.get()["name"]))
    start((1, 1), moving(), (9,))
    assert launched == ["move"]
    monkeypatch.setattr(move, "pre_run_hooks", [lambda *given, **options: before.append(given)])
    start((1, 1), moving(), (9,))
    assert len(before) == 1
    assert launched == ["move"] * 2


@pytest.mark.parametrize("when", ["launch_enter_hook", "launch_exit_hook"])
def test_a_hook_that_is_added_to_tritons_chain_is_called_until_it_is_removed(launches, when):
    start, chain, seen = Launcher(move, MOVE), getattr(triton.knobs.runtime, when), []

    def hook(about):
        seen.append(about.get()["name"])

    start((1, 1), moving(), (9,))
    start((1, 1), moving(), (9,))
    assert not seen
    chain.add(hook)
    try:
        start((1, 1), moving(), (9,))
        assert seen == ["move"]
    finally:
        chain.remove(hook)
    start((1, 1), moving(), (9,))
    assert seen == ["move"]
    assert len(launches) == 4
    assert launches[1][:4] == launches[2][:4] == launches[3][:4]


def test_each_gpu_has_its_own_compiled_kernel_and_is_the_current_one_at_the_launch(monkeypatch):
    current, launched = [0], []

    @contextmanager
    def device(other):
        before, current[0] = current[0], other.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    start = Launcher(move, MOVE)
    monkeypatch.setattr(start, "_launch", lambda index, *given: launched.append((index, current[0])))
    for index in (0, 1, 0):
        start((1, 1), [SimpleNamespace(device=torch.device("cuda", index))], (1,))
    assert launched == [(0, 0), (1, 1), (0, 0)]
    assert current == [0]


def test_what_is_compiled_is_kept_for_one_gpu(launches, compilations):
    start = Launcher(move, MOVE)
    start._launch(0, (1, 1), moving(), (9,))
    assert set(start._compiled) == {0}
    start._launch(1, (1, 1), moving(), (9,))
    assert set(start._compiled) == {0, 1}


REMOVED = {
    "an older Triton": lambda patch: patch.setattr(triton, "__version__", "3.5.1"),
    "a newer Triton": lambda patch: patch.setattr(triton, "__version__", "4.0.0"),
    "no CompiledKernel": lambda patch: patch.delattr(triton.compiler, "CompiledKernel"),
    "another CompiledKernel": lambda patch: patch.setattr(triton.compiler, "CompiledKernel", WrittenDown),
    "no way to run it": lambda patch: patch.delattr(triton.compiler.CompiledKernel, "run"),
    "no current stream": lambda patch: patch.delattr(triton.runtime.driver.active, "get_current_stream"),
    "no list of parameters": lambda patch: patch.delattr(move, "params"),
    "parameters without their options": lambda patch: patch.setattr(move, "params", [object()]),
    "compile-time arguments that were not given": lambda patch: patch.setattr(
        move, "params", move.params + move.params[:1]
    ),
    "no list of hooks": lambda patch: patch.delattr(move, "pre_run_hooks"),
}


@pytest.mark.parametrize("removed", REMOVED)
def test_without_one_of_tritons_names_every_launch_takes_its_own_way(launches, removed):
    given = moving(), (9,)
    found = move[(1, 1)](*given[0], *given[1], **MOVE)
    assert known(move, MOVE, found, *given) is not None
    with pytest.MonkeyPatch.context() as patch:
        REMOVED[removed](patch)
        assert known(move, MOVE, found, *given) is None
    assert known(move, MOVE, None, *given) is None
    assert known(move, MOVE, found, given[0], ()) is None
    assert known(move, MOVE, found, moving(1), given[1]) is None


def test_a_launcher_that_takes_other_arguments_is_left_alone_from_then_on(launches):
    start = Launcher(move, MOVE)
    start((1, 1), moving(), (9,))
    (compiled,) = start._compiled.values()

    def takes_others(*given):
        raise TypeError("function takes exactly 3 arguments (9 given)")

    compiled.launch = takes_others
    with pytest.warns(RuntimeWarning, match="exactly 3 arguments"):
        start((1, 1), moving(), (9,))
    start((1, 1), moving(), (9,))
    assert len(launches) == 3
    assert not start._compiled


def test_a_refused_cooperative_launch_is_an_error_in_words_and_any_other_is_tritons(launches, monkeypatch):
    start = Launcher(move, MOVE)

    def refused(words):
        def launch(*given):
            raise RuntimeError(f"Triton Error [CUDA]: {words}")

        monkeypatch.setattr(start, "_launch", launch)
        start((4, 32), moving(), (9,))

    with pytest.raises(UnsupportedError, match="128 programs wait for each other"):
        refused("too many blocks in cooperative launch")
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        refused("an illegal memory access was encountered")


def test_every_tensors_dtype_and_every_flag_has_a_launcher_of_its_own():
    cut = Plan(16, 1, 16, 16, 16, 4)
    one = run._launcher(kernels.forward_kernel, cut, 3, False, torch.float32, "tf32", KEEP=True)
    assert one is run._launcher(kernels.forward_kernel, cut, 3, False, torch.float32, "tf32", KEEP=True)
    others = [
        run._launcher(kernels.forward_kernel, cut, 3, False, torch.float32, "tf32", KEEP=False),
        run._launcher(kernels.forward_kernel, cut, 3, False, torch.float32, "tf32x3", KEEP=True),
        run._launcher(kernels.forward_kernel, cut, 3, False, torch.bfloat16, "tf32", KEEP=True),
        run._launcher(kernels.forward_kernel, cut, 3, False, torch.float16, "tf32", KEEP=True),
        run._launcher(kernels.forward_kernel, cut, 3, True, torch.float32, "tf32", KEEP=True),
        run._launcher(kernels.forward_kernel, cut, 4, False, torch.float32, "tf32", KEEP=True),
        run._launcher(kernels.backward_kernel, cut, 3, False, torch.float32, "tf32", KEEP=True),
    ]
    assert len({id(found) for found in (one, *others)}) == 8
