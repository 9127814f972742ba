# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads a kernel's annotations; pointers and tiles have no Python types.
"""The Triton kernels of the pairwise potential.

All read features padded with zeros to whole tiles, so no load needs a mask, and biases padded with
minus infinity, so padding weighs nothing. Exponents are to base two: the weight of
a pair is ``exp2(scale * <r_i, c_j> + row_bias_i + column_bias_j)``. Offsets into features are
formed in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """Add the matrix product of a and b to the accumulator."""
    if PRECISION == "tf32x3":
        return tl.dot(a, b, accumulator, input_precision="tf32x3")
    else:
        return tl.dot(a, b, accumulator, input_precision="tf32")


@triton.jit
def rounded_weights(w, PRECISION: tl.constexpr):
    """Round weights to the precision that the tensor cores read.

    bfloat16 has the range of float32. float16 does not, so with float16 features the weights are
    tf32, which represents float16 numbers exactly.
    """
    if PRECISION == "bf16":
        return w.to(tl.bfloat16)
    elif PRECISION == "tf32x3":
        return w
    else:
        bits = (w.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def weighted_columns(w, c, accumulator, PRECISION: tl.constexpr):
    """Add the product of rounded weights (M, K) and columns (K, D) to the accumulator (M, D)."""
    if w.dtype == c.dtype:
        return product(w, c, accumulator, PRECISION)
    else:
        return product(w.to(tl.float32), c.to(tl.float32), accumulator, PRECISION)


@triton.jit
def without_own(exponents, i, j, own_offset, OWN: tl.constexpr):
    """Exclude the pair of a row with itself."""
    if OWN:
        return tl.where(i[:, None] + own_offset == j[None, :], float("-inf"), exponents)
    else:
        return exponents


@triton.jit
def tile_exponents(
    rows,
    columns,
    row_bias,
    column_bias,
    i,
    j,
    own_offset,
    scale,
    d,
    BLOCK_D: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Exponents of one tile, reading features in chunks of BLOCK_D of d."""
    k = tl.arange(0, BLOCK_D)
    r_pointers = rows + i[:, None].to(tl.int64) * d + k[None, :]
    c_pointers = columns + j[:, None].to(tl.int64) * d + k[None, :]
    products = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for start in range(0, d, BLOCK_D):
        r = tl.load(r_pointers + start)
        c = tl.load(c_pointers + start)
        products = product(r, tl.trans(c), products, PRECISION)
    biases = tl.load(row_bias + i)[:, None] + tl.load(column_bias + j)[None, :]
    exponents = products * scale + biases
    return without_own(exponents, i, j, own_offset, OWN)


@triton.jit(do_not_specialize=["own_offset", "column_tiles", "tiles_per_split", "steps"])
def reduce_kernel(
    rows,
    columns,
    row_bias,
    column_bias,
    needed,
    partials,
    own_offset,
    scale,
    d,
    column_tiles,
    tiles_per_split,
    steps,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OWN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    LARGEST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One number per program: the largest exponent, if needed, or the sum of the weights.

    A program walks over ``tiles_per_split`` of the ``steps`` tiles of its strip of rows. In the
    symmetric case strip I visits strips I, I + 1, ..., I + T // 2 modulo their number T. Each pair
    of strips is visited once and counts twice, and all walks are equally long. The tile on the
    diagonal counts once, and so does the one half way around an even T, which both strips visit.
    """
    strip = tl.program_id(0)
    split = tl.program_id(1)
    i = strip * BLOCK + tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float64)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, steps)
    if LARGEST:
        last = tl.where(tl.load(needed) != 0, last, first)
    for step in range(first, last):
        tile = step
        if SYMMETRIC:
            tile = (strip + step) % column_tiles
        j = tile * BLOCK + tl.arange(0, BLOCK)
        exponents = tile_exponents(
            rows,
            columns,
            row_bias,
            column_bias,
            i,
            j,
            own_offset,
            scale,
            d,
            BLOCK_D,
            OWN,
            PRECISION,
        )
        if LARGEST:
            largest = tl.maximum(largest, tl.max(exponents, 1))
        else:
            sums = tl.sum(tl.exp2(exponents), 1).to(tl.float64)
            if SYMMETRIC:
                once = (step == 0) | (2 * step == column_tiles)
                sums *= tl.where(once, 1.0, 2.0)
            total += sums
    position = split * tl.num_programs(0) + strip
    if LARGEST:
        tl.store(partials + position, tl.max(largest, 0))
    else:
        tl.store(partials + position, tl.sum(total, 0))


@triton.jit(do_not_specialize=["own_offset", "column_tiles", "tiles_per_split", "start", "walk"])
def fused_kernel(
    rows,
    columns,
    row_bias,
    column_bias,
    pull,
    totals,
    own_offset,
    scale,
    column_tiles,
    tiles_per_split,
    start,
    walk,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums and pull of a strip of rows over part of a split of the columns, with all of d.

    The part is ``walk`` tiles, starting at the split's tile ``start``. The pull subtracts the sum
    of the rounded weights, so rounding changes a pair's weight but never makes a row pull itself.
    """
    strip = tl.program_id(0)
    split = tl.program_id(1)
    i = strip * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, D)
    offsets = i[:, None].to(tl.int64) * D + k[None, :]
    r = tl.load(rows + offsets)
    r_bias = tl.load(row_bias + i)
    weighted = tl.zeros([BLOCK_M, D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float64)
    rounded_total = tl.zeros([BLOCK_M], tl.float64)
    first = split * tiles_per_split + start
    last = tl.minimum(tl.minimum((split + 1) * tiles_per_split, column_tiles), first + walk)
    for tile in range(first, last):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        c = tl.load(columns + j[:, None].to(tl.int64) * D + k[None, :])
        if c.dtype == tl.float32:
            # Tensor cores need another layout here than below, and only a load for a single layout
            # is prefetched.
            c_transposed = tl.load(columns + j[None, :].to(tl.int64) * D + k[:, None])
        else:
            c_transposed = tl.trans(c)
        zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        biases = r_bias[:, None] + tl.load(column_bias + j)[None, :]
        exponents = product(r, c_transposed, zeros, PRECISION) * scale + biases
        w = tl.exp2(without_own(exponents, i, j, own_offset, OWN))
        total += tl.sum(w, 1).to(tl.float64)
        w = rounded_weights(w, PRECISION)
        rounded_total += tl.sum(w.to(tl.float32), 1).to(tl.float64)
        weighted = weighted_columns(w, c, weighted, PRECISION)
    weighted -= rounded_total.to(tl.float32)[:, None] * r.to(tl.float32)
    n = tl.num_programs(0).to(tl.int64) * BLOCK_M
    tl.store(pull + split * n * D + offsets, weighted)
    tl.store(totals + split * n + i, total)


@triton.jit(do_not_specialize=["own_offset", "i_start", "j_start", "times"])
def weights_kernel(
    rows,
    columns,
    row_bias,
    column_bias,
    weights,
    totals,
    own_offset,
    scale,
    d,
    i_start,
    j_start,
    times,
    stride,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile of the rounded weights of a panel.

    Adds ``times`` their sum before rounding to the program's own entry of the totals.
    """
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exponents = tile_exponents(
        rows,
        columns,
        row_bias,
        column_bias,
        i_start + m,
        j_start + n,
        own_offset,
        scale,
        d,
        BLOCK_D,
        OWN,
        PRECISION,
    )
    w = tl.exp2(exponents)
    total = tl.sum(tl.sum(w, 1).to(tl.float64), 0) * times
    own_total = totals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(own_total, tl.load(own_total) + total)
    tl.store(weights + m[:, None] * stride + n[None, :], rounded_weights(w, PRECISION))


@triton.jit
def apply_one_way(
    weights,
    columns,
    pull,
    sums,
    d,
    i_start,
    j_start,
    count,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the contribution of a panel of weights to a tile of the pull and to the row sums.

    Row m of the panel is row ``i_start + m`` of the pull, its column k is column ``j_start + k``.
    ``TRANSPOSED`` reads the transposed panel, for the rows on the other side of the same pairs.
    """
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    c_pointers = columns + (j_start + k)[:, None].to(tl.int64) * d + dims[None, :]
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float64)
    for start in range(0, count, BLOCK_K):
        if TRANSPOSED:
            w = tl.trans(tl.load(weights + (start + k)[:, None] * stride + m[None, :]))
        else:
            w = tl.load(weights + m[:, None] * stride + (start + k)[None, :])
        c = tl.load(c_pointers)
        c_pointers += BLOCK_K * d
        total += tl.sum(w.to(tl.float32), 1).to(tl.float64)
        weighted = weighted_columns(w, c, weighted, PRECISION)
    p_pointers = pull + (i_start + m)[:, None].to(tl.int64) * d + dims[None, :]
    tl.store(p_pointers, tl.load(p_pointers) + weighted)
    if tl.program_id(0) == 0:
        s_pointers = sums + i_start + m
        tl.store(s_pointers, tl.load(s_pointers) + total)


@triton.jit(do_not_specialize=["i_start", "j_start", "height", "width"])
def apply_kernel(
    weights,
    columns,
    pull,
    sums,
    d,
    i_start,
    j_start,
    height,
    width,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Apply a panel of weights (height, width) to its rows and, if the grid has it, to its columns.

    Programs with 1 in the grid's third dimension apply it to the columns. Both run in one launch,
    because narrow features alone would leave half of the device idle. A panel applied both ways is
    at least as high as it is wide.
    """
    if tl.program_id(2) == 0:
        apply_one_way(
            weights,
            columns,
            pull,
            sums,
            d,
            i_start,
            j_start,
            width,
            stride,
            BLOCK_M,
            BLOCK_K,
            BLOCK_D,
            False,
            PRECISION,
        )
    elif tl.program_id(1) * BLOCK_M < width:
        apply_one_way(
            weights,
            columns,
            pull,
            sums,
            d,
            j_start,
            i_start,
            height,
            stride,
            BLOCK_M,
            BLOCK_K,
            BLOCK_D,
            True,
            PRECISION,
        )
