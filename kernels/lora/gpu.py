"""LoRA in Triton: one shrink and one expand for all tokens and all slices of a packed projection.

Semantics: those of `reference`. Programs read a slice's addresses, rank and scaling from the slot table, so
that adapters of any rank share a launch and each costs what its own rank costs; rank 0 ends a program at
once. Gain and shift are applied where the expand writes its sum, each output being written by one program.
Sums are taken in float32 in an order that does not depend on other tokens' adapters, without atomics;
the scaling is applied in rank space. After S-LoRA (Sheng et al. 2023) and Punica (Chen et al. 2023).

Legend: T tokens, K in features, N out features of the packed projection, R rank, S slots, L slices, C splits
of K.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.batch import PackedSlice, check_packed
from kernels.lora.rows import UNIT_BYTES
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles

_MAX_SLICES = 3
_SHARE_OF_K = 512
_MAX_K_SPLITS = 16
_PROGRAMS, _MAX_PROMPT_SPLITS = 264, 8  # that occupy a GPU; how far few tiles of a prompt are split for it
# Tokens up to which programs wait for memory: more of them, each with all its weights on their way at once.
_FEW_TOKENS = 256
# Tiles from which on programs of an expand may be fewer and larger.
_MANY_TILES = 8


def apply(
    y_TN: Tensor, x_TK: Tensor, *, slices: Sequence[PackedSlice], tiles: Tiles, table: SlotTable
) -> None:
    """Apply each tile's adapter to a projection's output, in place.

    `slices` are consecutive, and so are their columns, from 0 on. Raises ValueError for what does not fit.
    """
    _check(y_TN, slices, table)
    if x_TK.stride(1) != 1:
        raise ValueError("x needs a contiguous last dimension")
    if not tiles.count:
        return
    if not tiles.rank:  # only gains and shifts
        _expand(y_TN, y_TN.new_empty(1, dtype=torch.float32), slices, tiles, table, gathered=False)
        return
    tokens, in_features = x_TK.shape
    few = tokens <= _FEW_TOKENS or table.fixed_order
    is_one_pass = tiles.block == 16 and few and not table.fixed_order
    block_k, k_splits = 64 if x_TK.dtype == torch.float32 else 128, 1
    if is_one_pass:
        block_k = 1 << (max(_SHARE_OF_K, -(-in_features // _MAX_K_SPLITS)) - 1).bit_length()
        k_splits = -(-in_features // block_k)
    elif few:
        k_splits = min(_MAX_K_SPLITS, -(-in_features // _SHARE_OF_K))
    block_r = 16 if few else min(64, 1 << (max(tiles.rank, 16) - 1).bit_length())
    programs = tiles.count * len(slices) * -(-tiles.rank // block_r)
    if not few:
        k_splits = min(_MAX_PROMPT_SPLITS, max(1, _PROGRAMS // programs), -(-in_features // _SHARE_OF_K))
    rank_CTLR = y_TN.new_empty((k_splits, tokens, len(slices), tiles.rank), dtype=torch.float32)
    _shrink_kernel[(tiles.count, len(slices) * -(-tiles.rank // block_r), k_splits)](
        rank_CTLR,
        x_TK,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        tiles.count,
        tokens,
        slices[0].slice,
        table.scaling_SL.shape[1],
        in_features,
        x_TK.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        SLICES=len(slices),
        BLOCK_T=tiles.block,
        BLOCK_R=block_r,
        BLOCK_K=block_k,
        K_SPLITS=k_splits,
        IS_ONE_PASS=is_one_pass,
        # tf32 keeps 10 bits, too few to be compared with the CPU.
        PRECISION="ieee" if x_TK.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
        **overlapping(),
    )
    _expand(y_TN, rank_CTLR, slices, tiles, table, gathered=False)


def embed(y_TD: Tensor, ids_T: Tensor, *, slice_index: int, tiles: Tiles, table: SlotTable) -> None:
    """Look each tile's tokens up in its adapter's lora_a and expand, adding to y in place."""
    slices = (PackedSlice(slice_index, 0, y_TD.shape[1]),)
    _check(y_TD, slices, table)
    if tiles.count:
        _expand(y_TD, ids_T, slices, tiles, table, gathered=True)


def _expand(
    y_TN: Tensor,
    source: Tensor,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    *,
    gathered: bool,
) -> None:
    """`source` is the shrunk `[C, T, L, R]` float32, or ids `[T]` int64 whose rows of lora_a to gather."""
    stops = [packed.stop for packed in slices] + [0] * (_MAX_SLICES - len(slices))
    block_n, block_r = 64, 16
    if not table.fixed_order:
        block_n = 128 if tiles.block == 64 else 256 if tiles.count >= _MANY_TILES else 64
        block_r = min(64, 1 << (max(tiles.rank, 16) - 1).bit_length())
    k_splits = source.shape[0] if source.dim() == 4 else 1
    columns = sum(-((packed.start - packed.stop) // block_n) for packed in slices)
    _expand_kernel[(columns, tiles.count)](
        y_TN,
        source,
        table.pool,
        table.vectors,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        tiles.count,
        y_TN.shape[0],
        slices[0].slice,
        table.scaling_SL.shape[1],
        *stops,
        y_TN.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        VECTOR_UNIT=UNIT_BYTES // 4,
        SLICES=len(slices),
        BLOCK_T=tiles.block,
        BLOCK_R=block_r,
        BLOCK_N=block_n,
        K_SPLITS=k_splits,
        GATHERED=gathered,
        HALVES=y_TN.dtype != torch.float32,
        IS_ONE_PASS=tiles.rank <= block_r and not table.fixed_order,
        PRECISION="ieee" if y_TN.dtype == torch.float32 else "tf32",
        num_warps=4,
        # The splits of a block would not fit in shared memory twice.
        num_stages=2 if k_splits == 1 else 1,
        **overlapping(),
    )


def _check(y_TN: Tensor, slices: Sequence[PackedSlice], table: SlotTable) -> None:
    check_packed(tuple(slices), y_TN.shape[1], most=_MAX_SLICES)
    if y_TN.stride(1) != 1 or y_TN.dtype != table.pool.dtype:
        raise ValueError(f"y needs a contiguous last dimension and the pool's dtype, got {y_TN.dtype}")


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def _shrink_kernel(
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
    """rank[c, t, i] = scaling * x[t, share c] @ lora_a[:, share c].T; untouched slices are not written."""
    tile, index, split = tl.program_id(0), tl.program_id(1) % SLICES, tl.program_id(2)
    first_rank = tl.program_id(1) // SLICES * BLOCK_R
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
        # Weights are on their way before x is there.
        inside_K = begin + k_K < end
        a_RK = tl.load(
            a_R[:, None] + (begin + k_K)[None, :], mask=(r_R < rank)[:, None] & inside_K[None, :], other=0.0
        )
        wait_for_inputs(PDL)
        if first_rank >= rank:
            return
        x_TK = tl.load(
            x_T[:, None] + (begin + k_K)[None, :], mask=(t_T < count)[:, None] & inside_K[None, :], other=0.0
        )
        acc_TR = tl.dot(x_TK, tl.trans(a_RK), acc_TR, input_precision=PRECISION)
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
    place_T = ((split * tokens + token + t_T) * SLICES + index) * buffer_rank
    tl.store(
        rank_ptr + place_T[:, None] + r_R[None, :],
        acc_TR * tl.load(scaling_ptr + entry),
        mask=(t_T < count)[:, None] & (r_R < rank)[None, :],
    )


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def _expand_kernel(
    y_ptr,
    source_ptr,
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
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[t, columns of slice i] = gain[i] * (y + rank[t, i] @ lora_b.T) + shift[i], the splits of rank summed
    first.
    """
    block, tile = tl.program_id(0), tl.program_id(1)
    index, start, stop = 0, 0, stop_0
    if SLICES > 1:
        blocks = tl.cdiv(stop_0, BLOCK_N)
        if block >= blocks:
            index, start, stop = 1, stop_0, stop_1
            block -= blocks
            if SLICES > 2:
                blocks = tl.cdiv(stop_1 - stop_0, BLOCK_N)
                if block >= blocks:
                    index, start, stop = 2, stop_1, stop_2
                    block -= blocks
    slot = tl.load(places_ptr + tile).to(tl.int64)
    count = tl.load(places_ptr + 2 * tiles + tile)
    entry = slot * table_slices + first_slice + index
    rank = tl.load(rows_ptr + entry * 6 + 2).to(tl.int32)
    # Plus one; 0 means none.
    gain_unit, shift_unit = tl.load(rows_ptr + entry * 6 + 3), tl.load(rows_ptr + entry * 6 + 4)
    is_idle = (count == 0) | ((rank == 0) & (gain_unit == 0) & (shift_unit == 0))
    rank = tl.multiple_of(tl.where(is_idle, 0, rank), 8)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    b_ptr = pool_ptr + tl.multiple_of(tl.load(rows_ptr + entry * 6 + 1) * UNIT, UNIT)

    t_T, r_R = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    n_N = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_T, inside_N = t_T < count, n_N < stop - start
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
    acc_TN = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for first in range(0, rank, BLOCK_R):
        inside_R = first + r_R < rank
        inside_TR = inside_T[:, None] & inside_R[None, :]
        rank_TR = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for split in tl.static_range(K_SPLITS):
            place_T = row_T + (split * tokens).to(tl.int64) * SLICES * buffer_rank
            rank_TR += tl.load(place_T[:, None] + (first + r_R)[None, :], mask=inside_TR, other=0.0).to(
                tl.float32
            )
        rank_TR *= scaling
        if not IS_ONE_PASS:
            b_NR = tl.load(
                b_N[:, None] + (first + r_R)[None, :],
                mask=inside_N[:, None] & inside_R[None, :],
                other=0.0,
            )
        if HALVES:
            # Two products in half precision keep what rounding the first factor would lose.
            high_TR = rank_TR.to(b_NR.dtype)
            low_TR = (rank_TR - high_TR.to(tl.float32)).to(b_NR.dtype)
            acc_TN = tl.dot(high_TR, tl.trans(b_NR), acc_TN)
            acc_TN = tl.dot(low_TR, tl.trans(b_NR), acc_TN)
        else:
            acc_TN = tl.dot(rank_TR, tl.trans(b_NR), acc_TN, input_precision=PRECISION)
    place_TN = y_ptr + ((token + t_T) * stride_y_t)[:, None] + (start + n_N)[None, :]
    inside_TN = inside_T[:, None] & inside_N[None, :]
    y_TN = tl.load(place_TN, mask=inside_TN, other=0.0)
    gain_ptr = vectors_ptr + tl.multiple_of((gain_unit - 1) * VECTOR_UNIT, VECTOR_UNIT)
    shift_ptr = vectors_ptr + tl.multiple_of((shift_unit - 1) * VECTOR_UNIT, VECTOR_UNIT)
    gain_N = tl.load(gain_ptr + n_N, mask=inside_N & (gain_unit != 0), other=1.0)
    shift_N = tl.load(shift_ptr + n_N, mask=inside_N & (shift_unit != 0), other=0.0)
    adapted_TN = gain_N[None, :] * (y_TN.to(tl.float32) + acc_TN) + shift_N[None, :]
    tl.store(place_TN, adapted_TN.to(y_TN.dtype), mask=inside_TN)
