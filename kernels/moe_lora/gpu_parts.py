"""What kernels for LoRA on experts are made of: addresses, shrink and expand of one run.

A run is pairs of one adapter slot and one expert, as `kernels.moe.gpu_routing.Arrangement` cuts them. Slices
of a pair's adapter are found in the slot table; rank 0 costs a program nothing but that look.

Legend: P pairs, B pairs of a run, K in features, N out features, R rank, L slices (gate and up, or down), C
splits of K.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

import triton
import triton.language as tl


@triton.jit
def locate_run(
    run, experts_ptr, slots_ptr, order_ptr, runs_ptr, runs,
    TOP_K: tl.constexpr, ALONE: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """A run's expert, slot, pairs `[B]`, which of them are any, and their number; alone, of one pair."""
    b_B = tl.arange(0, BLOCK_B)
    if ALONE:
        expert = tl.load(experts_ptr + run)
        slot = tl.load(slots_ptr + run // TOP_K)
        count = (expert >= 0).to(tl.int32)
        pair_B = run + 0 * b_B
    else:
        expert, slot = tl.load(runs_ptr + run), tl.load(runs_ptr + 3 * runs + run)
        count = tl.load(runs_ptr + 2 * runs + run)
        place_B = tl.load(runs_ptr + runs + run) + tl.minimum(b_B, count - 1)
        pair_B = tl.load(order_ptr + place_B, mask=count > 0, other=0)
    # What an idle run says is left over from another batch.
    expert, slot = tl.where(count > 0, expert, 0), tl.where(count > 0, slot, -1)
    return expert, slot, pair_B, b_B < count, count


@triton.jit
def slice_of(rows_ptr, slot, expert, first_slice, table_slices):
    """Where the table has slice `first_slice` of an expert, and its padded rank; 0 of slot -1."""
    entry = tl.maximum(slot, 0).to(tl.int64) * table_slices + first_slice + 3 * expert
    rank = tl.load(rows_ptr + entry * 6 + 2).to(tl.int32)
    return entry, tl.multiple_of(tl.where(slot >= 0, rank, 0), 8)


@triton.jit
def factor_ptr(pool_ptr, rows_ptr, entry, FACTOR: tl.constexpr, UNIT: tl.constexpr):
    """lora_a (0) or lora_b (1) of a slice."""
    return pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry * 6 + FACTOR) * UNIT, UNIT)


@triton.jit
def load_b(b_ptr, n_N, columns, rank, first_rank, BLOCK_R: tl.constexpr):
    """Rows of lora_b `[N, R]`."""
    r_R = first_rank + tl.arange(0, BLOCK_R)
    inside_NR = (n_N < columns)[:, None] & (r_R < rank)[None, :]
    return tl.load(b_ptr + n_N[:, None] * rank + r_R[None, :], mask=inside_NR, other=0.0)


@triton.jit
def load_rank(
    rank_ptr, pair_B, inside_B, rank, first_rank, index, pairs, buffer_rank,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Shrunk pairs `[B, R]` float32, their parts summed in order."""
    r_R = first_rank + tl.arange(0, BLOCK_R)
    place_B = (pair_B.to(tl.int64) * SLICES + index) * buffer_rank
    place_BR = rank_ptr + place_B[:, None] + r_R[None, :]
    inside_BR = inside_B[:, None] & (r_R < rank)[None, :]
    rank_BR = tl.load(place_BR, mask=inside_BR, other=0.0)
    for split in tl.static_range(1, SPLITS):
        part_BR = place_BR + split * pairs.to(tl.int64) * SLICES * buffer_rank
        rank_BR += tl.load(part_BR, mask=inside_BR, other=0.0)
    return rank_BR


@triton.jit
def expand(rank_BR, b_NR, acc_BN, HALVES: tl.constexpr, PRECISION: tl.constexpr):
    """acc + rank @ lora_b.T"""
    if HALVES:
        # Two products in half precision keep what rounding the first factor would lose.
        high_BR = rank_BR.to(b_NR.dtype)
        low_BR = (rank_BR - high_BR.to(tl.float32)).to(b_NR.dtype)
        acc_BN = tl.dot(high_BR, tl.trans(b_NR), acc_BN)
        acc_BN = tl.dot(low_BR, tl.trans(b_NR), acc_BN)
    else:
        acc_BN = tl.dot(rank_BR, tl.trans(b_NR), acc_BN, input_precision=PRECISION)
    return acc_BN


@triton.jit
def prefetch_a(
    pool_ptr, rows_ptr, slot, expert, first_slice, table_slices, first_rank, split,
    IN: tl.constexpr, SLICES: tl.constexpr, SPLITS: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Have what `shrink` will read of lora_a on its way to L2: one address for each line of 128 bytes."""
    share: tl.constexpr = ((IN + SPLITS - 1) // SPLITS + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    r_R, l_L = first_rank + tl.arange(0, BLOCK_R), tl.arange(0, 8)
    for index in tl.static_range(SLICES):
        entry, rank = slice_of(rows_ptr, slot, expert, first_slice + index, table_slices)
        if first_rank < rank:
            a_ptr = factor_ptr(pool_ptr, rows_ptr, entry, 0, UNIT)
            a_R = a_ptr + tl.minimum(r_R, rank - 1) * IN + split * share
            for first in tl.static_range(0, share, 512):
                tl.inline_asm_elementwise(
                    "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                    "=r,l",
                    [(a_R[:, None] + (first + l_L * 64)[None, :]).to(tl.int64)],
                    dtype=tl.int32,
                    is_pure=False,
                    pack=1,
                )


@triton.jit
def shrink(
    rank_ptr, x_B, pair_B, inside_B, pool_ptr, rows_ptr, scaling_ptr, slot, expert, first_slice, table_slices,
    first_rank, split, pairs, buffer_rank,
    IN: tl.constexpr, SLICES: tl.constexpr, SPLITS: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """rank[c, p, l, r] = scaling[l] * x[p, share c] @ lora_a[l, r, share c] of one slice or of two, which
    have the same x. `x_B` points at x's rows.
    """
    entry, rank = slice_of(rows_ptr, slot, expert, first_slice, table_slices)
    a_ptr = factor_ptr(pool_ptr, rows_ptr, entry, 0, UNIT)
    other, other_rank, other_ptr = entry, rank, a_ptr
    if SLICES == 2:
        other, other_rank = slice_of(rows_ptr, slot, expert, first_slice + 1, table_slices)
        other_ptr = factor_ptr(pool_ptr, rows_ptr, other, 0, UNIT)
    if first_rank < tl.maximum(rank, other_rank):
        r_R, k_K = first_rank + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
        share: tl.constexpr = ((IN + SPLITS - 1) // SPLITS + BLOCK_K - 1) // BLOCK_K * BLOCK_K
        begin = split * share
        a_RK = a_ptr + r_R[:, None] * IN + k_K[None, :]
        other_RK = other_ptr + r_R[:, None] * IN + k_K[None, :]
        acc_BR = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
        other_BR = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
        for first in range(begin, tl.minimum(begin + share, IN), BLOCK_K):
            inside_K = first + k_K < IN
            x_BK = tl.load(x_B[:, None] + (first + k_K)[None, :], mask=inside_K[None, :], other=0.0)
            w_RK = tl.load(a_RK + first, mask=(r_R < rank)[:, None] & inside_K[None, :], other=0.0)
            acc_BR = tl.dot(x_BK, tl.trans(w_RK), acc_BR, input_precision=PRECISION)
            if SLICES == 2:
                w_RK = tl.load(
                    other_RK + first, mask=(r_R < other_rank)[:, None] & inside_K[None, :], other=0.0
                )
                other_BR = tl.dot(x_BK, tl.trans(w_RK), other_BR, input_precision=PRECISION)
        place_B = (split * pairs + pair_B).to(tl.int64) * SLICES * buffer_rank
        place_BR = rank_ptr + place_B[:, None] + r_R[None, :]
        inside_BR = inside_B[:, None] & (r_R < rank)[None, :]
        tl.store(place_BR, acc_BR * tl.load(scaling_ptr + entry), mask=inside_BR)
        if SLICES == 2:
            inside_BR = inside_B[:, None] & (r_R < other_rank)[None, :]
            tl.store(place_BR + buffer_rank, other_BR * tl.load(scaling_ptr + other), mask=inside_BR)
