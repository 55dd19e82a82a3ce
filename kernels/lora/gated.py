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
from kernels.lora.gpu_kernels import adapted_tokens, add_product, sum_splits
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
    if not gate_up_T2I.is_contiguous() or gate_up_T2I.dtype != table.pool.dtype:
        raise ValueError("gate_up must be contiguous and of the pool's dtype")
    cut = choose_gated(tokens, block=tiles.block, rank=tiles.rank)
    out_TI = gate_up_T2I.new_empty(tokens, wide)
    parts = -(-tiles.block // cut.tokens)
    columns = -(-wide // cut.columns)
    plain = -(-tokens // _PLAIN_TOKENS) * -(-wide // _PLAIN_COLUMNS)
    is_half = gate_up_T2I.dtype.itemsize == 2
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
        BLOCK_R=cut.ranks,
        BLOCK_N=cut.columns,
        K_SPLITS=len(rank_CTLR),
        HALVES=is_half,
        IS_ONE_PASS=tiles.rank <= cut.ranks,
        PRECISION="tf32" if is_half else "ieee",
        num_warps=cut.warps,
        num_stages=2,
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
    K_SPLITS: tl.constexpr,
    HALVES: tl.constexpr,
    IS_ONE_PASS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has some columns of a part of a tile; those beyond the tiles share nobody's tokens."""
    columns: tl.constexpr = (WIDE + BLOCK_N - 1) // BLOCK_N
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
    n_N, t_T = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    gate_rank, gate_N = _lora_b(pool_ptr, row_ptr, n_N, UNIT)
    up_rank, up_N = _lora_b(pool_ptr, row_ptr + 6, n_N, UNIT)
    wait_for_inputs(PDL)
    if count <= 0:
        return
    inside_T, inside_N = t_T < count, n_N < WIDE
    inside_TN = inside_T[:, None] & inside_N[None, :]
    place_TN = gate_up_ptr + ((token + t_T) * (2 * WIDE))[:, None] + n_N[None, :]
    # Loads that take long come first. What is converted between, the others would wait for.
    gate_TN = tl.load(place_TN, mask=inside_TN, other=0.0)
    up_TN = tl.load(place_TN + WIDE, mask=inside_TN, other=0.0)
    stride = tokens.to(tl.int64) * 2 * buffer_rank
    rank_T = rank_ptr + (token + t_T) * 2 * buffer_rank
    gate_acc_TN = _expand(
        rank_T,
        gate_N,
        gate_rank,
        inside_T,
        inside_N,
        stride,
        BLOCK_R,
        K_SPLITS,
        IS_ONE_PASS,
        HALVES,
        PRECISION,
    )
    up_acc_TN = _expand(
        rank_T + buffer_rank,
        up_N,
        up_rank,
        inside_T,
        inside_N,
        stride,
        BLOCK_R,
        K_SPLITS,
        IS_ONE_PASS,
        HALVES,
        PRECISION,
    )
    result_TN = gated(gate_TN.to(tl.float32) + gate_acc_TN, up_TN.to(tl.float32) + up_acc_TN)
    out_TN = out_ptr + ((token + t_T) * WIDE)[:, None] + n_N[None, :]
    tl.store(out_TN, result_TN.to(out_ptr.dtype.element_ty), mask=inside_TN)


@triton.jit
def _lora_b(pool_ptr, row_ptr, n_N, UNIT: tl.constexpr):
    """A slice's rank, and where rows of its lora_b begin."""
    rank = tl.multiple_of(tl.load(row_ptr + 2).to(tl.int32), 8)
    b_ptr = pool_ptr + tl.multiple_of(tl.load(row_ptr + 1) * UNIT, UNIT)
    return rank, b_ptr + n_N.to(tl.int64) * rank


@triton.jit
def _expand(
    rank_T,
    b_N,
    rank,
    inside_T,
    inside_N,
    stride,
    BLOCK_R: tl.constexpr,
    K_SPLITS: tl.constexpr,
    IS_ONE_PASS: tl.constexpr,
    HALVES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    if IS_ONE_PASS:
        r_R = tl.arange(0, BLOCK_R)
        inside_R = r_R < rank
        b_RN = tl.load(b_N[None, :] + r_R[:, None], mask=inside_R[:, None] & inside_N[None, :], other=0.0)
        rank_TR = sum_splits(rank_T, r_R, inside_T[:, None] & inside_R[None, :], stride, K_SPLITS)
        return add_product(rank_TR, b_RN, None, HALVES, PRECISION)
    acc_TN = tl.zeros([inside_T.shape[0], inside_N.shape[0]], tl.float32)
    for first in range(0, rank, BLOCK_R):
        r_R = first + tl.arange(0, BLOCK_R)
        inside_R = r_R < rank
        rank_TR = sum_splits(rank_T, r_R, inside_T[:, None] & inside_R[None, :], stride, K_SPLITS)
        b_RN = tl.load(b_N[None, :] + r_R[:, None], mask=inside_R[:, None] & inside_N[None, :], other=0.0)
        acc_TN = add_product(rank_TR, b_RN, acc_TN, HALVES, PRECISION)
    return acc_TN


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
