"""The Triton kernels of the products that need no recurrence: over all steps at once.

torch's matrix products have a switch for TF32 that is off by default. Recurrent networks have another, on by default,
and cuDNN's LSTM follows it in all of its products, as these kernels do. The kernel of the weights' gradients also picks
the ``h`` that entered each step while it reads, so that no tensor has to hold it.
"""

import triton
import triton.language as tl

SIZES = ["M", "N", "K", "T", "B", "I", "H", "splits", "rows"]
"""Sizes of a call or a layer."""
STRIDES = ["a_t", "a_b", "x_t", "x_b", "starts_t", "starts_b", "entry_h_t", "entry_h_b"]
_VARIES = ["T", "B", "rows", "splits", *STRIDES]


@triton.jit
def place_of(
    row: tl.tensor, B: tl.tensor, stride_t: tl.tensor, stride_b: tl.tensor, ALIGNED: tl.constexpr
) -> tl.tensor:
    """Where row ``t * B + b`` of a tensor ``[T, B, ...]`` begins; ``ALIGNED``: 8 divides the strides."""
    t = row // B
    place = t.to(tl.int64) * stride_t + (row - t * B).to(tl.int64) * stride_b
    if ALIGNED:
        place = tl.multiple_of(place, [8])
    return place


@triton.jit(do_not_specialize=["M", "B", "a_t", "a_b"], do_not_specialize_on_alignment=["bias"])
def product_kernel(
    a: tl.tensor,  # [T, B, K], M = T * B rows
    b: tl.tensor,  # [N, K], or [K, N] with TRANSPOSED
    bias: tl.tensor,  # [N]
    out: tl.tensor,  # [M, N]
    M: tl.tensor,
    B: tl.tensor,
    a_t: tl.tensor,
    a_b: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    ALIGNED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """``a @ b.T + bias``, or ``a @ b + bias``. Neighbouring programs share rows of ``a``; all of ``b`` is in L2."""
    blocks = tl.cdiv(N, BN)
    m = tl.program_id(0) // blocks * BM + tl.arange(0, BM)
    n = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside, real = m < M, n < N
    a_at = a + place_of(m, B, a_t, a_b, ALIGNED)[:, None] + k[None, :]
    if TRANSPOSED:
        b_at = b + k[:, None].to(tl.int64) * N + n[None, :]
    else:
        b_at = b + n[None, :].to(tl.int64) * K + k[:, None]
    found = tl.zeros([BM, BN], dtype=tl.float32)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        of_k = k0 + k < K
        left = tl.load(a_at + k0, mask=inside[:, None] & of_k[None, :], other=0.0).to(OPERAND)
        right = tl.load(b_at, mask=of_k[:, None] & real[None, :], other=0.0).to(OPERAND)
        found = tl.dot(left, right, found, input_precision=PRECISION)
        b_at += BK * N if TRANSPOSED else BK
    if HAS_BIAS:
        found += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)[None, :]
    at = m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit(do_not_specialize=_VARIES, do_not_specialize_on_alignment=["starts", "entry_h"])
def weight_gradients_kernel(
    grad_gates: tl.tensor,  # [T * B, 4H]
    x: tl.tensor,  # [T, B, I]
    h: tl.tensor,  # [T, B, H]
    starts: tl.tensor,  # [T, B] uint8
    entry_h: tl.tensor,  # [T, B, H]
    parts: tl.tensor,  # [splits, 4H * (I + H + 1)], out: of w_ih [4H, I], w_hh [4H, H] and the bias [4H]
    T: tl.tensor,
    B: tl.tensor,
    rows: tl.tensor,  # of a split, a multiple of BK
    splits: tl.tensor,
    x_t: tl.tensor,
    x_b: tl.tensor,
    starts_t: tl.tensor,
    starts_b: tl.tensor,
    entry_h_t: tl.tensor,
    entry_h_b: tl.tensor,
    I: tl.tensor,
    H: tl.tensor,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """``grad_gates.T @ [x, 1, h that entered]``, a split of the rows a program; the ones give the bias' gradient.

    The ``h`` that entered a step is that of the step before, and where a sequence starts the stored one.
    """
    # Columns of x (and the ones) or of h: a program has one of them, and one loop for both compiles in half the time.
    blocks_of_x = tl.cdiv(I + 1, BN)
    blocks = blocks_of_x + tl.cdiv(H, BN)
    block, split = tl.program_id(1) % blocks, tl.program_id(1) // blocks
    is_x = block < blocks_of_x
    n = tl.where(is_x, block, block - blocks_of_x) * BN + tl.arange(0, BN)
    width = tl.where(is_x, I, H)
    step_of_h = B.to(tl.int64) * H
    at = tl.where(is_x, x, h - step_of_h)
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    at_t, at_b = tl.where(is_x, x_t.to(tl.int64), step_of_h), tl.where(is_x, x_b, H)
    earliest = tl.where(is_x, 0, B)
    real = (n < width)[None, :]
    ones = (n == tl.where(is_x, I, -1))[None, :]
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    of_m = m < 4 * H
    first = split * rows
    last = tl.minimum(first + rows, T * B)
    last_start = tl.where(is_x, 0, last)  # nothing starts in x
    r = tl.arange(0, BK)
    grad_at = grad_gates + first.to(tl.int64) * (4 * H) + r[:, None] * (4 * H) + m[None, :]
    found = tl.zeros([BM, BN], dtype=tl.float32)
    for r0 in tl.range(first, last, BK, num_stages=STAGES):
        row = r0 + r
        inside = row < last
        grads = tl.load(grad_at, mask=inside[:, None] & of_m[None, :], other=0.0).to(OPERAND)
        begun = tl.load(starts + place_of(row, B, starts_t, starts_b, False), mask=row < last_start, other=0)
        begins = begun != 0
        goes_on = inside & (row >= earliest) & (begun == 0)
        given = tl.load(
            at + place_of(row, B, at_t, at_b, ALIGNED)[:, None] + n[None, :], mask=goes_on[:, None] & real, other=0.0
        )
        stored = tl.load(
            entry_h + place_of(row, B, entry_h_t, entry_h_b, False)[:, None] + n[None, :],
            mask=begins[:, None] & real,
            other=0.0,
        )
        given = tl.where(ones, 1.0, tl.where(begins[:, None], stored, given).to(OPERAND))
        found = tl.dot(tl.trans(grads), given, found, input_precision=PRECISION)
        grad_at += BK * (4 * H)
    columns = tl.full((), 4, tl.int64) * H  # H is no tensor where it is 1
    w_ih = parts + split * columns * (I + H + 1)
    w_hh = w_ih + columns * I
    bias = w_hh + columns * H
    own = tl.where(is_x, w_ih, w_hh) + m[:, None].to(tl.int64) * width + n[None, :]
    tl.store(own, found, mask=of_m[:, None] & real)
    tl.store(bias + m[:, None] + 0 * n[None, :], found, mask=of_m[:, None] & ones)
