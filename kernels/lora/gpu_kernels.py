"""Shrink and expand, for `gpu`.

Legend: as there; G groups of K, each a warp's.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.lora.programs import slice_of


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def shrink_kernel(
    rank_ptr,
    x_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    places_ptr,
    tiles,
    tokens,
    first_slice,
    table_slices,
    in_features,
    stride_x_t,
    buffer_rank,
    UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SPLITS: tl.constexpr,
    IS_ONE_PASS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """rank[c, t, i] = scaling * x[t, share c] @ lora_a[:, share c].T; untouched slices are not
    written.
    """
    tile, index, split = tl.program_id(0), tl.program_id(1) % SLICES, tl.program_id(2)
    block = tl.program_id(1) // SLICES
    first_rank = block * BLOCK_R
    slot = tl.load(places_ptr + tile).to(tl.int64)
    count = tl.load(places_ptr + 2 * tiles + tile)
    entry = slot * table_slices + first_slice + index
    rank = tl.load(rows_ptr + entry * 6 + 2).to(tl.int32)
    rank = tl.where(count > 0, rank, 0)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    a_ptr = pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry * 6) * UNIT, UNIT)

    t_T, r_R, k_K = tl.arange(0, BLOCK_T), first_rank + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    x_T = x_ptr + (token + t_T) * stride_x_t
    a_R = a_ptr + r_R.to(tl.int64) * in_features
    share = tl.cdiv(tl.cdiv(in_features, K_SPLITS), BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, in_features)
    acc_TR = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    if IS_ONE_PASS:
        # Weights are on their way before x is there. Each warp takes a share of K.
        g_G = tl.arange(0, 4) * (BLOCK_K // 4)
        k_GK = begin + g_G[:, None] + tl.arange(0, BLOCK_K // 4)[None, :]
        inside_GK = k_GK < end
        a_GRK = tl.load(
            a_R[None, :, None] + k_GK[:, None, :],
            mask=(r_R < rank)[None, :, None] & inside_GK[:, None, :],
            other=0.0,
        )
        wait_for_inputs(PDL)
        if first_rank >= rank:
            return
        x_GTK = tl.load(
            x_T[None, :, None] + k_GK[:, None, :],
            mask=(t_T < count)[None, :, None] & inside_GK[:, None, :],
            other=0.0,
        )
        acc_TR = tl.sum(tl.dot(x_GTK, tl.trans(a_GRK, (0, 2, 1))), 0)
        end = begin
    else:
        wait_for_inputs(PDL)
        if first_rank >= rank:
            return
    for first in range(begin, end, BLOCK_K):
        inside_K = first + k_K < end
        x_TK = tl.load(
            x_T[:, None] + (first + k_K)[None, :], mask=(t_T < count)[:, None] & inside_K[None, :], other=0.0
        )
        a_RK = tl.load(
            a_R[:, None] + (first + k_K)[None, :], mask=(r_R < rank)[:, None] & inside_K[None, :], other=0.0
        )
        acc_TR = tl.dot(x_TK, tl.trans(a_RK), acc_TR, input_precision=PRECISION)
    acc_TR *= tl.load(scaling_ptr + entry)
    stride = tokens.to(tl.int64) * SLICES * buffer_rank
    place_T = ((token + t_T) * SLICES + index) * buffer_rank
    place_TR = rank_ptr + place_T[:, None] + r_R[None, :]
    inside_TR = (t_T < count)[:, None] & (r_R < rank)[None, :]
    tl.store(place_TR + split * stride, acc_TR, mask=inside_TR)


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def expand_kernel(
    y_ptr,
    source_ptr,
    bias_ptr,
    pool_ptr,
    vectors_ptr,
    rows_ptr,
    scaling_ptr,
    places_ptr,
    tiles,
    tokens,
    first_slice,
    table_slices,
    stop_0,
    stop_1,
    stop_2,
    stride_y_t,
    buffer_rank,
    UNIT: tl.constexpr,
    VECTOR_UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    K_SPLITS: tl.constexpr,
    GATHERED: tl.constexpr,
    HALVES: tl.constexpr,
    IS_ONE_PASS: tl.constexpr,
    IS_ADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[t, columns of slice i] = gain[i] * (y + rank[t, i] @ lora_b.T) + shift[i], the splits of rank summed
    first; or, unless IS_ADDED, bias + rank[t, i] @ lora_b.T, written to the rows of all tokens, nobody's too.
    """
    tile = tl.program_id(1)
    block, index, start, stop = slice_of(tl.program_id(0), stop_0, stop_1, stop_2, BLOCK_N, SLICES)
    n_N = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = n_N < stop - start
    if not IS_ADDED:  # noqa: SIM102 -- known when this is compiled, which the other is not
        if tile >= tiles:
            wait_for_inputs(PDL)
            bias_N = tl.zeros([BLOCK_N], tl.float32)
            if HAS_BIAS:
                bias_N = tl.load(bias_ptr + start + n_N, mask=inside_N, other=0.0).to(tl.float32)
            fill(y_ptr + start + n_N, bias_N, inside_N, places_ptr, tile - tiles, tiles, tokens, stride_y_t)
            return
    slot = tl.load(places_ptr + tile).to(tl.int64)
    count = tl.load(places_ptr + 2 * tiles + tile)
    entry = slot * table_slices + first_slice + index
    rank = tl.load(rows_ptr + entry * 6 + 2).to(tl.int32)
    is_idle = count == 0
    if IS_ADDED:
        # Plus one; 0 means none.
        gain_unit, shift_unit = tl.load(rows_ptr + entry * 6 + 3), tl.load(rows_ptr + entry * 6 + 4)
        is_idle |= (rank == 0) & (gain_unit == 0) & (shift_unit == 0)
    rank = tl.multiple_of(tl.where(is_idle, 0, rank), 8)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    b_ptr = pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry * 6 + 1) * UNIT, UNIT)

    t_T, r_R = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    inside_T = t_T < count
    b_N = b_ptr + n_N.to(tl.int64) * rank
    if IS_ONE_PASS:
        # Weights are on their way before the shrunk rows are there.
        b_NR = tl.load(b_N[:, None] + r_R[None, :], mask=inside_N[:, None] & (r_R < rank)[None, :], other=0.0)
    wait_for_inputs(PDL)
    if is_idle:
        return
    if GATHERED:
        id_T = tl.load(source_ptr + token + t_T, mask=inside_T, other=0)
        row_T = pool_ptr + tl.load(rows_ptr + entry * 6) * UNIT + id_T * rank
        scaling = tl.load(scaling_ptr + entry)
    else:
        row_T = source_ptr + ((token + t_T) * SLICES + index) * buffer_rank
        scaling = 1.0
    stride = tokens.to(tl.int64) * SLICES * buffer_rank
    if IS_ONE_PASS:
        rank_TR = (
            sum_splits(row_T, r_R, inside_T[:, None] & (r_R < rank)[None, :], stride, K_SPLITS) * scaling
        )
        acc_TN = add_product(rank_TR, tl.trans(b_NR), None, HALVES, PRECISION)
    else:
        acc_TN = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        for first in range(0, rank, BLOCK_R):
            inside_R = first + r_R < rank
            rank_TR = sum_splits(row_T, first + r_R, inside_T[:, None] & inside_R[None, :], stride, K_SPLITS)
            b_NR = tl.load(
                b_N[:, None] + (first + r_R)[None, :],
                mask=inside_N[:, None] & inside_R[None, :],
                other=0.0,
            )
            acc_TN = add_product(rank_TR * scaling, tl.trans(b_NR), acc_TN, HALVES, PRECISION)
    place_TN = y_ptr + ((token + t_T) * stride_y_t)[:, None] + (start + n_N)[None, :]
    inside_TN = inside_T[:, None] & inside_N[None, :]
    if IS_ADDED:
        y_TN = tl.load(place_TN, mask=inside_TN, other=0.0)
        gain_ptr = vectors_ptr + tl.multiple_of((gain_unit - 1) * VECTOR_UNIT, VECTOR_UNIT)
        shift_ptr = vectors_ptr + tl.multiple_of((shift_unit - 1) * VECTOR_UNIT, VECTOR_UNIT)
        gain_N = tl.load(gain_ptr + n_N, mask=inside_N & (gain_unit != 0), other=1.0)
        shift_N = tl.load(shift_ptr + n_N, mask=inside_N & (shift_unit != 0), other=0.0)
        acc_TN = gain_N[None, :] * (y_TN.to(tl.float32) + acc_TN) + shift_N[None, :]
    elif HAS_BIAS:
        acc_TN += tl.load(bias_ptr + start + n_N, mask=inside_N, other=0.0).to(tl.float32)[None, :]
    tl.store(place_TN, acc_TN.to(y_ptr.dtype.element_ty), mask=inside_TN)


@triton.jit
def sum_splits(row_T, r_R, inside_TR, stride, K_SPLITS: tl.constexpr):
    sum_TR = tl.zeros(inside_TR.shape, tl.float32)
    # Not unrolled: each load's layout would become that of the product's operand by itself, through shared
    # memory, and the next would only begin when the one before it is there.
    for split in range(K_SPLITS):
        place_TR = row_T[:, None] + split * stride + r_R[None, :]
        sum_TR += tl.load(place_TR, mask=inside_TR, other=0.0, cache_modifier=".cg").to(tl.float32)
    return sum_TR


@triton.jit
def add_product(rank_TR, b_RN, acc_TN, HALVES: tl.constexpr, PRECISION: tl.constexpr):
    if HALVES:
        # Two products in half precision keep what rounding the first factor would lose.
        high_TR = rank_TR.to(b_RN.dtype)
        low_TR = (rank_TR - high_TR.to(tl.float32)).to(b_RN.dtype)
        acc_TN = tl.dot(high_TR, b_RN, acc_TN)
        acc_TN = tl.dot(low_TR, b_RN, acc_TN)
    else:
        acc_TN = tl.dot(rank_TR, b_RN, acc_TN, input_precision=PRECISION)
    return acc_TN


FILLED = 128
"""Tokens that one program of an expand fills, where they are nobody's."""


@triton.jit
def adapted_tokens(places_ptr, tiles):
    """The first of them and the one after the last. Those of the base come before, padding comes after."""
    first, last = tl.load(places_ptr + tiles), 0
    for begin in range(0, tiles, 64):
        u_U = begin + tl.arange(0, 64)
        count_U = tl.load(places_ptr + 2 * tiles + u_U, mask=u_U < tiles, other=0)
        first_U = tl.load(places_ptr + tiles + u_U, mask=u_U < tiles, other=0)
        last = tl.maximum(last, tl.max(tl.where(count_U > 0, first_U + count_U, 0), 0))
    return first, last


@triton.jit
def fill(y_N, value_N, inside_N, places_ptr, part, tiles, tokens, stride_y_t):
    first, last = adapted_tokens(places_ptr, tiles)
    for begin in range(part * 128, tl.minimum((part + 1) * 128, tokens), 8):
        t_T = begin + tl.arange(0, 8)
        is_nobodys_T = ((t_T < first) | (t_T >= last)) & (t_T < tokens)
        place_TN = y_N[None, :] + t_T.to(tl.int64)[:, None] * stride_y_t
        value_TN = tl.broadcast_to(value_N.to(y_N.dtype.element_ty)[None, :], place_TN.shape)
        tl.store(place_TN, value_TN, mask=inside_N[None, :] & is_nobodys_T[:, None])
