"""A product of few tokens and their adapters' share, for `beside`.

Gated, programs go by spans of gate's columns: those that expand them and up's come before those of the
product, which add what they have left, and write silu(gate) * up.

Legend: as there; N also rows of lora_a, where a program shrinks, U tiles.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.launch import quick, wait_for_inputs
from kernels.linear.gating import gate_and_up, silu_mul
from kernels.lora.programs import arrive, distance, slice_of, wait_for


@quick
@triton.jit(
    do_not_specialize=[
        "tiles",
        "first_slice",
        "table_slices",
        "shrinks",
        "products",
        "expands",
        "outputs",
        "tokens",
    ]
)
def matrix_kernel(
    out_ptr,
    parts_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    shrunk_ptr,
    arrived_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    places_ptr,
    tiles,
    first_slice,
    table_slices,
    bucket,
    stop_0,
    stop_1,
    stop_2,
    shrinks,
    products,
    expands,
    outputs,
    tokens,
    stride_x_t,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    SLICES: tl.constexpr,
    UNIT: tl.constexpr,
    IS_GATED: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile is one slot's tokens; every program sees all tokens."""
    program = tl.program_id(0)
    turn = program - shrinks
    expand = turn * expands // (products + expands)
    expands_here = (turn + 1) * expands // (products + expands) > expand
    blocks, span = tl.cdiv(outputs, ROWS), 0
    block, split = (turn - expand) % blocks, (turn - expand) // blocks
    if IS_GATED:
        pairs, blocks = 2 * tl.cdiv(tiles * bucket, BLOCK_E), 2 * SPAN // ROWS
        span, place = turn // (pairs + blocks), turn % (pairs + blocks)
        expands_here = place < pairs
        # Up's come after all of gate's.
        expand = (2 * place // pairs * tl.cdiv(stop_0, SPAN) + span) * (pairs // 2) + place % (pairs // 2)
        block, split = span * blocks + place - pairs, 0
    if (turn >= 0) & expands_here:
        _expand(
            parts_ptr + (0 if IS_GATED else tokens.to(tl.int64) * outputs * SPLITS),
            shrunk_ptr,
            arrived_ptr,
            pool_ptr,
            rows_ptr,
            places_ptr,
            expand,
            tiles,
            first_slice,
            table_slices,
            bucket,
            stop_0,
            stop_1,
            stop_2,
            shrinks,
            outputs,
            tokens,
            BLOCK_E=BLOCK_E,
            BLOCK_N=128,
            SPAN=SPAN,
            CHUNKS=CHUNKS,
            SLICES=SLICES,
            UNIT=UNIT,
            TOKENS=TOKENS,
            PDL=PDL,
        )
        if IS_GATED:
            arrive(arrived_ptr + 1 + span)
        return

    t_T, k_K, i_N = tl.arange(0, TOKENS), tl.arange(0, BLOCK_K), tl.arange(0, ROWS)
    inside_T = t_T < tokens
    share = tl.cdiv(tl.cdiv(IN, SPLITS), BLOCK_K) * BLOCK_K
    n_N = gate_and_up(block * (ROWS // 2), stop_0, ROWS) if IS_GATED else block * ROWS + i_N
    inside_NT = (n_N < outputs)[:, None] & inside_T[None, :]
    # Rows beyond the last read the last one again, which costs no mask.
    row_N = tl.minimum(n_N, outputs - 1).to(tl.int64) * (IN // GRAIN)
    place_NT = parts_ptr + (split * tokens + t_T).to(tl.int64)[None, :] * outputs + n_N[:, None]
    factor_N = tl.full([ROWS], 1.0, tl.float32)
    if turn < 0:
        groups = tl.cdiv(tiles * bucket, ROWS)
        split = program % CHUNKS
        share = tl.cdiv(tl.cdiv(IN, CHUNKS), BLOCK_K) * BLOCK_K
        index = program // CHUNKS // groups
        e_N = program // CHUNKS % groups * ROWS + i_N
        tile_N, r_N = e_N // bucket, e_N % bucket
        slot_N = tl.load(places_ptr + tile_N, mask=tile_N < tiles, other=0).to(tl.int64)
        first_N = tl.load(places_ptr + tiles + tile_N, mask=tile_N < tiles, other=0)
        count_N = tl.load(places_ptr + 2 * tiles + tile_N, mask=tile_N < tiles, other=0)
        entry_N = slot_N * table_slices + first_slice + index
        rank_N = tl.load(rows_ptr + entry_N * 6 + 2)
        is_there_N = (r_N < rank_N) & (count_N > 0)
        inside_NT = is_there_N[:, None] & (t_T[None, :] >= first_N[:, None])
        inside_NT &= t_T[None, :] < (first_N + count_N)[:, None]
        # What is not there reads the base's first row, which all of it shares.
        a_N = distance(pool_ptr, weight_ptr, GRAIN) + tl.load(rows_ptr + entry_N * 6) * (UNIT // GRAIN)
        row_N = tl.where(is_there_N, a_N + r_N.to(tl.int64) * (IN // GRAIN), 0)
        place_NT = shrunk_ptr + ((split * tokens + t_T)[None, :] * SLICES + index) * bucket + r_N[:, None]
        factor_N = tl.load(scaling_ptr + entry_N)
        share = tl.where(tl.max(is_there_N.to(tl.int32), 0) > 0, share, 0)
    begin = tl.multiple_of(split * share, BLOCK_K)
    end = tl.minimum(begin + share, IN)
    row_N *= GRAIN
    weight_NK = weight_ptr + (row_N[:, None] + k_K[None, :])
    x_KT = x_ptr + t_T.to(tl.int64)[None, :] * stride_x_t + k_K[:, None]
    acc_NT = tl.zeros([ROWS, TOKENS], tl.float32)
    if PDL and PREFETCH > 0:
        # One address for each line of 128 bytes.
        line_NL = weight_ptr + row_N[:, None] + (begin + tl.arange(0, PREFETCH // 64) * 64)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [line_NL.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    wait_for_inputs(PDL)
    for first in range(begin, end, BLOCK_K):
        if IN % BLOCK_K == 0:
            w_NK = tl.load(weight_NK + first)
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :], other=0.0)
        else:
            inside_K = first + k_K < IN
            w_NK = tl.load(weight_NK + first, mask=inside_K[None, :], other=0.0)
            a_KT = tl.load(x_KT + first, mask=inside_T[None, :] & inside_K[:, None], other=0.0)
        acc_NT = tl.dot(w_NK, a_KT, acc_NT)
    acc_NT *= factor_N[:, None]
    if HAS_BIAS:
        is_biased_N = (n_N < outputs) & (split == 0) & (turn >= 0)
        acc_NT += tl.load(bias_ptr + n_N, mask=is_biased_N, other=0.0).to(tl.float32)[:, None]
    if turn < 0:
        tl.store(place_NT, acc_NT, mask=inside_NT)
        arrive(arrived_ptr)
        return
    if IS_GATED:
        wait_for(arrived_ptr + 1 + span, pairs, PDL)
        for part in tl.static_range(PARTS):
            part_NT = parts_ptr + (part * tokens + t_T).to(tl.int64)[None, :] * outputs + n_N[:, None]
            acc_NT += tl.load(part_NT, mask=inside_T[None, :], other=0.0, cache_modifier=".cg")
        dtype = out_ptr.dtype.element_ty
        gated_IT = silu_mul(acc_NT, dtype, ROWS, TOKENS)
        i_I = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
        out_IT = out_ptr + t_T.to(tl.int64)[None, :] * stop_0 + i_I[:, None]
        tl.store(out_IT, gated_IT.to(dtype), mask=(i_I < stop_0)[:, None] & inside_T[None, :])
    else:
        tl.store(place_NT, acc_NT, mask=inside_NT)


@triton.jit
def _expand(
    part_ptr,
    shrunk_ptr,
    arrived_ptr,
    pool_ptr,
    rows_ptr,
    places_ptr,
    item,
    tiles,
    first_slice,
    table_slices,
    bucket,
    stop_0,
    stop_1,
    stop_2,
    shrinks,
    outputs,
    tokens,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    SLICES: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
    PDL: tl.constexpr,
):
    """part[t, n] = shrunk[t] @ lora_b[n] of a group of tiles: SPAN outputs, BLOCK_E pairs of tile and rank as
    if they were one adapter's. A token's row is zero outside its own tile.
    """
    groups = tl.cdiv(tiles * bucket, BLOCK_E)
    block, index, start, stop = slice_of(item // groups, stop_0, stop_1, stop_2, SPAN, SLICES)
    group = item % groups
    # Ranks that are larger than a block have parts of their own.
    blocks = tl.maximum(bucket // BLOCK_E, 1)
    part_ptr += (group % blocks) * tokens.to(tl.int64) * outputs
    t_T, i_N = tl.arange(0, TOKENS), tl.arange(0, BLOCK_N)
    e_E = group * BLOCK_E + tl.arange(0, BLOCK_E)
    tile_E, r_E = e_E // bucket, e_E % bucket
    slot_E = tl.load(places_ptr + tile_E, mask=tile_E < tiles, other=0).to(tl.int64)
    first_E = tl.load(places_ptr + tiles + tile_E, mask=tile_E < tiles, other=0)
    count_E = tl.load(places_ptr + 2 * tiles + tile_E, mask=tile_E < tiles, other=0)
    entry_E = slot_E * table_slices + first_slice + index
    rank_E = tl.max_constancy(tl.multiple_of(tl.load(rows_ptr + entry_E * 6 + 2).to(tl.int32), 8), 8)
    is_there_E = tl.max_constancy((r_E < rank_E) & (count_E > 0), 8)
    b_E = tl.load(rows_ptr + entry_E * 6 + 1) * UNIT + r_E
    b_E = tl.max_contiguous(tl.multiple_of(b_E, 8), 8)
    mine_ET = (t_T[None, :] >= first_E[:, None]) & (t_T[None, :] < (first_E + count_E)[:, None])
    mine_T = tl.max(mine_ET.to(tl.int32), 0)
    # Tokens of the base come before the tiles' tokens, padding comes after: the first tile's groups write
    # theirs.
    first_U = tl.load(places_ptr + tiles + t_T, mask=t_T < tiles, other=0)
    count_U = tl.load(places_ptr + 2 * tiles + t_T, mask=t_T < tiles, other=0)
    last = tl.max(tl.where(count_U > 0, first_U + count_U, 0), 0)
    is_nobodys_T = (t_T < tl.load(places_ptr + tiles)) | (t_T >= last)
    mine_T = (mine_T > 0) | (is_nobodys_T & (group < blocks))
    mine_T &= t_T < tokens
    begin = block * SPAN
    end = tl.minimum(begin + SPAN, stop - start)
    end = tl.where(tl.max(mine_T.to(tl.int32), 0) > 0, end, begin)
    wait_for_inputs(PDL)
    wait_for(arrived_ptr, shrinks, PDL)
    inside_ET = mine_ET & is_there_E[:, None]
    place_ET = (t_T[None, :] * SLICES + index) * bucket + r_E[:, None]
    shrunk_ET = tl.zeros([BLOCK_E, TOKENS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        shrunk_ET += tl.load(
            shrunk_ptr + chunk * tokens * SLICES * bucket + place_ET,
            mask=inside_ET,
            other=0.0,
            cache_modifier=".cg",
        )
    # Two products in half precision keep what rounding the first factor would lose.
    high_ET = shrunk_ET.to(pool_ptr.dtype.element_ty)
    low_ET = (shrunk_ET - high_ET.to(tl.float32)).to(pool_ptr.dtype.element_ty)
    for first in range(begin, end, BLOCK_N):
        n_N = first + i_N
        inside_N = n_N < stop - start
        w_NE = tl.load(
            pool_ptr + (b_E[None, :] + n_N[:, None] * rank_E[None, :]),
            mask=inside_N[:, None] & is_there_E[None, :],
            other=0.0,
        )
        acc_NT = tl.dot(w_NE, high_ET)
        acc_NT = tl.dot(w_NE, low_ET, acc_NT)
        place_NT = part_ptr + t_T.to(tl.int64)[None, :] * outputs + start + n_N[:, None]
        tl.store(place_NT, acc_NT, mask=inside_N[:, None] & mine_T[None, :])
