"""What `fused_kernels` is made of: where a tile's slots have lora_a and lora_b, and what was shrunk.

Legend: as in `gpu_parts`; N rows of weights, S slots of a group, Q = S x R.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.moe.gpu_turns import SHARED_A, SHARED_B


@triton.jit
def find_tile(
    tile, tiles_ptr, met_ptr, tiles, token_tiles, pairs, most_met,
    TOP_K: tl.constexpr, SHARES: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """A tile's expert, first place, number of pairs, and slots; those below 0 are of tokens, for lora_a that
    experts share, and are called the first expert's.
    """
    at = tl.maximum(tile, 0)
    expert, place = tl.load(tiles_ptr + at), tl.load(tiles_ptr + tiles + at).to(tl.int64)
    count = tl.load(tiles_ptr + 2 * tiles + at)
    if SHARES:
        token = (tile + token_tiles) * BLOCK_B
        expert, place = tl.where(tile < 0, 0, expert), tl.where(tile < 0, pairs + token, place)
        count = tl.where(tile < 0, tl.minimum(pairs // TOP_K - token, BLOCK_B), count)
        at = tl.where(tile < 0, tiles + tile + token_tiles, tile)
    # An idle tile's expert is whatever memory held.
    return tl.where(count > 0, expert, 0), place, count, met_ptr + at * most_met


@triton.jit
def split_turns(turn_B, IS_DOWN: tl.constexpr):
    """The turns of pairs whose slot has a matrix (lora_a of gate and up, or lora_b of down) for this expert
    alone, -1 of others; and of all.
    """
    is_shared_B = (turn_B & (SHARED_B if IS_DOWN else SHARED_A)) != 0
    turn_B = tl.where(turn_B >= 0, turn_B & (SHARED_A - 1), -1)
    return tl.where(is_shared_B, -1, turn_B), turn_B


@triton.jit
def slot_at(met_ptr, turn_S, slots):
    """The slots of a tile at these turns, -1 where there is none."""
    return tl.load(met_ptr + 1 + turn_S, mask=turn_S < slots, other=-1)


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
    pool_ptr, rows_ptr, met_ptr, slots, expert, first_slice, table_slices = of_tile
    MATRICES: tl.constexpr = (ROWS + BLOCK_R - 1) // BLOCK_R
    m_M = group * ROWS // BLOCK_R + tl.arange(0, MATRICES)
    slot_M = slot_at(met_ptr, m_M // SLICES, slots)
    entry_M, rank_M = slices_of(rows_ptr, slot_M, expert, first_slice + m_M % SLICES, table_slices)
    scaling_M, a_M = tl.load(scaling_ptr + entry_M), tl.load(rows_ptr + entry_M * 6)
    r_N = (group * ROWS + tl.arange(0, ROWS)) % BLOCK_R
    is_there_N = r_N < _to_rows(rank_M, MATRICES, ROWS)
    a_N = pool_ptr + _to_rows(a_M, MATRICES, ROWS) * UNIT + r_N * IN
    return tl.where(is_there_N, a_N, spare_ptr), _to_rows(scaling_M, MATRICES, ROWS), is_there_N


@triton.jit
def store_shrunk(
    shrunk_ptr, acc_NB, group, row_B, turn_B,
    SLICES: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Each row's pairs, those of its slot."""
    n_N = group * ROWS + tl.arange(0, ROWS)
    place_B = row_B.to(tl.int64) * (SLICES * BLOCK_R)
    place_NB = shrunk_ptr + place_B[None, :] + (n_N % (SLICES * BLOCK_R))[:, None]
    tl.store(place_NB, acc_NB, mask=(n_N // (SLICES * BLOCK_R))[:, None] == turn_B[None, :])


@triton.jit
def load_shrunk(
    shrunk_ptr, row_B, turn_B, index, is_there, SLICES: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """`[R, B]` float32 of one slice; zeros of pairs without a slot."""
    place_B = (row_B.to(tl.int64) * SLICES + index) * BLOCK_R
    place_RB = shrunk_ptr + place_B[None, :] + tl.arange(0, BLOCK_R)[:, None]
    # Others of this launch have written it: not what the first cache may hold.
    return tl.load(place_RB, mask=((turn_B >= 0) & is_there)[None, :], other=0.0, cache_modifier=".cg")


@triton.jit
def load_b(
    of_tile, first, index, n_N, columns,
    ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Rows of lora_b of a tile's slots from the `first` on, side by side: `[N, Q]`."""
    pool_ptr, rows_ptr, met_ptr, slots, expert, first_slice, table_slices = of_tile
    slot_S = slot_at(met_ptr, first + tl.arange(0, BLOCK_S), slots)
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
    acc_NB, other_NB, first_NQ, first_other_NQ, shrunk_RB, other_RB, of_tile, turn_B, n_N, columns,
    IS_PAIR: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, UNIT: tl.constexpr, HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """LoRA of one slice, or of a pair of them, of all of a tile's slots; of the first, lora_b is there if it
    was loaded AHEAD.
    """
    _, _, _, slots, _, _, _ = of_tile
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
