"""An expand of many adapters of wide ranks, ahead of a product: lora_b in a pipeline, which begins
before what was shrunk is there.

Semantics: `y[t, columns of slice i] = bias + rank[t, i] @ lora_b[i].T`; of nobody's tokens, the bias.

Legend: T tokens, N out features of the packed projection, R rank, L slices.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what becomes of Python in one.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.batch import PackedSlice
from kernels.lora.gpu_kernels import fill
from kernels.lora.programs import slice_of
from kernels.lora.rows import UNIT_BYTES
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles

_MAX_SLICES = 3
_BLOCK_N, _BLOCKS, _STAGES = 128, 4, 3


def expand(
    y_TN: Tensor,
    rank_TLR: Tensor,
    bias_N: Tensor | None,
    *,
    slices: Sequence[PackedSlice],
    tiles: Tiles,
    table: SlotTable,
    fills: int,
) -> None:
    """Write y, in half precision; `fills` programs see to tokens that are nobody's."""
    span = _BLOCK_N * _BLOCKS
    stops = [packed.stop for packed in slices] + [0] * (_MAX_SLICES - len(slices))
    columns = sum(-((packed.start - packed.stop) // span) for packed in slices)
    streamed_expand_kernel[(columns, tiles.count + fills)](
        y_TN,
        rank_TLR,
        bias_N if bias_N is not None else y_TN,
        table.pool,
        table.rows_SL6,
        tiles.places,
        tiles.count,
        len(y_TN),
        slices[0].slice,
        table.scaling_SL.shape[1],
        *stops,
        y_TN.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        SLICES=len(slices),
        BLOCK_T=tiles.block,
        BLOCK_R=1 << (tiles.rank - 1).bit_length(),
        BLOCK_N=_BLOCK_N,
        BLOCKS=_BLOCKS,
        STAGES=_STAGES,
        HAS_BIAS=bias_N is not None,
        num_warps=4,
        num_stages=_STAGES,
        **overlapping(),
    )


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def streamed_expand_kernel(
    y_ptr,
    rank_ptr,
    bias_ptr,
    pool_ptr,
    rows_ptr,
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
    SLICES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has BLOCKS blocks of one tile's columns. Those beyond the tiles see to nobody's tokens."""
    tile = tl.program_id(1)
    span: tl.constexpr = BLOCK_N * BLOCKS
    part, index, start, stop = slice_of(tl.program_id(0), stop_0, stop_1, stop_2, span, SLICES)
    t_T, r_R, i_N = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R), part * span + tl.arange(0, BLOCK_N)
    y_ptr += start
    bias_ptr += start
    if tile >= tiles:
        wait_for_inputs(PDL)
        for block in range(BLOCKS):
            n_N = i_N + block * BLOCK_N
            bias_N = _bias(bias_ptr, n_N, n_N < stop - start, HAS_BIAS)
            fill(y_ptr + n_N, bias_N, n_N < stop - start, places_ptr, tile - tiles, tiles, tokens, stride_y_t)
        return
    slot = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    count = tl.load(places_ptr + 2 * tiles + tile)
    row_ptr = rows_ptr + (slot * table_slices + first_slice + index) * 6
    rank = tl.load(row_ptr + 2).to(tl.int32)
    rank = tl.multiple_of(tl.where(count > 0, rank, 0), 8)
    b_ptr = pool_ptr + tl.multiple_of(tl.load(row_ptr + 1) * UNIT, UNIT)
    inside_T, inside_R = t_T < count, r_R < rank
    rank_T = rank_ptr + ((token + t_T) * SLICES + index) * buffer_rank
    dtype = y_ptr.dtype.element_ty
    high_TR, low_TR = tl.zeros([BLOCK_T, BLOCK_R], dtype), tl.zeros([BLOCK_T, BLOCK_R], dtype)
    for block in tl.range(0, BLOCKS, num_stages=STAGES):
        n_N = i_N + block * BLOCK_N
        inside_N = n_N < stop - start
        b_RN = tl.load(
            (b_ptr + n_N.to(tl.int64) * rank)[None, :] + r_R[:, None],
            mask=inside_R[:, None] & inside_N[None, :],
            other=0.0,
        )
        if block == 0:
            # In the loop, whose first loads a compiler puts ahead of it: they are on their way meanwhile.
            wait_for_inputs(PDL)
            inside_TR = inside_T[:, None] & inside_R[None, :]
            rank_TR = tl.load(rank_T[:, None] + r_R[None, :], mask=inside_TR, other=0.0, cache_modifier=".cg")
            # Two products in half precision keep what rounding the first factor would lose.
            high_TR = rank_TR.to(dtype)
            low_TR = (rank_TR - high_TR.to(tl.float32)).to(dtype)
        acc_TN = tl.dot(low_TR, b_RN, tl.dot(high_TR, b_RN))
        if HAS_BIAS:
            acc_TN += _bias(bias_ptr, n_N, inside_N, HAS_BIAS)[None, :]
        place_TN = y_ptr + ((token + t_T) * stride_y_t)[:, None] + n_N[None, :]
        tl.store(place_TN, acc_TN.to(dtype), mask=inside_T[:, None] & inside_N[None, :])


@triton.jit
def _bias(bias_ptr, n_N, inside_N, HAS_BIAS: tl.constexpr):
    bias_N = tl.zeros(n_N.shape, tl.float32)
    if HAS_BIAS:
        bias_N = tl.load(bias_ptr + n_N, mask=inside_N, other=0.0).to(tl.float32)
    return bias_N
