"""The Triton kernels in Triton's interpreter, over several slices and tiles, against the plain unroll in float64.

A program of its own (``TRITON_INTERPRET=1`` is read when Triton is imported): ``test_triton.py`` runs it. It prints one
line for each case, and ends with status 1 where one is wrong.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from rnn_backends import LayerWeights, State
from rnn_backends.authoring import Arguments, Needs, Run, unroll
from rnn_backends_plugins.triton import products, run
from rnn_backends_plugins.triton.plan import Plan, power_of_two
from rnn_backends_plugins.triton.products import Tile
from triton_recorded import patched_once
from triton_together import together

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-2, torch.float16: 8e-3}
SIZES = ((5, 7, 3, 5), (4, 3, 2, 16), (1, 2, 1, 1), (3, 9, 0, 6), (2, 1, 4, 9))


def small_plan(H: int, units: int, rows: int, piece: int) -> Plan:
    """Slices and tiles so small that a few units and rows make several of them."""
    padded = max(piece, power_of_two(H))
    pieces = padded // (piece or padded)
    return Plan(units, -(-H // units), rows, padded, piece or padded, 4, piece != 4, ahead=2 if pieces > 1 else 1)


def error_of(
    sizes: tuple[int, ...], dtype: torch.dtype, chosen: Plan, wants_entry: bool, bias: bool, one_entry: bool, last: bool
) -> float:
    """The largest error of outputs and gradients, relative to the largest number of each.

    Args:
        sizes: T, B, I, H.
        dtype: of all tensors.
        chosen: how the layer is cut.
        wants_entry: whether the states at the starts need a gradient.
        bias: whether there is one.
        one_entry: all sequences start from one row of memory.
        last: the gates' gradient takes the gates' place.
    """
    T, B, I, H = sizes  # noqa: E741
    g = torch.Generator().manual_seed(sum(sizes))

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * 0.6).to(dtype).requires_grad_()

    starts = torch.rand(T, B, generator=g) < 0.3
    starts[0] = True
    weights = (draw(4 * H, I), draw(4 * H, H), draw(4 * H) if bias else None)
    x, entry_h, entry_c = draw(T, B, I), draw(T, B, H), draw(T, B, H)
    if one_entry:
        entry_h, entry_c = (draw(H).expand(T, B, H) for _ in range(2))
    else:
        with torch.no_grad():  # values that must not be read
            for value in (entry_h, entry_c):
                value.masked_fill_(~starts.unsqueeze(-1), torch.nan)
    wide = [None if v is None else v.double() for v in (*weights, None, None)]
    expected = unroll(LayerWeights(*wide), x.double(), State(entry_h.double(), entry_c.double()), starts)
    grad_h, grad_c = draw(T, B, H).detach(), draw(T, B, H).detach()
    leaves = [x, *(v for v in weights if v is not None), *((entry_h, entry_c) if wants_entry else ())]
    gradients = torch.autograd.grad(expected, leaves, [grad_h.double(), grad_c.double()])
    given = Arguments(x, *weights, None, entry_h, entry_c, starts)
    with torch.no_grad(), mock.patch.object(run, "plan_for", return_value=chosen):
        h, c, gates = run.forward(given, True)
        needs = Needs(True, True, True, bias, False, wants_entry, wants_entry)
        found = [v for v in run.backward(given, Run(h, c, gates, grad_h, grad_c, last), needs) if v is not None]
    worst = 0.0
    for actual, right in zip([h, c, *found], [*expected, *gradients], strict=True):
        if right.numel():
            right = right.detach()
            scale = right.abs().max().clamp(min=1e-3)
            worst = max(worst, float(((actual.double() - right).abs().max() / scale).nan_to_num(torch.inf)))
    return worst


CUTS = ((2, 4, 2), (4, 2, 4), (16, 16, 0))
"""Units of a slice, rows of a tile, piece of H (0: all; 4: the weights are read again in each step)."""
SIXTEEN_BITS = tuple(itertools.product(range(len(SIZES)), (torch.bfloat16, torch.float16)))
"""Every size with one of the cuts: the dtypes differ in loads and stores alone."""
IN_TURNS = (
    ((5, 7, 3, 5), (2, 4, 0), 1),
    ((4, 5, 2, 6), (2, 2, 4), 2),
    ((5, 7, 3, 5), (2, 2, 0), 1),
    ((3, 5, 2, 4), (4, 2, 0), 2),
)
"""Sizes, cuts and how many tiles run side by side, where the programs of a tile wait for each other."""


def cases() -> Iterator[tuple[str, Callable[[], float], float]]:
    """Words, what gives the error, and the most that it may be."""
    for sizes, tile, dtype, batch_first in PRODUCTS:
        yield (
            f"products, T,B,I,H {sizes} {dtype}",
            partial(error_of_products, sizes, tile, dtype, batch_first),
            TOLERANCE[dtype],
        )
    every = [*itertools.product(SIZES, CUTS, (torch.float32,)), *((SIZES[k], CUTS[k % 3], d) for k, d in SIXTEEN_BITS)]
    for k, (sizes, cut, dtype) in enumerate(every):
        yield (
            f"T,B,I,H {sizes} U,BB,BK {cut} {dtype}",
            partial(error_of, sizes, dtype, small_plan(sizes[3], *cut), k % 2 == 0, k % 3 > 0, k % 4 == 3, k % 4 > 1),
            TOLERANCE[dtype],
        )
    for seed, (sizes, cut, programs) in enumerate(IN_TURNS):
        yield (
            f"T,B,I,H {sizes} U,BB,BK {cut} in turns, {programs} tiles at once",
            partial(error_in_turns, sizes, small_plan(sizes[3], *cut), programs, seed),
            TOLERANCE[torch.float32],
        )


PRODUCTS = (
    ((3, 5, 3, 5), Tile(4, 4, 8, 4, 1), torch.float32, False),
    ((4, 3, 0, 6), Tile(8, 2, 16, 4, 1), torch.float32, False),
    ((2, 9, 8, 8), Tile(16, 8, 16, 4, 1), torch.float32, False),
    ((6, 4, 5, 7), Tile(4, 8, 8, 4, 1), torch.float32, True),
    ((1, 1, 1, 1), Tile(4, 4, 8, 4, 1), torch.float32, True),
    ((5, 4, 16, 3), Tile(8, 4, 8, 4, 1), torch.bfloat16, True),
    ((4, 6, 3, 4), Tile(8, 4, 8, 4, 1), torch.float16, False),
)
"""Sizes T, B, I, H, the tile of the products that need no recurrence, and whether the batch comes first in memory."""


def error_of_products(sizes: tuple[int, ...], tile: Tile, dtype: torch.dtype, batch_first: bool) -> float:
    """The largest error of the products that need no recurrence, relative to the largest number of each."""
    T, B, I, H = sizes  # noqa: E741
    g = torch.Generator().manual_seed(sum(sizes))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    def over_time(size: int) -> torch.Tensor:
        return draw(B, T, size).transpose(0, 1) if batch_first else draw(T, B, size)

    starts = torch.rand(T, B, generator=g) < 0.4
    starts[0] = True
    x, entry_h, h, grad_gates = over_time(I), over_time(H), draw(T, B, H), draw(T, B, 4, H)
    entry_h.masked_fill_(~starts.unsqueeze(-1), torch.nan)  # values that must not be read
    h[-1] = torch.nan  # enters no step
    w_ih, bias = draw(4 * H, I), draw(4 * H)
    given = Arguments(x, w_ih, draw(4 * H, H), bias, None, entry_h, entry_h, starts)
    with (
        mock.patch.multiple(products, SMALL=tile, LARGE=tile, splits_of=lambda n, *_: (-(-n // 4), 4)),
        mock.patch.object(products, "torch_multiplies_alike", return_value=False),
    ):
        found = (
            products.of_inputs(x, w_ih, bias),
            products.of_inputs(x, w_ih, None),
            products.of_grad_gates(grad_gates.view(T, B, 4 * H), w_ih),
            *products.of_weights(given, h, grad_gates),
        )
    rows, entered = grad_gates.view(T * B, 4 * H).double(), torch.where(starts.unsqueeze(-1), entry_h, h.roll(1, 0))
    inputs = x.reshape(T * B, I).double()
    pre = inputs @ w_ih.double().t()
    expected = (
        *(pre + bias.double(), pre, (rows @ w_ih.double()).view(T, B, I)),
        *(rows.t() @ inputs, rows.t() @ entered.reshape(T * B, H).double(), rows.sum(0)),
    )
    worst = 0.0
    for actual, right in zip(found, expected, strict=True):
        assert actual.shape == right.shape
        assert actual.dtype == dtype
        if right.numel():
            error = (actual.double() - right).abs().max() / right.abs().max().clamp(min=1e-3)
            worst = max(worst, float(error.nan_to_num(torch.inf)))
    return worst


def error_in_turns(sizes: tuple[int, ...], chosen: Plan, programs: int, seed: int) -> float:
    """As :func:`error_of`, in one launch over all steps whose programs run in turns and wait for each other."""
    with together(seed), mock.patch.object(run, "_grid", return_value=(programs, False)):
        return error_of(sizes, torch.float32, chosen, seed % 2 == 0, bias=True, one_entry=False, last=seed > 0)


def main() -> int:
    wrong = 0
    with patched_once():
        for words, error, most in cases():
            found = error()
            bad = not found < most
            wrong += bad
            print(f"{'WRONG' if bad else 'right'} {words}: {found:.1e}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
