"""silu(gate) * up of a product to which adapters are still to be added, by the step that reads it anyway.

Semantics: `out[t] = silu(gate[t] + rank[t, 0] @ lora_b[0].T) * (up[t] + rank[t, 1] @ lora_b[1].T)`, with what
`gpu.shrink` left in rank; of tokens that are nobody's, silu(gate[t]) * up[t]. Sums are taken in float32 and
rounded once.

Legend: T tokens, N columns of gate, or of up, R rank, L slices, C splits of sums, I intermediate.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what becomes of Python in one.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.batch import PackedSlice, check_packed
from kernels.lora.gpu_kernels import adapted_tokens, sum_splits
from kernels.lora.gpu_tiles import choose_gated
from kernels.lora.rows import UNIT_BYTES
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles

_MOST_PLAIN = 264
_PLAIN_TOKENS, _PLAIN_COLUMNS = 4, 1024
"""Of nobody, that a program has at a time."""


def silu_mul(
    gate_up_T2I: Tensor,
    rank_CTLR: Tensor,
    *,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    covers: bool,
) -> Tensor:
    """`[T, I]`. `covers`: the tiles are known to be of all tokens.

    Raises ValueError for what does not fit.
    """
    check_packed(tuple(slices), gate_up_T2I.shape[1], most=2)
    if len(slices) != 2 or 2 * slices[0].stop != slices[1].stop:
        raise ValueError(f"slices must be two halves, got {slices}")
    tokens, wide = len(gate_up_T2I), gate_up_T2I.shape[1] // 2
    dtype = table.pool.dtype
    if not gate_up_T2I.is_contiguous() or gate_up_T2I.dtype != dtype or dtype.itemsize != 2:
        raise ValueError(
            f"gate_up must be contiguous and of the pool's dtype, in half precision, got {dtype}"
        )
    cut = choose_gated(block=tiles.block, rank=tiles.rank)
    out_TI = gate_up_T2I.new_empty(tokens, wide)
    parts = -(-tiles.block // cut.tokens)
    columns = -(-wide // (cut.columns * cut.blocks))
    plain = -(-tokens // _PLAIN_TOKENS) * -(-wide // _PLAIN_COLUMNS)
    silu_mul_kernel[(tiles.count * parts * columns + (0 if covers else min(plain, _MOST_PLAIN)),)](
        out_TI,
        gate_up_T2I,
        rank_CTLR,
        table.pool,
        table.rows_SL6,
        tiles.places,
        tiles.count,
        tokens,
        slices[0].slice,
        table.scaling_SL.shape[1],
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        WIDE=wide,
        PARTS=parts,
        PLAIN_T=_PLAIN_TOKENS,
        PLAIN_N=_PLAIN_COLUMNS,
        BLOCK_T=cut.tokens,
        BLOCK_R=max(16, 1 << (tiles.rank - 1).bit_length()),
        BLOCK_N=cut.columns,
        BLOCKS=cut.blocks,
        STAGES=cut.stages,
        K_SPLITS=len(rank_CTLR),
        num_warps=cut.warps,
        num_stages=cut.stages,
        **overlapping(),
    )
    return out_TI


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def silu_mul_kernel(
    out_ptr,
    gate_up_ptr,
    rank_ptr,
    pool_ptr,
    rows_ptr,
    places_ptr,
    tiles,
    tokens,
    first_slice,
    table_slices,
    buffer_rank,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PLAIN_T: tl.constexpr,
    PLAIN_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    K_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has columns of a part of a tile, block after block: some are on their way while others are
    computed. Those beyond the tiles share nobody's tokens.
    """
    columns: tl.constexpr = (WIDE + BLOCK_N * BLOCKS - 1) // (BLOCK_N * BLOCKS)
    part = tl.program_id(0) // columns
    if part >= tiles * PARTS:
        wait_for_inputs(PDL)
        others = tiles * PARTS * columns
        number, programs = tl.program_id(0) - others, tl.num_programs(0) - others
        _plain(out_ptr, gate_up_ptr, places_ptr, number, programs, tiles, tokens, WIDE, PLAIN_T, PLAIN_N)
        return
    tile, begin = part // PARTS, part % PARTS * BLOCK_T
    slot = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64) + begin
    count = tl.load(places_ptr + 2 * tiles + tile) - begin
    row_ptr = rows_ptr + (slot * table_slices + first_slice) * 6
    gate_rank, gate_ptr = _lora_b(pool_ptr, row_ptr, UNIT)
    up_rank, up_ptr = _lora_b(pool_ptr, row_ptr + 6, UNIT)
    wait_for_inputs(PDL)
    if count <= 0:
        return
    dtype = out_ptr.dtype.element_ty
    t_T, r_R = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    inside_T = t_T < count
    stride = tokens.to(tl.int64) * 2 * buffer_rank
    rank_T = rank_ptr + (token + t_T) * 2 * buffer_rank
    inside_gate_R, inside_up_R = r_R < gate_rank, r_R < up_rank
    gate_TR = sum_splits(rank_T, r_R, inside_T[:, None] & inside_gate_R[None, :], stride, K_SPLITS)
    up_TR = sum_splits(rank_T + buffer_rank, r_R, inside_T[:, None] & inside_up_R[None, :], stride, K_SPLITS)
    gate_high_TR, gate_low_TR = _halves(gate_TR, dtype)
    up_high_TR, up_low_TR = _halves(up_TR, dtype)
    y_T = gate_up_ptr + (token + t_T) * (2 * WIDE)
    out_T = out_ptr + (token + t_T) * WIDE
    first = tl.program_id(0) % columns * (BLOCK_N * BLOCKS)
    for block in tl.range(0, BLOCKS, num_stages=STAGES):
        n_N = first + block * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_N = n_N < WIDE
        inside_TN = inside_T[:, None] & inside_N[None, :]
        gate_TN = tl.load(y_T[:, None] + n_N[None, :], mask=inside_TN, other=0.0)
        up_TN = tl.load(y_T[:, None] + (n_N + WIDE)[None, :], mask=inside_TN, other=0.0)
        gate_RN = tl.load(
            (gate_ptr + n_N.to(tl.int64) * gate_rank)[None, :] + r_R[:, None],
            mask=inside_gate_R[:, None] & inside_N[None, :],
            other=0.0,
        )
        up_RN = tl.load(
            (up_ptr + n_N.to(tl.int64) * up_rank)[None, :] + r_R[:, None],
            mask=inside_up_R[:, None] & inside_N[None, :],
            other=0.0,
        )
        gate_acc_TN = tl.dot(gate_low_TR, gate_RN, tl.dot(gate_high_TR, gate_RN))
        up_acc_TN = tl.dot(up_low_TR, up_RN, tl.dot(up_high_TR, up_RN))
        result_TN = gated(gate_TN.to(tl.float32) + gate_acc_TN, up_TN.to(tl.float32) + up_acc_TN)
        tl.store(out_T[:, None] + n_N[None, :], result_TN.to(dtype), mask=inside_TN)


@triton.jit
def _lora_b(pool_ptr, row_ptr, UNIT: tl.constexpr):
    """A slice's rank, and where its lora_b is."""
    rank = tl.multiple_of(tl.load(row_ptr + 2).to(tl.int32), 8)
    return rank, pool_ptr + tl.multiple_of(tl.load(row_ptr + 1) * UNIT, UNIT)


@triton.jit
def _halves(rank_TR, dtype: tl.constexpr):
    """Two products in half precision keep what rounding the first factor would lose."""
    high_TR = rank_TR.to(dtype)
    return high_TR, (rank_TR - high_TR.to(tl.float32)).to(dtype)


@triton.jit
def _plain(
    out_ptr,
    gate_up_ptr,
    places_ptr,
    number,
    programs,
    tiles,
    tokens,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some columns of some of nobody's tokens after another."""
    first, last = adapted_tokens(places_ptr, tiles)
    columns: tl.constexpr = (WIDE + BLOCK_N - 1) // BLOCK_N
    for item in range(number, tl.cdiv(first + tokens - last, BLOCK_T) * columns, programs):
        t_T = item // columns * BLOCK_T + tl.arange(0, BLOCK_T)
        t_T = tl.where(t_T < first, t_T, t_T - first + last)
        n_N = item % columns * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_TN = (t_T < tokens)[:, None] & (n_N < WIDE)[None, :]
        place_TN = (t_T.to(tl.int64) * WIDE)[:, None] + n_N[None, :]
        gate_TN = gate_up_ptr + (t_T.to(tl.int64) * (2 * WIDE))[:, None] + n_N[None, :]
        gate = tl.load(gate_TN, mask=inside_TN, other=0.0).to(tl.float32)
        up = tl.load(gate_TN + WIDE, mask=inside_TN, other=0.0).to(tl.float32)
        tl.store(out_ptr + place_TN, gated(gate, up).to(out_ptr.dtype.element_ty), mask=inside_TN)


@triton.jit
def gated(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up
