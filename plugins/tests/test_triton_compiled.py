"""The Triton kernels compiled for GPUs that are not here: ``tools/triton_resources.py`` and its page."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="its compiler comes with triton, and it is not installed")

ROOT = Path(__file__).parents[2]
MOST_STACK = {"float32": 128, "bfloat16": 72, "tf32x3": 512}
"""Bytes that a thread may spill: of the worst row of the page, of which no other cut was faster on an H100."""

MOST_STACK_OF_PRODUCTS = 24


@pytest.fixture(scope="module")
def resources():
    spec = importlib.util.spec_from_file_location("triton_resources", ROOT / "tools/triton_resources.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_has_every_plan(resources):
    every = [*resources.rows(), *resources.product_rows()]
    assert [row.cells for row in every] == list(resources.read_page())


def test_every_kernel_fits_its_card(resources):
    page = resources.read_page()
    every = [(row, row.chosen.warps, MOST_STACK[row.precision]) for row in resources.rows()]
    every += [(row, row.tile.warps, MOST_STACK_OF_PRODUCTS) for row in resources.product_rows()]
    for row, warps, most_stack in every:
        card = next(card for card in resources.plan.CARDS.values() if card.capability == row.capability)
        registers, stack, shared, unit = page[row.cells]
        assert int(shared) * 1024 <= card.shared, row
        assert int(stack) <= most_stack, row
        assert int(registers) * 32 * warps <= 65536, row  # or not even one program runs
        assert unit != "fma", row


@pytest.mark.parametrize("H", [1, 5, 16, 100, 200, 513, 1000, 1024])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_all_programs_of_a_tile_fit_on_the_card_or_each_step_is_a_launch(resources, H, itemsize):
    plan = resources.plan
    for card in plan.CARDS.values():
        for B in (1, 16, 17, 64, 1024, 4096, 100_000):
            cut = plan.plan(H, itemsize, plan.batch_of(H, B, itemsize, card), card)
            assert cut.slices * cut.units >= H > (cut.slices - 1) * cut.units
            side_by_side = cut.programs(-(-B // cut.rows), card)
            assert side_by_side * cut.slices <= card.sms  # 0 of them: run.py launches each step by itself


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 60, 150, -1, -20])
def test_the_page_says_what_the_compiler_gives(resources, k):
    if f"Triton {triton.__version__}\n" not in resources.PAGE.read_text():
        pytest.skip(f"the page was made by another Triton than {triton.__version__}")
    row = resources.rows()[k] if k >= 0 else resources.product_rows()[k]
    assert row.compiled().cells == resources.read_page()[row.cells]


def test_no_kernel_is_specialised_on_the_sizes_of_a_call(resources):
    kernels, products = resources.kernels, resources.product_kernels
    of_the_layer = (*kernels.OF_THE_LAYER, "N", "K")
    for kernel in (
        *(kernels.forward_kernel, kernels.backward_kernel, kernels.step_kernel),
        *(products.product_kernel, products.weight_gradients_kernel),
    ):
        for parameter in kernel.params:
            if parameter.is_constexpr or parameter.do_not_specialize or parameter.name in of_the_layer:
                continue
            is_size = re.fullmatch(r"[A-Z]|t[01]|tiles|rows|splits|\w+_[tb]", parameter.name)
            assert not is_size, f"{kernel.fn.__name__}: another {parameter.name} would compile it again"
            if parameter.name in ("starts", "entry_h", "entry_c"):
                assert parameter.do_not_specialize_on_alignment
