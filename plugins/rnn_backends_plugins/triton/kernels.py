"""The Triton kernels: one layer over time with its resets, its gradient, and one step.

Who computes what. Rows of the batch are cut into tiles of ``BB``, the hidden units into ``G`` slices of ``U``.
Program ``(p, g)`` runs slice ``g`` of the tiles ``p``, ``p + P``, ...; the slice's weights stay on the chip for all
steps and tiles where they fit (``RESIDENT``), else they are read again in each step. Products take ``BK`` of the ``KP``
columns at a time: all at once, the rows that enter alone would fill the registers. A step needs
what all ``G`` slices computed in the step before: it passes through global memory, in two slots by turns, and a counter
a tile says how many programs have written theirs. ``docs/architecture.md`` says why no program waits for ever and
``plugins/tests/triton_protocol.py`` explores all orders.

The equations are those of :class:`torch.nn.LSTM` (gate order i, f, g, o); the gradient is backpropagation through time
(Greff et al. 2017, "LSTM: A Search Space Odyssey", section II, without peepholes).

With ``WAITS`` the programs of a tile wait for each other. Under ``STEPS`` a launch is one step instead, and the cell
state passes from launch to launch in ``carry``: so Triton's interpreter runs it, which knows no two programs at a time,
and so does a GPU on which the ``G`` programs of a tile do not fit side by side.
"""

import triton
import triton.language as tl

VARIES = ["T", "B", "t0", "t1", "tiles"]
"""Sizes of a call: no kernel is specialised on them, so another T or B compiles nothing."""
STRIDES = ["starts_t", "starts_b", "entry_h_t", "entry_h_b", "entry_c_t", "entry_c_b"]
_GIVEN = ["starts", "entry_h", "entry_c"]
"""Tensors of the caller, of any alignment."""


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """tanh, to some 1e-7 of the result also where the result is small: there the first terms of its Taylor series."""
    square = x * x
    series = x * (
        1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0)))
    )
    small = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - small) / (1.0 + small)
    return tl.where(square < 0.0625, series, tl.where(x < 0.0, -large, large))


@triton.jit
def arrive(counter: tl.tensor) -> None:
    """What this program wrote is visible to every program that has seen the counter's new value."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter: tl.tensor, goal: tl.tensor) -> None:
    """Until ``goal`` arrivals were counted."""
    while tl.atomic_add(counter, 0, sem="acquire") < goal:
        pass
    tl.debug_barrier()


@triton.jit
def load_four(at: tl.tensor, apart: tl.tensor, mask: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """What the four gates have at ``at``, ``at + apart``, ...; zero where the mask is false."""
    return (
        tl.load(at, mask=mask, other=0.0).to(DTYPE),
        tl.load(at + apart, mask=mask, other=0.0).to(DTYPE),
        tl.load(at + 2 * apart, mask=mask, other=0.0).to(DTYPE),
        tl.load(at + 3 * apart, mask=mask, other=0.0).to(DTYPE),
    )


@triton.jit
def store_four(
    at: tl.tensor, apart: tl.tensor, mask: tl.tensor, i: tl.tensor, f: tl.tensor, q: tl.tensor, o: tl.tensor
) -> None:
    """The opposite of :func:`load_four`."""
    dtype: tl.constexpr = at.dtype.element_ty
    tl.store(at, i.to(dtype), mask=mask)
    tl.store(at + apart, f.to(dtype), mask=mask)
    tl.store(at + 2 * apart, q.to(dtype), mask=mask)
    tl.store(at + 3 * apart, o.to(dtype), mask=mask)


@triton.jit
def add_products(pre: tl.tensor, rows: tl.tensor, w: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """``pre + rows @ w`` for the four gates: ``[BB, U]`` each, ``[BB, K]``, ``[K, U]`` each."""
    return (
        tl.dot(rows, w[0], pre[0], input_precision=PRECISION),
        tl.dot(rows, w[1], pre[1], input_precision=PRECISION),
        tl.dot(rows, w[2], pre[2], input_precision=PRECISION),
        tl.dot(rows, w[3], pre[3], input_precision=PRECISION),
    )


@triton.jit
def add_bias(pre: tl.tensor, bias: tl.tensor) -> tl.tensor:
    """``pre + bias`` for the four gates: ``[BB, U]`` each, ``[U]`` each."""
    return (
        pre[0] + bias[0][None, :],
        pre[1] + bias[1][None, :],
        pre[2] + bias[2][None, :],
        pre[3] + bias[3][None, :],
    )


@triton.jit
def sum_of_products(d: tl.tensor, w: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """The sum over the four gates of ``d @ w``: ``[BB, U]`` and ``[U, K]`` each, to ``[BB, K]`` in float32."""
    found = tl.dot(d[0], w[0], input_precision=PRECISION)
    found = tl.dot(d[1], w[1], found, input_precision=PRECISION)
    found = tl.dot(d[2], w[2], found, input_precision=PRECISION)
    return tl.dot(d[3], w[3], found, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARIES + STRIDES, do_not_specialize_on_alignment=_GIVEN)
def forward_kernel(
    gates: tl.tensor,  # [T, B, 4, H]: the inputs' part of the pre-activations; with KEEP the activations take its place
    w_hh: tl.tensor,  # [4, H, H]
    starts: tl.tensor,  # [T, B] uint8
    entry_h: tl.tensor,  # [T, B, H]
    entry_c: tl.tensor,  # [T, B, H]
    h: tl.tensor,  # [T, B, H], out
    c: tl.tensor,  # [T, B, H], out
    into: tl.tensor,  # [2, tiles * BB, KP]: the h that enters a step, by turns; zeros, and at slot t0 % 2 entry_h[0]
    carry: tl.tensor,  # [tiles * BB, G * U] float32: the cell state between launches, with STEPS
    counters: tl.tensor,  # [tiles, 32] int32, zeros
    T: tl.tensor,
    B: tl.tensor,
    t0: tl.tensor,
    t1: tl.tensor,
    tiles: tl.tensor,
    starts_t: tl.tensor,
    starts_b: tl.tensor,
    entry_h_t: tl.tensor,
    entry_h_b: tl.tensor,
    entry_c_t: tl.tensor,
    entry_c_b: tl.tensor,
    H: tl.constexpr,
    U: tl.constexpr,
    G: tl.constexpr,
    BB: tl.constexpr,
    KP: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    STEPS: tl.constexpr,
    WAITS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Steps ``t0`` to ``t1`` of one layer."""
    # A program runs until its last step is done: there is no `break`, and no way round a wait.
    g = tl.program_id(1)
    unit = g * U + tl.arange(0, U)
    real = (unit < H)[None, :]
    k = tl.arange(0, BK)
    w_at = w_hh + unit[None, :] * H + k[:, None]
    w: tl.tuple = ()
    if RESIDENT:
        for j in tl.static_range(KP // BK):
            w += (load_four(w_at + j * BK, H * H, real & (j * BK + k < H)[:, None], OPERAND),)
    slot = tiles.to(tl.int64) * BB * KP
    step_of_gates = B.to(tl.int64) * (4 * H)
    step_of_h = B.to(tl.int64) * H
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        row = tile * BB + tl.arange(0, BB)
        inside = row < B
        live = inside[:, None] & real
        row_64 = row.to(tl.int64)
        at = row_64[:, None] * H + unit[None, :] + t0 * step_of_h
        gate_at = gates + row_64[:, None] * (4 * H) + unit[None, :] + t0 * step_of_gates
        into_row = into + row_64[:, None] * KP
        carried = carry + row_64[:, None] * (G * U) + unit[None, :]
        start_at = starts + row_64 * starts_b
        entry_h_at = entry_h + row_64[:, None] * entry_h_b + unit[None, :]
        entry_c_at = entry_c + row_64[:, None] * entry_c_b + unit[None, :]
        begins = tl.load(start_at + t0 * starts_t.to(tl.int64), mask=inside, other=1) != 0
        c_new = tl.zeros([BB, U], dtype=tl.float32)
        if STEPS:
            c_new = tl.load(carried)
        for t in tl.range(t0, t1, num_stages=1):
            # What needs no neighbour is asked for first.
            pre = load_four(gate_at, H, live, tl.float32)
            stored_c = tl.load(entry_c_at + t * entry_c_t.to(tl.int64), mask=live & begins[:, None], other=0.0).to(
                tl.float32
            )
            follows = row < B * min(T - t - 1, 1)  # nowhere at the last step
            next_begins = tl.load(start_at + (t + 1) * starts_t.to(tl.int64), mask=follows, other=1) != 0
            enters = (follows & next_begins)[:, None] & real
            next_h = tl.load(entry_h_at + (t + 1) * entry_h_t.to(tl.int64), mask=enters, other=0.0)
            if WAITS:
                if t > t0:
                    wait(counters + tile * 32, G * (t - t0))
            h_at = into_row + (t & 1) * slot + k[None, :]
            if RESIDENT:
                for j in tl.static_range(KP // BK):
                    h_in = tl.load(h_at + j * BK, cache_modifier=".cg").to(OPERAND)
                    pre = add_products(pre, h_in, w[j], PRECISION)
            else:
                for k0 in tl.range(0, KP, BK, num_stages=1):
                    piece = real & (k0 + k < H)[:, None]
                    v = load_four(w_at + k0, H * H, piece, OPERAND)
                    h_in = tl.load(h_at + k0, cache_modifier=".cg").to(OPERAND)
                    pre = add_products(pre, h_in, v, PRECISION)
            i, f, q, o = sigmoid(pre[0]), sigmoid(pre[1]), tanh(pre[2]), sigmoid(pre[3])
            c_new = f * tl.where(begins[:, None], stored_c, c_new) + i * q
            h_new = (o * tanh(c_new)).to(h.dtype.element_ty)
            # For the next step: a start takes the stored state in, whoever computes it reads its own units alone.
            entering = tl.where(next_begins[:, None], next_h, h_new)
            tl.store(into_row + ((t + 1) & 1) * slot + unit[None, :], entering, mask=live)
            if WAITS:
                arrive(counters + tile * 32)
            else:
                tl.debug_barrier()
            # What no neighbour waits for.
            tl.store(h + at, h_new, mask=live)
            tl.store(c + at, c_new.to(c.dtype.element_ty), mask=live)
            if KEEP:
                store_four(gate_at, H, live, i, f, q, o)
            begins = next_begins
            at += step_of_h
            gate_at += step_of_gates
        if STEPS:
            tl.store(carried, c_new)


@triton.jit(do_not_specialize=VARIES + STRIDES, do_not_specialize_on_alignment=_GIVEN)
def backward_kernel(
    gates: tl.tensor,  # [T, B, 4, H], activations
    w_hh: tl.tensor,  # [4, H, H]
    starts: tl.tensor,  # [T, B] uint8
    entry_c: tl.tensor,  # [T, B, H]
    c: tl.tensor,  # [T, B, H]
    grad_h: tl.tensor,  # [T, B, H], of the output
    grad_c: tl.tensor,  # [T, B, H], of the returned cell state
    grad_gates: tl.tensor,  # [T, B, 4, H], out: of the pre-activations
    grad_entry_h: tl.tensor,  # [T, B, H], out, zeros: written where a sequence starts
    grad_entry_c: tl.tensor,  # [T, B, H], out, likewise
    parts: tl.tensor,  # [2, G, P * BB, KP] float32, of P tiles at a time: each slice's part of the gradient of h
    carry: tl.tensor,  # [tiles * BB, G * U] float32: the cell state's gradient between launches, with STEPS
    counters: tl.tensor,  # [P, 32] int32, zeros
    T: tl.tensor,
    B: tl.tensor,
    t0: tl.tensor,
    t1: tl.tensor,
    tiles: tl.tensor,
    starts_t: tl.tensor,
    starts_b: tl.tensor,
    entry_c_t: tl.tensor,
    entry_c_b: tl.tensor,
    H: tl.constexpr,
    U: tl.constexpr,
    G: tl.constexpr,
    BB: tl.constexpr,
    KP: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,
    HAS_GRAD_H: tl.constexpr,
    HAS_GRAD_C: tl.constexpr,
    NEED_ENTRY_H: tl.constexpr,
    NEED_ENTRY_C: tl.constexpr,
    STEPS: tl.constexpr,
    WAITS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Steps ``t1 - 1`` down to ``t0``.

    ``t0 = 0`` where the states at the starts want no gradient, else ``t0 = -1``: the step before the first adds up
    what reached the state at ``t = 0`` and does nothing else.
    """
    p, g = tl.program_id(0), tl.program_id(1)
    unit = g * U + tl.arange(0, U)
    real = (unit < H)[None, :]
    k = tl.arange(0, BK)
    w_at = w_hh + unit[:, None] * H + k[None, :]
    w: tl.tuple = ()
    if RESIDENT:
        for j in tl.static_range(KP // BK):
            w += (load_four(w_at + j * BK, H * H, (unit < H)[:, None] & (j * BK + k < H)[None, :], OPERAND),)
    slice_of_parts = tl.num_programs(0).to(tl.int64) * BB * KP
    slot = G * slice_of_parts
    step_of_gates = B.to(tl.int64) * (4 * H)
    step_of_h = B.to(tl.int64) * H
    dtype = gates.dtype.element_ty
    arrivals = 0
    for tile in tl.range(p, tiles, tl.num_programs(0), num_stages=1):
        row = tile * BB + tl.arange(0, BB)
        row_64 = row.to(tl.int64)
        at = row_64[:, None] * H + unit[None, :] + (t1 - 1) * step_of_h
        gate_at = row_64[:, None] * (4 * H) + unit[None, :] + (t1 - 1) * step_of_gates
        part_row = parts + (p * BB + tl.arange(0, BB)).to(tl.int64)[:, None] * KP
        carried = carry + row_64[:, None] * (G * U) + unit[None, :]
        start_at = starts + row_64 * starts_b
        entry_c_at = entry_c + row_64[:, None] * entry_c_b + unit[None, :]
        dc_next = tl.zeros([BB, U], dtype=tl.float32)
        if STEPS:
            dc_next = tl.load(carried)
        for n in tl.range(0, t1 - t0, num_stages=1):
            t = t1 - 1 - n
            here = row < B * min(t + 1, 1)  # nowhere before the first step
            now = here[:, None] & real
            follows = row < B * min(T - t - 1, 1)  # nowhere at the last step
            read = follows[:, None] & real
            # What needs no neighbour is asked for first.
            cut = tl.load(start_at + (t + 1) * starts_t.to(tl.int64), mask=follows, other=1) != 0
            begins = tl.load(start_at + t * starts_t.to(tl.int64), mask=here, other=1) != 0
            i, f, q, o = load_four(gates + gate_at, H, now, tl.float32)
            squashed = tanh(tl.load(c + at, mask=now, other=0.0).to(tl.float32))
            before = tl.load(c + at - step_of_h, mask=now & ~begins[:, None], other=0.0).to(tl.float32)
            stored = tl.load(entry_c_at + t * entry_c_t.to(tl.int64), mask=now & begins[:, None], other=0.0).to(
                tl.float32
            )
            before = tl.where(begins[:, None], stored, before)
            dh = tl.zeros([BB, U], dtype=tl.float32)
            if HAS_GRAD_H:
                dh += tl.load(grad_h + at, mask=now, other=0.0).to(tl.float32)
            dc = tl.zeros([BB, U], dtype=tl.float32)
            if HAS_GRAD_C:
                dc += tl.load(grad_c + at, mask=now, other=0.0).to(tl.float32)
            if WAITS:
                if arrivals > 0:  # at a tile's first step as well: its neighbours may still read the tile before
                    wait(counters + p * 32, G * arrivals)
            dh_next = tl.zeros([BB, U], dtype=tl.float32)
            for s in tl.static_range(G):
                part_at = part_row + ((t + 1) & 1) * slot + s * slice_of_parts + unit[None, :]
                dh_next += tl.load(part_at, mask=read, other=0.0, cache_modifier=".cg")
            if NEED_ENTRY_H:
                entry_at = grad_entry_h + at + step_of_h
                tl.store(entry_at, dh_next.to(dtype), mask=read & cut[:, None])
            if NEED_ENTRY_C:
                entry_at = grad_entry_c + at + step_of_h
                tl.store(entry_at, dc_next.to(dtype), mask=read & cut[:, None])
            # Nothing flows back across a start; NaN would, if it were multiplied by zero.
            dh += tl.where(cut[:, None], 0.0, dh_next)
            dc += tl.where(cut[:, None], 0.0, dc_next) + dh * o * (1.0 - squashed * squashed)
            d_i = (dc * q * i * (1.0 - i)).to(dtype)
            d_f = (dc * before * f * (1.0 - f)).to(dtype)
            d_g = (dc * i * (1.0 - q * q)).to(dtype)
            d_o = (dh * squashed * o * (1.0 - o)).to(dtype)
            dc_next = dc * f
            d = (d_i.to(OPERAND), d_f.to(OPERAND), d_g.to(OPERAND), d_o.to(OPERAND))
            if RESIDENT:
                for j in tl.static_range(KP // BK):
                    part = sum_of_products(d, w[j], PRECISION)
                    tl.store(part_row + (t & 1) * slot + g * slice_of_parts + j * BK + k[None, :], part)
            else:
                for k0 in tl.range(0, KP, BK, num_stages=1):
                    piece = (unit < H)[:, None] & (k0 + k < H)[None, :]
                    v = load_four(w_at + k0, H * H, piece, OPERAND)
                    part = sum_of_products(d, v, PRECISION)
                    tl.store(part_row + (t & 1) * slot + g * slice_of_parts + k0 + k[None, :], part)
            arrivals += 1
            if WAITS:
                arrive(counters + p * 32)
            else:
                tl.debug_barrier()
            store_four(grad_gates + gate_at, H, now, d_i, d_f, d_g, d_o)
            at -= step_of_h
            gate_at -= step_of_gates
        if STEPS:
            tl.store(carried, dc_next)


@triton.jit(
    do_not_specialize=["B", "x_b", "h_b", "c_b", "starts_b"], do_not_specialize_on_alignment=["x", "h", "c", "starts"]
)
def step_kernel(
    x: tl.tensor,  # [B, I]
    w_ih: tl.tensor,  # [4, H, I]
    w_hh: tl.tensor,  # [4, H, H]
    b_ih: tl.tensor,  # [4, H]
    b_hh: tl.tensor,  # [4, H]
    h: tl.tensor,  # [B, H]
    c: tl.tensor,  # [B, H]
    starts: tl.tensor,  # [B] uint8: where the state counts as zero
    h_out: tl.tensor,  # [B, H], out
    c_out: tl.tensor,  # [B, H], out
    B: tl.tensor,
    x_b: tl.tensor,
    h_b: tl.tensor,
    c_b: tl.tensor,
    starts_b: tl.tensor,
    I: tl.constexpr,
    H: tl.constexpr,
    U: tl.constexpr,
    BB: tl.constexpr,
    BK: tl.constexpr,
    HAS_B_IH: tl.constexpr,
    HAS_B_HH: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """One step of a tile of rows and a slice of units, its products included: nothing is exchanged."""
    row = tl.program_id(0) * BB + tl.arange(0, BB)
    unit = tl.program_id(1) * U + tl.arange(0, U)
    k = tl.arange(0, BK)
    inside, real = row < B, (unit < H)[None, :]
    live = inside[:, None] & real
    row_64 = row.to(tl.int64)
    stays = inside
    if HAS_STARTS:
        stays = inside & (tl.load(starts + row_64 * starts_b, mask=inside, other=1) == 0)
    zeros = tl.zeros([BB, U], dtype=tl.float32)
    pre = (zeros, zeros, zeros, zeros)
    for k0 in tl.range(0, I, BK):
        of_i = (k0 + k < I)[None, :]
        rows = tl.load(x + row_64[:, None] * x_b + k0 + k[None, :], mask=inside[:, None] & of_i, other=0.0).to(OPERAND)
        w = load_four(w_ih + unit[None, :] * I + k0 + k[:, None], H * I, real & (k0 + k < I)[:, None], OPERAND)
        pre = add_products(pre, rows, w, PRECISION)
    for k0 in tl.range(0, H, BK):
        of_h = (k0 + k < H)[None, :]
        rows = tl.load(h + row_64[:, None] * h_b + k0 + k[None, :], mask=stays[:, None] & of_h, other=0.0).to(OPERAND)
        w = load_four(w_hh + unit[None, :] * H + k0 + k[:, None], H * H, real & (k0 + k < H)[:, None], OPERAND)
        pre = add_products(pre, rows, w, PRECISION)
    if HAS_B_IH:
        pre = add_bias(pre, load_four(b_ih + unit, H, unit < H, tl.float32))
    if HAS_B_HH:
        pre = add_bias(pre, load_four(b_hh + unit, H, unit < H, tl.float32))
    before = tl.load(c + row_64[:, None] * c_b + unit[None, :], mask=live & stays[:, None], other=0.0).to(tl.float32)
    after = sigmoid(pre[1]) * before + sigmoid(pre[0]) * tanh(pre[2])
    at = row_64[:, None] * H + unit[None, :]
    tl.store(c_out + at, after.to(c_out.dtype.element_ty), mask=live)
    tl.store(h_out + at, (sigmoid(pre[3]) * tanh(after)).to(h_out.dtype.element_ty), mask=live)
