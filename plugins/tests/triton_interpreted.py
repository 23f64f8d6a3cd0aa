"""The Triton kernels in Triton's interpreter, over several slices and tiles, against the plain unroll in float64.

A program of its own (``TRITON_INTERPRET=1`` is read when Triton is imported): ``test_triton.py`` runs it. It prints one
line for each case, and ends with status 1 where one is wrong.
"""

import itertools
import sys

import torch
from rnn_backends import LayerWeights, State
from rnn_backends.authoring import Arguments, Needs, Run, unroll
from rnn_backends_plugins.triton import run
from rnn_backends_plugins.triton.plan import Plan, power_of_two

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-2, torch.float16: 8e-3}
SIZES = ((5, 7, 3, 5), (4, 3, 2, 16), (1, 2, 1, 1), (3, 9, 0, 6), (2, 1, 4, 9))


def small_plan(H: int, units: int, rows: int, piece: int) -> Plan:
    """Slices and tiles so small that a few units and rows make several of them."""
    padded = max(piece, power_of_two(H))
    return Plan(units, -(-H // units), rows, padded, piece or padded, 4)


def error_of(sizes: tuple[int, ...], dtype: torch.dtype, chosen: Plan, wants_entry: bool, bias: bool) -> float:
    """The largest error of outputs and gradients, relative to the largest number of each."""
    T, B, I, H = sizes  # noqa: E741
    g = torch.Generator().manual_seed(sum(sizes))

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * 0.6).to(dtype).requires_grad_()

    starts = torch.rand(T, B, generator=g) < 0.3
    starts[0] = True
    weights = (draw(4 * H, I), draw(4 * H, H), draw(4 * H) if bias else None)
    x, entry_h, entry_c = draw(T, B, I), draw(T, B, H), draw(T, B, H)
    with torch.no_grad():  # what is not read must not show
        for value in (entry_h, entry_c):
            value.masked_fill_(~starts.unsqueeze(-1), torch.nan)
    wide = [None if v is None else v.double() for v in (*weights, None, None)]
    expected = unroll(LayerWeights(*wide), x.double(), State(entry_h.double(), entry_c.double()), starts)
    grad_h, grad_c = draw(T, B, H).detach(), draw(T, B, H).detach()
    leaves = [x, *(v for v in weights if v is not None), *((entry_h, entry_c) if wants_entry else ())]
    gradients = torch.autograd.grad(expected, leaves, [grad_h.double(), grad_c.double()])
    given = Arguments(x, *weights, None, entry_h, entry_c, starts)
    run.plan_for = lambda *_: chosen
    with torch.no_grad():
        h, c, gates = run.forward(given, True)
        needs = Needs(True, True, True, bias, False, wants_entry, wants_entry)
        found = [v for v in run.backward(given, Run(h, c, gates, grad_h, grad_c), needs) if v is not None]
    worst = 0.0
    for actual, right in zip([h, c, *found], [*expected, *gradients], strict=True):
        if right.numel():
            scale = right.abs().max().clamp(min=1e-3)
            worst = max(worst, float(((actual.double() - right).abs().max() / scale).nan_to_num(torch.inf)))
    return worst


def main() -> int:
    wrong = 0
    cuts = ((2, 4, 0), (4, 2, 4), (16, 16, 0))  # units of a slice, rows of a tile, piece of H (0: all)
    for k, (sizes, cut, dtype) in enumerate(itertools.product(SIZES, cuts, TOLERANCE)):
        found = error_of(sizes, dtype, small_plan(sizes[3], *cut), wants_entry=k % 2 == 0, bias=k % 3 > 0)
        bad = not found < TOLERANCE[dtype]
        wrong += bad
        print(f"{'WRONG' if bad else 'right'} T,B,I,H {sizes} U,BB,BK {cut} {dtype}: {found:.1e}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
