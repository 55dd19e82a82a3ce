"""The kernels of `fused`.

Legend: as in `gpu_parts`; T tokens, G pairs of a run where B are those of a tile, N outputs of a program, X
experts of a token, D hidden, I an expert's width.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.moe.gpu_products import locate, prefetch, product, row_of, store_product
from kernels.moe_lora.gpu_parts import (
    expand,
    factor_ptr,
    load_b,
    load_rank,
    locate_run,
    shrink,
    slice_of,
)


@quick
@triton.jit(do_not_specialize=["runs", "tiles", "shrinks", "pairs", "first_slice", "outputs"])
def gate_up_kernel(
    y_ptr,
    rank_ptr,
    x_ptr,
    weight_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    experts_ptr,
    slots_ptr,
    order_ptr,
    runs_ptr,
    tiles_ptr,
    runs,
    tiles,
    shrinks,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    outputs,
    IN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_RUN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ALONE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[p] = weight[e] @ x[t], and beside it the shrunk pairs of gate and up."""
    program = tl.program_id(0)
    wait_for_inputs(PDL)
    if program < shrinks:
        share = program // runs
        expert, slot, pair_G, inside_G, _ = locate_run(
            program % runs, experts_ptr, slots_ptr, order_ptr, runs_ptr, runs, TOP_K, ALONE, BLOCK_RUN
        )
        shrink(
            rank_ptr, x_ptr + (pair_G // TOP_K).to(tl.int64) * IN, pair_G, inside_G,
            pool_ptr, rows_ptr, scaling_ptr, slot, expert, first_slice, table_slices,
            share // SPLITS * BLOCK_R, share % SPLITS, pairs, buffer_rank,
            IN, 2, SPLITS, UNIT, BLOCK_RUN, BLOCK_R, BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        tile, block = (program - shrinks) % tiles, (program - shrinks) // tiles
        expert, pair_B, inside_B, count = locate(
            tile, experts_ptr, order_ptr, tiles_ptr, tiles, ALONE, BLOCK_B
        )
        if count > 0:
            row_N, _ = row_of(block, outputs, ROWS, False)
            x_B = x_ptr + (pair_B // TOP_K).to(tl.int64) * IN
            expert_ptr = weight_ptr + expert.to(tl.int64) * outputs * IN
            acc_NB = product(expert_ptr, row_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            store_product(y_ptr, acc_NB, block, pair_B, inside_B, outputs, ROWS, BLOCK_B, False)


@quick
@triton.jit(do_not_specialize=["runs", "pairs", "first_slice"])
def middle_kernel(
    wide_ptr,
    down_rank_ptr,
    y_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    experts_ptr,
    slots_ptr,
    order_ptr,
    runs_ptr,
    runs,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    WIDE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    HALVES: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ALONE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """wide = silu(gate + its LoRA) * (up + its LoRA), and wide @ lora_a of down: a share of both a program.
    Routing and runs must be those of a kernel before the one before this.
    """
    split = tl.program_id(1)
    expert, slot, pair_B, inside_B, count = locate_run(
        tl.program_id(0), experts_ptr, slots_ptr, order_ptr, runs_ptr, runs, TOP_K, ALONE, BLOCK_B
    )
    gate, gate_rank = slice_of(rows_ptr, slot, expert, first_slice, table_slices)
    up, up_rank = slice_of(rows_ptr, slot, expert, first_slice + 1, table_slices)
    down, down_rank = slice_of(rows_ptr, slot, expert, first_slice + 2, table_slices)
    gate_ptr = factor_ptr(pool_ptr, rows_ptr, gate, 1, UNIT)
    up_ptr = factor_ptr(pool_ptr, rows_ptr, up, 1, UNIT)
    r_R = tl.arange(0, BLOCK_R)
    down_R = factor_ptr(pool_ptr, rows_ptr, down, 0, UNIT) + r_R * WIDE
    begin = split * (BLOCKS * BLOCK_I)
    i_I = begin + tl.arange(0, BLOCK_I)
    # Weights are on their way before the product is there.
    gate_IR = load_b(gate_ptr, i_I, WIDE, gate_rank, 0, BLOCK_R)
    up_IR = load_b(up_ptr, i_I, WIDE, up_rank, 0, BLOCK_R)
    down_RI = tl.load(
        down_R[:, None] + i_I[None, :], mask=(r_R < down_rank)[:, None] & (i_I < WIDE)[None, :], other=0.0
    )
    wait_for_inputs(PDL)
    if count == 0:
        return
    gate_BR = load_rank(rank_ptr, pair_B, inside_B, gate_rank, 0, 0, pairs, buffer_rank, 2, SPLITS, BLOCK_R)
    up_BR = load_rank(rank_ptr, pair_B, inside_B, up_rank, 0, 1, pairs, buffer_rank, 2, SPLITS, BLOCK_R)
    y_B = y_ptr + pair_B.to(tl.int64) * (2 * WIDE)
    wide_B = wide_ptr + pair_B.to(tl.int64) * WIDE
    acc_BR = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
    for step in range(BLOCKS):
        i_I = begin + step * BLOCK_I + tl.arange(0, BLOCK_I)
        if BLOCKS > 1:
            gate_IR = load_b(gate_ptr, i_I, WIDE, gate_rank, 0, BLOCK_R)
            up_IR = load_b(up_ptr, i_I, WIDE, up_rank, 0, BLOCK_R)
            inside_RI = (r_R < down_rank)[:, None] & (i_I < WIDE)[None, :]
            down_RI = tl.load(down_R[:, None] + i_I[None, :], mask=inside_RI, other=0.0)
        inside_BI = inside_B[:, None] & (i_I < WIDE)[None, :]
        gate_BI = tl.load(y_B[:, None] + i_I[None, :], mask=inside_BI, other=0.0).to(tl.float32)
        up_BI = tl.load(y_B[:, None] + (WIDE + i_I)[None, :], mask=inside_BI, other=0.0).to(tl.float32)
        gate_BI = expand(gate_BR, gate_IR, gate_BI, HALVES, PRECISION)
        up_BI = expand(up_BR, up_IR, up_BI, HALVES, PRECISION)
        wide_BI = (gate_BI / (1.0 + tl.exp(-gate_BI)) * up_BI).to(wide_ptr.dtype.element_ty)
        tl.store(wide_B[:, None] + i_I[None, :], wide_BI, mask=inside_BI)
        acc_BR = tl.dot(wide_BI, tl.trans(down_RI), acc_BR, input_precision=PRECISION)
    tl.store(
        down_rank_ptr + ((split * pairs + pair_B) * buffer_rank)[:, None] + r_R[None, :],
        acc_BR * tl.load(scaling_ptr + down),
        mask=inside_B[:, None] & (r_R < down_rank)[None, :],
    )


_NO_SLOT = tl.constexpr(2147483647)


@triton.jit
def next_slot(slot_B, slot):
    """The smallest slot of a tile above this one."""
    return tl.min(tl.where(slot_B > slot, slot_B, _NO_SLOT), 0)


@triton.jit
def b_of(
    slot, expert, n_N, outputs, pool_ptr, rows_ptr, first_slice, table_slices,
    UNIT: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A slot's rows of lora_b, and its rank; zeros of none."""
    slot = tl.where(slot == _NO_SLOT, -1, slot)
    entry, rank = slice_of(rows_ptr, slot, expert, first_slice, table_slices)
    return load_b(factor_ptr(pool_ptr, rows_ptr, entry, 1, UNIT), n_N, outputs, rank, 0, BLOCK_R), rank


@triton.jit
def expand_slot(
    acc_NB, b_NR, rank, slot, slot_B, pair_B, rank_ptr, pairs, buffer_rank,
    SPLITS: tl.constexpr, BLOCK_R: tl.constexpr, HALVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + lora_b @ rank of one slot's pairs of a tile."""
    rank_BR = load_rank(rank_ptr, pair_B, slot_B == slot, rank, 0, 0, pairs, buffer_rank, 1, SPLITS, BLOCK_R)
    if HALVES:
        high_BR = rank_BR.to(b_NR.dtype)
        low_BR = (rank_BR - high_BR.to(tl.float32)).to(b_NR.dtype)
        acc_NB = tl.dot(b_NR, tl.trans(high_BR), acc_NB)
        acc_NB = tl.dot(b_NR, tl.trans(low_BR), acc_NB)
    else:
        acc_NB = tl.dot(b_NR, tl.trans(rank_BR), acc_NB, input_precision=PRECISION)
    return acc_NB


@quick
@triton.jit(do_not_specialize=["tiles", "pairs", "first_slice", "outputs"])
def down_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    experts_ptr,
    slots_ptr,
    order_ptr,
    tiles_ptr,
    tiles,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    outputs,
    IN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    ALONE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[p] = weight[e] @ wide[p] + lora_b @ rank[p], one slot after another of those that a tile has; lora_b
    of the first is on its way before wide is there. Routing and order must be those of a kernel before the
    one before this.
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    row_N, n_N = row_of(block, outputs, ROWS, False)
    expert, pair_B, inside_B, count = locate(tile, experts_ptr, order_ptr, tiles_ptr, tiles, ALONE, BLOCK_B)
    expert_ptr = weight_ptr + expert.to(tl.int64) * outputs * IN
    if PDL and count > 0:
        prefetch(expert_ptr, row_N, IN)
    slot_B = tl.where(inside_B, tl.load(slots_ptr + pair_B // TOP_K), -1)
    last = tl.max(slot_B, 0)
    slot = next_slot(slot_B, -1)
    b_NR, rank = b_of(
        slot, expert, n_N, outputs, pool_ptr, rows_ptr, first_slice, table_slices, UNIT, BLOCK_R
    )
    wait_for_inputs(PDL)
    if count == 0:
        return
    acc_NB = product(
        expert_ptr, row_N, x_ptr + pair_B.to(tl.int64) * IN, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION
    )
    acc_NB = expand_slot(
        acc_NB, b_NR, rank, slot, slot_B, pair_B, rank_ptr, pairs, buffer_rank,
        SPLITS, BLOCK_R, HALVES, PRECISION,
    )  # fmt: skip
    while slot < last:
        slot = next_slot(slot_B, slot)
        b_NR, rank = b_of(
            slot, expert, n_N, outputs, pool_ptr, rows_ptr, first_slice, table_slices, UNIT, BLOCK_R
        )
        acc_NB = expand_slot(
            acc_NB, b_NR, rank, slot, slot_B, pair_B, rank_ptr, pairs, buffer_rank,
            SPLITS, BLOCK_R, HALVES, PRECISION,
        )  # fmt: skip
    store_product(y_ptr, acc_NB, block, pair_B, inside_B, outputs, ROWS, BLOCK_B, False)


@quick
@triton.jit(do_not_specialize=["pairs", "first_slice"])
def add_up_kernel(
    out_ptr,
    y_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    experts_ptr,
    slots_ptr,
    weights_ptr,
    pairs,
    first_slice,
    table_slices,
    buffer_rank,
    HIDDEN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_X: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    TOP_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[t] = sum of weight * (y[p] + lora_b @ rank[p]). Routing and slots must be those of a kernel before
    the one before this.
    """
    block, token = tl.program_id(0), tl.program_id(1)
    x_X, r_R = tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_R)
    n_N = block * ROWS + tl.arange(0, ROWS)
    pair_X = token * TOP_K + tl.minimum(x_X, TOP_K - 1)
    expert_X = tl.load(experts_ptr + pair_X)
    inside_X = (x_X < TOP_K) & (expert_X >= 0)
    slot = tl.load(slots_ptr + token)
    entry_X = tl.maximum(slot, 0).to(tl.int64) * table_slices + first_slice + 3 * tl.maximum(expert_X, 0)
    rank_X = tl.load(rows_ptr + entry_X * 6 + 2).to(tl.int32)
    rank_X = tl.multiple_of(tl.where(inside_X & (slot >= 0), rank_X, 0), 8)
    b_X = tl.multiple_of(tl.load(rows_ptr + entry_X * 6 + 1) * UNIT, UNIT)
    b_XNR = b_X[:, None, None] + n_N[None, :, None] * rank_X[:, None, None] + r_R[None, None, :]
    inside_XNR = (n_N < HIDDEN)[None, :, None] & (r_R[None, None, :] < rank_X[:, None, None])
    b_XNR = tl.load(pool_ptr + b_XNR, mask=inside_XNR, other=0.0)
    wait_for_inputs(PDL)
    part_XR = rank_ptr + (pair_X * buffer_rank)[:, None] + r_R[None, :]
    inside_XR = r_R[None, :] < rank_X[:, None]
    rank_XR = tl.load(part_XR, mask=inside_XR, other=0.0)
    for split in tl.static_range(1, SPLITS):
        rank_XR += tl.load(part_XR + split * pairs * buffer_rank, mask=inside_XR, other=0.0)
    y_XN = y_ptr + pair_X.to(tl.int64)[:, None] * HIDDEN + n_N[None, :]
    y_XN = tl.load(y_XN, mask=inside_X[:, None] & (n_N < HIDDEN)[None, :], other=0.0).to(tl.float32)
    y_XN += tl.sum(b_XNR.to(tl.float32) * rank_XR[:, None, :], 2)
    share_X = tl.where(inside_X, tl.load(weights_ptr + pair_X), 0.0)
    out_N = tl.sum(y_XN * share_X[:, None], 0)
    tl.store(out_ptr + token * HIDDEN + n_N, out_N.to(out_ptr.dtype.element_ty), mask=n_N < HIDDEN)
