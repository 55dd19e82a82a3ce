"""Experts with LoRA for `prompts`: lora_a ahead of each product, lora_b within it, as if it had more inputs.

After a product's own inputs come those of each of a tile's slots: rows of lora_b, and what pairs were shrunk
to. That is rounded as weights are and followed by what rounding lost (2 `PARTS`). Pairs of other slots have
zeros there, which nothing loads; so has a row of gate in the inputs of up's lora_b, and the other way round.

Legend: P pairs, B pairs of a tile, N rows of weights, K inputs, R rank, L slices of a product.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.moe.gpu_products import halves, prefetch, row_of, silu_times, store_columns

_RANKS: tl.constexpr = tl.constexpr(128)
"""More than any rank: where a lora_b is, in units, times this and its rank are one number."""


@triton.jit
def _tile_of(tile, tiles_ptr, met_ptr, tiles, most):
    """A tile's expert, first place, number of pairs; how many slots it has, of `most`, and where they are."""
    count = tl.load(tiles_ptr + 2 * tiles + tile)
    expert, place = tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tiles + tile).to(tl.int64)
    met_ptr += tile * (most + 1)
    # What an idle tile has is whatever memory held.
    slots = tl.where(count > 0, tl.load(met_ptr), 0)
    return tl.where(count > 0, expert, 0), tl.where(count > 0, place, 0), count, slots, met_ptr + 1


@quick
@triton.jit(do_not_specialize=["tiles", "turns", "most", "first_slice"])
def shrink_kernel(
    shrunk_ptr,
    found_ptr,
    x_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    order_ptr,
    tiles_ptr,
    turns_ptr,
    met_ptr,
    tiles,
    turns,
    most,
    first_slice,
    table_slices,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_DOWN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """shrunk[place, slice] = scaling * lora_a @ x of each pair with a slot; `first_slice` is gate of the
    first expert. Of gate and up, found[tile, turn] is set to a slot's three lora_b and their ranks.
    """
    BLOCKS: tl.constexpr = (1 if IS_DOWN else 2) * BLOCK_R // ROWS
    tile, first_turn, block = tl.program_id(0), tl.program_id(1) // BLOCKS, tl.program_id(1) % BLOCKS
    n_N = block * ROWS + tl.arange(0, ROWS)
    if not IS_DOWN:
        wait_for_inputs(PDL)
    expert, place, count, slots, met_ptr = _tile_of(tile, tiles_ptr, met_ptr, tiles, most)
    first_slice += 3 * expert + (2 if IS_DOWN else 0)
    if IS_DOWN:
        if PDL and first_turn < slots:
            entry = tl.load(met_ptr + first_turn).to(tl.int64) * table_slices + first_slice
            a_N, _, _ = _rows_of_a(pool_ptr, rows_ptr, scaling_ptr, entry, n_N, IN, IS_DOWN, BLOCK_R, UNIT)
            for first in tl.static_range(0, IN - 255, 256):
                prefetch(a_N + first)
        wait_for_inputs(PDL)
    b_B = tl.arange(0, BLOCK_B)
    turn_B = tl.load(turns_ptr + place + b_B, mask=b_B < count, other=-1)
    for turn in tl.range(first_turn, slots, turns, num_stages=1):
        entry = tl.load(met_ptr + turn).to(tl.int64) * table_slices + first_slice
        if not IS_DOWN and block == 0:
            for j in tl.static_range(3):
                b_ptr = rows_ptr + (entry + j) * 6
                found = tl.load(b_ptr + 1) * _RANKS + tl.load(b_ptr + 2)
                tl.store(found_ptr + (tile * most + turn) * 4 + j, found)
        a_N, scaling_N, is_there_N = _rows_of_a(
            pool_ptr, rows_ptr, scaling_ptr, entry, n_N, IN, IS_DOWN, BLOCK_R, UNIT
        )
        if PDL and not IS_DOWN:
            prefetch(a_N)
        # Pairs are sorted by slot.
        first = tl.min(tl.where(turn_B == turn, b_B, BLOCK_B), 0)
        end = tl.max(tl.where(turn_B == turn, b_B + 1, 0), 0)
        of_turn = (shrunk_ptr, x_ptr, order_ptr, place, end, a_N, scaling_N, is_there_N, n_N)
        MANY: tl.constexpr = 2 * BLOCK_P
        if end - first <= BLOCK_P:
            _shrink(of_turn, first, IN, TOP_K, IS_DOWN, ROWS, BLOCK_P, BLOCK_K, BLOCK_R, PARTS, PRECISION)
        else:
            for done in tl.range(first, end, MANY, num_stages=1):
                _shrink(
                    of_turn, done, IN, TOP_K, IS_DOWN, ROWS, MANY, BLOCK_K // 2, BLOCK_R, PARTS, PRECISION
                )


@triton.jit
def _rows_of_a(
    pool_ptr, rows_ptr, scaling_ptr, entry, n_N,
    IN: tl.constexpr, IS_DOWN: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where rows of lora_a are, their scaling, and whether they are; gate's and up's are two entries."""
    unit, rank = tl.load(rows_ptr + entry * 6), tl.load(rows_ptr + entry * 6 + 2)
    unit_N, rank_N, scaling_N = unit + 0 * n_N, rank + 0 * n_N, tl.load(scaling_ptr + entry) + 0.0 * n_N
    if not IS_DOWN:
        unit_N = tl.where(n_N < BLOCK_R, unit_N, tl.load(rows_ptr + entry * 6 + 6))
        rank_N = tl.where(n_N < BLOCK_R, rank_N, tl.load(rows_ptr + entry * 6 + 8))
        scaling_N = tl.where(n_N < BLOCK_R, scaling_N, tl.load(scaling_ptr + entry + 1))
    a_N = pool_ptr + tl.multiple_of(unit_N * UNIT + (n_N % BLOCK_R) * IN, [8])
    # Where there is none, some row of the same matrix.
    is_there_N = n_N % BLOCK_R < rank_N
    return tl.where(is_there_N, a_N, pool_ptr + unit_N * UNIT), scaling_N, is_there_N


@triton.jit
def _shrink(
    of_turn, first,
    IN: tl.constexpr, TOP_K: tl.constexpr, IS_DOWN: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some pairs of a slot; stored rounded, and behind it what rounding lost."""
    shrunk_ptr, x_ptr, order_ptr, place, end, a_N, scaling_N, is_there_N, n_N = of_turn
    b_P, k_K = first + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    inside_P = b_P < end
    pair_P = tl.load(order_ptr + place + b_P, mask=inside_P, other=0)
    x_P = x_ptr + (pair_P if IS_DOWN else pair_P // TOP_K).to(tl.int64) * IN
    a_NK, x_KP = a_N[:, None] + k_K[None, :], x_P[None, :] + k_K[:, None]
    acc_NP = tl.zeros([ROWS, BLOCK_P], tl.float32)
    for done in range(0, IN, BLOCK_K):
        inside_K = done + k_K < IN
        row_NK = tl.load(a_NK + done, mask=is_there_N[:, None] & inside_K[None, :], other=0.0)
        in_KP = tl.load(x_KP + done, mask=inside_P[None, :] & inside_K[:, None], other=0.0)
        acc_NP = tl.dot(row_NK, in_KP, acc_NP, input_precision=PRECISION)
    acc_NP *= scaling_N[:, None]
    shrunk_P = shrunk_ptr + (place + b_P) * ((1 if IS_DOWN else 2) * PARTS * BLOCK_R)
    shrunk_NP = shrunk_P[None, :] + (n_N // BLOCK_R * (PARTS * BLOCK_R) + n_N % BLOCK_R)[:, None]
    high_NP = acc_NP.to(shrunk_ptr.dtype.element_ty)
    tl.store(shrunk_NP, high_NP, mask=inside_P[None, :])
    if PARTS == 2:
        low_NP = (acc_NP - high_NP.to(tl.float32)).to(high_NP.dtype)
        tl.store(shrunk_NP + BLOCK_R, low_NP, mask=inside_P[None, :])


@quick
@triton.jit(do_not_specialize=["tiles", "most", "outputs"])
def product_kernel(
    y_ptr,
    shrunk_ptr,
    found_ptr,
    x_ptr,
    weight_ptr,
    pool_ptr,
    order_ptr,
    tiles_ptr,
    turns_ptr,
    met_ptr,
    tiles,
    most,
    outputs,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_DOWN: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gate and up, activated: y[p] = silu(gate) * up of weight[e] @ x[t] with LoRA. Down: weight[e] @ x[p]
    with LoRA. Routing and order must be those of a kernel before the one before this.
    """
    SLICES: tl.constexpr = 1 if IS_DOWN else 2
    tile, block = tl.program_id(0), tl.program_id(1)
    row_N, n_N = row_of(block, outputs, ROWS, not IS_DOWN)
    expert, place, count, slots, _ = _tile_of(tile, tiles_ptr, met_ptr, tiles, most)
    b_B = tl.arange(0, BLOCK_B)
    inside_B = b_B < count
    pair_B = tl.load(order_ptr + place + b_B, mask=inside_B, other=0)
    turn_B = tl.load(turns_ptr + place + b_B, mask=inside_B, other=-1)
    weight_N = weight_ptr + expert.to(tl.int64) * outputs * IN + row_N * IN
    if PDL and count > 0:
        prefetch(weight_N)
    wait_for_inputs(PDL)
    if count == 0:
        return
    x_B = x_ptr + (pair_B if IS_DOWN else pair_B // TOP_K).to(tl.int64) * IN
    shrunk_B = shrunk_ptr + (place + b_B) * (SLICES * PARTS * BLOCK_R)
    found_ptr += tile * (most * 4) + (2 if IS_DOWN else 0)
    j_N = block * ROWS + tl.arange(0, ROWS)
    acc_NB = _product(
        weight_N, x_B, inside_B, pool_ptr, found_ptr, shrunk_B, turn_B, slots, j_N // SLICES, j_N % SLICES,
        outputs // SLICES, IN, SLICES, ROWS, BLOCK_B, BLOCK_K, BLOCK_R, PARTS, UNIT, PRECISION,
    )  # fmt: skip
    if IS_DOWN:
        store_columns(y_ptr, acc_NB, n_N, outputs, pair_B, inside_B, ALIGNED)
    else:
        gate_NB, up_NB = halves(acc_NB, ROWS, BLOCK_B)
        i_N = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
        store_columns(y_ptr, silu_times(gate_NB, up_NB), i_N, outputs // 2, pair_B, inside_B, ALIGNED)


@triton.jit
def _product(
    weight_N, x_B, inside_B, pool_ptr, found_ptr, shrunk_B, turn_B, slots, i_N, index_N, columns,
    IN: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`[N, B]`: weights times x, and row i of the slots' lora_b of slice `index` times what was shrunk."""
    HALF: tl.constexpr = BLOCK_K // 2
    OF_SLICE: tl.constexpr = (PARTS * BLOCK_R + HALF - 1) // HALF
    OWN: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    k_K = tl.arange(0, BLOCK_K)
    weight_NK, x_KB = weight_N[:, None] + k_K[None, :], x_B[None, :] + k_K[:, None]
    acc_NB = tl.zeros([ROWS, BLOCK_B], tl.float32)
    for step in range(OWN + tl.cdiv(slots * (SLICES * OF_SLICE), 2)):
        is_own, inside_K = step < OWN, step * BLOCK_K + k_K < IN
        turn_K, index_K, column_K, unit_K, rank_K = _inputs_of_b(
            (step - OWN) * 2, k_K, slots, found_ptr, OF_SLICE, HALF, SLICES
        )
        r_K = column_K % BLOCK_R
        is_b_K = (column_K < PARTS * BLOCK_R) & (r_K < rank_K)
        b_NK = (pool_ptr + unit_K * UNIT + r_K)[None, :] + i_N[:, None] * tl.multiple_of(rank_K, [8])[None, :]
        is_b_NK = is_b_K[None, :] & (i_N < columns)[:, None]
        if SLICES > 1:
            is_b_NK &= index_K[None, :] == index_N[:, None]
        shrunk_KB = shrunk_B[None, :] + (index_K * (PARTS * BLOCK_R) + column_K)[:, None]
        is_shrunk_KB = is_b_K[:, None] & (turn_K[:, None] == turn_B[None, :])
        w_NK = tl.where(is_own, weight_NK + step * BLOCK_K, b_NK)
        in_KB = tl.where(is_own, x_KB + step * BLOCK_K, shrunk_KB)
        is_w_NK = tl.where(is_own, inside_K[None, :], is_b_NK)
        is_in_KB = tl.where(is_own, inside_K[:, None] & inside_B[None, :], is_shrunk_KB)
        # Eight numbers side by side are there or not, and are aligned, which nobody could see of both.
        w_NK = tl.max_contiguous(tl.multiple_of(w_NK, [1, 16]), [1, 8])
        in_KB = tl.max_contiguous(tl.multiple_of(in_KB, [16, 1]), [8, 1])
        is_w_NK, is_in_KB = tl.max_constancy(is_w_NK, [1, 8]), tl.max_constancy(is_in_KB, [8, 1])
        acc_NB = tl.dot(
            tl.load(w_NK, mask=is_w_NK, other=0.0), tl.load(in_KB, mask=is_in_KB, other=0.0), acc_NB,
            input_precision=PRECISION,
        )  # fmt: skip
    return acc_NB


@triton.jit
def _inputs_of_b(
    block, k_K, slots, found_ptr, OF_SLICE: tl.constexpr, HALF: tl.constexpr, SLICES: tl.constexpr
):
    """Of inputs beyond a product's own, whose halves each have one slot and slice: the slot's turn, the
    slice, the column of what is shrunk; where lora_b is, in units, and its rank.
    """
    is_late_K = k_K >= HALF
    turn, index, first, found = _half_of_b(block, slots, found_ptr, OF_SLICE, HALF, SLICES)
    # Of negative ones both halves are none.
    block += tl.where(block < 0, 0, 1)
    other_turn, other_index, other_first, other = _half_of_b(block, slots, found_ptr, OF_SLICE, HALF, SLICES)
    turn_K, index_K = tl.where(is_late_K, other_turn, turn), tl.where(is_late_K, other_index, index)
    column_K = tl.where(is_late_K, other_first, first) + k_K % HALF
    unit_K = tl.where(is_late_K, other // _RANKS, found // _RANKS)
    rank_K = tl.where(is_late_K, (other % _RANKS).to(tl.int32), (found % _RANKS).to(tl.int32))
    return turn_K, index_K, column_K, unit_K, rank_K


@triton.jit
def _half_of_b(block, slots, found_ptr, OF_SLICE: tl.constexpr, HALF: tl.constexpr, SLICES: tl.constexpr):
    index, within = block // OF_SLICE, block % OF_SLICE
    turn, index = index // SLICES, index % SLICES
    is_any = (block >= 0) & (turn < slots)
    found = tl.load(found_ptr + turn * 4 + index, mask=is_any, other=0)
    return tl.where(is_any, turn, -2), index, within * HALF, found
