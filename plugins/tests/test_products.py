"""Products by oneDNN with a packed matrix: the same numbers as torch.mm, in every law about float32."""

import pytest
import torch
from rnn_backends_plugins.compile import products
from rnn_backends_plugins.compile.products import Product, add_product
from rnn_conformance import check_backend
from rnn_conformance.laws.catalogue import LAWS

served = pytest.mark.skipif(not products._onednn_serves(torch.zeros(1, 1)), reason="this torch has no oneDNN")


@pytest.fixture
def always(monkeypatch):
    """Products of any size go to oneDNN; yields the numbers of rows that it got."""
    seen, original = [], products.onednn_linear

    def counted(rows, *args):
        seen.append(len(rows))
        return original(rows, *args)

    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "onednn_linear", counted)
    return seen


@served
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_that_of_mm(always, transposed):
    matrix = torch.randn(6, 5).t() if transposed else torch.randn(5, 6)
    product, bias = Product(matrix, 7), torch.randn(6)
    for n in (7, 3, 1):  # the last chunk has fewer rows
        rows = torch.randn(n, 5)
        torch.testing.assert_close(product.of(rows), rows @ matrix)
        torch.testing.assert_close(product.of(rows, bias), rows @ matrix + bias)
    assert always == [7, 7, 3, 3, 1, 1]


@served
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sum_of_products_is_in_the_dtype_of_the_total(always, dtype):
    left, right = torch.randn(6, 5, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    total = torch.ones(5, 8, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    expected = 1 + left.double().t() @ right.double()
    add_product(total, left, right)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5 if dtype != torch.bfloat16 else 0.02, atol=1e-2)
    assert always == ([5] if dtype == torch.float32 else [])


@served
def test_what_is_small_other_or_switched_off_goes_to_mm(always, monkeypatch):
    small = torch.randn(5, 6)
    assert Product(small, 7)._packed is not None
    assert Product(small.double(), 7)._packed is None
    with monkeypatch.context() as off:
        off.setattr(torch.backends.mkldnn, "enabled", False)
        assert Product(small, 7)._packed is None
    monkeypatch.setattr(products, "LEAST", 211)
    assert Product(small, 7)._packed is None
    assert Product(small, 8)._packed is not None


@served
def test_nan_stays_in_its_row(always):
    rows = torch.randn(4, 5)
    rows[2] = torch.nan
    out = Product(torch.randn(5, 6), 4).of(rows)
    assert out[2].isnan().all()
    assert out[[0, 1, 3]].isfinite().all()


@served
def test_every_law_about_float32_holds(always):
    laws = [name for name, law in LAWS.items() if "f32" in law.where.get("dtype", ()) and law.time_limit is None]
    report = check_backend("compile", laws=laws, profile="quick", seed=5)
    assert len(report.results) == len(laws) > 10
    assert not report.failures
    assert len(always) > 1000
