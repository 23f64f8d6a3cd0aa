"""The Triton kernels: one layer over time with its resets, its gradient, and one step.

Who computes what. Rows of the batch are cut into tiles of ``BB``, the hidden units into ``G`` slices of ``U``.
Program ``(p, g)`` runs slice ``g`` of the tiles ``p``, ``p + P``, ...; the slice's weights stay on the chip for all
steps and tiles where they fit (``RESIDENT``), else they are read again in each step. The four gates' columns are one
product (:func:`gate_of`), ``BK`` of the ``KP`` columns at a time: with all at once, the rows that enter would fill the
registers. A step needs the results of all ``G`` slices in the step before: they pass through global memory, in two
alternating slots, and a counter per tile says how many programs have written theirs. Loads that need no neighbour are
issued before the wait, those of the gates' inputs a whole step before. ``docs/architecture.md`` says why no program
waits for ever and ``plugins/tests/triton_protocol.py`` explores all orders.

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
OF_THE_LAYER = ["H", "I"]
"""Sizes of a layer: specialised on whether 16 divides them, so that layers of one cut share a compiled kernel."""
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
def arrivals_at(counter: tl.tensor) -> tl.tensor:
    """How many arrivals a counter has; values written before them can be read after this."""
    # An atomic addition of zero would do the same, in the time that the neighbours' own additions then wait.
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [counter.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait(counter: tl.tensor, goal: tl.tensor) -> None:
    """Until ``goal`` arrivals were counted."""
    while arrivals_at(counter) < goal:
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
def gate_of(column: tl.tensor, U: tl.constexpr) -> tl.tensor:
    """The gate of a column of the four gates' columns in one product.

    Columns come in pairs of two gates of a unit, first all units' i and f, then their g and o: so a thread of a matrix
    instruction, which holds two neighbouring columns of every eight, has all four gates of its units.
    """
    return 2 * (column // (2 * U)) + column % 2


@triton.jit
def unit_of(column: tl.tensor, g: tl.tensor, U: tl.constexpr) -> tl.tensor:
    """The hidden unit of a column."""
    return g * U + (column % (2 * U)) // 2


@triton.jit
def split_four(columns: tl.tensor, BB: tl.constexpr, U: tl.constexpr) -> tl.tensor:
    """``[BB, 4 * U]``, in the order of :func:`gate_of`, to ``[BB, U]`` for each gate."""
    i_g, f_o = tl.split(tl.permute(tl.reshape(columns, (BB, 2, U, 2)), (0, 2, 1, 3)))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    return i, f, g, o


@triton.jit
def join_four(i: tl.tensor, f: tl.tensor, g: tl.tensor, o: tl.tensor, BB: tl.constexpr, U: tl.constexpr) -> tl.tensor:
    """The opposite of :func:`split_four`."""
    return tl.reshape(tl.permute(tl.join(tl.join(i, g), tl.join(f, o)), (0, 2, 1, 3)), (BB, 4 * U))


@triton.jit
def add_bias(pre: tl.tensor, bias: tl.tensor) -> tl.tensor:
    """``pre + bias`` for the four gates: ``[BB, U]`` each, ``[U]`` each."""
    return (
        pre[0] + bias[0][None, :],
        pre[1] + bias[1][None, :],
        pre[2] + bias[2][None, :],
        pre[3] + bias[3][None, :],
    )


@triton.jit(do_not_specialize=VARIES + STRIDES, do_not_specialize_on_alignment=_GIVEN)
def forward_kernel(
    gates: tl.tensor,  # [T, B, 4, H]: the inputs' part of the pre-activations; with KEEP the activations take its place
    w_hh: tl.tensor,  # [4, H, H]
    starts: tl.tensor,  # [T, B] uint8
    entry_h: tl.tensor,  # [T, B, H]
    entry_c: tl.tensor,  # [T, B, H]
    h: tl.tensor,  # [T, B, H], out
    c: tl.tensor,  # [T, B, H], out
    into: tl.tensor,  # [2, tiles * BB, KP]: h that enters a step, alternating slots; zeros, in slot t0 % 2 entry_h[0]
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
    H: tl.tensor,
    U: tl.constexpr,
    G: tl.constexpr,
    BB: tl.constexpr,
    KP: tl.constexpr,
    BK: tl.constexpr,
    AHEAD: tl.constexpr,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_ENTRY: tl.constexpr,
    STEPS: tl.constexpr,
    WAITS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Steps ``t0`` to ``t1`` of one layer."""
    # A program runs until its last step is done: there is no `break`, and no way round a wait.
    # With ONE_ENTRY all sequences start from one state, as they do where no state is stored: it is read once.
    g = tl.program_id(1)
    unit = g * U + tl.arange(0, U)
    real = (unit < H)[None, :]
    k = tl.arange(0, BK)
    column = tl.arange(0, 4 * U)
    real_column = (unit_of(column, g, U) < H)[None, :]
    w_at = w_hh + (gate_of(column, U) * H + unit_of(column, g, U))[None, :] * H + k[:, None]
    w: tl.tuple = ()
    if RESIDENT:
        for j in tl.static_range(KP // BK):
            w += (tl.load(w_at + j * BK, mask=real_column & (j * BK + k < H)[:, None], other=0.0).to(OPERAND),)
    if ONE_ENTRY:
        one_h = tl.load(entry_h + unit, mask=unit < H, other=0.0)[None, :]
        one_c = tl.load(entry_c + unit, mask=unit < H, other=0.0)[None, :]
    slot = tiles.to(tl.int64) * BB * KP
    step_of_h = B.to(tl.int64) * H
    r = tl.arange(0, BB)
    # Offsets within a tile fit into 32 bits; the tile's own place does not.
    at = r[:, None] * H + unit[None, :]
    gate_at = r[:, None] * (4 * H) + unit[None, :]
    into_at = r[:, None] * KP + k[None, :]
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        row = tile * BB + r
        inside = row < B
        live = inside[:, None] & real
        row_64 = row.to(tl.int64)
        first = tile * tl.full((), BB, tl.int64)
        into_tile = into + first * KP
        carried = carry + first * (G * U) + r[:, None] * (G * U) + unit[None, :]
        start_at = starts + row_64 * starts_b
        entry_h_at = entry_h + row_64[:, None] * entry_h_b + unit[None, :]
        entry_c_at = entry_c + row_64[:, None] * entry_c_b + unit[None, :]
        h_tile, c_tile = h + first * H + t0 * step_of_h, c + first * H + t0 * step_of_h
        gates_tile = gates + first * (4 * H) + t0 * 4 * step_of_h
        begins = tl.load(start_at + t0 * starts_t.to(tl.int64), mask=inside, other=1) != 0
        i, f, q, o = load_four(gates_tile + gate_at, H, live, gates.dtype.element_ty)
        c_new = tl.zeros([BB, U], dtype=tl.float32)
        if STEPS:
            c_new = tl.load(carried)
        for t in tl.range(t0, t1, num_stages=1):
            # Loads that need no neighbour come first.
            follows = row < B * min(T - t - 1, 1)  # nowhere at the last step
            next_begins = tl.load(start_at + (t + 1) * starts_t.to(tl.int64), mask=follows, other=1) != 0
            enters = (follows & next_begins)[:, None] & real
            if ONE_ENTRY:
                next_h = one_h
            else:
                next_h = tl.load(entry_h_at + (t + 1) * entry_h_t.to(tl.int64), mask=enters, other=0.0)
            products = join_four(i, f, q, o, BB, U).to(tl.float32)
            if not STEPS:  # of the next step
                i, f, q, o = load_four(
                    gates_tile + 4 * step_of_h + gate_at, H, follows[:, None] & real, gates.dtype.element_ty
                )
            if ONE_ENTRY:
                stored_c = one_c
            else:
                stored_c = tl.load(entry_c_at + t * entry_c_t.to(tl.int64), mask=live & begins[:, None], other=0.0)
            if WAITS:
                if t > t0:
                    wait(counters + tile * 32, G * (t - t0))
            h_at = into_tile + (t & 1) * slot
            if RESIDENT:
                for ahead in tl.static_range(0, KP // BK, AHEAD):
                    h_in: tl.tuple = ()
                    for j in tl.static_range(AHEAD):
                        h_in += (tl.load(h_at + (ahead + j) * BK + into_at, cache_modifier=".cg"),)
                    for j in tl.static_range(AHEAD):
                        products = tl.dot(h_in[j].to(OPERAND), w[ahead + j], products, input_precision=PRECISION)
            else:
                for k0 in tl.range(0, KP, BK, num_stages=1):
                    v = tl.load(w_at + k0, mask=real_column & (k0 + k < H)[:, None], other=0.0).to(OPERAND)
                    h_in = tl.load(h_at + k0 + into_at, cache_modifier=".cg").to(OPERAND)
                    products = tl.dot(h_in, v, products, input_precision=PRECISION)
            now = split_four(products, BB, U)
            now = sigmoid(now[0]), sigmoid(now[1]), tanh(now[2]), sigmoid(now[3])
            c_new = now[1] * tl.where(begins[:, None], stored_c.to(tl.float32), c_new) + now[0] * now[2]
            h_new = (now[3] * tanh(c_new)).to(h.dtype.element_ty)
            # For the next step: where a sequence starts, the stored state; each program reads that of its own units.
            entering = tl.where(next_begins[:, None], next_h, h_new)
            tl.store(into_tile + ((t + 1) & 1) * slot + r[:, None] * KP + unit[None, :], entering, mask=live)
            if WAITS:
                arrive(counters + tile * 32)
            else:
                tl.debug_barrier()
            # What no neighbour waits for.
            tl.store(h_tile + at, h_new, mask=live)
            tl.store(c_tile + at, c_new.to(c.dtype.element_ty), mask=live)
            if KEEP:
                store_four(gates_tile + gate_at, H, live, now[0], now[1], now[2], now[3])
            begins = next_begins
            h_tile += step_of_h
            c_tile += step_of_h
            gates_tile += 4 * step_of_h
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
    H: tl.tensor,
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
    ONE_ENTRY: tl.constexpr,
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
    column = tl.arange(0, 4 * U)
    real_column = (unit_of(column, g, U) < H)[:, None]
    w_at = w_hh + (gate_of(column, U) * H + unit_of(column, g, U))[:, None] * H + k[None, :]
    w: tl.tuple = ()
    if RESIDENT:
        for j in tl.static_range(KP // BK):
            w += (tl.load(w_at + j * BK, mask=real_column & (j * BK + k < H)[None, :], other=0.0).to(OPERAND),)
    if ONE_ENTRY:
        one_c = tl.load(entry_c + unit, mask=unit < H, other=0.0)[None, :]
    slice_of_parts = tl.num_programs(0).to(tl.int64) * BB * KP
    slot = G * slice_of_parts
    step_of_h = B.to(tl.int64) * H
    dtype = gates.dtype.element_ty
    r = tl.arange(0, BB)
    # Offsets within a tile fit into 32 bits; the tile's own place does not.
    at = r[:, None] * H + unit[None, :]
    gate_at = r[:, None] * (4 * H) + unit[None, :]
    own_units = r[:, None] * KP + unit[None, :]
    part_tile = parts + (p * BB).to(tl.int64) * KP
    arrivals = 0
    for tile in tl.range(p, tiles, tl.num_programs(0), num_stages=1):
        row = tile * BB + r
        row_64 = row.to(tl.int64)
        first = tile * tl.full((), BB, tl.int64)
        carried = carry + first * (G * U) + r[:, None] * (G * U) + unit[None, :]
        start_at = starts + row_64 * starts_b
        entry_c_at = entry_c + row_64[:, None] * entry_c_b + unit[None, :]
        of_h = first * H + (t1 - 1) * step_of_h  # where the tile's step t begins in a tensor [T, B, H]
        dc_next = tl.zeros([BB, U], dtype=tl.float32)
        if STEPS:
            dc_next = tl.load(carried)
        # Loads that need no neighbour are issued a step before their values are needed.
        here = row < B * min(t1, 1)
        now = here[:, None] & real
        cut = tl.load(start_at + t1 * starts_t.to(tl.int64), mask=row < B * min(T - t1, 1), other=1) != 0
        begins = tl.load(start_at + (t1 - 1) * starts_t.to(tl.int64), mask=here, other=1) != 0
        i, f, q, o = load_four(gates + 4 * of_h + gate_at, H, now, dtype)
        c_now = tl.load(c + of_h + at, mask=now, other=0.0)
        dh_given = tl.zeros([BB, U], dtype=dtype)
        dc_given = tl.zeros([BB, U], dtype=dtype)
        if HAS_GRAD_H:
            dh_given = tl.load(grad_h + of_h + at, mask=now, other=0.0)
        if HAS_GRAD_C:
            dc_given = tl.load(grad_c + of_h + at, mask=now, other=0.0)
        for n in tl.range(0, t1 - t0, num_stages=1):
            t = t1 - 1 - n
            now = (row < B * min(t + 1, 1))[:, None] & real  # nowhere before the first step
            earlier = row < B * max(min(t, 1), 0)
            before = earlier[:, None] & real
            read = (row < B * min(T - t - 1, 1))[:, None] & real  # nowhere at the last step
            # New names: the loop may not change the types of i, f, q and o, which it hands on.
            i_t, f_t, q_t, o_t = i.to(tl.float32), f.to(tl.float32), q.to(tl.float32), o.to(tl.float32)
            squashed = tanh(c_now.to(tl.float32))
            dh, dc = dh_given.to(tl.float32), dc_given.to(tl.float32)
            c_before = tl.load(c + (of_h - step_of_h) + at, mask=before, other=0.0)
            if ONE_ENTRY:
                stored = one_c
            else:
                stored = tl.load(entry_c_at + t * entry_c_t.to(tl.int64), mask=now & begins[:, None], other=0.0)
            if WAITS:
                if arrivals > 0:  # at a tile's first step as well: its neighbours may still read the tile before
                    wait(counters + p * 32, G * arrivals)
            dh_next = tl.zeros([BB, U], dtype=tl.float32)
            part_at = part_tile + ((t + 1) & 1) * slot
            for _ in tl.static_range(G):
                dh_next += tl.load(part_at + own_units, mask=read, other=0.0, cache_modifier=".cg")
                part_at += slice_of_parts
            if NEED_ENTRY_H:
                entry_at = grad_entry_h + (of_h + step_of_h) + at
                tl.store(entry_at, dh_next.to(dtype), mask=read & cut[:, None])
            if NEED_ENTRY_C:
                entry_at = grad_entry_c + (of_h + step_of_h) + at
                tl.store(entry_at, dc_next.to(dtype), mask=read & cut[:, None])
            # Nothing flows back across a start; NaN would, if it were multiplied by zero.
            dh += tl.where(cut[:, None], 0.0, dh_next)
            dc += tl.where(cut[:, None], 0.0, dc_next) + dh * o_t * (1.0 - squashed * squashed)
            d_i = (dc * q_t * i_t * (1.0 - i_t)).to(dtype)
            d_f = (dc * tl.where(begins[:, None], stored, c_before).to(tl.float32) * f_t * (1.0 - f_t)).to(dtype)
            d_g = (dc * i_t * (1.0 - q_t * q_t)).to(dtype)
            d_o = (dh * squashed * o_t * (1.0 - o_t)).to(dtype)
            dc_next = dc * f_t
            d = join_four(d_i.to(OPERAND), d_f.to(OPERAND), d_g.to(OPERAND), d_o.to(OPERAND), BB, U)
            part_at = part_tile + (t & 1) * slot + g * slice_of_parts + r[:, None] * KP + k[None, :]
            if RESIDENT:
                for j in tl.static_range(KP // BK):
                    tl.store(part_at + j * BK, tl.dot(d, w[j], input_precision=PRECISION))
            else:
                for k0 in tl.range(0, KP, BK, num_stages=1):
                    v = tl.load(w_at + k0, mask=real_column & (k0 + k < H)[None, :], other=0.0).to(OPERAND)
                    tl.store(part_at + k0, tl.dot(d, v, input_precision=PRECISION))
            arrivals += 1
            if WAITS:
                arrive(counters + p * 32)
            else:
                tl.debug_barrier()
            store_four(grad_gates + 4 * of_h + gate_at, H, now, d_i, d_f, d_g, d_o)
            of_h -= step_of_h
            cut = begins
            c_now = c_before
            if not STEPS:
                begins = tl.load(start_at + (t - 1) * starts_t.to(tl.int64), mask=earlier, other=1) != 0
                i, f, q, o = load_four(gates + 4 * of_h + gate_at, H, before, dtype)
                if HAS_GRAD_H:
                    dh_given = tl.load(grad_h + of_h + at, mask=before, other=0.0)
                if HAS_GRAD_C:
                    dc_given = tl.load(grad_c + of_h + at, mask=before, other=0.0)
        if STEPS:
            tl.store(carried, dc_next)


@triton.jit(
    do_not_specialize=["B", "x_b", "h_b", "c_b", "starts_b", "layers", "layer"],
    do_not_specialize_on_alignment=["x", "h", "c", "starts"],
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
    h_out: tl.tensor,  # [B, layers, H], out: this layer's place
    c_out: tl.tensor,  # [B, layers, H], out
    output: tl.tensor,  # [B, H], out, of the last layer: h again
    B: tl.tensor,
    x_b: tl.tensor,
    h_b: tl.tensor,
    c_b: tl.tensor,
    starts_b: tl.tensor,
    layers: tl.tensor,
    layer: tl.tensor,
    I: tl.tensor,
    H: tl.tensor,
    U: tl.constexpr,
    BB: tl.constexpr,
    BK: tl.constexpr,
    HAS_B_IH: tl.constexpr,
    HAS_B_HH: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
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
    g = tl.program_id(1)
    column = tl.arange(0, 4 * U)
    real_column = (unit_of(column, g, U) < H)[None, :]
    w_row = (gate_of(column, U) * H + unit_of(column, g, U))[None, :]
    products = tl.zeros([BB, 4 * U], dtype=tl.float32)
    for k0 in tl.range(0, I, BK):
        of_i = (k0 + k < I)[None, :]
        rows = tl.load(x + row_64[:, None] * x_b + k0 + k[None, :], mask=inside[:, None] & of_i, other=0.0).to(OPERAND)
        w = tl.load(w_ih + w_row * I + k0 + k[:, None], mask=real_column & (k0 + k < I)[:, None], other=0.0).to(OPERAND)
        products = tl.dot(rows, w, products, input_precision=PRECISION)
    for k0 in tl.range(0, H, BK):
        of_h = (k0 + k < H)[None, :]
        rows = tl.load(h + row_64[:, None] * h_b + k0 + k[None, :], mask=stays[:, None] & of_h, other=0.0).to(OPERAND)
        w = tl.load(w_hh + w_row * H + k0 + k[:, None], mask=real_column & (k0 + k < H)[:, None], other=0.0).to(OPERAND)
        products = tl.dot(rows, w, products, input_precision=PRECISION)
    pre = split_four(products, BB, U)
    if HAS_B_IH:
        pre = add_bias(pre, load_four(b_ih + unit, H, unit < H, tl.float32))
    if HAS_B_HH:
        pre = add_bias(pre, load_four(b_hh + unit, H, unit < H, tl.float32))
    before = tl.load(c + row_64[:, None] * c_b + unit[None, :], mask=live & stays[:, None], other=0.0).to(tl.float32)
    after = sigmoid(pre[1]) * before + sigmoid(pre[0]) * tanh(pre[2])
    at = (row_64 * layers + layer)[:, None] * H + unit[None, :]
    h_new = (sigmoid(pre[3]) * tanh(after)).to(h_out.dtype.element_ty)
    tl.store(c_out + at, after.to(c_out.dtype.element_ty), mask=live)
    tl.store(h_out + at, h_new, mask=live)
    if HAS_OUTPUT:
        tl.store(output + row_64[:, None] * H + unit[None, :], h_new, mask=live)
