"""A product of experts with its LoRA, for `fused`.

A tile has pairs of one expert and of some adapter slots, which are its first, second and so on by their
numbers. Rows of lora_a of all its slots, one after another, are multiplied like rows of a weight, for which
programs with the lowest numbers are; the others add lora_b's share of a group of its slots as if those were
one adapter of a larger rank, each pair's row being zero outside its own slot.

Legend: as in `gpu_parts`; N rows of weights, T tokens, S slots of a group, Q = S x R, X experts of a token, D
hidden.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.lora.programs import arrive, wait_for
from kernels.moe.gpu_products import halves, locate, prefetch, product, row_of, silu_times, store_columns


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def turns_of(pair_B, inside_B, place, slots_ptr, order_ptr, TOP_K: tl.constexpr, BLOCK_B: tl.constexpr):
    """Each pair's slot; which of its tile's it is, -1 of none; how many there are. Slots are sorted."""
    b_B = tl.arange(0, BLOCK_B)
    before_B = tl.load(order_ptr + place + b_B - 1, mask=inside_B & (b_B > 0), other=0)
    slot_B = tl.where(inside_B, tl.load(slots_ptr + pair_B // TOP_K), -1)
    last_B = tl.where(b_B > 0, tl.load(slots_ptr + before_B // TOP_K), -1)
    is_first_B = (slot_B >= 0) & (slot_B != last_B)
    turn_B = tl.where(slot_B >= 0, tl.cumsum(is_first_B.to(tl.int32), 0) - 1, -1)
    # A scan that changes no slot before the last: its result is not loaded again for every layout.
    return tl.associative_scan(slot_B, 0, _larger), turn_B, tl.max(turn_B, 0) + 1


@triton.jit
def slot_at(turn_S, turn_B, slot_B):
    """The slots at these turns, -1 where there is none."""
    return tl.max(tl.where(turn_S[:, None] == turn_B[None, :], slot_B[None, :], -1), 1)


@triton.jit
def slices_of(rows_ptr, slot_S, expert, first_slice, table_slices):
    """Like `gpu_parts.slice_of`, of many."""
    entry_S = tl.maximum(slot_S, 0).to(tl.int64) * table_slices + first_slice + 3 * expert
    rank_S = tl.load(rows_ptr + entry_S * 6 + 2).to(tl.int32)
    return entry_S, tl.multiple_of(tl.where(slot_S >= 0, rank_S, 0), [8])


@triton.jit
def _to_rows(value_M, MATRICES: tl.constexpr, ROWS: tl.constexpr):
    """What a row has of its matrix."""
    return tl.reshape(tl.broadcast_to(value_M[:, None], [MATRICES, ROWS // MATRICES]), [ROWS])


@triton.jit
def rows_of_a(
    of_tile, group, scaling_ptr, spare_ptr,
    IN: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A group of a tile's rows of lora_a: where they are, `spare` where there is none; their scaling; whether
    they are.
    """
    pool_ptr, rows_ptr, slot_B, turn_B, expert, first_slice, table_slices = of_tile
    MATRICES: tl.constexpr = (ROWS + BLOCK_R - 1) // BLOCK_R
    m_M = group * ROWS // BLOCK_R + tl.arange(0, MATRICES)
    slot_M = slot_at(m_M // SLICES, turn_B, slot_B)
    entry_M, rank_M = slices_of(rows_ptr, slot_M, expert, first_slice + m_M % SLICES, table_slices)
    scaling_M, a_M = tl.load(scaling_ptr + entry_M), tl.load(rows_ptr + entry_M * 6)
    r_N = (group * ROWS + tl.arange(0, ROWS)) % BLOCK_R
    is_there_N = r_N < _to_rows(rank_M, MATRICES, ROWS)
    a_N = pool_ptr + _to_rows(a_M, MATRICES, ROWS) * UNIT + r_N * IN
    return tl.where(is_there_N, a_N, spare_ptr), _to_rows(scaling_M, MATRICES, ROWS), is_there_N


@triton.jit
def store_shrunk(
    shrunk_ptr, acc_NB, group, place, turn_B,
    SLICES: tl.constexpr, ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Each row's pairs, those of its slot."""
    n_N = group * ROWS + tl.arange(0, ROWS)
    place_B = (place + tl.arange(0, BLOCK_B)) * (SLICES * BLOCK_R)
    place_NB = shrunk_ptr + place_B[None, :] + (n_N % (SLICES * BLOCK_R))[:, None]
    tl.store(place_NB, acc_NB, mask=(n_N // (SLICES * BLOCK_R))[:, None] == turn_B[None, :])


@triton.jit
def load_shrunk(
    shrunk_ptr, place, turn_B, index, SLICES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr
):
    """`[R, B]` float32 of one slice; zeros of pairs without a slot."""
    place_B = ((place + tl.arange(0, BLOCK_B)) * SLICES + index) * BLOCK_R
    place_RB = shrunk_ptr + place_B[None, :] + tl.arange(0, BLOCK_R)[:, None]
    # Others of this launch have written it: not what the first cache may hold.
    return tl.load(place_RB, mask=(turn_B >= 0)[None, :], other=0.0, cache_modifier=".cg")


@triton.jit
def load_b(
    of_tile, first, index, n_N, columns,
    ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Rows of lora_b of a tile's slots from the `first` on, side by side: `[N, Q]`."""
    pool_ptr, rows_ptr, slot_B, turn_B, expert, first_slice, table_slices = of_tile
    slot_S = slot_at(first + tl.arange(0, BLOCK_S), turn_B, slot_B)
    entry_S, rank_S = slices_of(rows_ptr, slot_S, expert, first_slice + index, table_slices)
    b_S = tl.multiple_of(tl.load(rows_ptr + entry_S * 6 + 1) * UNIT, [UNIT])
    r_R = tl.arange(0, BLOCK_R)
    place_SN = b_S[:, None] + n_N[None, :] * rank_S[:, None]
    inside_SNR = (n_N < columns)[None, :, None] & (r_R[None, None, :] < rank_S[:, None, None])
    b_SNR = tl.load(pool_ptr + (place_SN[:, :, None] + r_R[None, None, :]), mask=inside_SNR, other=0.0)
    return tl.reshape(tl.permute(b_SNR, (1, 0, 2)), [ROWS, BLOCK_S * BLOCK_R])


@triton.jit
def add_expanded(
    acc_NB, b_NQ, shrunk_RB, first, turn_B,
    BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + lora_b @ shrunk of the pairs of these slots."""
    is_mine_SRB = (first + tl.arange(0, BLOCK_S))[:, None, None] == turn_B[None, None, :]
    if HALVES:
        # Two products in half precision keep what rounding the second factor would lose.
        high_RB = shrunk_RB.to(b_NQ.dtype)
        low_RB = (shrunk_RB - high_RB.to(tl.float32)).to(b_NQ.dtype)
        high_SRB = tl.where(is_mine_SRB, high_RB[None, :, :], 0.0)
        low_SRB = tl.where(is_mine_SRB, low_RB[None, :, :], 0.0)
        acc_NB = tl.dot(b_NQ, tl.reshape(high_SRB, [BLOCK_S * BLOCK_R, BLOCK_B]), acc_NB)
        acc_NB = tl.dot(b_NQ, tl.reshape(low_SRB, [BLOCK_S * BLOCK_R, BLOCK_B]), acc_NB)
    else:
        shrunk_SRB = tl.where(is_mine_SRB, shrunk_RB[None, :, :], 0.0)
        shrunk_QB = tl.reshape(shrunk_SRB, [BLOCK_S * BLOCK_R, BLOCK_B])
        acc_NB = tl.dot(b_NQ, shrunk_QB, acc_NB, input_precision=PRECISION)
    return acc_NB


@triton.jit
def add_lora(
    acc_NB, other_NB, first_NQ, first_other_NQ, shrunk_RB, other_RB, of_tile, slots, n_N, columns,
    IS_PAIR: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr, HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """LoRA of one slice, or of a pair of them, of all of a tile's slots; of the first, lora_b is there if it
    was loaded AHEAD.
    """
    _, _, _, turn_B, _, _, _ = of_tile
    for first in tl.range(0, slots, BLOCK_S, num_stages=1):
        b_NQ, other_NQ = first_NQ, first_other_NQ
        if not AHEAD or first > 0:
            b_NQ = load_b(of_tile, first, 0, n_N, columns, ROWS, BLOCK_S, BLOCK_R, UNIT)
            if IS_PAIR:
                other_NQ = load_b(of_tile, first, 1, n_N, columns, ROWS, BLOCK_S, BLOCK_R, UNIT)
        acc_NB = add_expanded(
            acc_NB, b_NQ, shrunk_RB, first, turn_B, BLOCK_B, BLOCK_S, BLOCK_R, HALVES, PRECISION
        )
        if IS_PAIR:
            other_NB = add_expanded(
                other_NB, other_NQ, other_RB, first, turn_B, BLOCK_B, BLOCK_S, BLOCK_R, HALVES, PRECISION
            )
    return acc_NB, other_NB


@quick
@triton.jit(do_not_specialize=["tiles", "groups", "first_slice", "outputs"])
def product_kernel(
    y_ptr,
    shrunk_ptr,
    x_ptr,
    weight_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    slots_ptr,
    order_ptr,
    tiles_ptr,
    tiles,
    groups,
    first_slice,
    table_slices,
    outputs,
    IN: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_DOWN: tl.constexpr,
    AHEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT: tl.constexpr,
    HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gate and up, activated: y[p] = silu(gate) * up of weight[e] @ x[t] with LoRA. Down: weight[e] @ x[p]
    with LoRA; its routing and order must be those of a kernel before the one before this.
    """
    SLICES: tl.constexpr = 1 if IS_DOWN else 2
    tile, turn = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    block = turn - groups
    row_N, n_N = row_of(tl.maximum(block, 0), outputs, ROWS, not IS_DOWN)
    if not IS_DOWN:
        wait_for_inputs(PDL)
    expert, pair_B, inside_B, count = locate(tile, order_ptr, order_ptr, tiles_ptr, tiles, False, BLOCK_B)
    expert_ptr = weight_ptr + expert.to(tl.int64) * outputs * IN
    weight_N = expert_ptr + row_N * IN
    if PDL and (count > 0) & (block >= 0):
        prefetch(weight_N)
    place = tl.load(tiles_ptr + tiles + tile).to(tl.int64)
    arrived_ptr = tiles_ptr + (4 if IS_DOWN else 3) * tiles + tile
    slot_B, turn_B, slots = turns_of(pair_B, inside_B, place, slots_ptr, order_ptr, TOP_K, BLOCK_B)
    x_B = x_ptr + (pair_B if IS_DOWN else pair_B // TOP_K).to(tl.int64) * IN
    parts = tl.cdiv(slots * (SLICES * BLOCK_R), ROWS)
    of_tile = (pool_ptr, rows_ptr, slot_B, turn_B, expert, first_slice, table_slices)
    if block < 0:
        if IS_DOWN:
            if PDL and turn < parts:
                a_N, _, _ = rows_of_a(of_tile, turn, scaling_ptr, expert_ptr, IN, SLICES, ROWS, BLOCK_R, UNIT)
                prefetch(a_N)
            wait_for_inputs(PDL)
        for group in tl.range(turn, parts, groups, num_stages=1):
            a_N, scaling_N, is_there_N = rows_of_a(
                of_tile, group, scaling_ptr, expert_ptr, IN, SLICES, ROWS, BLOCK_R, UNIT
            )
            acc_NB = tl.zeros([ROWS, BLOCK_B], tl.float32)
            if tl.max(is_there_N.to(tl.int32), 0) > 0:
                acc_NB = product(a_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            acc_NB = tl.where(is_there_N[:, None], acc_NB * scaling_N[:, None], 0.0)
            store_shrunk(shrunk_ptr, acc_NB, group, place, turn_B, SLICES, ROWS, BLOCK_B, BLOCK_R)
            arrive(arrived_ptr)
    elif IS_DOWN:
        b_NQ = tl.zeros([ROWS, BLOCK_S * BLOCK_R], pool_ptr.dtype.element_ty)
        if AHEAD:
            b_NQ = load_b(of_tile, 0, 0, n_N, outputs, ROWS, BLOCK_S, BLOCK_R, UNIT)
        wait_for_inputs(PDL)
        if count > 0:
            acc_NB = product(weight_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            wait_for(arrived_ptr, parts, PDL)
            shrunk_RB = load_shrunk(shrunk_ptr, place, turn_B, 0, SLICES, BLOCK_B, BLOCK_R)
            acc_NB, _ = add_lora(
                acc_NB, acc_NB, b_NQ, b_NQ, shrunk_RB, shrunk_RB, of_tile, slots, n_N, outputs,
                False, AHEAD, ROWS, BLOCK_B, BLOCK_S, BLOCK_R, UNIT, HALVES, PRECISION,
            )  # fmt: skip
            store_columns(y_ptr, acc_NB, n_N, outputs, pair_B, inside_B)
    else:
        i_N = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
        gate_NQ = tl.zeros([ROWS // 2, BLOCK_S * BLOCK_R], pool_ptr.dtype.element_ty)
        up_NQ = gate_NQ
        if AHEAD:
            gate_NQ = load_b(of_tile, 0, 0, i_N, outputs // 2, ROWS // 2, BLOCK_S, BLOCK_R, UNIT)
            up_NQ = load_b(of_tile, 0, 1, i_N, outputs // 2, ROWS // 2, BLOCK_S, BLOCK_R, UNIT)
        if count > 0:
            acc_NB = product(weight_N, x_B, IN, ROWS, BLOCK_B, BLOCK_K, PRECISION)
            gate_NB, up_NB = halves(acc_NB, ROWS, BLOCK_B)
            wait_for(arrived_ptr, parts, PDL)
            gate_RB = load_shrunk(shrunk_ptr, place, turn_B, 0, SLICES, BLOCK_B, BLOCK_R)
            up_RB = load_shrunk(shrunk_ptr, place, turn_B, 1, SLICES, BLOCK_B, BLOCK_R)
            gate_NB, up_NB = add_lora(
                gate_NB, up_NB, gate_NQ, up_NQ, gate_RB, up_RB, of_tile, slots, i_N, outputs // 2,
                True, AHEAD, ROWS // 2, BLOCK_B, BLOCK_S, BLOCK_R, UNIT, HALVES, PRECISION,
            )  # fmt: skip
            store_columns(y_ptr, silu_times(gate_NB, up_NB), i_N, outputs // 2, pair_B, inside_B)
